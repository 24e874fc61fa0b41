//! What can go wrong while a connection is made, by the step in which it does.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::session::SessionError;
use crate::message::OneLine;

/// A step of opening a connection, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// [`prepare`](crate::ClientConfig::prepare), which runs before anything else.
    Prepare,
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
            Self::Prepare => "`prepare`",
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
        /// And its words.
        message: Box<str>,
    },
    /// The TLS handshake failed.
    #[non_exhaustive]
    Tls {
        /// Whether the server's certificate was at fault: not trusted, expired, for another host. Not retried.
        certificate: bool,
        /// Whether it was the server that refused us, by an alert (RFC 8446 section 6).
        by_server: bool,
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
    /// The connection was there and ended in the middle of a step.
    #[non_exhaustive]
    Lost {
        /// The step that was under way.
        phase: Phase,
        /// What the operating system said, or that the server closed it.
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
    /// statuses 401, 403 and 404 without a `Retry-After`, and for a refused subprotocol; true for the rest, known or not.
    /// What a client makes of a status is its [`park_on`](crate::ClientConfig::park_on)'s to say.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Tls { certificate, .. } => !certificate,
            Self::Refused(refusal) => refusal.retry_after.is_some() || !matches!(refusal.status, 401 | 403 | 404),
            Self::Subprotocol { .. } => false,
            Self::Session(error) => error.is_retryable(),
            _ => true,
        }
    }

    /// Whether the server refused since it has too much to do, or we were too hasty: 429 (RFC 6585 section 4), 503 (RFC
    /// 9110 section 15.6.4), or 418, by which Binance tells of a ban.
    pub(crate) fn is_overload(&self) -> bool {
        matches!(self, Self::Refused(refusal) if matches!(refusal.status, 418 | 429 | 503))
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
            Self::Resolve { host, message } => write!(f, "cannot resolve {host}: {}", OneLine(message)),
            Self::Tcp { address, message, .. } => write!(f, "cannot connect to {address}: {}", OneLine(message)),
            Self::Tls { certificate: true, message, .. } => write!(
                f,
                "the server's certificate is not accepted: {message} (is the clock right, the host's name the one in \
                 the certificate, and its CA known? add one with `root_certificate`)"
            ),
            Self::Tls { by_server: true, message, .. } => {
                write!(f, "the server refused us in the TLS handshake: {}", OneLine(message))
            }
            Self::Tls { message, .. } => write!(f, "TLS handshake failed: {}", OneLine(message)),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Handshake { message } => write!(f, "not a WebSocket answer to the upgrade: {}", OneLine(message)),
            Self::Lost { phase, message } => write!(f, "connection lost in {phase}: {}", OneLine(message)),
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
    /// The body, often the venue's reason: whole, without its chunks, at most 64 KiB, as far as it came within 2 s.
    pub body: Box<str>,
    /// `Retry-After`, if the server sent one that can be read.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// The value of the first header of this name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// Where the server points to (`Location`, RFC 9110 section 10.2.2), if it does. Nobody follows it.
    pub fn location(&self) -> Option<&str> {
        self.header("location")
    }
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
        if let Some(location) = self.location() {
            // Without the query: it may hold a token.
            write!(f, " and points to {}", OneLine(location.split(['?', '#']).next().unwrap_or_default()))?;
        }
        match self.retry_after {
            Some(wait) => write!(f, " and asks to retry after {} s", wait.as_secs()),
            None => Ok(()),
        }
    }
}
