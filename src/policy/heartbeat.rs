//! Is the line alive? [`Heartbeat`] says how to find out; `Monitor` is the pure machine that does.
//! Only what came in counts as life. Given `now` and the input, it returns what to send and when it is due next.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use crate::error::ConfigError;
use crate::message::Message;

/// How a client finds out that its line is dead. After [`max_missed`](Heartbeat::max_missed) misses in a row the
/// worker ends and the supervisor starts it afresh; an unsupervised client reconnects.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{Heartbeat, Message};
///
/// let ping = Heartbeat::ping_pong(Duration::from_secs(20)).max_missed(3);
/// let venue = Heartbeat::deribit(Duration::from_secs(30));
/// let binance = Heartbeat::server_ping(Duration::from_secs(60));
/// let nats = Heartbeat::message(Duration::from_secs(30), Message::binary("PING\r\n"), |m| m.as_bytes() == b"PONG\r\n");
/// # let _ = (ping, venue, binance, nats);
/// ```
#[derive(Clone)]
pub struct Heartbeat {
    kind: Kind,
    max_missed: u32,
}

#[derive(Clone)]
enum Kind {
    Disabled,
    PingPong { interval: Duration },
    Deribit { interval: Duration },
    ServerPing { max_silence: Duration },
    Message { interval: Duration, payload: Message, matcher: Arc<Matcher> },
}

type Matcher = dyn Fn(&Message) -> bool + Send + Sync;

/// Which kind of heartbeat a client runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeartbeatKind {
    /// None: a dead line is noticed only by writing to it.
    Disabled,
    /// Ping frames of ours (RFC 6455 section 5.5.2).
    PingPong,
    /// Deribit's `public/set_heartbeat`.
    Deribit,
    /// The venue's ping frames.
    ServerPing,
    /// A message of yours and its answer.
    Message,
}

impl Heartbeat {
    /// No heartbeat. A line that dies silently then stays open until something is written to it, and perhaps longer.
    pub fn disabled() -> Self {
        Self { kind: Kind::Disabled, max_missed: 1 }
    }

    /// Sends a ping frame with a payload of its own every `interval`; a ping whose own pong has not come when the next
    /// is due is a miss. Two misses in a row are too many, unless `max_missed` says otherwise.
    pub fn ping_pong(interval: Duration) -> Self {
        Self { kind: Kind::PingPong { interval }, max_missed: 2 }
    }

    /// Asks the venue for heartbeats every `interval` (`public/set_heartbeat`) and answers each of its `test_request`s
    /// with `public/test` at once, as Deribit's API documentation demands of a client that wants to stay connected.
    /// Half an `interval` late, and then every `interval`, is a miss; two in a row are too many. Whole seconds;
    /// Deribit itself refuses less than 10. These messages are counted but not delivered.
    pub fn deribit(interval: Duration) -> Self {
        Self { kind: Kind::Deribit { interval }, max_missed: 2 }
    }

    /// The venue sends ping frames (Binance: every 20 s); none for `max_silence` is a miss, and one is too many.
    pub fn server_ping(max_silence: Duration) -> Self {
        Self { kind: Kind::ServerPing { max_silence }, max_missed: 1 }
    }

    /// Sends `payload` every `interval`; if nothing that `matcher` recognises has come when the next is due, that is a
    /// miss, and two in a row are too many. What the matcher recognises is counted but not delivered. The matcher runs
    /// on the worker's thread for every message.
    pub fn message(
        interval: Duration,
        payload: impl Into<Message>,
        matcher: impl Fn(&Message) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { kind: Kind::Message { interval, payload: payload.into(), matcher: Arc::new(matcher) }, max_missed: 2 }
    }

    /// How many misses in a row end the connection, at least 1.
    pub fn max_missed(mut self, misses: u32) -> Self {
        self.max_missed = misses;
        self
    }

    /// Which kind it is.
    pub fn kind(&self) -> HeartbeatKind {
        match self.kind {
            Kind::Disabled => HeartbeatKind::Disabled,
            Kind::PingPong { .. } => HeartbeatKind::PingPong,
            Kind::Deribit { .. } => HeartbeatKind::Deribit,
            Kind::ServerPing { .. } => HeartbeatKind::ServerPing,
            Kind::Message { .. } => HeartbeatKind::Message,
        }
    }

    /// Its interval (for `server_ping` the longest silence); `None` when disabled.
    pub fn interval(&self) -> Option<Duration> {
        match self.kind {
            Kind::Disabled => None,
            Kind::PingPong { interval } | Kind::Deribit { interval } | Kind::Message { interval, .. } => Some(interval),
            Kind::ServerPing { max_silence } => Some(max_silence),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("heartbeat", rule));
        if self.interval().is_some_and(|interval| interval.is_zero()) {
            return refuse("the interval must be greater than zero");
        }
        if self.max_missed == 0 {
            return refuse("max_missed must be at least 1");
        }
        match self.kind {
            Kind::Deribit { interval } if interval.subsec_nanos() != 0 => {
                refuse("Deribit's interval must be whole seconds (and the venue refuses less than 10)")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?}, max_missed {})", self.kind(), self.interval(), self.max_missed)
    }
}

/// What the worker shall do now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Nothing,
    Ping(Bytes),
    Send(Message),
    Lost { missed: u32 },
}

/// What became of a message that the heartbeat looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// It belongs to the heartbeat and is not delivered.
    pub(crate) ours: bool,
    pub(crate) action: Action,
}

const NOT_OURS: Verdict = Verdict { ours: false, action: Action::Nothing };

/// One connection's heartbeat. A new connection gets a new one, so nothing stale is carried over.
#[derive(Debug)]
pub(crate) struct Monitor {
    rules: Heartbeat,
    /// Makes the pings of this connection unlike those of any other.
    nonce: u64,
    sequence: u64,
    unanswered: VecDeque<(u64, Instant)>,
    due: Option<Instant>,
    failures: u32,
    last_received: Option<Instant>,
    round_trip: Option<Duration>,
}

impl Monitor {
    /// For a connection that opened now. The action is what to send first.
    pub(crate) fn open(rules: Heartbeat, nonce: u64, now: Instant) -> (Self, Action) {
        let mut monitor = Self {
            rules,
            nonce,
            sequence: 0,
            unanswered: VecDeque::new(),
            due: None,
            failures: 0,
            last_received: None,
            round_trip: None,
        };
        monitor.due = monitor.next_due(now, true);
        let action = match monitor.rules.kind {
            Kind::Deribit { interval } => {
                Action::Send(deribit_request("set_heartbeat", &format!(r#"{{"interval":{}}}"#, interval.as_secs())))
            }
            _ => Action::Nothing,
        };
        (monitor, action)
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    fn next_due(&self, now: Instant, after_life: bool) -> Option<Instant> {
        let interval = self.rules.interval()?;
        // Heartbeats that the venue sends once an interval arrive a little after it, every time.
        let slack = match self.rules.kind {
            Kind::Deribit { .. } if after_life => interval / 2,
            _ => Duration::ZERO,
        };
        Some(now + interval + slack)
    }

    /// Something may be due. `caught_up` is whether everything that came is read: while it is not, an answer may be
    /// waiting unread, and its absence counts for nothing.
    pub(crate) fn tick(&mut self, now: Instant, caught_up: bool) -> Action {
        if self.due.is_none_or(|due| now < due) {
            return Action::Nothing;
        }
        let waits_for_answer = match self.rules.kind {
            Kind::PingPong { .. } | Kind::Message { .. } => !self.unanswered.is_empty(),
            Kind::Deribit { .. } | Kind::ServerPing { .. } => true,
            Kind::Disabled => false,
        };
        if waits_for_answer && caught_up {
            self.failures += 1;
            if self.failures >= self.rules.max_missed {
                self.due = None;
                return Action::Lost { missed: self.failures };
            }
        }
        self.due = self.next_due(now, false);
        match &self.rules.kind {
            Kind::PingPong { .. } => {
                let sequence = self.ask(now);
                let mut payload = [0; 16];
                payload[..8].copy_from_slice(&self.nonce.to_be_bytes());
                payload[8..].copy_from_slice(&sequence.to_be_bytes());
                Action::Ping(Bytes::copy_from_slice(&payload))
            }
            Kind::Message { payload, .. } => {
                let payload = payload.clone();
                self.ask(now);
                Action::Send(payload)
            }
            _ => Action::Nothing,
        }
    }

    fn ask(&mut self, now: Instant) -> u64 {
        self.sequence += 1;
        self.unanswered.push_back((self.sequence, now));
        // While nothing is read, pings go on and none is counted: keep no more than can be answered usefully.
        if self.unanswered.len() > 64 {
            self.unanswered.pop_front();
        }
        self.sequence
    }

    fn alive(&mut self, now: Instant) {
        self.failures = 0;
        self.last_received = Some(now);
    }

    /// A pong came. Returns whether it answers a ping of this connection.
    pub(crate) fn pong(&mut self, payload: &[u8], now: Instant) -> bool {
        let Some(sequence) = payload
            .strip_prefix(&self.nonce.to_be_bytes()[..])
            .and_then(|rest| Some(u64::from_be_bytes(rest.try_into().ok()?)))
        else {
            return false;
        };
        let Some(index) = self.unanswered.iter().position(|(asked, _)| *asked == sequence) else { return false };
        let (_, sent) = self.unanswered[index];
        self.unanswered.drain(..=index);
        self.round_trip = Some(now.saturating_duration_since(sent));
        self.alive(now);
        true
    }

    /// A ping frame of the server's came.
    pub(crate) fn ping(&mut self, now: Instant) -> bool {
        let counts = matches!(self.rules.kind, Kind::ServerPing { .. });
        if counts {
            self.alive(now);
            self.due = self.next_due(now, true);
        }
        counts
    }

    /// Whether messages may belong to the heartbeat. Else none need be shown to it.
    pub(crate) fn reads_messages(&self) -> bool {
        matches!(self.rules.kind, Kind::Message { .. } | Kind::Deribit { .. })
    }

    /// A message came.
    pub(crate) fn message(&mut self, message: &Message, now: Instant) -> Verdict {
        match &self.rules.kind {
            Kind::Disabled | Kind::PingPong { .. } | Kind::ServerPing { .. } => NOT_OURS,
            Kind::Message { matcher, .. } => {
                if !matcher(message) {
                    return NOT_OURS;
                }
                if let Some((_, sent)) = self.unanswered.back() {
                    self.round_trip = Some(now.saturating_duration_since(*sent));
                }
                self.unanswered.clear();
                self.alive(now);
                Verdict { ours: true, action: Action::Nothing }
            }
            Kind::Deribit { .. } => match deribit_kind(message) {
                DeribitKind::Other => NOT_OURS,
                DeribitKind::Answer { refused } => {
                    if let Some(error) = refused {
                        log::warn!("the venue refused a heartbeat request: {error}");
                    }
                    Verdict { ours: true, action: Action::Nothing }
                }
                kind => {
                    self.alive(now);
                    self.due = self.next_due(now, true);
                    let action = match kind {
                        DeribitKind::TestRequest => Action::Send(deribit_request("test", "{}")),
                        _ => Action::Nothing,
                    };
                    Verdict { ours: true, action }
                }
            },
        }
    }

    /// Reading begins again after it was held up: what is still unanswered starts afresh.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.unanswered.clear();
        self.failures = 0;
        self.due = self.next_due(now, true);
    }
}

/// Ids that no caller's request has.
const DERIBIT_ID: &str = "ws-supervisor:";

fn deribit_request(method: &str, params: &str) -> Message {
    Message::text(format!(
        r#"{{"jsonrpc":"2.0","id":"{DERIBIT_ID}{method}","method":"public/{method}","params":{params}}}"#
    ))
}

enum DeribitKind {
    Heartbeat,
    TestRequest,
    Answer { refused: Option<Box<str>> },
    Other,
}

fn deribit_kind(message: &Message) -> DeribitKind {
    // A look at the text spares every tick the parse.
    let Some(text) = message.as_text().filter(|text| text.len() < 4096) else { return DeribitKind::Other };
    if !text.contains("\"heartbeat\"") && !text.contains(DERIBIT_ID) {
        return DeribitKind::Other;
    }
    let Ok(value) = serde_json::from_str::<Value>(text) else { return DeribitKind::Other };
    if value["method"] == "heartbeat" {
        return match value["params"]["type"] == "test_request" {
            true => DeribitKind::TestRequest,
            false => DeribitKind::Heartbeat,
        };
    }
    match value["id"].as_str() {
        Some(id) if id.starts_with(DERIBIT_ID) => {
            DeribitKind::Answer { refused: value.get("error").map(|e| e["message"].to_string().into()) }
        }
        _ => DeribitKind::Other,
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
