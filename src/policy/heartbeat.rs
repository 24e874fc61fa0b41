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
    pub(super) is_delivered: bool,
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

/// A venue's own heartbeat messages, for [`Heartbeat::dialect`]: Deribit's are built on this. All methods are called on the
/// client's thread; they should be quick.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::venue::{Classified, HeartbeatDialect};
/// use ws_supervisor::{Heartbeat, Message, MessageRef};
///
/// /// Asks once to be pinged, and answers each ping.
/// struct Venue;
/// impl HeartbeatDialect for Venue {
///     fn begin(&self, interval: Duration) -> Option<Message> {
///         Some(Message::text(format!(r#"{{"op":"heartbeat","every":{}}}"#, interval.as_secs())))
///     }
///     fn classify(&self, message: MessageRef<'_>) -> Classified {
///         match message.as_text() {
///             Some(r#"{"op":"ping"}"#) => Classified::Alive { reply: Some(r#"{"op":"pong"}"#.into()) },
///             Some(r#"{"op":"heartbeat","ok":true}"#) => Classified::Response { refused: None },
///             _ => Classified::NotHeartbeat,
///         }
///     }
/// }
/// let heartbeat = Heartbeat::dialect(Duration::from_secs(10), Venue);
/// # let _ = heartbeat;
/// ```
pub trait HeartbeatDialect: Send + Sync {
    /// Its kind, for reports. Defaults to [`HeartbeatKind::Dialect`].
    fn kind(&self) -> HeartbeatKind {
        HeartbeatKind::Dialect
    }

    /// Why this interval is refused, if it is: the text of a [`ConfigError`]. Defaults to no refusal.
    fn refuses(&self, interval: Duration) -> Option<&'static str> {
        let _ = interval;
        None
    }

    /// The message that asks the venue for its heartbeats: the first that is sent on a connection. Defaults to none.
    fn begin(&self, interval: Duration) -> Option<Message> {
        let _ = interval;
        None
    }

    /// How much longer than the interval a heartbeat may take: those that a venue sends once an interval arrive a little after
    /// it, every time. Defaults to half the interval.
    fn slack(&self, interval: Duration) -> Duration {
        interval / 2
    }

    /// What a message is to the heartbeat. Called for every message.
    fn classify(&self, message: MessageRef<'_>) -> Classified;
}

/// What a message is to a [`HeartbeatDialect`].
#[derive(Clone, Debug, PartialEq)]
pub enum Classified {
    /// It is the caller's.
    NotHeartbeat,
    /// The venue is alive.
    Alive {
        /// The reply that the venue expects, which waits for no rate limit.
        reply: Option<Message>,
    },
    /// The venue's response to a request of the heartbeat's own. It does not count as life.
    Response {
        /// Why the venue refused the request, if it did: for the log.
        refused: Option<Box<str>>,
    },
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
    /// A dialect of your own.
    Dialect,
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
        Self { kind, max_missed, is_delivered: false, others: Vec::new() }
    }

    /// This one and those besides it, each by itself.
    pub(super) fn each(&self) -> Vec<Self> {
        let mut all = vec![Self { others: Vec::new(), ..self.clone() }];
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

    /// Delivers the heartbeat's messages as well, for a consumer that needs their content (Bitfinex numbers its heartbeats,
    /// Coinbase's carry a counter). They still count as life, and as no data: `stale_after` finds a feed that sends nothing
    /// else. Defaults to off.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::Heartbeat;
    /// let bitfinex = Heartbeat::expect(Duration::from_secs(20), |m| m.as_text().is_some_and(|t| t.contains("\"hb\"")));
    /// let config = ws_supervisor::ClientConfig::new("wss://venue.example")?.heartbeat(bitfinex.deliver_messages());
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn deliver_messages(mut self) -> Self {
        self.is_delivered = true;
        self
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

    /// By messages of the venue's own. None for `interval`, and the dialect's slack, is a miss. Two misses in a row are too many,
    /// unless `max_missed` says otherwise.
    pub fn dialect(interval: Duration, dialect: impl HeartbeatDialect + 'static) -> Self {
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

    fn classify(&self, message: MessageRef<'_>) -> Classified {
        if (self.0)(message) { Classified::Alive { reply: None } } else { Classified::NotHeartbeat }
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

    fn classify(&self, message: MessageRef<'_>) -> Classified {
        (self.0)(message).map_or(Classified::NotHeartbeat, |answer| Classified::Alive { reply: Some(answer) })
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?}, max_missed {})", self.kind(), self.interval(), self.max_missed)?;
        self.others.iter().try_for_each(|other| write!(f, " and {other:?}"))
    }
}
