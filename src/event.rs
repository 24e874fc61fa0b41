//! All that crosses up: a client's [`Event`]s.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{ConnectError, RefusedChannel};
use crate::lifecycle::{End, ExitReason, ParkReason};
use crate::message::Message;
use crate::response::Response;
use crate::state::{ClientId, DisconnectReason};

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

impl End {
    pub(crate) fn event(&self, unsent: Vec<Message>) -> Event {
        match self.clone() {
            Self::Closed(reason) => Event::Closed { reason, unsent },
            Self::Parked(reason) => Event::Parked { reason, unsent },
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
