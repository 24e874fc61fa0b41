//! What a client is doing, who it is, and why a connection ended: words that everything else uses.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{CloseFrame, OneLine};

/// What a client is doing: RFC 6455's four states, and the two that recovery adds.
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadyState {
    /// An attempt to connect is under way, or about to be.
    Connecting,
    /// Connected; sends are accepted.
    Open,
    /// A close was asked for and is under way.
    Closing,
    /// Ended for good.
    Closed,
    /// Waiting before the next attempt to connect.
    Backoff,
    /// Given up on, with a reason; `Supervisor::resume_client` starts it again.
    Parked,
}

impl ReadyState {
    /// For whoever was refused for want of a connection, and looks at the state a moment later.
    pub(crate) fn unless_open(self) -> Self {
        if self == Self::Open { Self::Connecting } else { self }
    }
}

impl fmt::Display for ReadyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connecting => "Connecting",
            Self::Open => "Open",
            Self::Closing => "Closing",
            Self::Closed => "Closed",
            Self::Backoff => "Backoff",
            Self::Parked => "Parked",
        })
    }
}

/// Identity of a client in this process: never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub(crate) u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("#{}", self.0))
    }
}

/// Who a queue belongs to, for the tag of a shared channel and for log lines.
#[derive(Clone, Debug)]
pub(crate) struct Tag {
    pub(crate) id: ClientId,
    pub(crate) name: Arc<str>,
    /// The venue's name, or its host's.
    pub(crate) venue: Arc<str>,
}

/// Why an open connection ended.
///
/// ```
/// # use std::time::Duration;
/// # use ws_supervisor::{*, testing::{Script, Server}};
/// # let server = Server::echo()?;
/// # let supervisor = Supervisor::start()?;
/// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
/// # client.wait_until_open(Duration::from_secs(10))?;
/// client.events().recv()?; // open
/// server.close_all(1001, "maintenance");
/// match client.events().recv()? {
///     Event::Disconnected { reason, .. } => assert_eq!(reason.to_string(), "closed by the server: 1001 maintenance"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The server sent a close frame (`None`: one without a code).
    ClosedByServer(Option<CloseFrame>),
    /// The transport broke, or ended without a close frame: what the operating system said.
    Transport(Box<str>),
    /// The server broke the protocol; it was told so in a close frame.
    Protocol(Box<str>),
    /// The heartbeat was not answered `missed` times in a row.
    HeartbeatLost {
        /// Misses in a row.
        missed: u32,
    },
    /// The event queue was full under [`Overflow::Disconnect`](crate::Overflow::Disconnect).
    Overflow,
    /// Nobody is left who could read its events: the receiver of the shared channel was dropped.
    Deserted,
    /// `restart_client` was called.
    RestartRequested,
    /// [`Client::reconnect`](crate::Client::reconnect) or [`Context::reconnect`](crate::Context::reconnect) was called.
    ReconnectRequested,
    /// The worker's thread panicked.
    #[non_exhaustive]
    Panicked {
        /// The panic's message.
        message: Box<str>,
        /// Messages that were received on this connection and can't be delivered: those behind the one at which it panicked,
        /// and those kept until the session was open. They are in [`Stats::dropped`](crate::Stats::dropped) too.
        dropped: u64,
    },
    /// The connection had reached its [`max_age`](crate::ClientConfig::max_age), and another takes its place.
    MaxAge,
    /// The line is alive, and no data came for [`stale_after`](crate::ClientConfig::stale_after), or none of a channel's for
    /// [`stale_channel_after`](crate::ClientConfig::stale_channel_after).
    #[non_exhaustive]
    Stale {
        /// The channel, where it is one's.
        channel: Option<Arc<str>>,
        /// For how long.
        silent_for: Duration,
    },
    /// What expires (a token) could not be renewed; the next connection signs in afresh.
    RenewalFailed(Box<str>),
}

impl DisconnectReason {
    /// Whether the server restarts or asks to try again later (close codes 1012 and 1013 of IANA's registry): all its clients
    /// learn that at the same moment.
    pub(crate) fn is_restart_of_the_server(&self) -> bool {
        matches!(self, Self::ClosedByServer(Some(CloseFrame { code: 1012 | 1013, .. })))
    }

    /// One word for it, without what differs from case to case: for labels and counts.
    ///
    /// ```
    /// use ws_supervisor::DisconnectReason;
    /// assert_eq!(DisconnectReason::ClosedByServer(None).kind(), "closed_by_server");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClosedByServer(_) => "closed_by_server",
            Self::Transport(_) => "transport",
            Self::Protocol(_) => "protocol",
            Self::HeartbeatLost { .. } => "heartbeat_lost",
            Self::Overflow => "overflow",
            Self::Deserted => "deserted",
            Self::RestartRequested => "restart_requested",
            Self::ReconnectRequested => "reconnect_requested",
            Self::Panicked { .. } => "panicked",
            Self::MaxAge => "max_age",
            Self::Stale { .. } => "stale",
            Self::RenewalFailed(_) => "renewal_failed",
        }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedByServer(Some(frame)) => write!(f, "closed by the server: {frame}"),
            Self::ClosedByServer(None) => f.write_str("closed by the server"),
            Self::Transport(message) => write!(f, "connection lost: {}", OneLine(message)),
            Self::Protocol(message) => write!(f, "the server broke the protocol: {}", OneLine(message)),
            Self::HeartbeatLost { missed } => write!(f, "heartbeat lost: {missed} in a row unanswered"),
            Self::Overflow => f.write_str("the event queue was full"),
            Self::Deserted => f.write_str("nobody is left who could read its events"),
            Self::RestartRequested => f.write_str("restart requested"),
            Self::ReconnectRequested => f.write_str("reconnect requested"),
            Self::Panicked { message, dropped: 0 } => write!(f, "the worker panicked: {message}"),
            Self::Panicked { message, dropped } => {
                write!(f, "the worker panicked: {message}; {dropped} received messages were dropped")
            }
            Self::MaxAge => f.write_str("old enough to be replaced"),
            Self::Stale { channel: None, silent_for } => write!(f, "stale: no data for {silent_for:.1?}"),
            Self::Stale { channel: Some(channel), silent_for } => {
                write!(f, "stale: no data of channel {channel} for {silent_for:.1?}")
            }
            Self::RenewalFailed(message) => write!(f, "not renewed: {}", OneLine(message)),
        }
    }
}
