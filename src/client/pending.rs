//! A request that is under way, in its caller's hands.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::error::RequestError;
use crate::receipt::Receipt;
use crate::request::RequestId;
use crate::response::Response;

/// A request that is under way. Drop it if you don't care: an answer that has come by then goes with it, one that comes after
/// that is an [`Event::LateResponse`](crate::Event::LateResponse).
#[must_use = "dropping it discards the answer: `post` delivers it as an event"]
pub struct PendingResponse {
    pub(crate) id: RequestId,
    pub(crate) deadline: Instant,
    /// `None` once it was waited for.
    pub(crate) response: Option<Receiver<Response>>,
    pub(crate) receipt: Arc<Receipt>,
    pub(crate) core: Arc<Core>,
}

impl PendingResponse {
    /// Its id.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// The one [`Response`] comes here: an answer, or at the deadline or the end of the connection the reason why there
    /// is none. A real crossbeam channel, for `select!`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::start(Script::silent())?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// let pending = client.start_request(Request::new("private/buy", [("amount", 10)]).timeout(Duration::from_millis(50)))?;
    /// let events = client.events();
    /// loop {
    ///     crossbeam_channel::select! {
    ///         recv(events) -> event => println!("{:?}", event?),
    ///         recv(pending.receiver()) -> response => {
    ///             assert!(matches!(response?.outcome, Err(RequestError::OutcomeUnknown { .. })));
    ///             break;
    ///         }
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn receiver(&self) -> &Receiver<Response> {
        // Taken only by `wait`, after which nobody can ask.
        self.response.as_ref().expect("it has not been waited for")
    }

    /// Blocks until the response is there, at most until the request's deadline.
    ///
    /// # Errors
    /// As [`Client::request`](crate::Client::request).
    pub fn wait<R: DeserializeOwned>(mut self) -> Result<R, RequestError> {
        let Some(receiver) = self.response.take() else { return Err(RequestError::gone(&self.id)) };
        let response = match receiver.recv_deadline(self.deadline) {
            Err(RecvTimeoutError::Timeout) => {
                // The worker sees to deadlines, unless a handler keeps it from doing so.
                self.core.asked.give_up(&self.id, &self.receipt, Instant::now());
                receiver.recv().ok()
            }
            told => told.ok(),
        };
        response.ok_or_else(|| RequestError::gone(&self.id))?.decode()
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        // Whoever has it already, has it.
        if self.response.take().is_some_and(|response| response.is_empty()) {
            self.core.asked.look(|table| table.abandon(&self.id, &self.receipt, Instant::now()));
        }
    }
}

impl fmt::Debug for PendingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingResponse").field("id", &self.id).finish_non_exhaustive()
    }
}
