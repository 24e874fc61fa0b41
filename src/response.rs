//! What comes back: [`Response`], and the [`PendingResponse`] that waits for it. Touches `request`, `error` and channels.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use serde::de::DeserializeOwned;

use crate::error::RequestError;
use crate::request::RequestId;
use crate::shared::Shared;

/// What became of a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Response {
    /// Which request this is about.
    pub id: RequestId,
    /// Its method.
    pub method: Box<str>,
    /// The result as JSON, a part of the message that brought it; or why there is none.
    pub outcome: Result<Bytes, RequestError>,
}

impl Response {
    /// The result as a type of yours.
    ///
    /// # Errors
    /// What `outcome` holds; or [`RequestError::Undecodable`], with the result in it, when that does not fit `R`.
    ///
    /// ```
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::start(Script::reply(|_, m| {
    /// #     let id = serde_json::from_str::<serde_json::Value>(m.as_text().unwrap()).unwrap()["id"].clone();
    /// #     vec![Message::text(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":1626993723846}}"#))]
    /// # }))?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// let pending = client.start_request(Request::new("public/get_time", ()))?;
    /// let response = pending.receiver().recv()?;
    /// assert_eq!(&response.id, pending.id());
    /// let milliseconds: u64 = response.decode()?;
    /// # assert_eq!(milliseconds, 1626993723846);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn decode<R: DeserializeOwned>(self) -> Result<R, RequestError> {
        decode(self.outcome?)
    }
}

pub(crate) fn decode<R: DeserializeOwned>(result: Bytes) -> Result<R, RequestError> {
    serde_json::from_slice(&result)
        .map_err(|error| RequestError::Undecodable { message: error.to_string().into(), result })
}

/// A request that is under way. Drop it if you don't care: its response then comes as
/// [`Event::LateResponse`](crate::Event::LateResponse).
pub struct PendingResponse {
    pub(crate) id: RequestId,
    pub(crate) deadline: Instant,
    pub(crate) response: Receiver<Response>,
    pub(crate) shared: Arc<Shared>,
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
        &self.response
    }

    /// Blocks until the response is there, at most until the request's deadline.
    ///
    /// # Errors
    /// As [`Client::request`](crate::Client::request).
    pub fn wait<R: DeserializeOwned>(self) -> Result<R, RequestError> {
        let response = match self.response.recv_deadline(self.deadline) {
            Ok(response) => response,
            Err(_) => {
                // The worker sees to deadlines, unless a handler keeps it from doing so.
                self.shared.requests.give_up(&self.id, Instant::now());
                self.response.recv().map_err(|_| RequestError::gone(&self.id))?
            }
        };
        response.decode()
    }
}

impl fmt::Debug for PendingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingResponse").field("id", &self.id).finish_non_exhaustive()
    }
}
