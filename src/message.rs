//! What travels: [`Message`], the view of one ([`MessageRef`]), the close code and the close frame.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::text::Text;

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

/// The payload of a message that came.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Text(Text),
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
        Self { body: Body::Text(Text::from(text.into())), received_at: None, in_socket: None }
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
    pub(crate) fn received(body: Body, at: Instant, in_socket: Option<NonZeroU64>) -> Self {
        Self { body, received_at: Some(at), in_socket }
    }

    /// A view of it, as a [`Handler`](crate::Handler) is shown one: for your handler's own tests.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// let message = Message::text("tick");
    /// assert_eq!(message.view().to_message(), message);
    /// ```
    pub fn view(&self) -> MessageRef<'_> {
        let body = match &self.body {
            Body::Text(text) => BodyRef::Text(text.as_str()),
            Body::Binary(bytes) => BodyRef::Binary(bytes),
        };
        MessageRef::of(body, self.received_at, self.in_socket)
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
            Body::Text(text) => text.into_bytes(),
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

    /// The same message in memory of its own. One of less than 2 KiB that a channel brought in a burst of more than 4 KiB
    /// shares that much with its neighbours, and keeps it alive; others own their memory already, and so does what
    /// [`MessageRef::to_message`] makes. Detach the few of many that you keep for long.
    ///
    /// ```
    /// # use ws_supervisor::Message;
    /// assert_eq!(Message::from("a").detached(), Message::from("a"));
    /// ```
    pub fn detached(&self) -> Self {
        self.view().to_message()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn at(self, at: Instant) -> Self {
        Self { received_at: Some(at), ..self }
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

/// A message as it lies in the client's memory: what a [`Handler`](crate::Handler) is shown, and heartbeats and
/// [`Correlation`](crate::Correlation)s are. [`to_message`](MessageRef::to_message) keeps it beyond the call.
///
/// One that came in one frame, fits [`read_buffer`](crate::ClientConfig::read_buffer) and is not compressed was neither
/// copied nor allocated for. What comes in fragments, larger or compressed is put together in memory that is used again; what
/// came while the session was being opened was kept. Two are equal when their kind and payload are.
///
/// ```
/// use std::collections::HashMap;
/// use serde::Deserialize;
/// use ws_supervisor::{Context, Handler, Message, MessageRef};
///
/// #[derive(Deserialize)]
/// struct Tick<'a> {
///     symbol: &'a str, // borrowed from the message: nothing is copied
///     bid: f64,
/// }
///
/// #[derive(Default)]
/// struct Quotes {
///     latest: HashMap<String, Message>,
/// }
///
/// impl Handler for Quotes {
///     fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
///         let Some(tick) = message.as_text().and_then(|text| serde_json::from_str::<Tick<'_>>(text).ok()) else { return };
///         if tick.bid > 100.0 {
///             let _ = context.send(format!(r#"{{"sell":"{}"}}"#, tick.symbol));
///         }
///         self.latest.insert(tick.symbol.to_owned(), message.to_message());
///     }
/// }
/// ```
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    body: BodyRef<'a>,
    epoch: Option<u64>,
    received_at: Option<Instant>,
    in_socket: Option<NonZeroU64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyRef<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

impl<'a> MessageRef<'a> {
    #[inline]
    pub(crate) fn received(body: BodyRef<'a>, at: Instant, in_socket: Option<NonZeroU64>) -> Self {
        Self::of(body, Some(at), in_socket)
    }

    #[inline]
    pub(crate) fn of(body: BodyRef<'a>, received_at: Option<Instant>, in_socket: Option<NonZeroU64>) -> Self {
        Self { body, epoch: None, received_at, in_socket }
    }

    #[inline]
    pub(crate) fn times(&self) -> (Option<Instant>, Option<NonZeroU64>) {
        (self.received_at, self.in_socket)
    }

    #[inline]
    pub(crate) fn on(self, epoch: u64) -> Self {
        Self { epoch: Some(epoch), ..self }
    }

    /// Whether this is a text message.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert!(MessageRef::from("a").is_text());
    /// ```
    pub fn is_text(&self) -> bool {
        matches!(self.body, BodyRef::Text(_))
    }

    /// Whether this is a binary message.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert!(MessageRef::from(&[1, 2][..]).is_binary());
    /// ```
    pub fn is_binary(&self) -> bool {
        !self.is_text()
    }

    /// The text of a text message, `None` for a binary one. It was checked to be UTF-8 when it came.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert_eq!(MessageRef::from("a").as_text(), Some("a"));
    /// ```
    pub fn as_text(&self) -> Option<&'a str> {
        match self.body {
            BodyRef::Text(text) => Some(text),
            BodyRef::Binary(_) => None,
        }
    }

    /// The payload, whichever kind it is.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert_eq!(MessageRef::from("a").as_bytes(), b"a");
    /// ```
    pub fn as_bytes(&self) -> &'a [u8] {
        match self.body {
            BodyRef::Text(text) => text.as_bytes(),
            BodyRef::Binary(bytes) => bytes,
        }
    }

    /// Length of the payload in bytes.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert_eq!(MessageRef::from("abc").len(), 3);
    /// ```
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether the payload is empty.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert!(MessageRef::from("").is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.as_bytes().is_empty()
    }

    /// The number of the connection that it came on; `None` for a view of a message that you made, or that is
    /// in a batch: there the latest [`Event::Open`](crate::Event::Open) has it.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert_eq!(MessageRef::from("mine").epoch(), None);
    /// ```
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// As [`Message::received_at`].
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert!(MessageRef::from("mine").received_at().is_none());
    /// ```
    pub fn received_at(&self) -> Option<Instant> {
        self.received_at
    }

    /// As [`Message::time_in_socket`].
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert!(MessageRef::from("mine").time_in_socket().is_none());
    /// ```
    pub fn time_in_socket(&self) -> Option<Duration> {
        self.in_socket.map(|nanos| Duration::from_nanos(nanos.get()))
    }

    /// A message that can be kept: one allocation, one copy. Which connection it came on it does not say.
    ///
    /// ```
    /// # use ws_supervisor::MessageRef;
    /// assert_eq!(MessageRef::from("a").to_message(), "a");
    /// ```
    pub fn to_message(&self) -> Message {
        let body = match self.body {
            BodyRef::Text(text) => Body::Text(text.into()),
            BodyRef::Binary(bytes) => Body::Binary(Bytes::copy_from_slice(bytes)),
        };
        Message { body, received_at: self.received_at, in_socket: self.in_socket }
    }
}

/// For your handler's own tests.
impl<'a> From<&'a str> for MessageRef<'a> {
    fn from(text: &'a str) -> Self {
        Self::of(BodyRef::Text(text), None, None)
    }
}

/// For your handler's own tests.
impl<'a> From<&'a [u8]> for MessageRef<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::of(BodyRef::Binary(bytes), None, None)
    }
}

/// For your handler's own tests.
impl<'a> From<&'a String> for MessageRef<'a> {
    fn from(text: &'a String) -> Self {
        text.as_str().into()
    }
}

/// As [`Message::view`].
impl<'a> From<&'a Message> for MessageRef<'a> {
    fn from(message: &'a Message) -> Self {
        message.view()
    }
}

/// As for [`Message`]: kind and payload count, the time of receipt does not.
impl PartialEq for MessageRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body
    }
}

impl Eq for MessageRef<'_> {}

impl PartialEq<Message> for MessageRef<'_> {
    fn eq(&self, other: &Message) -> bool {
        *self == other.view()
    }
}

/// Equal to a text message with this text.
impl PartialEq<str> for MessageRef<'_> {
    fn eq(&self, other: &str) -> bool {
        self.as_text() == Some(other)
    }
}

/// Equal to a text message with this text.
impl PartialEq<&str> for MessageRef<'_> {
    fn eq(&self, other: &&str) -> bool {
        self.as_text() == Some(other)
    }
}

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(self.is_text(), self.len(), f)
    }
}

/// Kind and length only: a payload may hold a secret, and a log line is for ever.
fn describe(is_text: bool, len: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let kind = if is_text { "Text" } else { "Binary" };
    write!(f, "{kind}({len} bytes)")
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body
    }
}

impl Eq for Message {}

/// Equal to a text message with this text.
impl PartialEq<str> for Message {
    fn eq(&self, other: &str) -> bool {
        self.as_text() == Some(other)
    }
}

/// Equal to a text message with this text.
impl PartialEq<&str> for Message {
    fn eq(&self, other: &&str) -> bool {
        self.as_text() == Some(other)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(self.is_text(), self.len(), f)
    }
}

impl From<MessageRef<'_>> for Message {
    fn from(message: MessageRef<'_>) -> Self {
        message.to_message()
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
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    /// The status code, for example 1000 (normal), 1001 (going away), 1008 (policy), 1012 (service restart).
    pub code: u16,
    /// The reason in the peer's words, at most 123 bytes on the wire.
    pub reason: Box<str>,
}

impl CloseFrame {
    /// One that an endpoint may send (RFC 6455 section 7.4), or the rule that it breaks.
    pub(crate) fn to_send(code: u16, reason: &str) -> Result<Self, &'static str> {
        if !Self::may_be_sent(code) {
            return Err("the code must be 1000 to 1003, 1007 to 1014, or 3000 to 4999");
        }
        if reason.len() > Self::MAX_REASON {
            return Err("the reason must have 123 bytes at most");
        }
        Ok(Self { code, reason: reason.into() })
    }

    /// Whether an endpoint may send this code (RFC 6455 section 7.4 and IANA's registry).
    pub(crate) fn may_be_sent(code: u16) -> bool {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// Bytes that a control frame has room for behind the code (RFC 6455 section 5.5).
    pub(crate) const MAX_REASON: usize = 123;

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
        let came = Message::received(Body::Text("x".into()), Instant::now(), None);
        assert_eq!(came, Message::text("x"));
        assert_ne!(Message::text("x"), Message::binary("x"));
    }
}
