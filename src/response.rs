//! What comes back: [`Response`], and the [`PendingResponse`] that waits for it. Touches `request`, `error` and channels.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde::de::DeserializeOwned;

use crate::command::Receipt;
use crate::error::RequestError;
use crate::request::RequestId;
use crate::shared::Shared;

/// A result as JSON, a part of the message that brought it. Not printed by `Debug`: it may be a token.
///
/// ```
/// use ws_supervisor::Json;
/// let result = Json::from(r#"{"access_token":"secret"}"#.to_owned());
/// assert_eq!(format!("{result:?}"), "Json(25 bytes)");
/// assert!(result.as_bytes().starts_with(b"{"));
/// let fields: std::collections::BTreeMap<String, String> = result.decode()?;
/// # assert_eq!(fields["access_token"], "secret");
/// # Ok::<(), ws_supervisor::RequestError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Json(pub(crate) Bytes);

impl Json {
    /// The JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a type of yours.
    ///
    /// # Errors
    /// [`RequestError::Undecodable`], with the result in it, when it does not fit `R`.
    pub fn decode<R: DeserializeOwned>(self) -> Result<R, RequestError> {
        serde_json::from_slice(&self.0)
            .map_err(|error| RequestError::Undecodable { message: without_values(&error), result: self })
    }
}

impl From<String> for Json {
    fn from(json: String) -> Self {
        Self(json.into())
    }
}

impl From<Bytes> for Json {
    fn from(json: Bytes) -> Self {
        Self(json)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

/// What serde says, but for the values that it quotes, in double quotes or before it says what it expected: this may end
/// in a log, and they in the wrong hands.
fn without_values(error: &serde_json::Error) -> Box<str> {
    let text = error.to_string();
    let names_a_field = text.starts_with("missing field");
    let expected = text.rfind(", expected ").unwrap_or(text.len());
    let mut told = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (None, false);
    for (at, character) in text.char_indices() {
        let quotes = character == '"' || (character == '`' && at < expected && !names_a_field);
        match quoted {
            None => {
                told.push(character);
                if quotes {
                    told.push('…');
                    quoted = Some(character);
                }
            }
            Some(quote) if character == quote && !escaped => {
                told.push(character);
                quoted = None;
            }
            Some(_) => {}
        }
        escaped = quoted.is_some() && character == '\\' && !escaped;
    }
    told.into()
}

/// What became of a request.
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

/// A request that is under way. Drop it if you don't care: an answer that comes after that is an
/// [`Event::LateResponse`](crate::Event::LateResponse).
pub struct PendingResponse {
    pub(crate) id: RequestId,
    pub(crate) deadline: Instant,
    pub(crate) response: Receiver<Response>,
    pub(crate) receipt: Arc<Receipt>,
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
            Err(RecvTimeoutError::Timeout) => {
                // The worker sees to deadlines, unless a handler keeps it from doing so.
                self.shared.requests.give_up(&self.id, &self.receipt, Instant::now());
                self.response.recv().ok()
            }
            told => told.ok(),
        };
        response.ok_or_else(|| RequestError::gone(&self.id))?.decode()
    }
}

impl fmt::Debug for PendingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingResponse").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_without_what_it_is() {
        let token = Json::from(r#"{"access_token":"sec\\\"ret"}"#.to_owned());
        #[derive(Debug, serde::Deserialize)]
        struct Wrong {
            #[expect(dead_code, reason = "only read into")]
            access_token: u64,
        }
        let error = token.decode::<Wrong>().unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(told.contains("invalid type: string") && told.contains("expected u64"), "{told}");
        assert!(!told.contains("sec") && !told.contains("ret"), "{told}");
        #[derive(Debug, serde::Deserialize)]
        enum Side {
            Buy,
        }
        let told = Json::from(r#""hush, expected""#.to_owned()).decode::<Side>().unwrap_err().to_string();
        assert!(told.contains("expected `Buy`") && !told.contains("hush"), "{told}");
        let told = Json::from("1234567".to_owned()).decode::<u8>().unwrap_err().to_string();
        assert!(told.contains("expected u8") && !told.contains("1234567"), "{told}");
        let told = Json::from("{}".to_owned()).decode::<Wrong>().unwrap_err().to_string();
        assert!(told.contains("missing field `access_token`"), "{told}");
    }
}
