//! How to find out whether the line is alive: [`Heartbeat`]. The machine that does is in `monitor`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ConfigError;
use crate::message::{Message, MessageRef};

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
    pub(super) kind: Kind,
    pub(super) max_missed: u32,
}

#[derive(Clone)]
pub(super) enum Kind {
    Disabled,
    PingPong { interval: Duration },
    Dialect { interval: Duration, dialect: Arc<dyn HeartbeatDialect> },
    ServerPing { max_silence: Duration },
    Message { interval: Duration, payload: Message, matcher: Arc<Matcher> },
}

pub(super) type Matcher = dyn Fn(MessageRef<'_>) -> bool + Send + Sync;

/// A venue's own heartbeat messages.
pub(crate) trait HeartbeatDialect: Send + Sync {
    fn kind(&self) -> HeartbeatKind;

    /// Why this interval cannot be meant, if it cannot.
    fn refuses(&self, interval: Duration) -> Option<&'static str>;

    /// What asks the venue for its heartbeats, if it has to be asked.
    fn begin(&self, interval: Duration) -> Option<Message>;

    /// How much longer than the interval a heartbeat may take: those that the venue sends once an interval arrive a little
    /// after it, every time.
    fn slack(&self, interval: Duration) -> Duration {
        interval / 2
    }

    fn read(&self, message: MessageRef<'_>) -> Heard;
}

/// What a message is to a heartbeat.
pub(crate) enum Heard {
    /// Nothing: it is the caller's.
    Other,
    /// A sign of life, and what the venue wants to hear in return.
    Beat { answer: Option<Message> },
    /// The venue's answer to a request of the heartbeat's own; it may be a refusal.
    Answer { refused: Option<Box<str>> },
}

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
    /// The venue's pings in messages of its own, and your answers.
    Answer,
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
        matcher: impl Fn(MessageRef<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { kind: Kind::Message { interval, payload: payload.into(), matcher: Arc::new(matcher) }, max_missed: 2 }
    }

    /// The venue pings by messages of its own (HTX: `{"ping": …}`, others `Ping`): `reply` is shown every message on the
    /// worker's thread, and says what to answer to those that are such pings, which are counted and not delivered. None for
    /// `max_silence` is a miss, and one is too many. Answers wait for no rate limit; they are sent from the handshake on,
    /// also while the session is being opened.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{Heartbeat, Message};
    /// let htx = Heartbeat::answer(Duration::from_secs(15), |message| {
    ///     let stamp = message.as_text()?.strip_prefix(r#"{"ping":"#)?;
    ///     Some(Message::text(format!(r#"{{"pong":{stamp}"#)))
    /// });
    /// # let _ = htx;
    /// ```
    pub fn answer(
        max_silence: Duration,
        reply: impl Fn(MessageRef<'_>) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        Self::dialect(max_silence, Answering(reply)).max_missed(1)
    }

    /// How many misses in a row end the connection, at least 1.
    pub fn max_missed(mut self, misses: u32) -> Self {
        self.max_missed = misses;
        self
    }

    /// Which kind it is.
    pub fn kind(&self) -> HeartbeatKind {
        match &self.kind {
            Kind::Disabled => HeartbeatKind::Disabled,
            Kind::PingPong { .. } => HeartbeatKind::PingPong,
            Kind::Dialect { dialect, .. } => dialect.kind(),
            Kind::ServerPing { .. } => HeartbeatKind::ServerPing,
            Kind::Message { .. } => HeartbeatKind::Message,
        }
    }

    /// Its interval (for `server_ping` the longest silence); `None` when disabled.
    pub fn interval(&self) -> Option<Duration> {
        match self.kind {
            Kind::Disabled => None,
            Kind::PingPong { interval } | Kind::Dialect { interval, .. } | Kind::Message { interval, .. } => {
                Some(interval)
            }
            Kind::ServerPing { max_silence } => Some(max_silence),
        }
    }

    /// As a venue does it. Two misses in a row are too many, unless `max_missed` says otherwise.
    pub(crate) fn dialect(interval: Duration, dialect: impl HeartbeatDialect + 'static) -> Self {
        Self { kind: Kind::Dialect { interval, dialect: Arc::new(dialect) }, max_missed: 2 }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("heartbeat", rule));
        if self.interval().is_some_and(|interval| interval.is_zero()) {
            return refuse("the interval must be greater than zero");
        }
        if self.max_missed == 0 {
            return refuse("max_missed must be at least 1");
        }
        match &self.kind {
            Kind::Dialect { interval, dialect } => match dialect.refuses(*interval) {
                Some(rule) => refuse(rule),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

struct Answering<F>(F);

impl<F: Fn(MessageRef<'_>) -> Option<Message> + Send + Sync> HeartbeatDialect for Answering<F> {
    fn kind(&self) -> HeartbeatKind {
        HeartbeatKind::Answer
    }

    fn refuses(&self, _: Duration) -> Option<&'static str> {
        None
    }

    fn begin(&self, _: Duration) -> Option<Message> {
        None
    }

    fn slack(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn read(&self, message: MessageRef<'_>) -> Heard {
        (self.0)(message).map_or(Heard::Other, |answer| Heard::Beat { answer: Some(answer) })
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?}, max_missed {})", self.kind(), self.interval(), self.max_missed)
    }
}
