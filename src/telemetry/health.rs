//! What can be read about a client's heartbeat from any thread, wait-free for the worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::policy::heartbeat::{Heartbeat, HeartbeatKind};
use crate::policy::monitors::Monitors;

/// How a client's heartbeat does; see [`Client::heartbeat_health`](crate::Client::heartbeat_health).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeartbeatHealth {
    /// Which kind runs.
    pub kind: HeartbeatKind,
    /// Its interval; `None` when disabled.
    pub interval: Option<Duration>,
    /// When the last heartbeat was *received*, on any connection of this client; `None` before the first.
    pub last_received: Option<Instant>,
    /// Misses in a row on the current connection.
    pub consecutive_failures: u32,
    /// Time from the last answered ping or heartbeat message to its answer, where the kind has one.
    pub last_round_trip: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Health {
    born: Instant,
    /// Nanoseconds since `born`, plus one; 0 is never.
    last_received: AtomicU64,
    /// The same of the caller's latest message.
    last_message: AtomicU64,
    failures: AtomicU64,
    /// Nanoseconds plus one; 0 is never.
    round_trip: AtomicU64,
}

impl Health {
    pub(crate) fn new(now: Instant) -> Self {
        Self { born: now, last_received: 0.into(), last_message: 0.into(), failures: 0.into(), round_trip: 0.into() }
    }

    pub(crate) fn publish(&self, monitor: &Monitors) {
        self.failures.store(monitor.failures().into(), Ordering::Relaxed);
        if let Some(at) = monitor.last_received() {
            self.last_received.store(encode(at.saturating_duration_since(self.born)), Ordering::Relaxed);
        }
        if let Some(time) = monitor.round_trip() {
            self.round_trip.store(encode(time), Ordering::Relaxed);
        }
    }

    pub(crate) fn message_came(&self, at: Instant) {
        self.last_message.store(encode(at.saturating_duration_since(self.born)), Ordering::Relaxed);
    }

    pub(crate) fn last_message(&self) -> Option<Instant> {
        decode(&self.last_message).map(|since| self.born + since)
    }

    pub(crate) fn read(&self, rules: &Heartbeat) -> HeartbeatHealth {
        HeartbeatHealth {
            kind: rules.kind(),
            interval: rules.interval(),
            last_received: decode(&self.last_received).map(|since| self.born + since),
            consecutive_failures: u32::try_from(self.failures.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
            last_round_trip: decode(&self.round_trip),
        }
    }
}

fn encode(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).map_or(u64::MAX, |nanos| nanos.saturating_add(1))
}

fn decode(cell: &AtomicU64) -> Option<Duration> {
    cell.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
}
