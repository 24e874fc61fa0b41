//! What can go wrong while a connection is made, by the step in which it does.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use super::session::SessionError;
use crate::message::OneLine;

/// A step of opening a connection, in the order in which they happen.
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// [`prepare`](crate::ClientConfig::prepare), which runs before anything else.
    Prepare,
    /// Turning the host's name into addresses.
    Resolve,
    /// The TCP connection.
    Tcp,
    /// The way through a [`Proxy`](crate::Proxy).
    Proxy,
    /// The TLS handshake.
    Tls,
    /// The WebSocket upgrade (RFC 6455 section 4).
    Handshake,
}

impl Phase {
    /// One word for it: for labels and counts.
    ///
    /// ```
    /// assert_eq!(ws_supervisor::Phase::Tls.kind(), "tls");
    /// ```
    pub fn kind(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Resolve => "resolve",
            Self::Tcp => "tcp",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "`prepare`",
            Self::Resolve => "resolving the host's name",
            Self::Tcp => "connecting by TCP",
            Self::Proxy => "reaching or asking the proxy",
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
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
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
        #[cfg_attr(feature = "record", serde(with = "super::io_kind"))]
        kind: io::ErrorKind,
        /// And its words.
        message: Box<str>,
    },
    /// The proxy did not let us through, or is none. Retried, unless it is the configuration that is at fault, or the proxy
    /// wants other credentials (407).
    #[non_exhaustive]
    Proxy {
        /// The proxy, without its password; empty when it could not be made out.
        proxy: Box<str>,
        /// The status it answered with, if it speaks HTTP.
        status: Option<u16>,
        /// What was wrong in the TLS handshake with the proxy itself, if that was it.
        fault: Option<TlsFault>,
        /// What it said, or what is wrong.
        message: Box<str>,
        /// How many seconds the proxy asked to be left alone (`Retry-After`), if it did.
        retry_after: Option<NonZeroU16>,
    },
    /// The TLS handshake failed. Not retried when the server's [certificate](TlsFault::is_certificate) is at fault.
    #[non_exhaustive]
    Tls {
        /// What was wrong.
        fault: TlsFault,
        /// What the TLS library said.
        message: Box<str>,
        /// The certificate that the server presented: whose it is, who issued it, from when to when, for which names. `None`
        /// where the library does not tell (native-tls), or it never came.
        presented: Option<Box<str>>,
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
    /// `connect_timeout` ran out, or the part of it after which another address of the host is tried.
    #[non_exhaustive]
    Timeout {
        /// The step that was under way.
        phase: Phase,
        /// The time since the attempt began, for all steps together.
        limit: Duration,
    },
    /// The connection was there, but `prepare`, signing in, `on_open`, the subscriptions or `reconcile` failed. Retried
    /// unless the error is [fatal](SessionError::into_fatal).
    Session(Box<SessionError>),
}

impl ConnectError {
    /// One word for it, without what differs from case to case: for labels and counts.
    ///
    /// ```
    /// use ws_supervisor::{Client, ClientConfig, StartError};
    /// // Nothing listens on port 9 of this machine.
    /// match Client::connect(ClientConfig::new("ws://127.0.0.1:9")?) {
    ///     Err(StartError::Connect(error)) => assert_eq!(error.kind(), "tcp"),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Tcp { .. } => "tcp",
            Self::Proxy { .. } => "proxy",
            Self::Tls { .. } => "tls",
            Self::Refused(_) => "refused",
            Self::Handshake { .. } => "handshake",
            Self::Lost { .. } => "lost",
            Self::Subprotocol { .. } => "subprotocol",
            Self::Timeout { .. } => "timeout",
            Self::Session(_) => "session",
        }
    }

    /// Whether another attempt may succeed without anyone changing anything. False for certificates, for the
    /// statuses 401, 403 and 404 without a `Retry-After`, for a refused subprotocol, for a proxy that wants other credentials
    /// (407) or is misconfigured; true for the rest, known or not.
    ///
    /// A client goes by its own configuration: [`park_on`](crate::ClientConfig::park_on) says which statuses park it, with a
    /// [`prepare`](crate::ClientConfig::prepare) it tries again after 401 and 403, and with
    /// [`certificate_retry`](crate::ClientConfig::certificate_retry) after a certificate that is not accepted.
    pub fn is_retryable(&self) -> bool {
        match self {
            error if error.is_certificate() => false,
            Self::Proxy { status, proxy, .. } => *status != Some(407) && !proxy.is_empty(),
            Self::Refused(refusal) => refusal.retry_after.is_some() || !matches!(refusal.status, 401 | 403 | 404),
            Self::Subprotocol { .. } => false,
            Self::Session(error) => error.is_retryable(),
            _ => true,
        }
    }

    /// Whether the server's certificate was not accepted, or a proxy's.
    pub(crate) fn is_certificate(&self) -> bool {
        match self {
            Self::Tls { fault, .. } | Self::Proxy { fault: Some(fault), .. } => fault.is_certificate(),
            _ => false,
        }
    }

    /// Whether the server refused since it received too many requests: 429 (RFC 6585 section 4), or 418, Binance's code for a
    /// ban.
    pub(crate) fn is_ban(&self) -> bool {
        matches!(self, Self::Refused(refusal) if matches!(refusal.status, 418 | 429))
    }

    /// As `is_ban`, or the server refused since it has too much to do: 503 (RFC 9110 section 15.6.4).
    pub(crate) fn is_overload(&self) -> bool {
        self.is_ban() || matches!(self, Self::Refused(refusal) if refusal.status == 503)
    }

    /// How long the server asked to be left alone (`Retry-After`, RFC 9110 section 10.2.3), if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            Self::Proxy { retry_after, .. } => retry_after.map(|seconds| Duration::from_secs(seconds.get().into())),
            _ => None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { host, message } => write!(f, "cannot resolve {host}: {}", OneLine(message)),
            Self::Tcp { address, message, .. } => write!(f, "cannot connect to {address}: {}", OneLine(message)),
            Self::Proxy { proxy, message, .. } => {
                write!(f, "cannot connect through the proxy {proxy}: {}", OneLine(message))
            }
            Self::Tls { fault, message, presented } if fault.is_certificate() => {
                write!(f, "the server's certificate is not accepted: {}", OneLine(message))?;
                if let Some(presented) = presented {
                    write!(f, "; it presented {}", OneLine(presented))?;
                }
                write!(f, " ({})", fault.advice())
            }
            Self::Tls { fault, message, .. } => {
                let what = if fault.is_by_server() {
                    "the server refused us in the TLS handshake"
                } else {
                    "TLS handshake failed"
                };
                write!(f, "{what}: {}", OneLine(message))?;
                if fault.advice().is_empty() { Ok(()) } else { write!(f, " ({})", fault.advice()) }
            }
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Handshake { message } => write!(f, "not a WebSocket answer to the upgrade: {}", OneLine(message)),
            Self::Lost { phase, message } => write!(f, "connection lost in {phase}: {}", OneLine(message)),
            Self::Subprotocol { message } => write!(f, "subprotocol not agreed: {message}"),
            Self::Timeout { phase, limit } => {
                write!(f, "timed out in {phase}, {limit:.1?} after the attempt began (see `connect_timeout`)")?;
                if *phase == Phase::Tls { f.write_str(" (is it a `ws://` port?)") } else { Ok(()) }
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

/// What was wrong in a TLS handshake.
///
/// ```
/// use ws_supervisor::TlsFault;
/// assert!(TlsFault::Expired.is_certificate() && !TlsFault::Version.is_certificate());
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFault {
    /// The server's certificate, or one above it, has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It is for other names.
    WrongHost,
    /// It is signed by itself, and not trusted as such.
    SelfSigned,
    /// It is signed by nobody who is trusted.
    UnknownIssuer,
    /// Its key or its signature is too weak for the library.
    Weak,
    /// It was revoked.
    Revoked,
    /// It matches none of the pins.
    Pin,
    /// Something else is wrong with it.
    BadCertificate,
    /// No version of TLS that both sides speak.
    Version,
    /// The server's alert is about a certificate of ours: it wants one, or another.
    WantsCertificate,
    /// Another alert of the server's (RFC 8446 section 6).
    RefusedByServer,
    /// What answers does not speak TLS.
    NotTls,
    /// A file, a key or a name of the configuration's cannot be used.
    Configuration,
    /// Anything else.
    Other,
}

impl TlsFault {
    /// Whether the server's certificate is at fault, which no retry mends.
    pub fn is_certificate(self) -> bool {
        use TlsFault::*;
        matches!(
            self,
            Expired | NotYetValid | WrongHost | SelfSigned | UnknownIssuer | Weak | Revoked | Pin | BadCertificate
        )
    }

    /// Whether it was the server that refused us, by an alert.
    pub fn is_by_server(self) -> bool {
        matches!(self, Self::WantsCertificate | Self::RefusedByServer)
    }

    /// What to look at.
    fn advice(self) -> &'static str {
        match self {
            Self::Expired => "it has expired: is this machine's clock right?",
            Self::NotYetValid => "it is not valid yet: is this machine's clock right?",
            Self::WrongHost => "it is for other names: see `Tls::server_name`",
            Self::SelfSigned => "it is signed by itself: trust it with `root_certificate`, if it is meant to be",
            Self::UnknownIssuer => "its CA is not known: add it with `root_certificate`, if it is meant to be",
            Self::Weak => "its key or signature is too weak",
            Self::Revoked => "it was revoked",
            Self::Pin => "it matches no `pin`",
            Self::BadCertificate => "is the clock right, the host's name the one in it, and its CA known?",
            Self::Version => "no version of TLS that both sides speak: the server, or this side, wants a newer one",
            Self::WantsCertificate => "it may want a client certificate, or one that it knows: see `Tls::identity_pem`",
            Self::NotTls => "the server does not speak TLS here: is it a `ws://` port?",
            Self::RefusedByServer | Self::Configuration | Self::Other => "",
        }
    }
}

/// A server's refusal of the upgrade: what it answered instead of 101.
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
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
    /// Redirects that were followed before this answer.
    #[cfg_attr(feature = "record", serde(default))]
    pub redirects: u32,
}

impl Refusal {
    /// The value of the first header of this name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// Whether it is a redirect.
    pub(crate) fn points_elsewhere(&self) -> bool {
        matches!(self.status, 301 | 302 | 303 | 307 | 308) && self.location().is_some()
    }

    /// Where the server points to (`Location`, RFC 9110 section 10.2.2), if it does. It is followed as far as
    /// [`redirects`](crate::ClientConfig::redirects) says.
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
            // Path and query may hold a key, and what stands before an `@` does.
            let (scheme, rest) = location.split_once("://").map_or(("", location), |(scheme, rest)| (scheme, rest));
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
            match scheme {
                "" => f.write_str(" and points elsewhere")?,
                scheme => write!(f, " and points to {}://{}", OneLine(scheme), OneLine(host))?,
            }
        }
        if let Some(wait) = self.retry_after {
            write!(f, " and asks to retry after {} s", wait.as_secs())?;
        }
        match self.redirects {
            0 => Ok(()),
            followed => write!(f, ", after {followed} redirects in a row (see `redirects`)"),
        }
    }
}
