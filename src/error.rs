//! Everything that can go wrong, by the phase in which it does.
//! Touches only `message`; no type of tungstenite, native-tls or http crosses this file's public face.

mod session;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::event::{ExitReason, ParkReason, ReadyState};
use crate::message::Message;
use crate::session::rate_limit::Over;

pub use self::session::{RefusedChannel, RequestError, SessionError, SubscribeError, Unanswered};

/// A configuration that cannot be meant: names the option and the rule that it breaks.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, Supervisor};
///
/// let supervisor = Supervisor::start()?;
/// let config = ClientConfig::new("ws://127.0.0.1:9")?.connect_timeout(Duration::ZERO);
/// let refused = supervisor.spawn_client(config).unwrap_err();
/// assert_eq!(refused.to_string(), "option `connect_timeout`: must be greater than zero");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    option: &'static str,
    rule: Box<str>,
}

impl ConfigError {
    pub(crate) fn new(option: &'static str, rule: impl Into<String>) -> Self {
        Self { option, rule: rule.into().into_boxed_str() }
    }

    /// The option, by the name of the method that sets it.
    pub fn option(&self) -> &'static str {
        self.option
    }

    /// The rule that was broken, as a sentence.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option `{}`: {}", self.option, self.rule)
    }
}

impl Error for ConfigError {}

/// A step of opening a connection, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Turning the host's name into addresses.
    Resolve,
    /// The TCP connection.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The WebSocket upgrade (RFC 6455 section 4).
    Handshake,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolving the host's name",
            Self::Tcp => "connecting by TCP",
            Self::Tls => "the TLS handshake",
            Self::Handshake => "the WebSocket upgrade",
        })
    }
}

/// Why an attempt to connect failed. [`is_retryable`](ConnectError::is_retryable) says whether another may succeed.
///
/// ```
/// use ws_supervisor::{Client, ClientConfig, ConnectError, StartError};
///
/// // Nothing listens on port 9 of this machine.
/// match Client::connect(ClientConfig::new("ws://127.0.0.1:9")?) {
///     Err(StartError::Connect(error @ ConnectError::Tcp { .. })) => assert!(error.is_retryable()),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host's name could not be resolved.
    #[non_exhaustive]
    Resolve {
        /// The host asked for.
        host: Box<str>,
        /// What the resolver said.
        message: Box<str>,
    },
    /// No address of the host took the TCP connection; this is the last one's answer.
    #[non_exhaustive]
    Tcp {
        /// The address tried last.
        address: Box<SocketAddr>,
        /// The operating system's verdict.
        kind: io::ErrorKind,
    },
    /// The TLS handshake failed.
    #[non_exhaustive]
    Tls {
        /// Whether a certificate was at fault: not trusted, expired, for another host. Not retried.
        certificate: bool,
        /// What the TLS library said.
        message: Box<str>,
    },
    /// The server answered the upgrade with another status than 101.
    Refused(Box<Refusal>),
    /// The server's answer to the upgrade breaks RFC 6455 or HTTP.
    #[non_exhaustive]
    Handshake {
        /// Which rule it breaks.
        message: Box<str>,
    },
    /// The server chose no subprotocol, or one that was not asked for. Not retried.
    #[non_exhaustive]
    Subprotocol {
        /// What was wrong with the choice.
        message: Box<str>,
    },
    /// `connect_timeout` ran out.
    #[non_exhaustive]
    Timeout {
        /// The step that was under way.
        phase: Phase,
        /// The whole time that was given, for all steps together.
        limit: Duration,
    },
    /// The connection was there, but `prepare`, signing in, `on_open`, the subscriptions or `reconcile` failed. Retried
    /// unless the error is [fatal](SessionError::into_fatal).
    Session(Box<SessionError>),
}

impl ConnectError {
    /// Whether another attempt may succeed without anyone changing anything. False for certificates, for the
    /// statuses 401, 403 and 404 and for a refused subprotocol; true for the rest, known or not.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Tls { certificate, .. } => !certificate,
            Self::Refused(refusal) => !matches!(refusal.status, 401 | 403 | 404),
            Self::Subprotocol { .. } => false,
            Self::Session(error) => error.is_retryable(),
            _ => true,
        }
    }

    /// How long the server asked to be left alone (`Retry-After`, RFC 9110 section 10.2.3), if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { host, message } => write!(f, "cannot resolve {host}: {message}"),
            Self::Tcp { address, kind } => write!(f, "cannot connect to {address}: {kind}"),
            Self::Tls { certificate: true, message } => write!(
                f,
                "the server's certificate is not accepted: {message} (is the clock right, the host's name the one in \
                 the certificate, and its CA known? add one with `root_certificate`)"
            ),
            Self::Tls { message, .. } => write!(f, "TLS handshake failed: {message}"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Handshake { message } => write!(f, "not a WebSocket answer to the upgrade: {message}"),
            Self::Subprotocol { message } => write!(f, "subprotocol not agreed: {message}"),
            Self::Timeout { phase, limit } => {
                write!(f, "timed out in {phase}: `connect_timeout` of {limit:?} ran out")
            }
            Self::Session(error) => write!(f, "the session could not be opened: {error}"),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Session(error) => Some(error),
            _ => None,
        }
    }
}

/// A server's refusal of the upgrade: what it answered instead of 101.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The headers in the order in which they came. Their values are not printed by `Debug`.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// The first bytes of the body, as far as they came with the headers (at most 4 KiB).
    pub body: Box<str>,
    /// `Retry-After`, if the server sent one that can be read.
    pub retry_after: Option<Duration>,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Refusal").field("status", &self.status).field("headers", &names).finish_non_exhaustive()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server refused the upgrade with status {}", self.status)?;
        match self.retry_after {
            Some(wait) => write!(f, " and asks to retry after {} s", wait.as_secs()),
            None => Ok(()),
        }
    }
}

/// Why a client could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is refused.
    Config(ConfigError),
    /// The supervisor has a client of this name; names are what its reports and threads are known by.
    DuplicateName(Box<str>),
    /// The supervisor's `max_clients` is reached; parked and restarting clients count.
    MaxClients(usize),
    /// The supervisor has shut down or given up.
    ShutDown,
    /// The operating system gave no thread or no file descriptor, or refused the core or the priority asked for.
    Os(Box<str>),
    /// [`Client::connect`](crate::Client::connect) only: the first attempt failed.
    Connect(ConnectError),
    /// [`Client::connect`](crate::Client::connect) only: the client's thread ended before it was open, most likely
    /// because the factory of its handler panicked.
    Ended(ExitReason),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::DuplicateName(name) => {
                write!(f, "option `name`: the supervisor already has a client named `{name}`; names must be unique")
            }
            Self::MaxClients(max) => write!(f, "the supervisor's `max_clients` of {max} is reached"),
            Self::ShutDown => f.write_str("the supervisor has shut down"),
            Self::Os(message) => write!(f, "the operating system does not let this client start: {message}"),
            Self::Connect(error) => error.fmt(f),
            Self::Ended(reason) => write!(f, "the client ended before it was open: {reason}"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Connect(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// A message that was not accepted. It is inside: take it back with [`into_message`](SendError::into_message).
///
/// ```
/// use ws_supervisor::{ClientConfig, SendError, Supervisor};
///
/// let supervisor = Supervisor::start()?;
/// let client = supervisor.spawn_client(ClientConfig::new("ws://127.0.0.1:9")?)?;
/// let refused = client.send("buy").unwrap_err();
/// assert!(matches!(refused, SendError::NotOpen { .. }));
/// assert_eq!(refused.into_message().as_text(), Some("buy"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// There is no connection now. Wait for the next `Event::Open`, or set `queue_while_disconnected`.
    #[non_exhaustive]
    NotOpen {
        /// The message, untouched.
        message: Message,
        /// What the client was doing.
        state: ReadyState,
    },
    /// `send_capacity` messages (or `queue_while_disconnected` ones) wait to be written: the server takes them more
    /// slowly than you send.
    #[non_exhaustive]
    Full {
        /// The message, untouched.
        message: Message,
    },
    /// The message is larger than `max_message_size`.
    #[non_exhaustive]
    TooLarge {
        /// The message, untouched.
        message: Message,
        /// The limit in bytes.
        limit: usize,
    },
    /// A [rate limit](crate::RateLimit) has no room for it now.
    #[non_exhaustive]
    RateLimited {
        /// The message, untouched.
        message: Message,
        /// When there will be room, if nobody else takes it first.
        retry_after: Duration,
    },
    /// The message costs more than a [rate limit](crate::RateLimit) ever gives.
    #[non_exhaustive]
    TooCostly {
        /// The message, untouched.
        message: Message,
        /// What it costs.
        cost: u32,
        /// What the bucket holds.
        capacity: u32,
    },
    /// This is the client's own thread, which would wait for itself: use the handler's [`Context`](crate::Context).
    #[non_exhaustive]
    OwnThread {
        /// The message, untouched.
        message: Message,
    },
}

impl SendError {
    pub(crate) fn over(message: Message, over: Over) -> Self {
        match over {
            Over::Wait(retry_after) => Self::RateLimited { message, retry_after },
            Over::Never { cost, capacity } => Self::TooCostly { message, cost, capacity },
        }
    }

    /// The message that was refused.
    pub fn into_message(self) -> Message {
        match self {
            Self::NotOpen { message, .. }
            | Self::Full { message }
            | Self::TooLarge { message, .. }
            | Self::RateLimited { message, .. }
            | Self::TooCostly { message, .. }
            | Self::OwnThread { message } => message,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOpen { state, .. } => write!(f, "not sent: the client is {state}, not Open"),
            Self::Full { .. } => f.write_str("not sent: the queue of messages to write is full"),
            Self::TooLarge { message, limit } => {
                write!(f, "not sent: {} bytes are more than `max_message_size` of {limit}", message.len())
            }
            Self::RateLimited { retry_after, .. } => {
                write!(f, "not sent: over the rate limit, which has room again in {retry_after:.1?}")
            }
            Self::TooCostly { cost, capacity, .. } => {
                write!(f, "not sent: it costs {cost}, and the rate limit never gives more than {capacity}")
            }
            Self::OwnThread { .. } => {
                f.write_str("not sent: the client's own thread would wait for itself; use the handler's context")
            }
        }
    }
}

impl Error for SendError {}

/// What is known about a message that [`send_confirmed`](crate::Client::send_confirmed) did not confirm.
///
/// ```
/// # use std::time::Duration;
/// # use ws_supervisor::{*, testing::{Script, Server}};
/// # let server = Server::echo()?;
/// # let supervisor = Supervisor::start()?;
/// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
/// # client.wait_until_open(Duration::from_secs(10))?;
/// match client.send_confirmed("order", Duration::from_secs(1)) {
///     Ok(()) => println!("the kernel has it"),
///     Err(ConfirmError::OutcomeUnknown(_)) => println!("ask the venue before sending it again"),
///     Err(other) => println!("the venue cannot have it: {other}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfirmError {
    /// It was not accepted.
    Refused(SendError),
    /// It was accepted, and the kernel does not have all of it: the server cannot act on it. Here it is again.
    NotSent(Message),
    /// The time ran out while it was being written: the server may get it, or not. Find out before you send it again.
    OutcomeUnknown(Message),
}

impl fmt::Display for ConfirmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::NotSent(_) => f.write_str("not sent: the connection or the time ended before it was written"),
            Self::OutcomeUnknown(_) => f.write_str("outcome unknown: the time ended while it was being written"),
        }
    }
}

impl Error for ConfirmError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}

/// Why [`wait_until_open`](crate::Client::wait_until_open) returned without an open connection.
///
/// ```
/// # use std::time::Duration;
/// # use ws_supervisor::{ClientConfig, Supervisor, WaitError};
/// # let supervisor = Supervisor::start()?;
/// // Nothing listens on port 9.
/// let client = supervisor.spawn_client(ClientConfig::new("ws://127.0.0.1:9")?)?;
/// match client.wait_until_open(Duration::from_millis(100)) {
///     Err(error @ WaitError::Timeout { .. }) => assert!(error.to_string().contains("refused")),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitError {
    /// The time ran out.
    #[non_exhaustive]
    Timeout {
        /// What the client was doing then.
        state: ReadyState,
        /// Why the last attempt failed, if one did.
        last_error: Option<ConnectError>,
    },
    /// The client is parked: waiting longer is of no use. `Supervisor::resume_client` starts it again.
    Parked(ParkReason),
    /// The client was closed.
    Closed,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { state, last_error: None } => write!(f, "not open in time: still {state}"),
            Self::Timeout { state, last_error: Some(error) } => {
                write!(f, "not open in time: still {state}; the last attempt failed: {error}")
            }
            Self::Parked(reason) => write!(f, "parked: {reason}"),
            Self::Closed => f.write_str("the client was closed"),
        }
    }
}

impl Error for WaitError {}

/// A client's thread did not end in time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopError {
    /// The supervisor has no client of this id; it may have ended before.
    NotFound,
    /// The thread of this client did not come back within the grace time, most likely because a handler of yours does
    /// not return. Its socket is shut, its thread is left behind, and with it the messages it had taken and not
    /// written: they are in no event.
    LeftBehind(Box<str>),
    /// The client is not in a state for this: for example, only a parked client can be resumed.
    NotParked,
    /// The operating system gave no thread to start the client again.
    Os(Box<str>),
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("the supervisor has no such client"),
            Self::LeftBehind(name) => {
                write!(f, "the thread of client `{name}` did not end within its grace time and is left behind")
            }
            Self::NotParked => f.write_str("the client is not parked"),
            Self::Os(message) => write!(f, "the operating system gave no thread: {message}"),
        }
    }
}

impl Error for StopError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stay_small() {
        assert!(size_of::<ConnectError>() <= 40, "{}", size_of::<ConnectError>());
        assert!(size_of::<ConfigError>() <= 32, "{}", size_of::<ConfigError>());
        assert!(size_of::<SendError>() <= 80, "{}", size_of::<SendError>());
        assert!(size_of::<ConfirmError>() <= 96, "{}", size_of::<ConfirmError>());
        assert!(size_of::<RequestError>() <= 96, "{}", size_of::<RequestError>());
        assert!(size_of::<SessionError>() <= 80, "{}", size_of::<SessionError>());
    }

    fn refused(status: u16) -> ConnectError {
        let refusal = Refusal { status, headers: vec![], body: "".into(), retry_after: None };
        ConnectError::Refused(Box::new(refusal))
    }

    #[test]
    fn only_faults_that_no_retry_mends_are_fatal() {
        for status in [401, 403, 404] {
            assert!(!refused(status).is_retryable(), "{status}");
        }
        for status in [302, 400, 418, 429, 500, 502, 503] {
            assert!(refused(status).is_retryable(), "{status}");
        }
        assert!(!ConnectError::Tls { certificate: true, message: "".into() }.is_retryable());
        assert!(ConnectError::Tls { certificate: false, message: "".into() }.is_retryable());
        assert!(!ConnectError::Subprotocol { message: "".into() }.is_retryable());
        assert!(ConnectError::Timeout { phase: Phase::Tls, limit: Duration::from_secs(1) }.is_retryable());
    }

    #[test]
    fn a_refusal_prints_no_header_value() {
        let refusal = Refusal {
            status: 401,
            headers: vec![("set-cookie".into(), "session=secret".into())],
            body: "secret".into(),
            retry_after: None,
        };
        assert!(!format!("{refusal:?} {refusal}").contains("secret"));
    }
}
