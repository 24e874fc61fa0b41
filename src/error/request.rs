//! What can go wrong with a request. Whether the server may have acted on it is the first thing said.

use std::error::Error;
use std::fmt;

use serde::de::DeserializeOwned;

use super::send::SendError;
use crate::message::Message;
use crate::request::{Json, RequestId, RpcError};

/// Why a request has no answer.
///
/// ```
/// # use std::time::Duration;
/// # use ws_supervisor::{*, testing::{Script, Server}};
/// # let server = Server::start(Script::silent())?;
/// # let client = Client::connect(ClientConfig::new(server.url())?)?;
/// let hasty = Request::new("private/buy", ()).timeout(Duration::from_millis(10));
/// match client.call::<u32>(hasty) {
///     Err(RequestError::OutcomeUnknown { cause, .. }) => assert_eq!(cause, Unanswered::TimedOut),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unanswered {
    /// Its connection ended.
    Disconnected,
    /// Its time ran out.
    TimedOut,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "the connection ended",
            Self::TimedOut => "the time ran out",
        })
    }
}

/// Why a request has no result. Whether the server may have acted on it is the first thing each variant says.
///
/// ```
/// use ws_supervisor::RequestError;
///
/// fn may_be_sent_again(error: &RequestError) -> bool {
///     // Anything else was refused, answered, or may have been carried out: ask the venue before you order again.
///     matches!(error, RequestError::Refused(_) | RequestError::NotSent { .. } | RequestError::TooManyPending { .. })
/// }
/// # assert!(!may_be_sent_again(&RequestError::DuplicateId(1.into())));
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// Not sent: it was not accepted.
    Refused(SendError),
    /// Not sent: another request with this id waits for its answer.
    DuplicateId(RequestId),
    /// Not sent: so many requests wait for their answers already.
    #[non_exhaustive]
    TooManyPending {
        /// The request as it would have been written.
        message: Message,
        /// How many may wait: 65,536.
        limit: usize,
    },
    /// Not sent: its parameters cannot be written as JSON; this says why.
    Params(Box<str>),
    /// Not sent: it was accepted, but the kernel never had all of it. The server cannot act on it.
    #[non_exhaustive]
    NotSent {
        /// The request as it would have been written.
        message: Message,
        /// What came first.
        cause: Unanswered,
    },
    /// The server may have acted on it, or not: it was sent and no answer came. Find out before you send it again.
    #[non_exhaustive]
    OutcomeUnknown {
        /// Which request.
        id: RequestId,
        /// What came first.
        cause: Unanswered,
    },
    /// The server refused it.
    Rpc(RpcError),
    /// The server carried it out, but its result does not fit the type that was asked for.
    #[non_exhaustive]
    Undecodable {
        /// What does not fit.
        message: Box<str>,
        /// The result.
        result: Json,
    },
}

impl RequestError {
    pub(crate) fn gone(id: &RequestId) -> Self {
        Self::OutcomeUnknown { id: id.clone(), cause: Unanswered::Disconnected }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::DuplicateId(id) => write!(f, "not sent: a request with the id `{id}` is pending already"),
            Self::TooManyPending { limit, .. } => {
                write!(f, "not sent: {limit} requests wait for their answers already")
            }
            Self::Params(message) => write!(f, "not sent: the parameters cannot be written as JSON: {message}"),
            Self::NotSent { cause, .. } => write!(f, "not sent: {cause} before it was written"),
            Self::OutcomeUnknown { id, cause } => {
                write!(f, "outcome unknown: request {id} was written and {cause} before an answer came")
            }
            Self::Rpc(error) => write!(f, "refused by the server: {error}"),
            Self::Undecodable { message, .. } => write!(f, "carried out, but the result cannot be read: {message}"),
        }
    }
}

impl Error for RequestError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Refused(error) => Some(error),
            Self::Rpc(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SendError> for RequestError {
    fn from(error: SendError) -> Self {
        Self::Refused(error)
    }
}

impl Json {
    /// As a type of yours.
    ///
    /// # Errors
    /// [`RequestError::Undecodable`], with the result in it, when it does not fit `R`.
    pub fn decode<R: DeserializeOwned>(self) -> Result<R, RequestError> {
        serde_json::from_slice(&self.0)
            .map_err(|error| RequestError::Undecodable { message: without_values(&error), result: self })
    }
}

/// serde's message without the values that it quotes, because it may be logged: those in double quotes, and those in
/// backquotes before it says what it expected.
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
