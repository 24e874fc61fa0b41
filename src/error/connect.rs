//! What can go wrong while a connection is made, by the step in which it does.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::session::SessionError;

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
            Self::Lost { phase, message } => write!(f, "connection lost in {phase}: {message}"),
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
