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
    /// [`Event::Disconnected`](crate::Event::Disconnected) hands back: send them again there or here, not in both places. One that
    /// an earlier `reconcile` sent again before it failed is in `uncertain` instead.
    pub unsent: Vec<Message>,
    /// Messages that were written, and that the peer's kernel never acknowledged: as in
    /// [`Event::Disconnected`](crate::Event::Disconnected); and those that an earlier `reconcile` sent before it failed.
    pub uncertain: Vec<Message>,
    /// Requests that were written and not answered: the venue may have acted on each, or not. Those whose time ran out
    /// before are among them, if that is not longer ago than a minute, and those of an earlier `reconcile`.
    pub unknown: Vec<UnknownRequest>,
}

/// A message that `reconcile` sent.
#[derive(Clone, Debug)]
pub(crate) struct Resent {
    pub(crate) message: Message,
    /// Its id and method, if it is a request.
    pub(crate) request: Option<(RequestId, Box<str>)>,
}

impl Unsettled {
    /// A `reconcile` that failed has sent these: the venue may have each.
    pub(crate) fn add_resent(&mut self, resent: Vec<Resent>) {
        for Resent { message, request } in resent {
            if let Some(listed) = self.unsent.iter().position(|unsent| *unsent == message) {
                self.unsent.remove(listed);
            }
            match request {
                Some((id, method)) => self.unknown.push(UnknownRequest { id, method, message }),
                None => self.uncertain.push(message),
            }
        }
    }
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
