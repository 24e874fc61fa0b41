//! What is counted, given to the [`metrics`](https://docs.rs/metrics) facade: whichever exporter the program installs gets it.
//!
//! Install the recorder before the first client is spawned: what is published without one is gone. Numbers of
//! [`Stats`] and [`HeartbeatHealth`] are published by the supervisor's thread once in a
//! [`metrics_interval`](crate::SupervisorBuilder::metrics_interval) and as a client closes, so a message costs nothing more
//! than without; what happens seldom (an end, an attempt, a restart) is published as it happens. A client without a supervisor
//! publishes by [`Client::publish_metrics`](crate::Client::publish_metrics).
//!
//! Nothing of this happens under a lock of the supervisor's, so a recorder that is slow holds up publishing, and no client; but
//! what is told as it happens to a connection is told on the client's thread: let a recorder not block.
//!
//! Every name has the labels `client` and `venue` ([`Venue::name`](crate::venue::Venue::name), or the host), but for those that
//! begin with `ws_supervisor`.
//!
#![doc = "| name | kind, unit, further labels | what |"]
#![doc = "|---|---|---|"]
#![doc = include_str!("metrics.md")]
//!
//! ```
//! use ws_supervisor::{Supervisor, metrics};
//!
//! // my_exporter::install();
//! metrics::describe();
//! let supervisor = Supervisor::start()?;
//! assert!(metrics::NAMES.iter().any(|(name, _, _)| *name == "ws_messages_uncertain_total"));
//! # Ok::<(), ws_supervisor::StartError>(())
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::metrics::{Label, Unit, counter, gauge, histogram};
use hdrhistogram::Histogram;

use crate::core::Core;
use crate::error::ConnectError;
use crate::lifecycle::{ExitReason, ParkReason};
use crate::logger;
use crate::state::{DisconnectReason, ReadyState, Tag};
use crate::telemetry::duty::Doing;
use crate::telemetry::health::HeartbeatHealth;
use crate::telemetry::stats::Stats;
use crate::user_code::{PROCESS, UserCode};

/// A name, its kind (`counter`, `gauge` or `histogram`) with its unit and further labels, and what it says.
pub type Name = (&'static str, &'static str, &'static str);

/// All names that are published.
pub const NAMES: &[Name] = &[
    ("ws_messages_received_total", "counter", "Messages received, heartbeats among them"),
    ("ws_messages_dropped_total", "counter", "Received messages that the overflow policy dropped"),
    ("ws_messages_accepted_total", "counter", "Messages and requests of yours that were accepted"),
    ("ws_messages_sent_total", "counter", "Those of them that the kernel had in full"),
    ("ws_messages_uncertain_total", "counter", "Those sent that may have been lost with a connection"),
    ("ws_messages_unsent_total", "counter", "Those never written, and handed back"),
    ("ws_received_bytes_total", "counter, bytes", "Taken from the socket: frames and TLS too"),
    ("ws_sent_bytes_total", "counter, bytes", "Given to the socket: frames and TLS too"),
    ("ws_heartbeats_total", "counter", "Signs of life that the heartbeat counts"),
    ("ws_requests_total", "counter, `outcome`", "Requests by how they ended: the fields of `RequestOutcomes`"),
    ("ws_connections_total", "counter", "Connections that were open"),
    ("ws_disconnects_total", "counter, `reason`", "Open connections that ended: `DisconnectReason::kind`"),
    ("ws_connect_failures_total", "counter, `reason`", "Attempts that failed: `ConnectError::kind`"),
    ("ws_restarts_total", "counter, `reason`", "Workers started anew: `ExitReason::kind`"),
    ("ws_parks_total", "counter, `reason`", "Times it was given up on: `ParkReason::kind`"),
    ("ws_stalls_total", "counter", "Turns of the worker's loop longer than `stall_threshold`, once they have ended"),
    ("ws_stalled_total", "counter, `doing`", "The same while they last, by what has not returned: `Doing::kind`"),
    ("ws_reader_behind_total", "counter", "Times its socket was not read for long, since its events were not"),
    ("ws_left_behind_total", "counter", "Times its thread did not end in time"),
    ("ws_open", "gauge", "1 while a connection is open"),
    ("ws_parked", "gauge", "1 while it is parked"),
    ("ws_queued_messages", "gauge", "Accepted messages that wait to be written"),
    ("ws_unread_events", "gauge", "Events in its own channel that nobody has read"),
    ("ws_pending_requests", "gauge", "Requests that wait for their answers"),
    ("ws_paused_seconds", "gauge, seconds", "For how long its socket has been left unread by now; 0 while it is read"),
    ("ws_paused_in_all_seconds", "gauge, seconds", "For how long it was so in all"),
    ("ws_longest_turn_seconds", "gauge, seconds", "The longest turn of the worker's loop, most of it your handler"),
    ("ws_message_age_seconds", "gauge, seconds", "How long ago the latest message of yours came"),
    ("ws_heartbeat_age_seconds", "gauge, seconds", "How long ago the latest heartbeat came"),
    ("ws_heartbeat_failures", "gauge", "Heartbeats missed in a row"),
    (
        "ws_request_seconds",
        "histogram, seconds, `method`",
        "From a request to its answer; the first 64 methods of a client",
    ),
    ("ws_ping_round_trip_seconds", "histogram, seconds", "From a ping or heartbeat message to its answer"),
    ("ws_time_in_socket_seconds", "histogram, seconds", "From the kernel's receipt to the worker's read, once a read"),
    ("ws_dial_seconds", "histogram, seconds, `stage`", "Steps of opening a connection: `Phase::kind`, and `session`"),
    ("ws_supervisor_clients", "gauge, `state`", "Clients that are `running`, `open`, `restarting`, `parked`"),
    ("ws_supervisor_recovered_total", "counter", "Panics of the supervisor's own thread"),
];

/// Every value of the further labels: a series that appears only with its first count is none that an alert sees rise.
const KINDS: &[(&str, &str, &[&str])] = &[
    (
        "ws_disconnects_total",
        "reason",
        &[
            "closed_by_server",
            "transport",
            "protocol",
            "heartbeat_lost",
            "overflow",
            "deserted",
            "restart_requested",
            "reconnect_requested",
            "panicked",
            "max_age",
            "stale",
            "renewal_failed",
        ],
    ),
    (
        "ws_connect_failures_total",
        "reason",
        &["resolve", "tcp", "proxy", "tls", "refused", "handshake", "lost", "subprotocol", "timeout", "session"],
    ),
    ("ws_restarts_total", "reason", &["panicked", "retries_exhausted", "heartbeat_lost", "restart_requested"]),
    ("ws_parks_total", "reason", &["intensity_exceeded", "refused", "closed_by_server", "requested", "deserted"]),
    ("ws_stalled_total", "doing", &["handler", "prepare", "sign_in", "on_open", "reconcile", "upkeep"]),
];

/// Tells the recorder what all names mean.
pub fn describe() {
    for (name, kind, what) in NAMES {
        let unit = match kind {
            kind if kind.contains("bytes") => Unit::Bytes,
            kind if kind.contains("seconds") => Unit::Seconds,
            _ => Unit::Count,
        };
        match kind.split(',').next() {
            Some("counter") => ::metrics::describe_counter!(*name, unit, *what),
            Some("gauge") => ::metrics::describe_gauge!(*name, unit, *what),
            _ => ::metrics::describe_histogram!(*name, unit, *what),
        }
    }
}

/// Calls the recorder.
fn safely(publish: impl FnOnce()) {
    if PROCESS.guard(UserCode::MetricsRecorder, publish).is_none() {
        logger::error!("the metrics recorder panicked; the figures that it was given are lost");
    }
}

fn labels(tag: &Tag) -> Vec<Label> {
    vec![Label::new("client", tag.name.clone()), Label::new("venue", tag.venue.clone())]
}

fn count(name: &'static str, tag: &Tag, further: Option<(&'static str, &'static str)>) {
    safely(|| {
        let mut labels = labels(tag);
        labels.extend(further.map(|(key, value)| Label::from_static_parts(key, value)));
        counter!(name, labels).increment(1);
    });
}

/// A connection is open, and what led there took so long.
pub(crate) fn opened(core: &Core, session: Duration) {
    let took = core.handshake.lock().as_ref().map(|handshake| handshake.took.clone()).unwrap_or_default();
    let steps = took.into_iter().map(|(phase, time)| (phase.kind(), time));
    for (stage, time) in steps.chain([("session", session)]) {
        let mut labels = labels(&core.tag);
        labels.push(Label::from_static_parts("stage", stage));
        safely(|| histogram!("ws_dial_seconds", labels).record(time));
    }
    count("ws_connections_total", &core.tag, None);
}

pub(crate) fn disconnected(tag: &Tag, reason: &DisconnectReason) {
    count("ws_disconnects_total", tag, Some(("reason", reason.kind())));
}

pub(crate) fn connect_failed(tag: &Tag, error: &ConnectError) {
    count("ws_connect_failures_total", tag, Some(("reason", error.kind())));
}

pub(crate) fn restarted(tag: &Tag, reason: &ExitReason) {
    count("ws_restarts_total", tag, Some(("reason", reason.kind())));
}

pub(crate) fn parked(tag: &Tag, reason: &ParkReason) {
    count("ws_parks_total", tag, Some(("reason", reason.kind())));
}

pub(crate) fn stalled(tag: &Tag, doing: Doing) {
    count("ws_stalled_total", tag, Some(("doing", doing.kind())));
}

pub(crate) fn reader_behind(tag: &Tag) {
    count("ws_reader_behind_total", tag, None);
}

pub(crate) fn left_behind(tag: &Tag) {
    count("ws_left_behind_total", tag, None);
}

pub(crate) fn recovered() {
    safely(|| counter!("ws_supervisor_recovered_total").increment(1));
}

pub(crate) fn clients(states: &[(&'static str, usize)]) {
    for (state, clients) in states {
        safely(|| gauge!("ws_supervisor_clients", "state" => *state).set(*clients as f64));
    }
}

/// All that is counted as it happens begins at zero.
fn begin(labels: &[Label]) {
    for (name, key, values) in KINDS {
        for value in *values {
            let mut labels = labels.to_vec();
            labels.push(Label::from_static_parts(key, value));
            counter!(*name, labels).increment(0);
        }
    }
    for name in ["ws_connections_total", "ws_reader_behind_total", "ws_left_behind_total"] {
        counter!(name, labels.to_vec()).increment(0);
    }
}

/// A name, and the figure that it stands for.
type Counted = (&'static str, fn(&Stats) -> u64);

/// How much of what a client counts has been published.
#[derive(Debug, Default)]
pub(crate) struct Published {
    has_begun: bool,
    stats: Stats,
    round_trips: Option<Histogram<u32>>,
    in_socket: Option<Histogram<u32>>,
    requests: BTreeMap<Box<str>, Option<Histogram<u32>>>,
}

impl Published {
    /// Publishes what came since the last time.
    pub(crate) fn publish(&mut self, core: &Core, now: &Stats, health: &HeartbeatHealth) {
        safely(|| self.publish_all(core, now, health));
    }

    fn publish_all(&mut self, core: &Core, now: &Stats, health: &HeartbeatHealth) {
        let before = std::mem::replace(&mut self.stats, *now);
        let labels = labels(&core.tag);
        if !std::mem::replace(&mut self.has_begun, true) {
            begin(&labels);
        }
        let counters: [Counted; 10] = [
            ("ws_messages_received_total", |stats| stats.received),
            ("ws_messages_dropped_total", |stats| stats.dropped),
            ("ws_messages_accepted_total", |stats| stats.accepted),
            ("ws_messages_sent_total", |stats| stats.sent),
            ("ws_messages_uncertain_total", |stats| stats.uncertain),
            ("ws_messages_unsent_total", |stats| stats.unsent),
            ("ws_received_bytes_total", |stats| stats.bytes_received),
            ("ws_sent_bytes_total", |stats| stats.bytes_sent),
            ("ws_heartbeats_total", |stats| stats.heartbeats),
            ("ws_stalls_total", |stats| stats.stalls),
        ];
        for (name, read) in counters {
            counter!(name, labels.clone()).increment(read(now).saturating_sub(read(&before)));
        }
        let outcomes = |stats: &Stats| {
            let requests = stats.requests;
            [
                ("answered", requests.answered),
                ("refused", requests.refused),
                ("not_sent", requests.not_sent),
                ("timed_out", requests.timed_out),
                ("disconnected", requests.disconnected),
                ("abandoned", requests.abandoned),
                ("late", requests.late),
            ]
        };
        for ((outcome, now), (_, before)) in outcomes(now).into_iter().zip(outcomes(&before)) {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("outcome", outcome));
            counter!("ws_requests_total", labels).increment(now.saturating_sub(before));
        }
        let age = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs_f64());
        let state = core.status.get();
        let gauges = [
            ("ws_open", Some(f64::from(u8::from(state == ReadyState::Open)))),
            ("ws_parked", Some(f64::from(u8::from(state == ReadyState::Parked)))),
            ("ws_queued_messages", Some(now.queued as f64)),
            ("ws_unread_events", Some(now.unread as f64)),
            ("ws_pending_requests", Some(now.pending_requests as f64)),
            ("ws_paused_seconds", Some(now.paused_for.unwrap_or_default().as_secs_f64())),
            ("ws_paused_in_all_seconds", Some(now.paused.as_secs_f64())),
            ("ws_longest_turn_seconds", Some(now.longest_turn.as_secs_f64())),
            ("ws_message_age_seconds", age(now.last_message)),
            ("ws_heartbeat_age_seconds", age(health.last_received)),
            ("ws_heartbeat_failures", Some(health.consecutive_failures.into())),
        ];
        for (name, value) in gauges {
            if let Some(value) = value {
                gauge!(name, labels.clone()).set(value);
            }
        }
        let times = [
            ("ws_ping_round_trip_seconds", core.counters.ping_round_trip.since(&mut self.round_trips), 1e-6),
            ("ws_time_in_socket_seconds", core.counters.time_in_socket.since(&mut self.in_socket), 1e-9),
        ];
        for (name, values, unit) in times {
            for (value, times) in values {
                histogram!(name, labels.clone()).record_many(value as f64 * unit, times as usize);
            }
        }
        for (method, times) in core.counters.request_latency.by_method() {
            let mut labels = labels.clone();
            labels.push(Label::new("method", method.to_string()));
            for (value, times) in times.since(self.requests.entry(method).or_default()) {
                histogram!("ws_request_seconds", labels.clone()).record_many(value as f64 * 1e-6, times as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NAMES;

    #[test]
    fn the_table_in_the_docs_is_the_list_of_names() {
        let rows = NAMES.iter().map(|(name, kind, what)| format!("| `{name}` | {kind} | {what} |\n"));
        let table: String = rows.collect();
        assert_eq!(include_str!("metrics.md"), table, "write it to src/metrics.md");
    }
}
