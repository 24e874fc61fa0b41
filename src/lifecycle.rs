//! How a run of a worker ends, what becomes of its client, and the errors of those who start, wait and stop.

use std::error::Error;
use std::fmt;

use crate::error::{ConfigError, ConnectError};
use crate::message::CloseFrame;
use crate::state::ReadyState;

/// Why a run of a worker ended. All but [`Closed`](ExitReason::Closed) are abnormal.
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// `close`, `stop_client`, a shutdown, or the end of the last handle of an unsupervised client.
    Closed,
    /// `restart_client`; the restart is not counted.
    RestartRequested,
    /// `park_client`.
    ParkRequested,
    /// A panic on the worker's thread, with its message.
    Panicked(Box<str>),
    /// All retries of this run failed.
    RetriesExhausted {
        /// What ended the last attempt or connection.
        last: Box<str>,
    },
    /// The heartbeat was not answered `missed` times in a row.
    HeartbeatLost {
        /// Misses in a row.
        missed: u32,
    },
    /// A refusal that no retry can mend.
    Refused(ConnectError),
    /// The server closed the connection with a code of [`park_on_close`](crate::ClientConfig::park_on_close).
    ClosedByServer(CloseFrame),
    /// Nobody is left who could read its events: the receiver of its shared channel was dropped.
    Deserted,
}

impl ExitReason {
    /// One word for it, without what differs from case to case: for labels and counts.
    ///
    /// ```
    /// assert_eq!(ws_supervisor::ExitReason::Closed.kind(), "closed");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::RestartRequested => "restart_requested",
            Self::ParkRequested => "park_requested",
            Self::ClosedByServer(_) => "closed_by_server",
            Self::Panicked(_) => "panicked",
            Self::RetriesExhausted { .. } => "retries_exhausted",
            Self::HeartbeatLost { .. } => "heartbeat_lost",
            Self::Refused(_) => "refused",
            Self::Deserted => "deserted",
        }
    }

    /// Whether a transient client is left ended after this.
    pub fn is_normal(&self) -> bool {
        matches!(self, Self::Closed)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::RestartRequested => f.write_str("restart requested"),
            Self::ParkRequested => f.write_str("park requested"),
            Self::ClosedByServer(frame) => write!(f, "closed by the server: {frame}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::RetriesExhausted { last } => write!(f, "retries exhausted; last: {last}"),
            Self::HeartbeatLost { missed } => write!(f, "heartbeat lost: {missed} in a row unanswered"),
            Self::Refused(error) => error.fmt(f),
            Self::Deserted => f.write_str("nobody is left who could read its events"),
        }
    }
}

/// Why a client is parked.
///
/// ```
/// # use std::time::Duration;
/// # use ws_supervisor::{*, testing::{Script, Server}};
/// let server = Server::start(Script::refuse(401))?;
/// let supervisor = Supervisor::start()?;
/// let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
/// match client.wait_until_open(Duration::from_secs(10)) {
///     Err(WaitError::Parked(ParkReason::Refused(error))) => assert!(error.to_string().contains("401")),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParkReason {
    /// Restarted more often than the restart intensity allows.
    #[non_exhaustive]
    IntensityExceeded {
        /// Why the last run ended.
        last: ExitReason,
    },
    /// A refusal that no retry can mend.
    Refused(ConnectError),
    /// The server closed the connection with a code of [`park_on_close`](crate::ClientConfig::park_on_close).
    ClosedByServer(CloseFrame),
    /// [`Supervisor::park_client`](crate::Supervisor::park_client).
    Requested,
    /// Nobody is left who could read its events: the receiver of its shared channel was dropped, most likely by a panic of
    /// the thread that read. Nothing is heard from its connection any more, so there is none.
    Deserted,
}

impl ParkReason {
    /// One word for it, without what differs from case to case: for labels and counts.
    ///
    /// ```
    /// assert_eq!(ws_supervisor::ParkReason::Deserted.kind(), "deserted");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::IntensityExceeded { .. } => "intensity_exceeded",
            Self::Refused(_) => "refused",
            Self::ClosedByServer(_) => "closed_by_server",
            Self::Requested => "requested",
            Self::Deserted => "deserted",
        }
    }
}

impl fmt::Display for ParkReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IntensityExceeded { last } => write!(f, "restarted too often; last: {last}"),
            Self::Refused(error) => error.fmt(f),
            Self::ClosedByServer(frame) => write!(f, "closed by the server: {frame}"),
            Self::Requested => f.write_str("park requested"),
            Self::Deserted => f.write_str("nobody is left who could read its events"),
        }
    }
}

/// How a client's story stops.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Closed(ExitReason),
    Parked(ParkReason),
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

/// Why a client could not be stopped, restarted or resumed as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopError {
    /// The supervisor has no client of this id; it may have ended before.
    NotFound,
    /// Of a stop: the thread of this client did not come back within the grace time, most likely because a handler of yours
    /// does not return. Its socket is shut and its thread left behind; what was on its way to it and what it had taken follow in
    /// [`SupervisorEvent::LeftBehind`](crate::SupervisorEvent) and `CameBack`, should it come back.
    LeftBehind(Box<str>),
    /// Of `resume_client`: the client is not parked, so there is nothing to resume.
    NotParked,
    /// Of `close_with`: the code or the reason may not be sent (RFC 6455 section 7.4). Nothing was done.
    InvalidCloseFrame(Box<str>),
    /// Of `resume_client` and `restart_client`: the operating system gave no thread to start the client again. It stays
    /// parked; try again.
    Os(Box<str>),
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("the supervisor has no such client"),
            Self::LeftBehind(name) => {
                write!(f, "the thread of client `{name}` did not end within its grace time and is left behind")
            }
            Self::InvalidCloseFrame(rule) => write!(f, "not a close frame that may be sent: {rule}"),
            Self::NotParked => f.write_str("the client is not parked, so there is nothing to resume"),
            Self::Os(message) => {
                write!(f, "the operating system gave no thread, and the client stays parked: {message}")
            }
        }
    }
}

impl Error for StopError {}
