//! The state of a supervisor and its clients, as one value that can be sent elsewhere.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::supervisor::{ClientInfo, Supervisor, Table};
use crate::telemetry::health::HeartbeatHealth;
use crate::telemetry::stats::Stats;

/// A supervisor and its clients at one moment. On the wire, a line of JSON with these names; one that is missing, since the other
/// side is older, is read as its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Status {
    /// Seconds since 1970 by the wall's clock.
    pub at: f64,
    /// The clients, in the order in which they were spawned.
    pub clients: Vec<ClientStatus>,
    /// The latest that happened to them, oldest first.
    pub events: Vec<StatusEvent>,
}

/// A client of a [`Status`]. Times are seconds, or microseconds where the name says so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ClientStatus {
    /// Its name.
    pub name: String,
    /// Its venue's name, or its host's.
    pub venue: String,
    /// Its URL without path and query.
    pub url: String,
    /// Its [`ClientPhase`](crate::ClientPhase), in small letters.
    pub phase: String,
    /// Its [`ReadyState`](crate::ReadyState), in small letters.
    pub state: String,
    /// The number of its connection.
    pub epoch: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Times its worker was started anew.
    pub restarts: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Why it is parked, or why the last attempt failed.
    pub error: Option<String>,
    /// Seconds until the next attempt, while it waits for one.
    pub next_attempt: Option<f64>,
    /// For how long it has been open.
    pub open_for: Option<f64>,
    /// Messages received.
    pub received: u64,
    /// Messages the kernel had in full.
    pub sent: u64,
    /// Of those, may be lost.
    pub uncertain: u64,
    /// Handed back unwritten.
    pub unsent: u64,
    /// Dropped by the overflow policy.
    pub dropped: u64,
    /// Accepted and not written yet.
    pub queued: usize,
    /// Events that wait to be read.
    pub unread: usize,
    /// Requests without an answer.
    pub pending_requests: usize,
    /// How long ago the latest message came.
    pub message_age: Option<f64>,
    /// How long ago the latest heartbeat came.
    pub heartbeat_age: Option<f64>,
    /// Heartbeats missed in a row.
    pub heartbeat_failures: u32,
    /// Half of the round trips took no longer, in microseconds; 0 without any.
    pub rtt_p50_us: f64,
    /// 99 of 100 took no longer.
    pub rtt_p99_us: f64,
}

/// Something that happened to a client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct StatusEvent {
    /// Its number: rises by one.
    pub number: u64,
    /// Seconds since 1970.
    pub at: f64,
    /// The client; empty where it is the supervisor itself.
    pub client: String,
    /// What, in words.
    pub what: String,
}

pub(super) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Table {
    pub(crate) fn status(&self) -> Status {
        let now = Instant::now();
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let client = |(info, stats, health): (ClientInfo, Stats, HeartbeatHealth)| {
            let error = info.parked.map(|reason| reason.to_string());
            ClientStatus {
                name: info.name.to_string(),
                venue: info.venue.to_string(),
                url: info.url,
                phase: format!("{:?}", info.phase).to_lowercase(),
                state: info.ready_state.to_string().to_lowercase(),
                epoch: info.epoch,
                reconnects: info.reconnects,
                restarts: info.restarts,
                failed_attempts: stats.failed_attempts,
                error: error.or_else(|| info.last_error.map(|error| error.to_string())),
                next_attempt: info.next_attempt.map(|at| at.saturating_duration_since(now).as_secs_f64()),
                open_for: since(info.open_since),
                received: stats.received,
                sent: stats.sent,
                uncertain: stats.uncertain,
                unsent: stats.unsent,
                dropped: stats.dropped,
                queued: stats.queued,
                unread: stats.unread,
                pending_requests: stats.pending_requests,
                message_age: since(stats.last_message),
                heartbeat_age: since(health.last_received),
                heartbeat_failures: health.consecutive_failures,
                rtt_p50_us: micros(stats.ping_round_trip.p50),
                rtt_p99_us: micros(stats.ping_round_trip.p99),
            }
        };
        let events = self.recent().into_iter().map(|noted| StatusEvent {
            number: noted.number,
            at: seconds(noted.at),
            client: noted.client,
            what: noted.what,
        });
        let clients = self.figures().into_iter().map(client).collect();
        Status { at: seconds(SystemTime::now()), clients, events: events.collect() }
    }
}

impl Supervisor {
    /// The state of the supervisor and its clients at this moment, as [`serve_status`](Supervisor::serve_status) sends it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{ClientConfig, Supervisor, testing::Server};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?.name("feed"))?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let status = supervisor.status();
    /// assert_eq!((status.clients[0].name.as_str(), status.clients[0].state.as_str()), ("feed", "open"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn status(&self) -> Status {
        self.table().status()
    }
}
