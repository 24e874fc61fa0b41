//! All that crosses down: messages to write, and orders. Touches `message` and atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::message::Message;
use crate::request::RequestId;

/// So much time after `now`; for a time beyond all reason, a year.
pub(crate) fn later(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 86_400))
}

/// An accepted message on its way to the socket.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) message: Message,
    /// The connection it was accepted for; `None`: whichever comes next.
    pub(crate) epoch: Option<u64>,
    pub(crate) receipt: Option<Arc<Receipt>>,
    /// How many of the rate limits have let it pass. What waits for a connection is charged when it is written.
    pub(crate) charged: usize,
    /// Its place among those that wait for the next connection, until it is written or handed back.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) place: Option<Place>,
}

impl Outbound {
    /// One that the rate limits have let pass, or that they do not concern.
    pub(crate) fn charged(message: Message, epoch: Option<u64>, receipt: Option<Arc<Receipt>>) -> Self {
        Self { message, epoch, receipt, charged: usize::MAX, place: None }
    }
}

/// The places of `queue_while_disconnected`.
#[derive(Debug, Default)]
pub(crate) struct Places(Arc<AtomicUsize>);

/// A place that is taken; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

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

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a `send_confirmed` or a request learns what became of its message, and takes it back while it still can.
#[derive(Debug)]
pub(crate) struct Receipt {
    state: AtomicU8,
    account: Account,
}

#[derive(Debug)]
enum Account {
    Confirmed(Sender<bool>),
    Request(RequestId),
}

const WAITING: u8 = 0;
const WRITING: u8 = 1;
const TAKEN_BACK: u8 = 2;

impl Receipt {
    pub(crate) fn new(written: Sender<bool>) -> Self {
        Self { state: WAITING.into(), account: Account::Confirmed(written) }
    }

    pub(crate) fn request(id: RequestId) -> Self {
        Self { state: WAITING.into(), account: Account::Request(id) }
    }

    /// The request that the message is, if it is one.
    pub(crate) fn request_id(&self) -> Option<&RequestId> {
        match &self.account {
            Account::Request(id) => Some(id),
            Account::Confirmed(_) => None,
        }
    }

    /// The worker is about to write the message. False: the caller has it back.
    pub(crate) fn begin(&self) -> bool {
        self.claim(WRITING)
    }

    /// The caller wants it back. False: too late.
    pub(crate) fn take_back(&self) -> bool {
        self.claim(TAKEN_BACK)
    }

    /// It was not written after all, and waits for the next connection.
    pub(crate) fn wait_again(&self) {
        let _ = self.state.compare_exchange(WRITING, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    fn claim(&self, state: u8) -> bool {
        self.state.compare_exchange(WAITING, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn settle(&self, written: bool) {
        if let Account::Confirmed(sender) = &self.account {
            let _ = sender.try_send(written);
        }
    }
}

/// What a worker is told to do, whatever it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) kind: OrderKind,
    /// When the orderly end must be over.
    pub(crate) deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OrderKind {
    /// End this run; whether another follows is for the restart rule.
    Close,
    /// End for good.
    Stop,
    /// End this run so that a fresh one can begin.
    Restart,
}

/// The place for the one order that stands.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pending: AtomicBool,
    order: Mutex<Option<Order>>,
}

impl Orders {
    /// Gives an order. A stop is never overruled.
    pub(crate) fn give(&self, order: Order) {
        let mut slot = self.order.lock();
        if slot.is_none_or(|standing| standing.kind != OrderKind::Stop || order.kind == OrderKind::Stop) {
            *slot = Some(order);
        }
        self.pending.store(true, Ordering::Release);
    }

    pub(crate) fn pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn standing(&self) -> Option<Order> {
        if self.pending() { *self.order.lock() } else { None }
    }

    pub(crate) fn stop_ordered(&self) -> bool {
        self.standing().is_some_and(|order| order.kind == OrderKind::Stop)
    }

    /// The order is being obeyed. A stop stands.
    pub(crate) fn clear(&self) {
        let mut slot = self.order.lock();
        if slot.is_some_and(|standing| standing.kind != OrderKind::Stop) {
            *slot = None;
            self.pending.store(false, Ordering::Release);
        }
    }
}
