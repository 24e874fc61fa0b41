//! What travels: [`Message`], the close code and the close frame.
//! Touches nothing but `bytes` and tungstenite's checked text.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tungstenite::Utf8Bytes;

/// One WebSocket message, text or binary, whole (fragments are joined before you see them).
///
/// Cloning is cheap: the payload is shared, not copied. Two messages are equal when their kind and payload are;
/// the time of receipt does not count.
///
/// ```
/// use ws_supervisor::Message;
///
/// let text = Message::text("ping");
/// assert_eq!(text.as_text(), Some("ping"));
/// let raw = Message::binary(vec![1, 2, 3]);
/// assert_eq!(raw.as_bytes(), [1, 2, 3]);
/// assert!(raw.as_text().is_none());
/// assert_eq!(Message::from("ping"), text);
/// ```
#[derive(Clone)]
pub struct Message {
    body: Body,
    received_at: Option<Instant>,
    /// Nanoseconds between the kernel's receipt and `received_at`.
    in_socket: Option<NonZeroU64>,
}

#[derive(Clone, PartialEq, Eq)]
enum Body {
    Text(Utf8Bytes),
    Binary(Bytes),
}

impl Message {
    /// A text message (opcode 1, RFC 6455 section 5.6).
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(Message::text(String::from("hello")).is_text());
    /// ```
    pub fn text(text: impl Into<String>) -> Self {
        Self { body: Body::Text(text.into().into()), received_at: None, in_socket: None }
    }

    /// A binary message (opcode 2, RFC 6455 section 5.6).
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(Message::binary(&b"\x00\xff"[..]).is_binary());
    /// ```
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self { body: Body::Binary(bytes.into()), received_at: None, in_socket: None }
    }

    #[inline]
    pub(crate) fn received(message: tungstenite::Message, at: Instant, in_socket: Option<NonZeroU64>) -> Option<Self> {
        let body = match message {
            tungstenite::Message::Text(text) => Body::Text(text),
            tungstenite::Message::Binary(bytes) => Body::Binary(bytes),
            _ => return None,
        };
        Some(Self { body, received_at: Some(at), in_socket })
    }

    /// Whether this is a text message.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(Message::from("a").is_text());
    /// ```
    pub fn is_text(&self) -> bool {
        matches!(self.body, Body::Text(_))
    }

    /// Whether this is a binary message.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(!Message::from("a").is_binary());
    /// ```
    pub fn is_binary(&self) -> bool {
        matches!(self.body, Body::Binary(_))
    }

    /// The text of a text message, `None` for a binary one.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert_eq!(Message::from("a").as_text(), Some("a"));
    /// ```
    pub fn as_text(&self) -> Option<&str> {
        match &self.body {
            Body::Text(text) => Some(text.as_str()),
            Body::Binary(_) => None,
        }
    }

    /// The payload, whichever kind it is.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert_eq!(Message::from("a").as_bytes(), b"a");
    /// ```
    pub fn as_bytes(&self) -> &[u8] {
        match &self.body {
            Body::Text(text) => text.as_str().as_bytes(),
            Body::Binary(bytes) => bytes,
        }
    }

    /// The payload as shared bytes, without a copy.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert_eq!(Message::from("a").into_bytes(), "a");
    /// ```
    pub fn into_bytes(self) -> Bytes {
        match self.body {
            Body::Text(text) => text.into(),
            Body::Binary(bytes) => bytes,
        }
    }

    /// Length of the payload in bytes.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert_eq!(Message::from("abc").len(), 3);
    /// ```
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether the payload is empty. An empty message is legal and is delivered like any other.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(Message::from("").is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same message in memory of its own. One that a [`Handler`](crate::Handler) is shown is a part of what was read with
    /// it, up to 8 KiB, which a clone keeps alive, and so is one that reached a reader in a burst of more than 4 KiB (others
    /// own their memory already): detach what you keep for long.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert_eq!(Message::from("a").detached(), Message::from("a"));
    /// ```
    pub fn detached(&self) -> Self {
        let body = match &self.body {
            Body::Text(text) => Body::Text(String::from(text.as_str()).into()),
            Body::Binary(bytes) => Body::Binary(Bytes::copy_from_slice(bytes)),
        };
        Self { body, ..self.clone() }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn at(self, at: Instant) -> Self {
        Self { received_at: Some(at), ..self }
    }

    /// As one that waits for its reader: small ones keep nothing else in memory.
    pub(crate) fn kept(self) -> Self {
        if self.len() <= SMALL { self.detached() } else { self }
    }

    /// When the worker took this message's bytes from the socket, on the monotonic clock; one reading of the clock
    /// serves all messages of one read. `None` for a message that you made.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(Message::from("mine").received_at().is_none());
    /// ```
    pub fn received_at(&self) -> Option<Instant> {
        self.received_at
    }

    /// How long the bytes had been in the kernel's hands by [`received_at`](Message::received_at): the age of a tick
    /// before any code of yours could see it. Of several messages that one read brought, the kernel tells the time of
    /// the last. `None` unless `ClientConfig::kernel_timestamps` asked for it. The kernel stamps by the wall clock, so a
    /// step of that clock shows here.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert!(Message::from("mine").time_in_socket().is_none());
    /// ```
    pub fn time_in_socket(&self) -> Option<Duration> {
        self.in_socket.map(|nanos| Duration::from_nanos(nanos.get()))
    }
}

/// What is larger than this wastes little of what it was read with.
const SMALL: usize = 4 << 10;

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body
    }
}

impl Eq for Message {}

impl fmt::Debug for Message {
    /// Kind and length only: a payload may hold a secret, and a log line is for ever.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_text() { "Text" } else { "Binary" };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<&[u8]> for Message {
    fn from(bytes: &[u8]) -> Self {
        Self::binary(Bytes::copy_from_slice(bytes))
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::binary(bytes)
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::binary(bytes)
    }
}

/// The code and reason of a close frame (RFC 6455 sections 5.5.1 and 7.4).
///
/// ```
/// use ws_supervisor::CloseFrame;
///
/// let frame = CloseFrame { code: CloseFrame::GOING_AWAY, reason: "maintenance".into() };
/// assert_eq!(frame.to_string(), "1001 maintenance");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    /// The status code, for example 1000 (normal), 1001 (going away), 1008 (policy), 1012 (service restart).
    pub code: u16,
    /// The reason in the peer's words, at most 123 bytes on the wire.
    pub reason: Box<str>,
}

impl CloseFrame {
    /// 1000: the purpose of the connection is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// 1001: the endpoint goes away, as at a deployment.
    pub const GOING_AWAY: u16 = 1001;
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// 1007: the payload does not fit its type, as text that is not UTF-8.
    pub const INVALID_PAYLOAD: u16 = 1007;
    /// 1009: a message larger than the receiver takes.
    pub const TOO_LARGE: u16 = 1009;

    pub(crate) fn from_wire(frame: tungstenite::protocol::CloseFrame) -> Self {
        Self { code: frame.code.into(), reason: frame.reason.as_str().into() }
    }

    pub(crate) fn into_wire(self) -> tungstenite::protocol::CloseFrame {
        tungstenite::protocol::CloseFrame { code: self.code.into(), reason: String::from(self.reason).into() }
    }
}

impl fmt::Display for CloseFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, " {}", OneLine(&self.reason)) }
    }
}

/// The words of others, as they may stand in a log: on one line, without control characters.
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        for part in self.0.split_inclusive(breaks) {
            let end = part.chars().next_back().filter(|c| breaks(*c));
            f.write_str(&part[..part.len() - end.map_or(0, char::len_utf8)])?;
            end.map_or(Ok(()), |c| write!(f, "{}", c.escape_default()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_prints_the_payload() {
        let shown = format!("{:?}", Message::text("secret-token"));
        assert_eq!(shown, "Text(12 bytes)");
    }

    #[test]
    fn the_words_of_others_stay_on_their_line() {
        let frame = CloseFrame { code: 1000, reason: "bye\r\nERROR \u{1b}[31m€\u{2028}".into() };
        assert_eq!(frame.to_string(), "1000 bye\\r\\nERROR \\u{1b}[31m€\\u{2028}");
    }

    #[test]
    fn equality_ignores_the_time_of_receipt() {
        let wire = tungstenite::Message::text("x");
        assert_eq!(Message::received(wire, Instant::now(), None).unwrap(), Message::text("x"));
        assert_ne!(Message::text("x"), Message::binary("x"));
    }
}
