//! What can go wrong with a message of yours. The message is inside.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::message::Message;
use crate::state::ReadyState;

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
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
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
    /// `send_capacity` messages, or `send_bytes` of them, wait to be written: the server takes them more slowly than you
    /// send. While there is no connection, `queue_while_disconnected` of them, or `send_bytes`.
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
            Self::Full { .. } => f.write_str(
                "not sent: as much waits to be written as `send_capacity` and `send_bytes` allow, or \
                 `queue_while_disconnected` before there is a connection",
            ),
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
