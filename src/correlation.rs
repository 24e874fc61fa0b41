//! How requests are written and answers recognised: [`Correlation`]. JSON-RPC 2.0 unless told otherwise.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::message::{Message, MessageRef};
use crate::request::{Json, Request, RequestId, RpcError, json_rpc};

type Write = dyn Fn(&RequestId, &str, Option<&str>) -> Message + Send + Sync;

type Read = dyn Fn(MessageRef<'_>) -> Option<Answer> + Send + Sync;

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
        Self::new(|id, method, params| json_rpc(Some(id), method, params), Answer::from_json_rpc)
    }

    /// In your own way. `write` is given the id, the method and the parameters as JSON; it runs on the caller's thread.
    /// `read` is shown messages while a request is pending, on the worker's thread, and says which of them are
    /// answers, and to what.
    pub fn new(
        write: impl Fn(&RequestId, &str, Option<&str>) -> Message + Send + Sync + 'static,
        read: impl Fn(MessageRef<'_>) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        Self { write: Arc::new(write), read: Arc::new(read) }
    }

    pub(crate) fn encode(&self, request: &Request, id: &RequestId) -> Result<Message, Box<str>> {
        let params = request.params.as_ref().map_err(Clone::clone)?;
        Ok((self.write)(id, &request.method, params.as_deref()))
    }

    pub(crate) fn read(&self, message: MessageRef<'_>) -> Option<Answer> {
        (self.read)(message)
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Correlation")
    }
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

    /// Reads an answer of JSON-RPC 2.0, or of a dialect with the same members (`id`, `result`, `error`): for a correlation of
    /// your own that begins with it. `None` for any other message.
    ///
    /// ```
    /// use ws_supervisor::{Answer, Correlation, Message, Request};
    ///
    /// // A venue that wraps its answers.
    /// let correlation = Correlation::new(
    ///     |id, method, _| Message::text(format!(r#"{{"id":{},"op":"{method}"}}"#, id.json())),
    ///     |message| {
    ///         let inner = message.as_text()?.strip_prefix("answer ")?;
    ///         Answer::from_json_rpc(Message::text(inner).view())
    ///     },
    /// );
    /// # let _ = correlation;
    /// ```
    pub fn from_json_rpc(message: MessageRef<'_>) -> Option<Self> {
        Self::parse(message, "\"id\"")
    }

    /// Reads `{"id": …, "result": …}` and `{"id": …, "error": …}`; a message without `needle` is spared the parse.
    pub(crate) fn parse(message: MessageRef<'_>, needle: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow, default)]
            id: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            result: Option<&'a RawValue>,
            #[serde(borrow, default)]
            error: Option<&'a RawValue>,
            #[serde(borrow, default)]
            method: Option<&'a RawValue>,
        }
        if message.as_text().is_some_and(|text| !text.contains(needle)) {
            return None;
        }
        let envelope: Envelope<'_> = match message.as_text() {
            Some(text) => serde_json::from_str(text),
            None => serde_json::from_slice(message.as_bytes()),
        }
        .ok()?;
        let id = RequestId::parse(envelope.id?.get())?;
        if envelope.method.is_some() {
            return None;
        }
        let outcome = match (envelope.error, envelope.result) {
            (Some(error), _) => Err(RpcError::parse(error.get())),
            (None, Some(result)) => Ok(Json(Bytes::copy_from_slice(result.get().as_bytes()))),
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
        Correlation::json_rpc().read(Message::text(text).view())
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
        for whole in ["7.0", "7e0", "0.7e1"] {
            assert_eq!(read(&format!(r#"{{"id":{whole},"result":1}}"#)).unwrap().id, 7.into(), "{whole}");
        }
        for (error, code, message) in [
            (r#"{"code":"60012","msg":"Invalid request"}"#, 60_012, "Invalid request"),
            (r#"{"code":-1,"message":null}"#, -1, ""),
            (r#"{"code":10028,"message":"too_many_requests","msg":"x"}"#, 10_028, "too_many_requests"),
            (r#"{"code":10028.0,"message":"x"}"#, 10_028, "x"),
            (r#"{"code":18446744073709551615,"message":"x"}"#, i64::MAX, "x"),
            (r#"{"code":"EOrder:Rate limit","message":"x"}"#, 0, "EOrder:Rate limit x"),
            (r#"{"message":{"a":1}}"#, 0, r#"{"a":1}"#),
        ] {
            let read = read(&format!(r#"{{"id":1,"error":{error}}}"#)).unwrap().outcome.unwrap_err();
            assert_eq!((read.code, &*read.message), (code, message), "{error}");
        }
        let whole = r#"{"jsonrpc":"2.0","id":1,"method":null,"params":null,"result":5,"error":null}"#;
        assert!(read(whole).unwrap().outcome.is_ok(), "a member that is null is no member");
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
        assert!(Correlation::json_rpc().read(Message::binary(vec![0xff; 9]).view()).is_none());
        let binary = Message::binary(br#"{"id":1,"result":2}"#.to_vec());
        assert!(Correlation::json_rpc().read(binary.view()).is_some());
    }

    #[test]
    fn requests_are_written_as_the_specification_says() {
        let json = Correlation::json_rpc();
        let written = |request: Request| json.encode(&request, &request.id.clone().unwrap_or(7.into()));
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
