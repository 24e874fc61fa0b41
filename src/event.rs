//! All that crosses up: a client's [`Event`]s, its states, and the reasons for what happens to it.
//! Touches `message` and `error`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{ConnectError, RefusedChannel};
use crate::message::{CloseFrame, Message};
use crate::response::Response;

/// What a client is doing: RFC 6455's four states, and the two that recovery adds.
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

impl fmt::Display for ReadyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What happens to a client, in the order in which it happened.
///
/// Messages are subject to the client's [`Overflow`](crate::Overflow) policy. The other events are never dropped:
/// when nobody reads, up to 1,024 of them wait behind the full queue, and what comes after that is summed up in one
/// [`Event::Collapsed`].
///
/// ```
/// use ws_supervisor::{ClientConfig, Event, Supervisor, testing::Server};
///
/// let server = Server::echo()?;
/// let supervisor = Supervisor::start()?;
/// let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
/// for event in client.events() {
///     match event {
///         Event::Open { epoch, .. } => { assert_eq!(epoch, 1); client.send("hello")?; }
///         Event::Message(message) => { assert_eq!(message.as_text(), Some("hello")); break; }
///         other => panic!("{other:?}"),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection is open; sends are accepted. Signing in, `on_open`, the subscriptions and `reconcile` lie behind it;
    /// without those, this is the time to subscribe: a new connection knows nothing.
    #[non_exhaustive]
    Open {
        /// The number of this connection of the client: rises by one at every open, across restarts too.
        epoch: u64,
        /// Channels that the server has acknowledged on this connection.
        restored: Vec<Arc<str>>,
        /// Channels that are wanted and that the server refused. They are asked for again on the next connection.
        refused: Vec<RefusedChannel>,
    },
    /// A message from the server. One that answers a request goes to who asked, and not here.
    Message(Message),
    /// What became of a request that a handler made with [`Context::request`](crate::Context::request).
    Response(Box<Response>),
    /// The answer to a request that nobody waits for any more: its time had run out, or its
    /// [`PendingResponse`](crate::PendingResponse) was dropped. What the venue did is in it.
    LateResponse(Box<Response>),
    /// The server refused a channel on the open connection.
    SubscriptionRefused(Box<RefusedChannel>),
    /// An open connection was lost. What follows is a reconnect, a restart, or `Parked` or `Closed`.
    #[non_exhaustive]
    Disconnected {
        /// The connection that was lost.
        epoch: u64,
        /// Why.
        reason: DisconnectReason,
        /// Every message that was accepted and not written. None of them will be: send again what still holds.
        unsent: Vec<Message>,
    },
    /// An attempt to connect failed.
    #[non_exhaustive]
    ConnectFailed {
        /// Attempts since a connection last was stable, this one included.
        attempt: u32,
        /// Why.
        error: ConnectError,
        /// How long the client waits before the next attempt; `None` when there is none in this run of the worker.
        retry_in: Option<Duration>,
    },
    /// The worker ended abnormally and the supervisor has started it anew: first event of the new run.
    #[non_exhaustive]
    Restarted {
        /// Why the earlier run ended.
        reason: ExitReason,
        /// How many times this client has been restarted.
        restarts: u64,
    },
    /// Messages were dropped here: the queue was full and the overflow policy says so.
    #[non_exhaustive]
    Lagged {
        /// How many.
        dropped: u64,
    },
    /// Nobody read for so long that more than 1,024 events piled up: these stand for the ones after.
    #[non_exhaustive]
    Collapsed {
        /// How many events are summed up here.
        events: u64,
        /// The messages that they handed back, as far as they fit `send_capacity`, latest kept.
        unsent: Vec<Message>,
        /// How many handed back messages did not fit.
        unsent_dropped: u64,
    },
    /// The client is given up on until someone resumes it.
    #[non_exhaustive]
    Parked {
        /// Why.
        reason: ParkReason,
        /// Messages that were queued for the next connection.
        unsent: Vec<Message>,
    },
    /// The client has ended; nothing comes after this.
    #[non_exhaustive]
    Closed {
        /// Why.
        reason: ExitReason,
        /// Every message that was accepted and not written.
        unsent: Vec<Message>,
    },
}

/// An event of one of many clients that share a channel ([`Delivery::shared`](crate::Delivery::shared)).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientEvent {
    /// Which client.
    pub client: ClientId,
    /// Its name.
    pub name: Arc<str>,
    /// What happened to it.
    pub event: Event,
}

/// Identity of a client in this process: never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub(crate) u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
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
    /// `restart_client` was called.
    RestartRequested,
    /// The worker's thread panicked.
    Panicked(Box<str>),
    /// The connection had reached its [`max_age`](crate::ClientConfig::max_age), and another takes its place.
    MaxAge,
    /// What expires (a token) could not be renewed; the next connection signs in afresh.
    RenewalFailed(Box<str>),
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedByServer(Some(frame)) => write!(f, "closed by the server: {frame}"),
            Self::ClosedByServer(None) => f.write_str("closed by the server"),
            Self::Transport(message) => write!(f, "connection lost: {message}"),
            Self::Protocol(message) => write!(f, "the server broke the protocol: {message}"),
            Self::HeartbeatLost { missed } => write!(f, "heartbeat lost: {missed} in a row unanswered"),
            Self::Overflow => f.write_str("the event queue was full"),
            Self::RestartRequested => f.write_str("restart requested"),
            Self::Panicked(message) => write!(f, "the worker panicked: {message}"),
            Self::MaxAge => f.write_str("old enough to be replaced"),
            Self::RenewalFailed(message) => write!(f, "not renewed: {message}"),
        }
    }
}

/// Why a run of a worker ended. All but [`Closed`](ExitReason::Closed) are abnormal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// `close`, `stop_client`, a shutdown, or the end of the last handle of an unsupervised client.
    Closed,
    /// `restart_client`; the restart is not counted.
    RestartRequested,
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
}

impl ExitReason {
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
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::RetriesExhausted { last } => write!(f, "retries exhausted; last: {last}"),
            Self::HeartbeatLost { missed } => write!(f, "heartbeat lost: {missed} in a row unanswered"),
            Self::Refused(error) => error.fmt(f),
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
}

impl fmt::Display for ParkReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IntensityExceeded { last } => write!(f, "restarted too often; last: {last}"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_stay_small() {
        assert!(size_of::<Event>() <= 72, "{}", size_of::<Event>());
    }
}
