//! What the end of a connection left open.

use crate::message::Message;
use crate::request::RequestId;

/// What the last connection left open, for [`ClientConfig::reconcile`](crate::ClientConfig::reconcile).
///
/// ```
/// use ws_supervisor::{ClientConfig, SessionError, Unsettled};
///
/// fn settle(unsettled: &Unsettled) -> Result<(), SessionError> {
///     for request in &unsettled.unknown {
///         println!("ask the venue about {} {}: {:?}", request.method, request.id, request.message.as_text());
///     }
///     println!("{} never left", unsettled.unsent.len());
///     Ok(())
/// }
/// let config = ClientConfig::new("wss://venue.example")?.reconcile(|_session, unsettled| settle(unsettled));
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Unsettled {
    /// Messages that were accepted and not written; the venue has none of them. The very ones that
    /// [`Event::Disconnected`](crate::Event::Disconnected) hands back: send them again there or here, not in both places.
    pub unsent: Vec<Message>,
    /// Messages that were written, and that the peer's kernel never acknowledged: as in
    /// [`Event::Disconnected`](crate::Event::Disconnected).
    pub uncertain: Vec<Message>,
    /// Requests that were written and not answered: the venue may have acted on each, or not. Those whose time ran out
    /// before are among them, if that is not longer ago than a minute.
    pub unknown: Vec<UnknownRequest>,
}

/// A request whose outcome is unknown.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnknownRequest {
    /// Its id.
    pub id: RequestId,
    /// Its method.
    pub method: Box<str>,
    /// The request as it was written.
    pub message: Message,
}
