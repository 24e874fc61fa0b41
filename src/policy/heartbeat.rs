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
    /// Others that run besides it.
    others: Vec<Heartbeat>,
}

#[derive(Clone)]
pub(super) enum Kind {
    Disabled,
    PingPong { interval: Duration },
    Dialect { interval: Duration, dialect: Arc<dyn HeartbeatDialect> },
    ServerPing { max_silence: Duration },
    Message { interval: Duration, payload: Payload, matcher: Arc<Matcher> },
}

/// What is sent: made of the number of the heartbeat on its connection, from 1.
pub(super) type Payload = Arc<dyn Fn(u64) -> Message + Send + Sync>;

pub(super) type Matcher = dyn Fn(MessageRef<'_>) -> bool + Send + Sync;

/// A venue's own heartbeat messages.
pub(crate) trait HeartbeatDialect: Send + Sync {
    fn kind(&self) -> HeartbeatKind;

    /// Why this interval cannot be meant, if it cannot.
    fn refuses(&self, interval: Duration) -> Option<&'static str> {
        let _ = interval;
        None
    }

    /// What asks the venue for its heartbeats, if it has to be asked.
    fn begin(&self, interval: Duration) -> Option<Message> {
        let _ = interval;
        None
    }

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
    /// Messages that the venue sends by itself.
    Expect,
}

impl Heartbeat {
    /// No heartbeat. A line that dies silently then stays open until something is written to it, and perhaps longer.
    pub fn disabled() -> Self {
        Self::of(Kind::Disabled, 1)
    }

    /// Sends a ping frame with a payload of its own every `interval`; a ping whose own pong has not come when the next
    /// is due is a miss. Two misses in a row are too many, unless `max_missed` says otherwise.
    pub fn ping_pong(interval: Duration) -> Self {
        Self::of(Kind::PingPong { interval }, 2)
    }

    /// The venue sends ping frames (Binance: every 20 s); none for `max_silence` is a miss, and one is too many.
    pub fn server_ping(max_silence: Duration) -> Self {
        Self::of(Kind::ServerPing { max_silence }, 1)
    }

    /// Sends `payload` every `interval`; if nothing that `matcher` recognises has come when the next is due, that is a
    /// miss, and two in a row are too many. What the matcher recognises is counted but not delivered. The matcher runs
    /// on the worker's thread for every message.
    pub fn message(
        interval: Duration,
        payload: impl Into<Message>,
        matcher: impl Fn(MessageRef<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let payload = payload.into();
        Self::message_with(interval, move |_| payload.clone(), matcher)
    }

    /// As [`message`](Heartbeat::message), with a payload that is made anew each time, on the worker's thread: it is given
    /// the number of this heartbeat on its connection, from 1.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{Heartbeat, Message};
    /// let kucoin = Heartbeat::message_with(
    ///     Duration::from_secs(18),
    ///     |n| Message::text(format!(r#"{{"id":"{n}","type":"ping"}}"#)),
    ///     |message| message.as_text().is_some_and(|text| text.contains(r#""type":"pong""#)),
    /// );
    /// # let _ = kucoin;
    /// ```
    pub fn message_with(
        interval: Duration,
        payload: impl Fn(u64) -> Message + Send + Sync + 'static,
        matcher: impl Fn(MessageRef<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::of(Kind::Message { interval, payload: Arc::new(payload), matcher: Arc::new(matcher) }, 2)
    }

    /// The venue sends heartbeats of its own that want no answer (Coinbase's channel `heartbeats`): what `matcher` recognises
    /// is counted and not delivered. None for `max_silence` is a miss, and one is too many. The matcher runs on the
    /// worker's thread for every message.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::Heartbeat;
    /// let coinbase = Heartbeat::expect(Duration::from_secs(5), |message| {
    ///     message.as_text().is_some_and(|text| text.contains(r#""channel":"heartbeats""#))
    /// });
    /// # let _ = coinbase;
    /// ```
    pub fn expect(max_silence: Duration, matcher: impl Fn(MessageRef<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::dialect(max_silence, Expecting(matcher)).max_missed(1)
    }

    /// Runs another besides this one: each finds out by itself, and the first to lose patience ends the connection. What is
    /// told of kind and interval is told of the first.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::Heartbeat;
    /// let both = Heartbeat::server_ping(Duration::from_secs(60)).and(Heartbeat::ping_pong(Duration::from_secs(10)));
    /// # let _ = both;
    /// ```
    pub fn and(mut self, other: Self) -> Self {
        self.others.push(other);
        self
    }

    fn of(kind: Kind, max_missed: u32) -> Self {
        Self { kind, max_missed, others: Vec::new() }
    }

    /// This one and those besides it, each by itself.
    pub(super) fn each(&self) -> Vec<Self> {
        let mut all = vec![Self::of(self.kind.clone(), self.max_missed)];
        all.extend(self.others.iter().flat_map(Self::each));
        all
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

    #[cfg(feature = "serde")]
    pub(crate) fn most_missed(&self) -> u32 {
        self.max_missed
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
        Self::of(Kind::Dialect { interval, dialect: Arc::new(dialect) }, 2)
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("heartbeat", rule));
        if self.interval().is_some_and(|interval| interval.is_zero()) {
            return refuse("the interval must be greater than zero");
        }
        if self.max_missed == 0 {
            return refuse("max_missed must be at least 1");
        }
        if let Kind::Dialect { interval, dialect } = &self.kind {
            dialect.refuses(*interval).map_or(Ok(()), refuse)?;
        }
        self.others.iter().try_for_each(Self::validate)
    }
}

struct Expecting<F>(F);

impl<F: Fn(MessageRef<'_>) -> bool + Send + Sync> HeartbeatDialect for Expecting<F> {
    fn kind(&self) -> HeartbeatKind {
        HeartbeatKind::Expect
    }

    fn slack(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn read(&self, message: MessageRef<'_>) -> Heard {
        if (self.0)(message) { Heard::Beat { answer: None } } else { Heard::Other }
    }
}

struct Answering<F>(F);

impl<F: Fn(MessageRef<'_>) -> Option<Message> + Send + Sync> HeartbeatDialect for Answering<F> {
    fn kind(&self) -> HeartbeatKind {
        HeartbeatKind::Answer
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
        write!(f, "{:?}({:?}, max_missed {})", self.kind(), self.interval(), self.max_missed)?;
        self.others.iter().try_for_each(|other| write!(f, " and {other:?}"))
    }
}
