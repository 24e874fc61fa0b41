//! What a caller asks of a server: [`Request`], the id that ties the answer to it, the server's refusal, a result.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::message::{Message, OneLine};

/// What ties an answer to its request: JSON-RPC 2.0 allows a number or a string.
///
/// ```
/// use ws_supervisor::RequestId;
/// assert_eq!(RequestId::from(7).to_string(), "7");
/// assert_eq!(RequestId::from("a").to_string(), r#""a""#);
/// assert_ne!(RequestId::from(7), RequestId::from("7"));
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(untagged))]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestId {
    /// A number: what this library makes.
    Number(u64),
    /// A string.
    Text(Box<str>),
}

impl RequestId {
    /// As it stands in JSON: a number as it is, a text in quotes, escaped. `Display` prints the same, so that it can be
    /// written into JSON by `format!`.
    pub fn json(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => Value::from(&**text).to_string(),
        }
    }

    pub(crate) fn parse(raw: &str) -> Option<Self> {
        match raw.as_bytes().first()? {
            b'"' => serde_json::from_str::<String>(raw).ok().map(|text| Self::Text(text.into())),
            b'0'..=b'9' => raw.parse().ok().or_else(|| whole_number(raw)).map(Self::Number),
            _ => None,
        }
    }

    /// The same id as another JSON type: some servers answer the request 1 under `"1"`, or the other way round.
    pub(crate) fn in_the_other_type(&self) -> Option<Self> {
        match self {
            Self::Number(number) => Some(Self::Text(number.to_string().into())),
            Self::Text(text) => {
                let number: u64 = text.parse().ok()?;
                (number.to_string() == **text).then_some(Self::Number(number))
            }
        }
    }
}

/// A number that JSON writes with a fraction or an exponent and that is whole: `1.0`, `1e3`. As far as a double is exact.
fn whole_number(raw: &str) -> Option<u64> {
    const EXACT: f64 = (1u64 << 53) as f64;
    let number: f64 = serde_json::from_str(raw).ok()?;
    ((0.0..=EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(_) => f.pad(&self.json()),
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
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
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
    /// For a [`Correlation`](crate::Correlation) of your own.
    pub fn new(code: i64, message: impl Into<Box<str>>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(crate) fn parse(raw: &str) -> Self {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(raw) else { return Self::new(0, raw) };
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let message = ["message", "msg"].iter().find_map(|name| fields.get(*name).and_then(text)).unwrap_or_default();
        let (code, message) = match fields.get("code") {
            None | Some(Value::Null) => (0, message),
            Some(code) => match code_of(code) {
                Some(code) => (code, message),
                // A code in words belongs to the message.
                None => (0, format!("{} {message}", text(code).unwrap_or_default()).trim_end().to_owned()),
            },
        };
        let data = fields.remove("data").filter(|data| !data.is_null());
        Self { code, message: message.into(), data }
    }
}

/// An error's code as venues write it: a number, whole in any notation, or its digits as a text.
fn code_of(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => number.as_i64().or_else(|| {
            let code = number.as_f64()?;
            (code.fract() == 0.0).then_some(code as i64)
        }),
        _ => None,
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            // Not the server's: it said nothing, or nothing with a number.
            0 => write!(f, "{}", OneLine(&self.message))?,
            code => write!(f, "{code} {}", OneLine(&self.message))?,
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
#[must_use = "a request does nothing until it is given to `request`, `post` or `start_request`"]
pub struct Request {
    pub(crate) method: Box<str>,
    /// As JSON, or why it cannot be.
    pub(crate) params: Result<Option<Box<str>>, Box<str>>,
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

    /// Uses this id instead of the client's next number. It must be unlike that of any request that is pending. When it
    /// was used before, by a request whose time ran out, a late answer to that counts as this one's.
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

    /// As JSON-RPC 2.0 would write it: for an error that hands back what was never written.
    pub(crate) fn draft(&self, id: &RequestId) -> Message {
        json_rpc(Some(id), &self.method, self.params.as_ref().ok().and_then(|params| params.as_deref()))
    }

    pub(crate) fn encode_notification(&self) -> Result<Message, Box<str>> {
        let params = self.params.as_ref().map_err(Clone::clone)?;
        Ok(json_rpc(None, &self.method, params.as_deref()))
    }
}

impl fmt::Debug for Request {
    /// Without the parameters: they may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).field("id", &self.id).finish_non_exhaustive()
    }
}

/// A result as JSON, a part of the message that brought it. Not printed by `Debug`: it may be a token.
///
/// ```
/// use ws_supervisor::Json;
/// let result = Json::from(r#"{"access_token":"secret"}"#.to_owned());
/// assert_eq!(format!("{result:?}"), "Json(25 bytes)");
/// assert_eq!(result.as_str(), r#"{"access_token":"secret"}"#);
/// assert_eq!(result.as_bytes(), result.as_str().as_bytes());
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

    /// The JSON text; empty for bytes of yours that are no UTF-8.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<String> for Json {
    fn from(json: String) -> Self {
        Self(json.into())
    }
}

impl From<&str> for Json {
    fn from(json: &str) -> Self {
        Self(Bytes::copy_from_slice(json.as_bytes()))
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

/// A request, or without an id a notification (JSON-RPC 2.0 section 4).
pub(crate) fn json_rpc(id: Option<&RequestId>, method: &str, params: Option<&str>) -> Message {
    let id = id.map_or(String::new(), |id| format!(r#""id":{},"#, id.json()));
    let params = params.map_or(String::new(), |params| format!(r#","params":{params}"#));
    Message::text(format!(r#"{{"jsonrpc":"2.0",{id}"method":{}{params}}}"#, Value::from(method)))
}
