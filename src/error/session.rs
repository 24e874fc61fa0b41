//! What can go wrong with the code that opens a session, or with a subscription.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::send::SendError;
use crate::message::OneLine;
use crate::request::RpcError;
use crate::state::{DisconnectReason, ReadyState};

/// Why a connection could not be made ready: said by `prepare`, `on_open`, `reconcile` or a venue's own code, or met in
/// the calls of a [`Session`](crate::Session). It ends the attempt to connect. Retried like any other failed attempt,
/// unless it is [fatal](SessionError::into_fatal): then the client is parked.
///
/// ```
/// use ws_supervisor::SessionError;
/// assert!(SessionError::retryable("the token service is down").is_retryable());
/// assert!(!SessionError::fatal("the account is closed").is_retryable());
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionError {
    /// What your own code says.
    Rejected(Box<str>),
    /// The server refused a request.
    #[non_exhaustive]
    Rpc {
        /// Its method.
        method: Box<str>,
        /// What the server answered.
        error: RpcError,
    },
    /// A request could not be written or its result not read.
    #[non_exhaustive]
    Malformed {
        /// Its method.
        method: Box<str>,
        /// What does not fit.
        message: Box<str>,
    },
    /// A message was not accepted.
    Refused(Box<SendError>),
    /// The connection ended.
    Disconnected(DisconnectReason),
    /// The time for the attempt ran out (`connect_timeout`, or a shorter one of the caller's).
    #[non_exhaustive]
    Timeout {
        /// What did not come.
        waiting_for: Box<str>,
        /// The time that was given.
        limit: Duration,
    },
    /// More than `event_bytes` of messages came before the session was ready; under
    /// [`Overflow::Backpressure`](crate::Overflow::Backpressure) none may be lost, and none can be delivered yet.
    TooManyMessages(usize),
    /// The client is being stopped or restarted: return.
    Cancelled,
    /// One of the others, and no retry can mend it.
    Fatal(Box<SessionError>),
}

impl SessionError {
    /// An error of your own that another attempt may mend.
    pub fn retryable(message: impl fmt::Display) -> Self {
        Self::Rejected(message.to_string().into())
    }

    /// An error of your own that no retry can mend: the client is parked.
    pub fn fatal(message: impl fmt::Display) -> Self {
        Self::retryable(message).into_fatal()
    }

    /// This error, as one that no retry can mend.
    pub fn into_fatal(self) -> Self {
        match self {
            Self::Fatal(_) | Self::Cancelled => self,
            other => Self::Fatal(Box::new(other)),
        }
    }

    /// Whether another attempt may succeed without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Fatal(_))
    }

    /// The server's refusal, if this is one.
    pub fn rpc(&self) -> Option<&RpcError> {
        match self {
            Self::Rpc { error, .. } => Some(error),
            Self::Fatal(inner) => inner.rpc(),
            _ => None,
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(message) => OneLine(message).fmt(f),
            Self::Rpc { method, error } => write!(f, "`{method}` was refused by the server: {error}"),
            Self::Malformed { method, message } => write!(f, "`{method}`: {message}"),
            Self::Refused(error) => error.fmt(f),
            Self::Disconnected(reason) => reason.fmt(f),
            Self::Timeout { waiting_for, limit } => write!(f, "no {waiting_for} within {limit:?}"),
            Self::TooManyMessages(limit) => {
                write!(f, "more than {limit} bytes of messages (`event_bytes`) came before the session was ready")
            }
            Self::Cancelled => f.write_str("the client is being stopped"),
            Self::Fatal(inner) => inner.fmt(f),
        }
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rpc { error, .. } => Some(error),
            Self::Refused(error) => Some(error),
            Self::Fatal(inner) => inner.source(),
            _ => None,
        }
    }
}

impl From<SendError> for SessionError {
    fn from(error: SendError) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// A channel that the server did not acknowledge.
///
/// ```
/// # use ws_supervisor::{*, testing::DeribitServer, venue::deribit::Deribit};
/// # let server = DeribitServer::start()?;
/// # let client = Client::connect(ClientConfig::new(server.url())?.venue(Deribit::new()))?;
/// match client.subscribe(["book.BTC-PERPETUAL.100ms", "book.NOTHING.100ms"]) {
///     Err(SubscribeError::Refused(refused)) => {
///         assert_eq!(&*refused[0].channel, "book.NOTHING.100ms");
///         println!("{}: {}", refused[0].channel, refused[0].error);
///     }
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedChannel {
    /// Which.
    pub channel: Arc<str>,
    /// What the server said; code 0 when it said nothing of this channel.
    pub error: RpcError,
}

/// Why [`subscribe`](crate::Client::subscribe) or [`unsubscribe`](crate::Client::unsubscribe) did not end as asked.
///
/// ```
/// # use ws_supervisor::{Client, ClientConfig, SubscribeError, testing::Server};
/// # let server = Server::echo()?;
/// # let client = Client::connect(ClientConfig::new(server.url())?)?;
/// // Without a venue nobody knows how to subscribe.
/// assert_eq!(client.subscribe(["book.BTC-PERPETUAL.raw"]), Err(SubscribeError::NoVenue));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The configuration names no [`venue`](crate::ClientConfig::venue), so nobody knows how to subscribe.
    NoVenue,
    /// The server refused these channels. They are no longer wanted; the others are in effect.
    Refused(Vec<RefusedChannel>),
    /// The time (`request_timeout`) ran out. What was asked for stands: it is carried out as soon as there is a
    /// connection.
    #[non_exhaustive]
    Timeout {
        /// Channels that are not acknowledged yet.
        pending: Vec<Arc<str>>,
        /// Channels that the server refused; they are no longer wanted.
        refused: Vec<RefusedChannel>,
        /// What the client was doing.
        state: ReadyState,
    },
    /// The client is closed or parked. What was asked for stands, should it be resumed.
    NotRunning(ReadyState),
    /// This is the client's own thread, which would wait for itself: use the [`Context`](crate::Context) there.
    OwnThread,
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVenue => f.write_str("no venue is configured: set one with `ClientConfig::venue`"),
            Self::Refused(refused) => tell_refused(f, refused),
            Self::Timeout { pending, refused, state } => {
                write!(f, "not acknowledged in time, and still asked for ({state}): {}", pending.join(" "))?;
                if refused.is_empty() {
                    return Ok(());
                }
                f.write_str("; ")?;
                tell_refused(f, refused)
            }
            Self::NotRunning(state) => write!(f, "the client is {state}"),
            Self::OwnThread => f.write_str("this is the client's own thread: use the handler's context"),
        }
    }
}

fn tell_refused(f: &mut fmt::Formatter<'_>, refused: &[RefusedChannel]) -> fmt::Result {
    f.write_str("refused by the server:")?;
    refused.iter().try_for_each(|RefusedChannel { channel, error }| write!(f, " {channel} ({error})"))
}

impl Error for SubscribeError {}
