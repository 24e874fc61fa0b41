//! Messages that cross a channel together: one block of memory for all of them, and each seen where it lies.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Instant;

use crate::message::{BodyRef, Message, MessageRef};

/// Messages that one read brought, in their order: what [`Event::Messages`](crate::Event::Messages) holds, never none of them.
/// They lie in one block of memory, which goes when this does; [`MessageRef::to_message`] keeps one of them beyond it.
///
/// ```
/// use ws_supervisor::{ClientConfig, Delivery, Event, Supervisor, testing::Server};
///
/// let server = Server::echo()?;
/// let supervisor = Supervisor::start()?;
/// let client = supervisor.spawn_client(ClientConfig::new(server.url())?.delivery(Delivery::batches()))?;
/// client.wait_until_open(std::time::Duration::from_secs(10))?;
/// client.send("bid")?;
/// let came = client.events().iter().find_map(|event| match event {
///     Event::Messages(messages) => messages.iter().next().map(|first| first.to_message()),
///     _ => None,
/// });
/// assert_eq!(came.unwrap(), "bid");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Messages {
    text: Box<str>,
    binary: Box<[u8]>,
    parts: Box<[Part]>,
    received_at: Option<Instant>,
    in_socket: Option<NonZeroU64>,
}

/// Where one ends: among the texts, or among the others.
#[derive(Clone, Copy)]
enum Part {
    Text(usize),
    Binary(usize),
}

impl Messages {
    /// Those that are given, of which there is at least one.
    pub(crate) fn of(messages: &[Message]) -> Self {
        let mut batch = Batch::default();
        messages.iter().for_each(|message| batch.push(message.view()));
        batch.take()
    }

    /// How many there are.
    ///
    /// ```
    /// # use ws_supervisor::Messages;
    /// fn count(messages: &Messages) -> usize {
    ///     messages.len()
    /// }
    /// ```
    #[expect(clippy::len_without_is_empty, reason = "there is no empty one")]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Each where it lies, the first first.
    ///
    /// ```
    /// # use ws_supervisor::Messages;
    /// fn texts(messages: &Messages) -> usize {
    ///     messages.iter().filter(|message| message.is_text()).count()
    /// }
    /// ```
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MessageRef<'_>> {
        let (mut text, mut binary) = (0, 0);
        self.parts.iter().map(move |part| {
            let body = match *part {
                Part::Text(end) => BodyRef::Text(&self.text[std::mem::replace(&mut text, end)..end]),
                Part::Binary(end) => BodyRef::Binary(&self.binary[std::mem::replace(&mut binary, end)..end]),
            };
            MessageRef::of(body, self.received_at, self.in_socket)
        })
    }

    /// Bytes of all payloads.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len() + self.binary.len()
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Messages({}, {} bytes)", self.len(), self.bytes())
    }
}

/// Each in memory of its own.
impl From<Messages> for Vec<Message> {
    fn from(messages: Messages) -> Self {
        messages.iter().map(|message| message.to_message()).collect()
    }
}

/// Such a block while it is filled. Its own room is used again.
#[derive(Default)]
pub(crate) struct Batch {
    text: String,
    binary: Vec<u8>,
    parts: Vec<Part>,
    received_at: Option<Instant>,
    in_socket: Option<NonZeroU64>,
}

/// Room that is kept for the next ones.
const KEPT: usize = 64 << 10;

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether a message came with those that are in it already.
    #[inline]
    pub(crate) fn is_of(&self, message: &MessageRef<'_>) -> bool {
        self.parts.is_empty() || self.received_at == message.received_at()
    }

    #[inline]
    pub(crate) fn push(&mut self, message: MessageRef<'_>) {
        if self.parts.is_empty() {
            (self.received_at, self.in_socket) = message.times();
        }
        self.parts.push(match message.as_text() {
            Some(text) => {
                self.text.push_str(text);
                Part::Text(self.text.len())
            }
            None => {
                self.binary.extend_from_slice(message.as_bytes());
                Part::Binary(self.binary.len())
            }
        });
    }

    /// What is in it, in memory as large as that.
    pub(crate) fn take(&mut self) -> Messages {
        let messages = Messages {
            text: self.text.as_str().into(),
            binary: self.binary.as_slice().into(),
            parts: self.parts.as_slice().into(),
            received_at: self.received_at,
            in_socket: self.in_socket,
        };
        self.text.clear();
        self.text.shrink_to(KEPT);
        self.binary.clear();
        self.binary.shrink_to(KEPT);
        self.parts.clear();
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_others_come_out_as_and_in_the_order_in_which_they_went_in() {
        let mut batch = Batch::default();
        for _ in 0..2 {
            let all = [Message::text("é"), Message::binary(vec![0xff, 0]), Message::text(""), Message::text("b")];
            all.iter().for_each(|message| batch.push(message.view()));
            let messages = batch.take();
            assert_eq!((messages.len(), messages.bytes(), batch.len()), (4, 5, 0));
            assert!(messages.iter().zip(&all).all(|(came, went)| came == *went));
            assert_eq!(Vec::from(messages), all);
        }
    }
}
