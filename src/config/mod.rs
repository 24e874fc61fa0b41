//! [`ClientConfig`]: every option of a client, as it was set. What comes of them, defaults included, is in `settings`.

#[cfg(feature = "compression")]
pub(crate) mod compression;
mod connecting;
pub(crate) mod decode;
#[cfg(feature = "serde")]
pub(crate) mod effective;
#[cfg(feature = "serde")]
pub(crate) mod file;
#[cfg(feature = "serde")]
mod file_connecting;
#[cfg(feature = "serde")]
pub(crate) mod file_parts;
pub(crate) mod proxy;
mod session;
pub(crate) mod settings;
pub(crate) mod socket;
mod thread;
pub(crate) mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use self::decode::Decode;
use self::proxy::Proxy;
use self::socket::SocketOptions;
use self::tls::Tls;
use crate::correlation::Correlation;
use crate::dial::Dial;
use crate::error::{ConfigError, SessionError};
use crate::handshake::SubprotocolChoice;
use crate::inbound::delivery::Delivery;
use crate::overflow::Overflow;
use crate::policy::heartbeat::Heartbeat;
use crate::policy::idle::IdleStrategy;
use crate::policy::rate_limit::RateLimit;
use crate::policy::reconnect::ReconnectRules;
use crate::policy::restart::Restart;
use crate::policy::staleness::{StaleAction, StaleRules};
use crate::session::Session;
use crate::target::Target;
use crate::unsettled::Unsettled;
use crate::venue::Venue;

pub(crate) type ResolveFn = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// A client's configuration: a URL, and options that each have a default that is safe with money.
///
/// The URL is checked at once; the options are checked together by [`validate`](ClientConfig::validate), and by
/// [`Supervisor::spawn_client`](crate::Supervisor::spawn_client) and [`Client::connect`](crate::Client::connect) before
/// anything starts. What you set wins over a [`venue`](ClientConfig::venue)'s defaults, those win over a preset's
/// ([`low_latency`](ClientConfig::low_latency), [`many_clients`](ClientConfig::many_clients)), in any order of calls.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, Heartbeat, Overflow};
///
/// let config = ClientConfig::new("wss://www.deribit.com/ws/api/v2")?
///     .name("deribit-prod")
///     .header("X-Desk", "options")
///     .heartbeat(Heartbeat::deribit(Duration::from_secs(30)))
///     .connect_timeout(Duration::from_secs(5))
///     .overflow(Overflow::DropOldest);
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone)]
#[must_use = "a configuration does nothing until a client is started with it"]
pub struct ClientConfig {
    pub(crate) target: Target,
    pub(crate) name: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) fallbacks: Vec<Target>,
    pub(crate) subprotocol_choice: SubprotocolChoice,
    pub(crate) host: Option<String>,
    pub(crate) user_agent: bool,
    pub(crate) redirects: u32,
    pub(crate) certificate_retry: Option<Duration>,
    pub(crate) tls: Tls,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) socket: SocketOptions,
    pub(crate) dial_limit: Option<RateLimit>,
    pub(crate) restart: Restart,
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) stale: StaleRules,
    pub(crate) reconnect: ReconnectRules,
    pub(crate) park_on: Vec<u16>,
    pub(crate) park_on_close: Vec<u16>,
    pub(crate) connect_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) delivery: Delivery,
    pub(crate) overflow: Overflow,
    pub(crate) event_capacity: Option<usize>,
    pub(crate) event_bytes: usize,
    pub(crate) send_capacity: Option<usize>,
    pub(crate) send_bytes: usize,
    pub(crate) queue_while_disconnected: usize,
    pub(crate) max_message_size: usize,
    pub(crate) max_frame_size: Option<usize>,
    pub(crate) read_buffer: Option<usize>,
    #[cfg(feature = "compression")]
    pub(crate) compression: Option<compression::Compression>,
    pub(crate) decode: Option<Decode>,
    pub(crate) nodelay: bool,
    pub(crate) idle: Option<IdleStrategy>,
    pub(crate) core: Option<usize>,
    pub(crate) priority: Option<u8>,
    pub(crate) kernel_timestamps: bool,
    pub(crate) stack_size: Option<usize>,
    pub(crate) stall_threshold: Duration,
    pub(crate) resolver: Option<Arc<ResolveFn>>,
    pub(crate) prepare: Option<Arc<PrepareFn>>,
    pub(crate) on_open: Option<Arc<OnOpenFn>>,
    pub(crate) reconcile: Option<Arc<ReconcileFn>>,
    pub(crate) reconciles_first: bool,
    pub(crate) venue: Option<Arc<dyn Venue>>,
    pub(crate) channels: Vec<Arc<str>>,
    pub(crate) correlation: Option<Correlation>,
    pub(crate) request_timeout: Duration,
    pub(crate) limits: Vec<RateLimit>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) presets: Presets,
    #[cfg(feature = "record")]
    pub(crate) recorder: Option<crate::record::Recorder>,
}

/// What the presets say, where nothing else is set. In any order of calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presets {
    pub(crate) own_core: Option<usize>,
    pub(crate) small: bool,
}

pub(crate) type PrepareFn = dyn Fn(&mut Dial) -> Result<(), SessionError> + Send + Sync;

pub(crate) type OnOpenFn = dyn Fn(&mut Session<'_>) -> Result<(), SessionError> + Send + Sync;

pub(crate) type ReconcileFn = dyn Fn(&mut Session<'_>, &Unsettled) -> Result<(), SessionError> + Send + Sync;

impl ClientConfig {
    /// A configuration with all defaults for this `ws://` or `wss://` URL. The query is sent as it is.
    ///
    /// # Errors
    /// When the URL has another scheme, no host, a port of 0, or a fragment. A user and a password in it are sent as
    /// `Authorization: Basic` (RFC 7617), unless a header of yours has that name.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    ///
    /// assert!(ClientConfig::new("wss://example.com/feed?streams=btcusdt@trade").is_ok());
    /// let error = ClientConfig::new("https://example.com").unwrap_err();
    /// assert_eq!(error.to_string(), "option `url`: must have the scheme `ws` or `wss`");
    /// ```
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Ok(Self {
            target: Target::parse(url.as_ref())?,
            name: None,
            headers: Vec::new(),
            subprotocols: Vec::new(),
            roots: Vec::new(),
            fallbacks: Vec::new(),
            subprotocol_choice: SubprotocolChoice::default(),
            host: None,
            user_agent: true,
            redirects: 0,
            certificate_retry: None,
            tls: Tls::default(),
            proxy: None,
            socket: SocketOptions::default(),
            dial_limit: None,
            restart: Restart::default(),
            heartbeat: None,
            stale: StaleRules::default(),
            reconnect: ReconnectRules::default(),
            park_on: vec![401, 403, 404],
            park_on_close: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            delivery: Delivery::channel(),
            overflow: Overflow::default(),
            event_capacity: None,
            event_bytes: 64 << 20,
            send_capacity: None,
            send_bytes: 32 << 20,
            queue_while_disconnected: 0,
            max_message_size: 16 << 20,
            max_frame_size: None,
            read_buffer: None,
            #[cfg(feature = "compression")]
            compression: None,
            decode: None,
            nodelay: true,
            idle: None,
            core: None,
            priority: None,
            kernel_timestamps: false,
            stack_size: None,
            stall_threshold: Duration::from_secs(1),
            resolver: None,
            prepare: None,
            on_open: None,
            reconcile: None,
            reconciles_first: false,
            venue: None,
            channels: Vec::new(),
            correlation: None,
            request_timeout: Duration::from_secs(30),
            limits: Vec::new(),
            max_age: None,
            presets: Presets::default(),
            #[cfg(feature = "record")]
            recorder: None,
        })
    }

    /// The client's name: in reports, in log lines, and of its thread (Linux shows the first 15 bytes, so put the
    /// distinctive part first). Unique within a supervisor. Defaults to a number and the host.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// When the supervisor starts the client again. Defaults to [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How the client finds out that the line is dead. Defaults to the [`venue`](ClientConfig::venue)'s, or to a ping every
    /// 20 s; two in a row that go unanswered end the connection.
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }

    /// How long no data may come on an open connection, though the line is alive: pings, pongs, heartbeats and answers to
    /// requests do not count. Counted from the moment it is open, so that a line that never delivers is found too, and anew
    /// after your own reader has held up the reading. What then happens is [`stale_action`](ClientConfig::stale_action)'s to
    /// say. Defaults to never.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{ClientConfig, StaleAction};
    ///
    /// let config = ClientConfig::new("wss://venue.example/book")?
    ///     .stale_after(Duration::from_secs(10))
    ///     .stale_action(StaleAction::Reconnect)
    ///     .stale_while(|| true); // the market is open
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn stale_after(mut self, silence: Duration) -> Self {
        self.stale.after = Some(silence);
        self
    }

    /// The same for each subscribed channel by itself, where the [`venue`](ClientConfig::venue) can tell whose a message is
    /// ([`Venue::channel_of`](crate::venue::Venue::channel_of)). Each message is then shown to it. Defaults to never.
    pub fn stale_channel_after(mut self, silence: Duration) -> Self {
        self.stale.channel_after = Some(silence);
        self
    }

    /// What is done about a silence. Defaults to [`StaleAction::Reconnect`].
    pub fn stale_action(mut self, action: StaleAction) -> Self {
        self.stale.action = action;
        self
    }

    /// Whether data is to be expected now, as in a market's hours: while this says no nothing is stale, and afterwards the
    /// silence is counted anew. Asked on the client's thread, about four times in each `stale_after`. Defaults to always.
    pub fn stale_while(mut self, expected: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.stale.gate = Some(Arc::new(expected));
        self
    }

    /// Statuses of a refused upgrade that no retry can mend: they park the client, unless the server says when to retry
    /// (`Retry-After`, honoured up to an hour). 401 and 403 are tried again, up to `max_retries`, where [`prepare`](ClientConfig::prepare) is set,
    /// which may bring other credentials. Defaults to 401, 403 and 404.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.park_on([401, 403, 404, 410]);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn park_on(mut self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.park_on = statuses.into_iter().collect();
        self
    }

    /// Codes of the server's close frame after which no connection helps before someone has changed something, as the venue
    /// documents them (a revoked key, a second session of the same user): they park the client at once, before the first retry.
    /// Defaults to none.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.park_on_close([1008, 4401]);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn park_on_close(mut self, codes: impl IntoIterator<Item = u16>) -> Self {
        self.park_on_close = codes.into_iter().collect();
        self
    }

    /// How many reconnects in a row may fail in one run of the worker before it ends and the supervisor starts it
    /// anew. The backoff goes on across that restart. Defaults to 10.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.reconnect.max_retries = retries;
        self
    }

    /// The wait between retries: none before the first, `base` before the second, then doubled each time up to `cap`.
    /// Defaults to 1 s and 30 s. Whatever is set, and whoever asks for a new connection, a client dials at most 20 times
    /// at once and 10 times a second.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.reconnect.base = base;
        self.reconnect.cap = cap;
        self
    }

    /// The share of each wait that is left to chance, 0 to 1: a wait of 10 s with 0.3 lasts between 7 and 10 s, so
    /// that many clients don't come back all at once. Defaults to 0.3.
    pub fn jitter(mut self, share: f64) -> Self {
        self.reconnect.jitter = share;
        self
    }

    /// How long a connection must stay open before earlier failures are forgotten. A server that accepts and then
    /// closes is so never redialled in a tight loop. Defaults to 10 s.
    pub fn stable_after(mut self, time: Duration) -> Self {
        self.reconnect.stable_after = time;
        self
    }

    /// The time for an orderly end: what was accepted is written, a close frame sent and the server's awaited (three
    /// quarters of it), then the socket is shut and the thread joined. Defaults to 5 s.
    pub fn close_timeout(mut self, time: Duration) -> Self {
        self.close_timeout = time;
        self
    }

    /// Where events go. Defaults to [`Delivery::channel`], read by [`Client::events`](crate::Client::events).
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// What happens when the event queue is full. Defaults to [`Overflow::Backpressure`]: nothing is lost.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// How many events wait unread before `overflow` applies. Defaults to 4,096. Of a batch each message counts.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.event_capacity = Some(events);
        self
    }

    /// How many bytes of messages wait unread before `overflow` applies, if that comes before `event_capacity`; a single
    /// message may exceed it. Also what is kept while a session is being opened, where no event can be delivered yet.
    /// Defaults to 64 MiB.
    /// Answers to what you [`post`](crate::Client::post) are never dropped: while as many bytes of them wait behind the full
    /// queue the socket is not read, whatever the policy.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.event_bytes(8 << 20).send_bytes(1 << 20);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn event_bytes(mut self, bytes: usize) -> Self {
        self.event_bytes = bytes;
        self
    }

    /// How many accepted messages wait to be written before `send` refuses. About as many of the latest written are kept,
    /// as cheap clones, until the peer's kernel has acknowledged them. Defaults to 1,024.
    pub fn send_capacity(mut self, messages: usize) -> Self {
        self.send_capacity = Some(messages);
        self
    }

    /// How many bytes of accepted messages wait to be written before `send` refuses, if that comes before
    /// `send_capacity`; a single message may exceed it. Defaults to 32 MiB.
    pub fn send_bytes(mut self, bytes: usize) -> Self {
        self.send_bytes = bytes;
        self
    }

    /// Accepts up to this many messages while there is no connection and writes them first on the next one. Defaults
    /// to 0: a message without a connection is refused, because a stale order must not reach the venue. A message
    /// that was accepted for an open connection is never moved to a later one, whatever is set here. Requests are never
    /// queued.
    pub fn queue_while_disconnected(mut self, messages: usize) -> Self {
        self.queue_while_disconnected = messages;
        self
    }

    /// The largest message, in bytes, in either direction; a larger one that is announced ends the connection before
    /// it is read, one that is compressed as soon as more comes out. Defaults to 16 MiB.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Sends messages that are longer than so many bytes in fragments of that length (RFC 6455 section 5.4): some gateways close
    /// a connection on which a frame above 32 KiB arrives. Pings then leave between the fragments. Defaults to no limit: each
    /// message is one frame.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://gateway.example")?.max_frame_size(32 << 10);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn max_frame_size(mut self, bytes: usize) -> Self {
        self.max_frame_size = Some(bytes);
        self
    }

    /// Bytes taken from the socket in one read, and kept as the client's buffer; over TLS twice, encrypted and not. A message
    /// that fits is shown to a handler where it lies, a larger one is put together beside it. A flood of messages of some hundred
    /// bytes goes a quarter faster with 512 KiB or 1 MiB, one of larger messages slower: the processor's cache holds less of it.
    /// Defaults to 128 KiB.
    pub fn read_buffer(mut self, bytes: usize) -> Self {
        self.read_buffer = Some(bytes);
        self
    }

    /// Offers the server to compress messages. Defaults to none; a server that compresses unasked is refused.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Compression};
    /// let config = ClientConfig::new("wss://ws.kraken.com/v2")?.compression(Compression::deflate());
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    #[cfg(feature = "compression")]
    #[cfg_attr(docsrs, doc(cfg(feature = "compression")))]
    pub fn compression(mut self, compression: compression::Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Unpacks binary messages that the venue packs by itself, before anyone sees them. Defaults to none.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Decode};
    /// let config = ClientConfig::new("wss://api.huobi.pro/ws")?.decode(Decode::gzip());
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn decode(mut self, decode: Decode) -> Self {
        self.decode = Some(decode);
        self
    }

    /// Records what this client receives and sends, and what happens to it. One recorder takes any number of clients. Defaults
    /// to none.
    ///
    /// ```no_run
    /// use ws_supervisor::{ClientConfig, record::Recorder};
    /// let recorder = Recorder::start("desk.jsonl")?;
    /// let config = ClientConfig::new("wss://venue.example")?.record(&recorder);
    /// # let _ = config;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "record")]
    #[cfg_attr(docsrs, doc(cfg(feature = "record")))]
    pub fn record(mut self, recorder: &crate::record::Recorder) -> Self {
        self.recorder = Some(recorder.clone());
        self
    }

    /// For a replay, which is not recorded again.
    #[cfg(all(feature = "record", feature = "testing"))]
    pub(crate) fn unrecorded(mut self) -> Self {
        self.recorder = None;
        self
    }

    /// Checks the whole, and says everything that is wrong at once. [`spawn_client`](crate::Supervisor::spawn_client) and
    /// [`connect`](crate::Client::connect) do the same and report the first. Calls the venue for its defaults; connects
    /// to nothing.
    ///
    /// # Errors
    /// Every option that cannot be meant, each with the rule that it breaks.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::ClientConfig;
    ///
    /// let config = ClientConfig::new("wss://venue.example")?.jitter(2.0).connect_timeout(Duration::ZERO);
    /// let faults = config.validate().unwrap_err();
    /// let options: Vec<_> = faults.iter().map(|fault| fault.option()).collect();
    /// assert_eq!(options, ["connect_timeout", "jitter"]);
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn validate(&self) -> Result<(), Vec<ConfigError>> {
        self.resolve().map(drop)
    }
}

impl fmt::Debug for ClientConfig {
    /// Without the query, header values and certificates.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("ClientConfig")
            .field("url", &self.target.to_string())
            .field("name", &self.name)
            .field("headers", &headers)
            .field("restart", &self.restart)
            .field("heartbeat", &self.heartbeat)
            .field("reconnect", &self.reconnect)
            .field("connect_timeout", &self.connect_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("overflow", &self.overflow)
            .field("tls", &self.tls)
            .field("proxy", &self.proxy)
            .field("decode", &self.decode)
            .finish_non_exhaustive()
    }
}
