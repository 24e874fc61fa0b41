//! [`ClientConfig`]: every option of a client, all defaults in one place, and the validation of the whole before
//! anything starts. Touches `error`, `message`, `delivery` and the pure policies it configures.

mod session;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::correlation::Correlation;
use crate::dial::Dial;
use crate::error::{ConfigError, SessionError};
use crate::inbound::delivery::Delivery;
use crate::overflow::Overflow;
use crate::policy::heartbeat::Heartbeat;
use crate::policy::idle::IdleStrategy;
use crate::policy::rate_limit::RateLimit;
use crate::policy::reconnect::ReconnectRules;
use crate::policy::restart::Restart;
use crate::session::Session;
use crate::target::{Target, check_header};
use crate::unsettled::Unsettled;
use crate::venue::Venue;

pub(crate) type ResolveFn = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// A client's configuration: a URL, and options that each have a default that is safe with money.
///
/// The URL is checked at once; the options are checked together by
/// [`Supervisor::spawn_client`](crate::Supervisor::spawn_client) and [`Client::connect`](crate::Client::connect),
/// before anything starts.
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
pub struct ClientConfig {
    pub(crate) target: Target,
    pub(crate) name: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) restart: Restart,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) reconnect: ReconnectRules,
    pub(crate) connect_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) delivery: Delivery,
    pub(crate) overflow: Overflow,
    pub(crate) event_capacity: usize,
    pub(crate) send_capacity: usize,
    pub(crate) queue_while_disconnected: usize,
    pub(crate) max_message_size: usize,
    pub(crate) read_buffer: usize,
    pub(crate) nodelay: bool,
    pub(crate) idle: IdleStrategy,
    pub(crate) core: Option<usize>,
    pub(crate) priority: Option<u8>,
    pub(crate) kernel_timestamps: bool,
    pub(crate) stack_size: Option<usize>,
    pub(crate) stall_threshold: Duration,
    pub(crate) resolver: Option<Arc<ResolveFn>>,
    pub(crate) prepare: Option<Arc<PrepareFn>>,
    pub(crate) on_open: Option<Arc<OnOpenFn>>,
    pub(crate) reconcile: Option<Arc<ReconcileFn>>,
    pub(crate) venue: Option<Arc<dyn Venue>>,
    pub(crate) channels: Vec<Arc<str>>,
    pub(crate) correlation: Correlation,
    pub(crate) request_timeout: Duration,
    pub(crate) limits: Vec<RateLimit>,
    /// `None`: the venue's.
    pub(crate) max_age: Option<Duration>,
}

pub(crate) type PrepareFn = dyn Fn(&mut Dial) -> Result<(), SessionError> + Send + Sync;

pub(crate) type OnOpenFn = dyn Fn(&mut Session<'_>) -> Result<(), SessionError> + Send + Sync;

pub(crate) type ReconcileFn = dyn Fn(&mut Session<'_>, &Unsettled) -> Result<(), SessionError> + Send + Sync;

impl ClientConfig {
    /// A configuration with all defaults for this `ws://` or `wss://` URL. The query is sent as it is.
    ///
    /// # Errors
    /// When the URL has another scheme, no host, a port of 0, a fragment, or credentials in it.
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
            restart: Restart::default(),
            heartbeat: Heartbeat::ping_pong(Duration::from_secs(20)),
            reconnect: ReconnectRules::default(),
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            delivery: Delivery::channel(),
            overflow: Overflow::default(),
            event_capacity: 4096,
            send_capacity: 1024,
            queue_while_disconnected: 0,
            max_message_size: 16 << 20,
            read_buffer: 128 << 10,
            nodelay: true,
            idle: IdleStrategy::Park,
            core: None,
            priority: None,
            kernel_timestamps: false,
            stack_size: None,
            stall_threshold: Duration::from_secs(1),
            resolver: None,
            prepare: None,
            on_open: None,
            reconcile: None,
            venue: None,
            channels: Vec::new(),
            correlation: Correlation::json_rpc(),
            request_timeout: Duration::from_secs(30),
            limits: Vec::new(),
            max_age: None,
        })
    }

    /// The client's name: in reports, in log lines, and of its thread (Linux shows the first 15 bytes, so put the
    /// distinctive part first). Unique within a supervisor. Defaults to a number and the host.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a header to the upgrade request; call it again for more. Values are never logged. Defaults to none.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Offers a subprotocol (RFC 6455 section 1.9), in order of preference; the server must then choose one of those
    /// offered. Defaults to none.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// Trusts these CA certificates (PEM, one or more) besides the system's. Defaults to none.
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// When the supervisor starts the client again. Defaults to [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How the client finds out that the line is dead. Defaults to a ping every 20 s; two in a row that go unanswered
    /// end the connection.
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// How many reconnects in a row may fail in one run of the worker before it ends and the supervisor starts it
    /// anew. The backoff goes on across that restart. Defaults to 10.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.reconnect.max_retries = retries;
        self
    }

    /// The wait between retries: none before the first, `base` before the second, then doubled each time up to `cap`.
    /// Defaults to 1 s and 30 s.
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

    /// The time for one attempt: resolving, TCP, TLS and upgrade, then signing in, `on_open`, restoring subscriptions and
    /// `reconcile`, all together. Defaults to 10 s.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
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

    /// How many events wait unread before `overflow` applies. Defaults to 4,096.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.event_capacity = events;
        self
    }

    /// How many accepted messages wait to be written before `send` refuses. Defaults to 1,024.
    pub fn send_capacity(mut self, messages: usize) -> Self {
        self.send_capacity = messages;
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
    /// it is read. Defaults to 16 MiB.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Bytes taken from the socket in one read, and kept as the client's buffer. Defaults to 128 KiB.
    pub fn read_buffer(mut self, bytes: usize) -> Self {
        self.read_buffer = bytes;
        self
    }

    /// Whether small writes leave at once (`TCP_NODELAY`). Defaults to true.
    pub fn tcp_nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// What the worker does when it has nothing to do. Defaults to [`IdleStrategy::Park`].
    pub fn idle_strategy(mut self, idle: IdleStrategy) -> Self {
        self.idle = idle;
        self
    }

    /// Runs the client's thread on this core only, counted from 0. Refused at the start if this process may not use it.
    /// Defaults to wherever the operating system puts it.
    pub fn pin_to(mut self, core: usize) -> Self {
        self.core = Some(core);
        self
    }

    /// Runs the client's thread under the real-time scheduler (`SCHED_FIFO`), 1 to 99, which needs `CAP_SYS_NICE` or an
    /// `RLIMIT_RTPRIO`. Refused at the start where the system does not allow it. With [`IdleStrategy::BusySpin`] such
    /// a thread leaves its core to nobody, so pin it to one that nobody else needs. Defaults to the usual scheduler.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.low_latency(3).real_time_priority(50);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    #[cfg(feature = "real-time")]
    pub fn real_time_priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Asks the kernel when it had each message (Linux, `SO_TIMESTAMPNS`): see [`Message::time_in_socket`] and
    /// [`Stats::time_in_socket`](crate::Stats). Costs a larger system call a read. Refused where the system has no
    /// such timestamps. Defaults to false.
    ///
    /// [`Message::time_in_socket`]: crate::Message::time_in_socket
    ///
    /// ```
    /// # use std::time::Duration;
    /// use ws_supervisor::{Client, ClientConfig, Event};
    ///
    /// # if cfg!(target_os = "linux") {
    /// # let server = ws_supervisor::testing::Server::echo()?;
    /// # let url = server.url();
    /// let client = Client::connect(ClientConfig::new(url)?.kernel_timestamps(true))?;
    /// client.send("an order")?;
    /// for event in client.events() {
    ///     if let Event::Message(answer) = event {
    ///         assert!(answer.time_in_socket().is_some());
    ///         break;
    ///     }
    /// }
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "kernel-timestamps")]
    pub fn kernel_timestamps(mut self, asked: bool) -> Self {
        self.kernel_timestamps = asked;
        self
    }

    /// Bytes of the client's thread's stack, all of which your handler and TLS share. Defaults to the standard
    /// library's 2 MiB, of which only what is used takes memory.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.stack_size(256 << 10);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// How long one turn of the worker's loop, most of it your handler, may take: a longer one is counted in
    /// [`Stats::stalls`](crate::Stats) and, while it lasts, reported as
    /// [`SupervisorEvent::Stalled`](crate::SupervisorEvent). Nothing is read and no heartbeat answered meanwhile.
    /// Defaults to 1 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.stall_threshold(Duration::from_millis(5));
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn stall_threshold(mut self, time: Duration) -> Self {
        self.stall_threshold = time;
        self
    }

    /// For the one client that must be fast: [`IdleStrategy::BusySpin`] on a core of its own.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.low_latency(3);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn low_latency(self, core: usize) -> Self {
        self.idle_strategy(IdleStrategy::BusySpin).pin_to(core)
    }

    /// For thousands of quiet clients: small buffers and queues (reads of 4 KiB, 256 events, 64 messages to send) and
    /// a ping every 30 s.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.many_clients();
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn many_clients(self) -> Self {
        self.read_buffer(4 << 10)
            .event_capacity(256)
            .send_capacity(64)
            .heartbeat(Heartbeat::ping_pong(Duration::from_secs(30)))
    }

    /// Resolves names by this function instead of the system's resolver. It may block: it runs on a thread of its
    /// own, which is left alone when `connect_timeout` runs out or the client is stopped.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use ws_supervisor::ClientConfig;
    ///
    /// let pinned: SocketAddr = "127.0.0.1:443".parse()?;
    /// let config = ClientConfig::new("wss://venue.example/ws")?.resolver(move |_host, _port| Ok(vec![pinned]));
    /// # let _ = config;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resolver(
        mut self,
        resolve: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.resolver = Some(Arc::new(resolve));
        self
    }

    /// Checks the whole.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let rule = |holds: bool, option: &'static str, rule: &str| {
            if holds { Ok(()) } else { Err(ConfigError::new(option, rule)) }
        };
        if let Some(name) = &self.name {
            rule(!name.trim().is_empty(), "name", "must not be empty")?;
            rule(!name.chars().any(char::is_control), "name", "must not hold control characters")?;
        }
        for (name, value) in &self.headers {
            check_header(name, value)?;
        }
        for (index, name) in self.subprotocols.iter().enumerate() {
            // RFC 6455 section 4.1 asks for the same characters as a header's name, and for distinct ones.
            rule(HeaderName::from_bytes(name.as_bytes()).is_ok(), "subprotocol", "must be a token of RFC 9110")?;
            rule(!self.subprotocols[..index].contains(name), "subprotocol", "must not be offered twice")?;
        }
        for pem in &self.roots {
            let readable = native_tls::Certificate::stack_from_pem(pem).is_ok_and(|certs| !certs.is_empty());
            rule(readable, "root_certificate", "must be one or more certificates in PEM")?;
        }
        let positive = "must be greater than zero";
        rule(!self.connect_timeout.is_zero(), "connect_timeout", positive)?;
        rule(!self.close_timeout.is_zero(), "close_timeout", positive)?;
        rule(!self.request_timeout.is_zero(), "request_timeout", positive)?;
        rule(self.max_age != Some(Duration::ZERO), "max_age", positive)?;
        let knows_how = self.channels.is_empty() || self.venue.is_some();
        rule(knows_how, "subscribe", "needs a `venue`, which knows how to subscribe")?;
        self.reconnect.validate()?;
        self.heartbeat.validate()?;
        let enough = self.stack_size.is_none_or(|bytes| bytes >= 64 << 10);
        rule(enough, "stack_size", "must be at least 64 KiB")?;
        rule(
            self.priority.is_none_or(|priority| (1..=99).contains(&priority)),
            "real_time_priority",
            "must be 1 to 99",
        )?;
        let has_timestamps = cfg!(target_os = "linux") || !self.kernel_timestamps;
        rule(has_timestamps, "kernel_timestamps", "needs Linux")?;
        rule(!self.stall_threshold.is_zero(), "stall_threshold", positive)?;
        rule(self.event_capacity > 0, "event_capacity", positive)?;
        rule(self.send_capacity > 0, "send_capacity", positive)?;
        rule(self.max_message_size > 0, "max_message_size", positive)?;
        rule((1024..=16 << 20).contains(&self.read_buffer), "read_buffer", "must be between 1 KiB and 16 MiB")
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
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok() -> ClientConfig {
        ClientConfig::new("ws://127.0.0.1:1/p?token=secret").unwrap()
    }

    #[test]
    fn urls_are_taken_apart() {
        let t = Target::parse("wss://[::1]:8443/a?b=c").unwrap();
        assert_eq!((t.host.as_str(), t.port, t.tls), ("::1", 8443, true));
        assert_eq!((t.authority.as_str(), t.path_and_query.as_str()), ("[::1]:8443", "/a?b=c"));
        let t = Target::parse("ws://host?x=1").unwrap();
        assert_eq!((t.authority.as_str(), t.path_and_query.as_str(), t.port), ("host", "/?x=1", 80));
    }

    #[test]
    fn urls_that_cannot_be_meant_are_refused() {
        let bad = [
            "",
            "host",
            "http://h",
            "ws://",
            "ws://:80",
            "wss:///p",
            "ws://h:0",
            "ws://h:99999",
            "ws://h:",
            "ws://h/#f",
            "ws://u:p@h",
            "ws://h h",
            "ftp://h/",
        ];
        for url in bad {
            let error = ClientConfig::new(url).expect_err(url);
            assert_eq!(error.option(), "url", "{url}");
        }
    }

    #[test]
    fn every_bad_option_is_named() {
        let zero = Duration::ZERO;
        let second = Duration::from_secs(1);
        let bad: Vec<(&str, ClientConfig)> = vec![
            ("name", ok().name("")),
            ("name", ok().name("  ")),
            ("name", ok().name("a\0b")),
            ("header", ok().header("no spaces", "v")),
            ("header", ok().header("X", "a\r\nEvil: 1")),
            ("header", ok().header("Host", "h")),
            ("header", ok().header("Sec-WebSocket-Key", "k")),
            ("subprotocol", ok().subprotocol("a b")),
            ("subprotocol", ok().subprotocol("a").subprotocol("a")),
            ("root_certificate", ok().root_certificate("not pem")),
            ("connect_timeout", ok().connect_timeout(zero)),
            ("close_timeout", ok().close_timeout(zero)),
            ("backoff", ok().backoff(zero, second)),
            ("backoff", ok().backoff(second * 2, second)),
            ("jitter", ok().jitter(-0.1)),
            ("jitter", ok().jitter(1.5)),
            ("jitter", ok().jitter(f64::NAN)),
            ("stable_after", ok().stable_after(zero)),
            ("heartbeat", ok().heartbeat(Heartbeat::ping_pong(zero))),
            ("heartbeat", ok().heartbeat(Heartbeat::ping_pong(second).max_missed(0))),
            ("heartbeat", ok().heartbeat(Heartbeat::deribit(Duration::from_millis(1500)))),
            ("request_timeout", ok().request_timeout(zero)),
            ("max_age", ok().max_age(zero)),
            ("subscribe", ok().subscribe(["a"])),
            ("stack_size", ok().stack_size(1)),
            ("stall_threshold", ok().stall_threshold(zero)),
            ("event_capacity", ok().event_capacity(0)),
            ("send_capacity", ok().send_capacity(0)),
            ("max_message_size", ok().max_message_size(0)),
            ("read_buffer", ok().read_buffer(0)),
        ];
        for (option, config) in bad {
            assert_eq!(config.validate().expect_err(option).option(), option);
        }
        ok().validate().unwrap();
    }

    #[test]
    fn debug_prints_no_secret() {
        let shown = format!("{:?}", ok().header("Authorization", "secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
