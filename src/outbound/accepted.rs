//! A message that was accepted, on its way to the socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::message::Message;
use crate::receipt::Receipt;

/// An accepted message on its way to the socket.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) message: Message,
    /// The connection it was accepted for; `None`: whichever comes next.
    pub(crate) epoch: Option<u64>,
    pub(crate) receipt: Option<Arc<Receipt>>,
    pub(crate) fee: Fee,
    /// Its place among those that wait for the next connection, until it is written or handed back.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) place: Option<Place>,
}

/// What the rate limits are still owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fee {
    Paid,
    /// It waits for a connection, and is charged when it is written. The first `passed` limits have been paid.
    Owed {
        passed: usize,
    },
}

impl Accepted {
    /// For the open connection; the rate limits have let it pass.
    pub(crate) fn paid(message: Message, epoch: Option<u64>, receipt: Option<Arc<Receipt>>) -> Self {
        Self { message, epoch, receipt, fee: Fee::Paid, place: None }
    }
}

/// The places of `queue_while_disconnected`.
#[derive(Debug, Default)]
pub(crate) struct Places(Arc<AtomicUsize>);

impl Places {
    /// Takes one of `max` places, if one is free.
    pub(crate) fn take(&self, max: usize) -> Option<Place> {
        let claim = |taken: usize| (taken < max).then_some(taken + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).ok()?;
        Some(Place(self.0.clone()))
    }

    pub(crate) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A place that is taken; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
