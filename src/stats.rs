//! What can be counted about a client, read from any thread without holding up the worker. Touches atomics only.

use std::sync::atomic::{AtomicU64, Ordering};

/// A client's counters since it was spawned, across reconnects and restarts. They are read one by one, so while the
/// client runs they may be a message apart from one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Number of the current or last connection; 0 before the first.
    pub epoch: u64,
    /// Messages received, heartbeats among them.
    pub received: u64,
    /// Of these, received on the current or last connection.
    pub received_this_epoch: u64,
    /// Messages of yours that the kernel has in full.
    pub sent: u64,
    /// Accepted messages that were handed back.
    pub unsent: u64,
    /// Received messages that the overflow policy dropped.
    pub dropped: u64,
    /// Signs of life that the heartbeat counts: pongs, venue's pings, heartbeat messages.
    pub heartbeats: u64,
    /// Connections opened after the first.
    pub reconnects: u64,
    /// Attempts to connect that failed.
    pub failed_attempts: u64,
    /// Times the supervisor started the worker anew.
    pub restarts: u64,
}

/// One writer at a time (the worker, or the supervisor while there is no worker), any number of readers.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) epoch: Counter,
    pub(crate) received: Counter,
    /// Of these, received on earlier connections.
    pub(crate) received_before: Counter,
    pub(crate) sent: Counter,
    pub(crate) unsent: Counter,
    pub(crate) dropped: Counter,
    pub(crate) heartbeats: Counter,
    pub(crate) failed_attempts: Counter,
    pub(crate) restarts: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Stats {
        let epoch = self.epoch.get();
        let (before, received) = (self.received_before.get(), self.received.get());
        Stats {
            epoch,
            received,
            received_this_epoch: received.saturating_sub(before),
            sent: self.sent.get(),
            unsent: self.unsent.get(),
            dropped: self.dropped.get(),
            heartbeats: self.heartbeats.get(),
            reconnects: epoch.saturating_sub(1),
            failed_attempts: self.failed_attempts.get(),
            restarts: self.restarts.get(),
        }
    }
}
