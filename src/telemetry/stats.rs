//! What can be counted about a client, read from any thread without holding up the worker.

use std::time::{Duration, Instant};

use crate::policy::requests::RequestOutcomes;
use crate::telemetry::counter::{Counter, Latencies, Percentiles, Times};
use crate::telemetry::duty::{Duty, Pauses};
use crate::telemetry::health::Health;

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
    /// Messages and requests of yours that were accepted. Each is among `sent` or `unsent` once it has ended; until then it
    /// waits.
    pub accepted: u64,
    /// Those that the kernel had in full.
    pub sent: u64,
    /// Those of them that were lost with a connection, or may have been: the peer's kernel never acknowledged them.
    pub uncertain: u64,
    /// Those that were never written, and were handed back.
    pub unsent: u64,
    /// Received messages that the overflow policy dropped.
    pub dropped: u64,
    /// Bytes taken from the socket: frames and TLS too.
    pub bytes_received: u64,
    /// Bytes given to the socket, by whichever thread: frames and TLS too.
    pub bytes_sent: u64,
    /// When the latest message that is yours came; `None` before the first. Right to one batch of reading.
    pub last_message: Option<Instant>,
    /// Accepted messages that wait to be written.
    pub queued: usize,
    /// Events in [`Client::events`](crate::Client::events) that nobody has read yet. A batch is one.
    pub unread: usize,
    /// Requests that wait for their answers.
    pub pending_requests: usize,
    /// How requests have ended.
    pub requests: RequestOutcomes,
    /// Signs of life that the heartbeat counts: pongs, venue's pings, heartbeat messages.
    pub heartbeats: u64,
    /// Connections opened after the first.
    pub reconnects: u64,
    /// Attempts to connect that failed.
    pub failed_attempts: u64,
    /// Times the supervisor started the worker anew.
    pub restarts: u64,
    /// For how long the socket has been left unread by now, since its events are not read; `None` while it is read.
    pub paused_for: Option<Duration>,
    /// For how long it was so in all.
    pub paused: Duration,
    /// Turns of the worker's loop that took longer than `stall_threshold`.
    pub stalls: u64,
    /// The longest turn of the worker's loop that has ended, most of it your handler: nothing was read meanwhile.
    pub longest_turn: Duration,
    /// From a request of yours to its answer, refusals among them; to the microsecond. By method:
    /// [`Client::request_latencies`](crate::Client::request_latencies).
    pub request_latency: Percentiles,
    /// From a ping, or a heartbeat message that has an answer, to its answer; to the microsecond.
    pub ping_round_trip: Percentiles,
    /// From the kernel's receipt to the worker's read; one measurement a read. Empty unless
    /// `ClientConfig::kernel_timestamps` asked for it.
    pub time_in_socket: Percentiles,
}

/// What waits, in both directions, and how requests ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Depths {
    pub(crate) queued: usize,
    pub(crate) unread: usize,
    pub(crate) pending_requests: usize,
    pub(crate) requests: RequestOutcomes,
}

/// What became of what was accepted.
pub(crate) struct Ended {
    pub(crate) accepted: u64,
    pub(crate) sent: u64,
    pub(crate) unsent: u64,
    pub(crate) uncertain: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) epoch: Counter,
    pub(crate) received: Counter,
    /// Of these, received on earlier connections.
    pub(crate) received_before: Counter,
    pub(crate) dropped: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) heartbeats: Counter,
    pub(crate) failed_attempts: Counter,
    pub(crate) restarts: Counter,
    pub(crate) request_latency: Latencies,
    /// Microseconds.
    pub(crate) ping_round_trip: Times,
    /// Nanoseconds.
    pub(crate) time_in_socket: Times,
}

impl Counters {
    pub(crate) fn snapshot(
        &self,
        health: &Health,
        duty: &Duty,
        pauses: &Pauses,
        ended: Ended,
        depths: Depths,
    ) -> Stats {
        let Ended { accepted, sent, unsent, uncertain, bytes } = ended;
        let Depths { queued, unread, pending_requests, requests } = depths;
        let now = Instant::now();
        let epoch = self.epoch.get();
        let (before, received) = (self.received_before.get(), self.received.get());
        Stats {
            epoch,
            received,
            received_this_epoch: received.saturating_sub(before),
            accepted,
            sent,
            uncertain,
            unsent,
            dropped: self.dropped.get(),
            bytes_received: self.bytes_received.get(),
            bytes_sent: bytes,
            last_message: health.last_message(),
            queued,
            unread,
            pending_requests,
            requests,
            heartbeats: self.heartbeats.get(),
            reconnects: epoch.saturating_sub(1),
            failed_attempts: self.failed_attempts.get(),
            restarts: self.restarts.get(),
            paused_for: pauses.lasts(now),
            paused: pauses.total(now),
            stalls: duty.excesses(),
            longest_turn: duty.longest(),
            request_latency: self.request_latency.all.percentiles(Duration::from_micros(1)),
            ping_round_trip: self.ping_round_trip.percentiles(Duration::from_micros(1)),
            time_in_socket: self.time_in_socket.percentiles(Duration::from_nanos(1)),
        }
    }
}
