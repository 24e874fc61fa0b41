//! What became of a request: [`Response`].

use serde::de::DeserializeOwned;

use crate::error::RequestError;
use crate::request::{Json, RequestId};

/// What became of a request.
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Response {
    /// Which request this is about.
    pub id: RequestId,
    /// Its method.
    pub method: Box<str>,
    /// The result as JSON, a part of the message that brought it; or why there is none.
    pub outcome: Result<Json, RequestError>,
}

impl Response {
    /// Whether it is the server's word, not the lack of one.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self.outcome, Ok(_) | Err(RequestError::Rpc(_)))
    }

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
        self.outcome?.decode()
    }
}
