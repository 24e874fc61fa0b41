//! What a worker is told to do, whatever it is doing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

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
