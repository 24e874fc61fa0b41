//! Values that only the library makes, for unit tests of code that takes them: events, responses, messages that came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{ConnectError, RefusedChannel, RequestError, Unanswered};
use crate::event::{ClientEvent, Event};
use crate::handed_back::HandedBack;
use crate::lifecycle::{ExitReason, ParkReason};
use crate::message::Message;
use crate::messages::Messages;
use crate::request::{Json, RequestId, RpcError};
use crate::response::Response;
use crate::state::{ClientId, DisconnectReason};
use crate::supervisor::SupervisorEvent;

/// A message as it would have been read at this time.
///
/// ```
/// use std::time::Instant;
/// use ws_supervisor::testing::received;
/// let now = Instant::now();
/// assert_eq!(received("tick", now).received_at(), Some(now));
/// ```
pub fn received(message: impl Into<Message>, at: Instant) -> Message {
    message.into().at(at)
}

/// [`Event::Open`], with nothing restored, refused or pending.
///
/// ```
/// use ws_supervisor::{Event, testing::opened};
/// assert!(matches!(opened(7), Event::Open { epoch: 7, .. }));
/// ```
pub fn opened(epoch: u64) -> Event {
    Event::Open { epoch, restored: vec![], refused: vec![], pending: vec![] }
}

/// [`Event::Disconnected`].
///
/// ```
/// use ws_supervisor::{DisconnectReason, Event, testing::disconnected};
/// let event = disconnected(1, DisconnectReason::MaxAge, vec!["never left".into()], vec!["perhaps lost".into()]);
/// assert!(matches!(event, Event::Disconnected { uncertain, .. } if uncertain.len() == 1));
/// ```
pub fn disconnected(epoch: u64, reason: DisconnectReason, unsent: Vec<Message>, uncertain: Vec<Message>) -> Event {
    Event::Disconnected { epoch, reason, unsent, uncertain }
}

/// [`Event::ConnectFailed`].
///
/// ```
/// use ws_supervisor::{ConnectError, SessionError, testing::connect_failed};
/// let error = ConnectError::Session(Box::new(SessionError::retryable("no token")));
/// println!("{:?}", connect_failed(1, error, None));
/// ```
pub fn connect_failed(attempt: u32, error: ConnectError, retry_in: Option<Duration>) -> Event {
    Event::ConnectFailed { attempt, error, retry_in }
}

/// [`Event::Restarted`].
///
/// ```
/// use ws_supervisor::{ExitReason, testing::restarted};
/// println!("{:?}", restarted(ExitReason::RestartRequested, 1));
/// ```
pub fn restarted(reason: ExitReason, restarts: u64) -> Event {
    Event::Restarted { reason, restarts }
}

/// [`Event::Lagged`].
///
/// ```
/// use ws_supervisor::{Event, testing::lagged};
/// assert!(matches!(lagged(3), Event::Lagged { dropped: 3, .. }));
/// ```
pub fn lagged(dropped: u64) -> Event {
    Event::Lagged { dropped }
}

/// [`Event::Messages`].
///
/// # Panics
/// When there are none.
///
/// ```
/// use ws_supervisor::{Event, testing::batch};
/// let Event::Messages(messages) = batch(&["a".into(), "b".into()]) else { unreachable!() };
/// assert_eq!(messages.len(), 2);
/// ```
pub fn batch(messages: &[Message]) -> Event {
    assert!(!messages.is_empty(), "a batch has messages");
    Event::Messages(Messages::of(messages))
}

/// [`Event::Parked`].
///
/// ```
/// use ws_supervisor::{ParkReason, testing::parked};
/// println!("{:?}", parked(ParkReason::Deserted, vec![], vec![]));
/// ```
pub fn parked(reason: ParkReason, unsent: Vec<Message>, uncertain: Vec<Message>) -> Event {
    Event::Parked { reason, unsent, uncertain }
}

/// [`Event::Closed`].
///
/// ```
/// use ws_supervisor::{ExitReason, testing::closed};
/// println!("{:?}", closed(ExitReason::Closed, vec![], vec![]));
/// ```
pub fn closed(reason: ExitReason, unsent: Vec<Message>, uncertain: Vec<Message>) -> Event {
    Event::Closed { reason, unsent, uncertain }
}

/// [`Event::SubscriptionRefused`].
///
/// ```
/// use ws_supervisor::{RpcError, testing::subscription_refused};
/// println!("{:?}", subscription_refused("book.X", RpcError::new(1, "no such channel")));
/// ```
pub fn subscription_refused(channel: &str, error: RpcError) -> Event {
    Event::SubscriptionRefused(Box::new(RefusedChannel { channel: channel.into(), error }))
}

/// A [`Response`]; in an [`Event::Response`] it is boxed.
///
/// ```
/// use ws_supervisor::{Event, Json, testing::response};
/// let cancelled = response(7, "private/cancel", Ok(Json::from("true".to_owned())));
/// let event = Event::Response(Box::new(cancelled));
/// # let _ = event;
/// ```
pub fn response(
    id: impl Into<RequestId>,
    method: impl Into<Box<str>>,
    outcome: Result<Json, RequestError>,
) -> Response {
    Response { id: id.into(), method: method.into(), outcome }
}

/// The outcome of a request that was accepted and never written.
///
/// ```
/// use ws_supervisor::{RequestError, Unanswered, testing::{not_sent, response}};
/// let outcome = Err(not_sent("the request", Unanswered::Disconnected));
/// assert!(matches!(response(7, "private/buy", outcome).outcome, Err(RequestError::NotSent { .. })));
/// ```
pub fn not_sent(message: impl Into<Message>, cause: Unanswered) -> RequestError {
    RequestError::NotSent { message: message.into(), cause }
}

/// The outcome of a request that was written and never answered.
///
/// ```
/// use ws_supervisor::{RequestError, Unanswered, testing::outcome_unknown};
/// assert!(matches!(outcome_unknown(7, Unanswered::TimedOut), RequestError::OutcomeUnknown { .. }));
/// ```
pub fn outcome_unknown(id: impl Into<RequestId>, cause: Unanswered) -> RequestError {
    RequestError::OutcomeUnknown { id: id.into(), cause }
}

/// [`Event::Collapsed`].
///
/// ```
/// use ws_supervisor::{HandedBack, testing::collapsed};
/// let mut handed_back = HandedBack::default();
/// handed_back.unsent.push("an order".into());
/// println!("{:?}", collapsed(5_000, 0, handed_back));
/// ```
pub fn collapsed(events: u64, dropped: u64, handed_back: HandedBack) -> Event {
    Event::Collapsed { events, dropped, handed_back: Box::new(handed_back) }
}

/// [`SupervisorEvent::Parked`].
///
/// ```
/// use ws_supervisor::{HandedBack, ParkReason, testing::client_parked};
/// println!("{:?}", client_parked(1, "orders", ParkReason::Deserted, HandedBack::default()));
/// ```
pub fn client_parked(
    client: u64,
    name: impl Into<Arc<str>>,
    reason: ParkReason,
    handed_back: HandedBack,
) -> SupervisorEvent {
    SupervisorEvent::Parked { client: ClientId(client), name: name.into(), reason, handed_back }
}

/// [`SupervisorEvent::Closed`].
///
/// ```
/// use ws_supervisor::{ExitReason, HandedBack, testing::client_closed};
/// println!("{:?}", client_closed(1, "orders", ExitReason::Closed, HandedBack::default()));
/// ```
pub fn client_closed(
    client: u64,
    name: impl Into<Arc<str>>,
    reason: ExitReason,
    handed_back: HandedBack,
) -> SupervisorEvent {
    SupervisorEvent::Closed { client: ClientId(client), name: name.into(), reason, handed_back }
}

/// An event of one of the clients that share a channel.
///
/// ```
/// use ws_supervisor::testing::{client_event, opened};
/// let event = client_event(1, "feed", opened(1));
/// assert_eq!(&*event.name, "feed");
/// ```
pub fn client_event(client: u64, name: impl Into<Arc<str>>, event: Event) -> ClientEvent {
    ClientEvent { client: ClientId(client), name: name.into(), event }
}
