//! All that crosses up: a client's [`Event`]s.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{ConnectError, RefusedChannel};
use crate::handed_back::HandedBack;
use crate::lifecycle::{End, ExitReason, ParkReason};
use crate::message::Message;
use crate::messages::Messages;
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
#[cfg_attr(
    feature = "record",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "type", content = "data", rename_all = "snake_case")
)]
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
        /// Channels that are wanted and asked for and not acknowledged yet, or not asked for yet since a rate limit holds
        /// them up. A refusal comes as [`Event::SubscriptionRefused`]; [`Client::subscriptions`](crate::Client::subscriptions)
        /// has what is acknowledged.
        pending: Vec<Arc<str>>,
    },
    /// A message from the server. One that answers a request goes to who asked, and not here.
    #[cfg_attr(feature = "record", serde(skip))]
    Message(Message),
    /// Messages that one read brought, in their order: in place of [`Event::Message`], with
    /// [`Delivery::batches`](crate::Delivery::batches) and only there.
    #[cfg_attr(feature = "record", serde(skip))]
    Messages(Messages),
    /// What became of a request that was made with [`Client::post`](crate::Client::post) or
    /// [`Context::request`](crate::Context::request): in its place among the messages, as they came over the wire.
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
        /// Messages that were written, and that the peer's kernel had not acknowledged when the line was given up: it may
        /// have them or not. Ask the venue before you send one again. Through a [`Proxy`](crate::Proxy), whose kernel's word
        /// says nothing of the venue: all that was written since the last ping of ours that the venue has answered
        /// ([`Heartbeat::ping_pong`](crate::Heartbeat::ping_pong)), at most the latest `send_capacity`, also where the
        /// system is not Linux. Requests are not among them, since each has its
        /// response. On Linux; empty elsewhere.
        uncertain: Vec<Message>,
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
    /// The client has stopped reading its socket since its events are not read ([`Overflow::Backpressure`](crate::Overflow));
    /// told when that has lasted for 100 ms. What follows is older than
    /// [`received_at`](Message::received_at) says by the time that it waited in the kernel.
    /// [`Stats::paused_for`](crate::Stats) tells it from outside, and
    /// [`SupervisorEvent::ReaderBehind`](crate::SupervisorEvent) does when it lasts.
    ReadingPaused,
    /// The client reads its socket again.
    #[non_exhaustive]
    ReadingResumed {
        /// For how long it did not.
        after: Duration,
    },
    /// No data has come for [`stale_after`](crate::ClientConfig::stale_after) though the line is alive, or none of a
    /// channel's; told once in each silence, where [`StaleAction::Tell`](crate::StaleAction::Tell) is set.
    #[non_exhaustive]
    Stale {
        /// The channel, where it is one's.
        channel: Option<Arc<str>>,
        /// For how long.
        silent_for: Duration,
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
        /// How many messages were dropped in between.
        dropped: u64,
        /// What those events handed back: the latest, all of the last connection's among them, and of the messages as many
        /// as fit `send_capacity`, of requests as many as can be pending at once (65,536).
        handed_back: Box<HandedBack>,
    },
    /// The client is given up on until someone resumes it.
    #[non_exhaustive]
    Parked {
        /// Why.
        reason: ParkReason,
        /// Every message that was accepted and not written, those queued for the next connection among them.
        unsent: Vec<Message>,
        /// As in [`Event::Disconnected`].
        uncertain: Vec<Message>,
    },
    /// The client has ended; nothing comes after this.
    #[non_exhaustive]
    Closed {
        /// Why.
        reason: ExitReason,
        /// Every message that was accepted and not written.
        unsent: Vec<Message>,
        /// As in [`Event::Disconnected`].
        uncertain: Vec<Message>,
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

impl Event {
    /// One word for it, without what differs from case to case: for labels and lines.
    ///
    /// ```
    /// use ws_supervisor::{Event, Message};
    /// assert_eq!(Event::Message(Message::text("tick")).kind(), "message");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Message(_) => "message",
            Self::Messages(_) => "messages",
            Self::Response(_) => "response",
            Self::LateResponse(_) => "late_response",
            Self::SubscriptionRefused(_) => "subscription_refused",
            Self::Disconnected { .. } => "disconnected",
            Self::ConnectFailed { .. } => "connect_failed",
            Self::Restarted { .. } => "restarted",
            Self::ReadingPaused => "reading_paused",
            Self::ReadingResumed { .. } => "reading_resumed",
            Self::Stale { .. } => "stale",
            Self::Lagged { .. } => "lagged",
            Self::Collapsed { .. } => "collapsed",
            Self::Parked { .. } => "parked",
            Self::Closed { .. } => "closed",
        }
    }

    /// What all of them say of messages and requests of the caller's.
    pub(crate) fn all_handed_back(events: impl IntoIterator<Item = Self>) -> HandedBack {
        events.into_iter().fold(HandedBack::default(), |mut all, event| {
            all.extend(event.into_handed_back());
            all
        })
    }

    /// What it says of messages and requests of the caller's.
    pub(crate) fn into_handed_back(self) -> HandedBack {
        match self {
            Self::Disconnected { unsent, uncertain, .. }
            | Self::Parked { unsent, uncertain, .. }
            | Self::Closed { unsent, uncertain, .. } => HandedBack { unsent, uncertain, ..HandedBack::default() },
            Self::Response(response) | Self::LateResponse(response) => {
                HandedBack { responses: vec![*response], ..HandedBack::default() }
            }
            Self::Collapsed { handed_back, .. } => *handed_back,
            _ => HandedBack::default(),
        }
    }
}

impl End {
    pub(crate) fn event(&self, unsent: Vec<Message>, uncertain: Vec<Message>) -> Event {
        match self.clone() {
            Self::Closed(reason) => Event::Closed { reason, unsent, uncertain },
            Self::Parked(reason) => Event::Parked { reason, unsent, uncertain },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_stay_small() {
        assert!(size_of::<Event>() <= 96, "{}", size_of::<Event>());
    }
}
