//! Requests and their answers: what a caller asks ([`Request`]), what comes back ([`Response`]), how the two find each
//! other on the wire ([`Correlation`]). JSON-RPC 2.0 unless told otherwise. Touches `message`, `error` and serde.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::message::Message;
use crate::response::Json;

/// What ties an answer to its request: JSON-RPC 2.0 allows a number or a string.
///
/// ```
/// use ws_supervisor::RequestId;
/// assert_eq!(RequestId::from(7).to_string(), "7");
/// assert_ne!(RequestId::from(7), RequestId::from("7"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestId {
    /// A number: what this library makes.
    Number(u64),
    /// A string.
    Text(Box<str>),
}

impl RequestId {
    /// As it stands in JSON.
    pub(crate) fn json(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => Value::from(&**text).to_string(),
        }
    }

    fn parse(raw: &str) -> Option<Self> {
        match raw.as_bytes().first()? {
            b'"' => serde_json::from_str::<String>(raw).ok().map(|text| Self::Text(text.into())),
            b'0'..=b'9' => raw.parse().ok().map(Self::Number),
            _ => None,
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for RequestId {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// An error that a server answered with (JSON-RPC 2.0 section 5.1).
///
/// ```
/// use ws_supervisor::RpcError;
/// let error = RpcError::new(13_004, "invalid_credentials");
/// assert_eq!(error.to_string(), "13004 invalid_credentials");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcError {
    /// The server's number for it.
    pub code: i64,
    /// The server's words.
    pub message: Box<str>,
    /// Whatever else the server said.
    pub data: Option<Value>,
}

impl RpcError {
    /// For a [`Correlation`] of your own.
    pub fn new(code: i64, message: impl Into<Box<str>>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    fn parse(raw: &str) -> Self {
        #[derive(Deserialize)]
        struct Wire {
            #[serde(default)]
            code: i64,
            #[serde(default, alias = "msg")]
            message: Box<str>,
            data: Option<Value>,
        }
        match serde_json::from_str(raw) {
            Ok(Wire { code, message, data }) => Self { code, message, data },
            Err(_) => Self::new(0, raw),
        }
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            // Not the server's: it said nothing, or nothing with a number.
            0 => write!(f, "{}", self.message)?,
            code => write!(f, "{code} {}", self.message)?,
        }
        // Most venues put the interesting half of the sentence there.
        match &self.data {
            Some(data) => write!(f, " ({data})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for RpcError {}

/// Something to ask a server: a method, its parameters, and how patiently.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::Request;
///
/// let ticker = Request::new("public/ticker", [("instrument_name", "BTC-PERPETUAL")]);
/// let urgent = Request::new("private/cancel_all", ()).timeout(Duration::from_secs(2)).id("panic-button");
/// let patient = Request::new("public/get_time", ()).wait_for_limit(Duration::from_secs(1));
/// # let _ = (ticker, urgent, patient);
/// ```
#[derive(Clone)]
pub struct Request {
    pub(crate) method: Box<str>,
    /// As JSON, or why it cannot be.
    params: Result<Option<Box<str>>, Box<str>>,
    pub(crate) id: Option<RequestId>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) limit_wait: Duration,
}

impl Request {
    /// Asks for `method` with these parameters; `()` stands for none. Parameters that cannot be written as JSON (a map
    /// whose keys are no strings) are refused when the request is sent.
    pub fn new(method: impl Into<Box<str>>, params: impl Serialize) -> Self {
        let params = match serde_json::to_string(&params) {
            Ok(json) if json == "null" => Ok(None),
            Ok(json) => Ok(Some(json.into_boxed_str())),
            Err(error) => Err(error.to_string().into()),
        };
        Self { method: method.into(), params, id: None, timeout: None, limit_wait: Duration::ZERO }
    }

    /// Uses this id instead of the client's next number. It must be unlike that of any request that is pending.
    pub fn id(mut self, id: impl Into<RequestId>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// How long to wait for the answer. Defaults to [`ClientConfig::request_timeout`](crate::ClientConfig::request_timeout).
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// How long to wait, blocking, for a [rate limit](crate::RateLimit) to let the request pass. Defaults to not at
    /// all: over the limit is an error that says when to try again.
    pub fn wait_for_limit(mut self, at_most: Duration) -> Self {
        self.limit_wait = at_most;
        self
    }

    pub(crate) fn encode_notification(&self) -> Result<Message, Box<str>> {
        let params = self.params.as_ref().map_err(Clone::clone)?;
        Ok(json_rpc(None, &self.method, params.as_deref()))
    }

    pub(crate) fn encode(&self, correlation: &Correlation, id: &RequestId) -> Result<Message, Box<str>> {
        let params = self.params.as_ref().map_err(Clone::clone)?;
        Ok((correlation.write)(id, &self.method, params.as_deref()))
    }
}

impl fmt::Debug for Request {
    /// Without the parameters: they may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).field("id", &self.id).finish_non_exhaustive()
    }
}

type Write = dyn Fn(&RequestId, &str, Option<&str>) -> Message + Send + Sync;
type Read = dyn Fn(&Message) -> Option<Answer> + Send + Sync;

/// How requests are written and answers recognised. [`json_rpc`](Correlation::json_rpc) unless a venue does it in
/// another way.
///
/// ```
/// use ws_supervisor::{Answer, Correlation, Message, RpcError};
/// use serde_json::Value;
///
/// // A venue that calls the id `req_id` and says `success`.
/// let correlation = Correlation::new(
///     |id, method, params| Message::text(format!(r#"{{"req_id":{id},"method":"{method}","params":{}}}"#, params.unwrap_or("{}"))),
///     |message| {
///         let value: Value = serde_json::from_str(message.as_text()?).ok()?;
///         let id = value["req_id"].as_u64()?.into();
///         match value["success"].as_bool()? {
///             true => Some(Answer::result(id, value["result"].to_string())),
///             false => Some(Answer::error(id, RpcError::new(0, value["error"].as_str().unwrap_or("")))),
///         }
///     },
/// );
/// # let _ = correlation;
/// ```
#[derive(Clone)]
pub struct Correlation {
    write: Arc<Write>,
    read: Arc<Read>,
}

impl Correlation {
    /// JSON-RPC 2.0. A message with an id, a result or an error, and no method is an answer.
    pub fn json_rpc() -> Self {
        Self::new(|id, method, params| json_rpc(Some(id), method, params), |message| Answer::parse(message, "\"id\""))
    }

    /// In your own way. `write` is given the id, the method and the parameters as JSON; it runs on the caller's thread.
    /// `read` is shown messages while a request is pending, on the worker's thread, and says which of them are
    /// answers, and to what.
    pub fn new(
        write: impl Fn(&RequestId, &str, Option<&str>) -> Message + Send + Sync + 'static,
        read: impl Fn(&Message) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        Self { write: Arc::new(write), read: Arc::new(read) }
    }

    pub(crate) fn read(&self, message: &Message) -> Option<Answer> {
        (self.read)(message)
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Correlation")
    }
}

/// A request, or without an id a notification (JSON-RPC 2.0 section 4).
fn json_rpc(id: Option<&RequestId>, method: &str, params: Option<&str>) -> Message {
    let id = id.map_or(String::new(), |id| format!(r#""id":{},"#, id.json()));
    let params = params.map_or(String::new(), |params| format!(r#","params":{params}"#));
    Message::text(format!(r#"{{"jsonrpc":"2.0",{id}"method":{}{params}}}"#, Value::from(method)))
}

/// What a message answers, as a [`Correlation`] reads it.
///
/// ```
/// use ws_supervisor::{Answer, RequestId, RpcError};
/// let done = Answer::result(RequestId::from(1), r#"{"order_id":"7"}"#.to_owned());
/// let refused = Answer::error(RequestId::from("a"), RpcError::new(10_028, "too_many_requests"));
/// # let _ = (done, refused);
/// ```
#[derive(Clone, Debug)]
pub struct Answer {
    pub(crate) id: RequestId,
    pub(crate) outcome: Result<Json, RpcError>,
}

impl Answer {
    /// The request was carried out; `json` is its result.
    pub fn result(id: RequestId, json: impl Into<Json>) -> Self {
        Self { id, outcome: Ok(json.into()) }
    }

    /// The request was refused.
    pub fn error(id: RequestId, error: RpcError) -> Self {
        Self { id, outcome: Err(error) }
    }

    /// Reads `{"id": …, "result": …}` and `{"id": …, "error": …}`; what does not hold `needle` is spared the parse.
    pub(crate) fn parse(message: &Message, needle: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow, default, deserialize_with = "present")]
            id: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            result: Option<&'a RawValue>,
            #[serde(borrow, default)]
            error: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            method: Option<&'a RawValue>,
        }
        if message.as_text().is_some_and(|text| !text.contains(needle)) {
            return None;
        }
        let bytes = message.clone().into_bytes();
        let envelope: Envelope<'_> = serde_json::from_slice(&bytes).ok()?;
        let id = RequestId::parse(envelope.id?.get())?;
        if envelope.method.is_some() {
            return None;
        }
        let outcome = match (envelope.error, envelope.result) {
            (Some(error), _) => Err(RpcError::parse(error.get())),
            (None, Some(result)) => Ok(Json(bytes.slice_ref(result.get().as_bytes()))),
            (None, None) => return None,
        };
        Some(Self { id, outcome })
    }
}

/// A field that is there, if only as null.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Answer> {
        Correlation::json_rpc().read(&Message::text(text))
    }

    #[test]
    fn answers_are_told_from_everything_else() {
        let result = read(r#" {"jsonrpc":"2.0","result":{"a":[1]},"id":12,"usIn":1}"#).unwrap();
        assert_eq!((result.id, result.outcome.unwrap().as_bytes()), (12.into(), br#"{"a":[1]}"#.as_slice()));
        let null = read(r#"{"id":"x\"y","result":null}"#).unwrap();
        assert_eq!((null.id, null.outcome.unwrap().as_bytes()), ("x\"y".into(), b"null".as_slice()));
        let error =
            read(r#"{"id":1,"error":{"code":-32602,"message":"Invalid params","data":{"reason":"x"}}}"#).unwrap();
        assert_eq!(error.outcome.unwrap_err().to_string(), r#"-32602 Invalid params ({"reason":"x"})"#);
        let binance = read(r#"{"error":{"code":2,"msg":"Invalid request"},"id":1}"#).unwrap();
        assert_eq!(binance.outcome.unwrap_err(), RpcError::new(2, "Invalid request"));
        assert_eq!(read(r#"{"id":1,"error":"no"}"#).unwrap().outcome.unwrap_err(), RpcError::new(0, "\"no\""));
        assert!(read(r#"{"id":1,"result":5,"error":null}"#).unwrap().outcome.is_ok());
        for nothing in [
            r#"{"jsonrpc":"2.0","method":"subscription","params":{"id":3,"result":1}}"#,
            r#"{"id":3,"method":"ask","result":1}"#,
            r#"{"id":null,"error":{"code":-32700,"message":"Parse error"}}"#,
            r#"{"id":-1,"result":1}"#,
            r#"{"id":1.5,"result":1}"#,
            r#"{"id":99999999999999999999999,"result":1}"#,
            r#"{"id":1}"#,
            r#"[{"id":1,"result":1}]"#,
            r#"{"id":1,"result":"#,
            "\"id\"",
            "",
        ] {
            assert!(read(nothing).is_none(), "{nothing}");
        }
        assert!(Correlation::json_rpc().read(&Message::binary(vec![0xff; 9])).is_none());
        let binary = Message::binary(br#"{"id":1,"result":2}"#.to_vec());
        assert!(Correlation::json_rpc().read(&binary).is_some());
    }

    #[test]
    fn requests_are_written_as_the_specification_says() {
        let json = Correlation::json_rpc();
        let written = |request: Request| request.encode(&json, &request.id.clone().unwrap_or(7.into()));
        let text = |request| written(request).unwrap().as_text().unwrap().to_owned();
        assert_eq!(text(Request::new("a", ())), r#"{"jsonrpc":"2.0","id":7,"method":"a"}"#);
        assert_eq!(
            text(Request::new("a\"b", [1, 2]).id("q\"")),
            r#"{"jsonrpc":"2.0","id":"q\"","method":"a\"b","params":[1,2]}"#
        );
        let unwritable = std::collections::BTreeMap::from([(vec![1], 2)]);
        assert!(written(Request::new("a", unwritable)).is_err());
    }
}
