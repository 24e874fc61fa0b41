//! Bytes and frames: one socket that never blocks (`socket`), TLS over it (`wire`), the receiving half of the protocol
//! (`receiver`), tungstenite for what is sent, and the one wait that a readable socket, a deadline or a caller can end
//! (`wait`). Platform code is here, in `wake` and, for cores and priorities, in `worker/thread`; others only name
//! descriptors.

mod assembly;
#[cfg_attr(not(feature = "compression"), path = "no_deflate.rs")]
mod deflate;
mod head;
#[cfg(all(test, feature = "property-tests"))]
#[path = "judge_tests.rs"]
mod judge;
mod layer;
mod proof;
mod receiver;
#[cfg(feature = "rustls")]
mod rustls;
mod sender;
mod socket;
mod unacknowledged;
mod wait;
mod wire;

use std::io::{Cursor, ErrorKind, Read};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::event::PollFlags;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::Control;

use self::deflate::Deflating;
pub(crate) use self::deflate::{Deflate, Inflate};
use self::head::Fault;
pub(crate) use self::layer::Layer;
use self::proof::Proof;
pub(crate) use self::receiver::Unpack;
use self::receiver::{Next, Receiver};
#[cfg(feature = "rustls")]
pub(crate) use self::rustls::Rustls;
use self::sender::Sender;
pub(crate) use self::socket::Socket;
pub(crate) use self::wait::{HANG_UP, MAX_SOCKETS, Waited, poll_until, wait, wait_any};
pub(crate) use self::wire::Wire;
use crate::message::{CloseFrame, Message, MessageRef};
use crate::state::DisconnectReason;

#[cfg(feature = "testing")]
use std::io::{self, Write};

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// One is whole: `message` shows it, `take_message` gives it away.
    Message,
    Ping,
    /// `control` has its payload.
    Pong,
    /// The peer's close frame; the answer to it is queued.
    Close(Option<CloseFrame>),
    /// A part of a message, and perhaps more.
    Part,
    /// Nothing more for now.
    Nothing,
    /// The close handshake is over and the peer has closed the connection.
    Ended,
}

/// The connection is of no more use. `code` is what the peer is owed in a close frame, if it broke a rule.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) reason: DisconnectReason,
    pub(crate) code: Option<u16>,
}

impl Broken {
    /// For a reason that the peer is owed no word of.
    pub(crate) fn because(reason: DisconnectReason) -> Self {
        Self { reason, code: None }
    }
}

/// What is written.
#[derive(Clone, Debug)]
pub(crate) enum Outgoing {
    Message(Message),
    Ping(Bytes),
    Close(CloseFrame),
}

/// How messages are compressed, each way, if both sides have agreed on it; and beneath that by the venue's own ways.
#[derive(Default)]
pub(crate) struct Extensions {
    pub(crate) unpack: Option<Arc<Unpack>>,
    pub(crate) inflate: Option<Box<Inflate>>,
    pub(crate) deflate: Option<Box<Deflate>>,
}

/// One open WebSocket connection.
pub(crate) struct Transport {
    wire: Wire,
    sender: Sender,
    receiver: Receiver,
    deflate: Option<Box<Deflate>>,
    /// The message that is being compressed, and whether `next_written` is to report it.
    deflating: Option<(Message, bool, Deflating)>,
    unpack: Option<Arc<Unpack>>,
    /// When the bytes came that the receiver has, and how long before that the kernel had them, if it was asked.
    came_at: Instant,
    in_socket: Option<NonZeroU64>,
    /// Of what came last something whole has come.
    is_whole: bool,
    /// A message was received, and user code is unpacking it.
    is_unpacking: bool,
    /// Set where a proxy is in between.
    proof: Option<Proof>,
}

/// The end that is no close.
pub(crate) const ENDED: &str = "ended by the server without a close frame";

/// Bytes that are written in one go: then reading, deadlines and commands get their turn.
pub(crate) const SLICE: usize = 256 << 10;

/// Bytes that are taken in one go while nothing whole comes of them: others want their turn.
const BUDGET: usize = 64 << 10;

impl Transport {
    /// Over a wire on which the upgrade is done; `tail` is what came after it. One read brings up to `buffer` bytes; longer
    /// messages than `max_frame` are sent in fragments.
    pub(crate) fn new(
        mut wire: Wire,
        tail: Vec<u8>,
        role: Role,
        buffer: usize,
        max_message: usize,
        max_frame: usize,
        extensions: Extensions,
    ) -> Self {
        wire.tail = Cursor::new(tail);
        let sender = Sender::new(role == Role::Client, max_frame, wire.written);
        let Extensions { inflate, deflate, unpack } = extensions;
        let mut receiver = Receiver::new(buffer, role == Role::Server, max_message, inflate);
        if unpack.is_some() {
            receiver.will_unpack();
        }
        let (came_at, in_socket) = (Instant::now(), None);
        let (is_whole, is_unpacking, proof) = (true, false, None);
        let deflating = None;
        Self { wire, sender, receiver, deflate, deflating, unpack, came_at, in_socket, is_whole, is_unpacking, proof }
    }

    /// A proxy is in between.
    pub(crate) fn through_a_proxy(mut self) -> Self {
        self.proof = Some(Proof::default());
        self
    }

    pub(crate) fn is_through_a_proxy(&self) -> bool {
        self.proof.is_some()
    }

    pub(crate) fn tcp(&self) -> &Arc<TcpStream> {
        self.wire.socket().tcp()
    }

    /// What to wait for before the next turn.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.wants_to_write() { PollFlags::OUT | PollFlags::IN } else { PollFlags::IN }
    }

    /// Whether there is something to write, now or when the kernel has room again.
    pub(crate) fn wants_to_write(&self) -> bool {
        self.wire.socket().full || !(self.is_idle() || self.wire.reads_first())
    }

    /// Whether all that was handed over has left.
    pub(crate) fn is_idle(&self) -> bool {
        self.sender.is_idle() && self.deflating.is_none()
    }

    /// Whether the next message has to wait for the end of one that is being compressed or written.
    pub(crate) fn is_in_a_message(&self) -> bool {
        self.sender.is_in_a_message() || self.deflating.is_some()
    }

    /// Whether a ping can leave before the end of the message that is being compressed or written.
    pub(crate) fn lets_pings_pass(&self) -> bool {
        self.sender.fragments() || self.deflating.is_some()
    }

    /// Bytes that are encoded and that the kernel does not have.
    pub(crate) fn buffered(&self) -> usize {
        self.sender.buffered()
    }

    /// `poll` says that the socket has something to say.
    pub(crate) fn refresh(&mut self) {
        self.wire.socket_mut().refresh();
    }

    /// Bytes of the TCP connection that have arrived by now, read or not.
    pub(crate) fn arrived(&self) -> u64 {
        self.wire.socket().arrived()
    }

    /// Bytes of the TCP connection of which all that is whole has been told for sure.
    pub(crate) fn heard(&self) -> u64 {
        self.wire.read_for_sure().saturating_sub(self.receiver.unread() as u64)
    }

    /// Bytes of the WebSocket layer that the kernel has.
    pub(crate) fn written(&self) -> u64 {
        self.wire.written
    }

    /// Bytes of the TCP connection that the kernel has.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.wire.socket().written()
    }

    /// Bytes of the TCP connection that were taken from the kernel.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.wire.socket().came()
    }

    /// Bytes of the TCP connection that the peer's kernel has; `None` where the system does not say.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        self.wire.socket().acknowledged()
    }

    /// Those that have arrived for sure: at the peer's kernel, and where that is a proxy's, at the venue.
    pub(crate) fn proven(&self) -> Option<u64> {
        self.proof.as_ref().map_or_else(|| self.acknowledged(), |proof| Some(proof.proven()))
    }

    /// The end of TLS, if there is room for it at once.
    pub(crate) fn say_goodbye(&mut self) {
        self.wire.say_goodbye();
    }

    pub(crate) fn acknowledge(&mut self) {
        self.wire.socket_mut().acknowledge();
    }

    /// When bytes were last taken from the socket.
    pub(crate) fn read_at(&self) -> Instant {
        self.wire.socket().read_at()
    }

    /// Whether those bytes were the beginning of a message, or the middle of one, and nothing whole.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.is_whole
    }

    /// As `in_socket`, once a batch of reads.
    pub(crate) fn take_in_socket(&mut self) -> Option<NonZeroU64> {
        self.wire.socket_mut().take_in_socket()
    }

    /// Reads the next message or frame without blocking.
    #[inline(always)]
    pub(crate) fn read(&mut self) -> Result<Incoming, Broken> {
        match self.receiver.next() {
            Ok(Next::Message) if self.unpack.is_none() => {
                self.is_whole = true;
                Ok(Incoming::Message)
            }
            next => self.read_more(next),
        }
    }

    /// Whether the next message is whole in the read buffer and one of the usual kind, which `read_usual` takes.
    #[inline(always)]
    pub(crate) fn has_usual(&self) -> bool {
        self.unpack.is_none() && self.receiver.has_usual()
    }

    /// The next message, where it lies, as long as it is one of the usual kind. If not, `read` says what is next.
    #[inline(always)]
    pub(crate) fn read_usual(&mut self) -> Option<MessageRef<'_>> {
        let body = self.receiver.next_usual()?;
        self.is_whole = true;
        Some(MessageRef::received(body, self.came_at, self.in_socket))
    }

    /// What is no message, and what takes more bytes.
    #[inline(never)]
    fn read_more(&mut self, mut next: Result<Next, Fault>) -> Result<Incoming, Broken> {
        let mut budget = BUDGET;
        loop {
            match next.map_err(broke_a_rule)? {
                Next::Nothing if budget == 0 => return Ok(Incoming::Part),
                Next::Nothing => match self.fill() {
                    Ok(0) if self.receiver.is_closed() => return Ok(Incoming::Ended),
                    Ok(0) => return Err(Broken::because(DisconnectReason::Transport(ENDED.into()))),
                    Ok(read) => budget = budget.saturating_sub(read),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return Ok(if self.wire.socket().has_read_enough() {
                            Incoming::Part
                        } else {
                            Incoming::Nothing
                        });
                    }
                    Err(error) => return Err(broken(&error)),
                },
                Next::Part => return Ok(Incoming::Part),
                whole => {
                    self.is_whole = true;
                    return self.brought(whole);
                }
            }
            next = self.receiver.next();
        }
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let before = self.read_at();
        self.wire.socket_mut().begin_turn();
        let result = self.wire.read(self.receiver.space());
        let socket = self.wire.socket();
        // Of TLS a part of a record may have come, and nothing of it yet.
        self.is_whole &= socket.read_at() == before;
        let read = result?;
        (self.came_at, self.in_socket) = (socket.read_at(), socket.in_socket());
        self.receiver.came(read);
        Ok(read)
    }

    /// Something whole. What it wants answered is queued, and leaves with the next flush.
    fn brought(&mut self, whole: Next) -> Result<Incoming, Broken> {
        match whole {
            Next::Ping => {
                // Nothing is answered behind our close frame (RFC 6455 section 5.5.1). An answer that can't be written is
                // found by the next flush: messages that the peer sent before are still to be read.
                self.sender.control(Control::Pong, self.receiver.control());
                Ok(Incoming::Ping)
            }
            Next::Pong => {
                if let Some(proof) = &mut self.proof {
                    proof.answered(self.receiver.control());
                }
                Ok(Incoming::Pong)
            }
            Next::Close(frame) => {
                // RFC 6455 section 5.5.1: an answer to our close frame echoes its code. A close frame with another code, or
                // none, is the peer's own: it crossed ours, and proves nothing.
                let code = frame.as_ref().map(|frame| frame.code);
                let answers_ours = self.sender.close_code().is_some_and(|ours| ours == code);
                if let Some(proof) = self.proof.as_mut().filter(|_| answers_ours) {
                    proof.all(self.wire.socket().written());
                }
                self.sender.close(frame.as_ref());
                Ok(Incoming::Close(frame))
            }
            Next::BadClose(frame, fault) => {
                let Broken { reason, code } = broke_a_rule(fault);
                let reason = frame.map_or(reason, |frame| DisconnectReason::ClosedByServer(Some(frame)));
                Err(Broken { reason, code })
            }
            Next::Message | Next::Nothing | Next::Part => {
                if let Some(unpack) = self.unpack.as_ref().filter(|_| self.receiver.is_binary()) {
                    // Set while user code runs, which may panic.
                    self.is_unpacking = true;
                    let result = self.receiver.unpack(&**unpack);
                    self.is_unpacking = false;
                    let result = result.map_err(|error| not_unpacked(&error))?;
                    result.map_err(broke_a_rule)?;
                }
                Ok(Incoming::Message)
            }
        }
    }

    /// Reads the messages that have arrived by now, and drops them. Returns how many there were. For a connection whose run
    /// panicked: it calls no code of the user's.
    pub(crate) fn drop_received(&mut self) -> u64 {
        let (mut dropped, until) = (u64::from(std::mem::take(&mut self.is_unpacking)), self.arrived());
        self.refresh();
        loop {
            match self.receiver.next() {
                Ok(Next::Message) => dropped += 1,
                Ok(Next::Ping | Next::Pong | Next::Part) => {}
                Ok(Next::Nothing) if self.heard() < until && self.fill().is_ok_and(|read| read > 0) => {}
                Ok(Next::Nothing | Next::Close(_) | Next::BadClose(..)) | Err(_) => return dropped,
            }
        }
    }

    /// The message that `read` told of, where it lies; valid until the next `read`.
    #[inline(always)]
    pub(crate) fn message(&self) -> Result<MessageRef<'_>, Broken> {
        match self.receiver.body() {
            Ok(body) => Ok(MessageRef::received(body, self.came_at, self.in_socket)),
            Err(fault) => Err(broke_a_rule(fault)),
        }
    }

    /// The same, to be kept.
    #[inline(always)]
    pub(crate) fn take_message(&mut self) -> Result<Message, Broken> {
        match self.receiver.take_body() {
            Ok(body) => Ok(Message::received(body, self.came_at, self.in_socket)),
            Err(fault) => Err(broke_a_rule(fault)),
        }
    }

    /// The payload of the ping or pong that `read` told of.
    pub(crate) fn control(&self) -> &[u8] {
        self.receiver.control()
    }

    /// Takes a frame, compressed where that is agreed on. It leaves with `flush`; `next_written` reports a message when it has
    /// left, if that is asked for.
    pub(crate) fn queue(&mut self, outgoing: Outgoing, is_reported: bool) {
        match outgoing {
            Outgoing::Message(message) => {
                if self.deflate.as_ref().is_some_and(|deflate| deflate.compresses(message.len())) {
                    self.deflating = Some((message, is_reported, Deflating::default()));
                    return self.deflate_slice();
                }
                self.sender.message(message.is_text(), false, message.into_bytes(), is_reported);
            }
            Outgoing::Ping(payload) => {
                // What is on the wire by now is before the ping.
                if let Some(proof) = &mut self.proof {
                    proof.asked(payload.clone(), self.wire.socket().written());
                }
                self.sender.control(Control::Ping, &payload);
            }
            Outgoing::Close(frame) => self.sender.close(Some(&frame)),
        }
    }

    /// Compresses a slice of the message that is being compressed, so that a long one does not delay reading. The last slice
    /// hands the message to the sender: the head of its frame needs its length.
    fn deflate_slice(&mut self) {
        let Some((message, is_reported, mut deflating)) = self.deflating.take() else { return };
        let Some(deflate) = &mut self.deflate else { return };
        match deflate.slice(message.as_bytes(), &mut deflating) {
            Some(compressed) => self.sender.message(message.is_text(), true, compressed, is_reported),
            None => self.deflating = Some((message, is_reported, deflating)),
        }
    }

    /// Where, on the wire, the next message ends that the kernel has in full.
    pub(crate) fn next_written(&mut self) -> Option<u64> {
        self.sender.next_written(self.wire.written).map(|end| self.wire.end_on_the_wire(end))
    }

    /// Our close frame leaves, as far as there is room for it.
    pub(crate) fn close(&mut self, frame: CloseFrame) -> Result<(), Broken> {
        self.queue(Outgoing::Close(frame), false);
        self.flush(SLICE).map(drop)
    }

    /// Writes what was queued: until about so many bytes have left, as far as the kernel takes them. True when nothing is left.
    pub(crate) fn flush(&mut self, most: usize) -> Result<bool, Broken> {
        self.deflate_slice();
        let result = self.sender.write(&mut self.wire, most);
        if let Some(error) = self.wire.socket_mut().take_write_error() {
            return Err(broken(&error));
        }
        match result {
            Ok(()) => Ok(self.is_idle()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Writes bytes beneath the framing, as a server that breaks the rules does.
    #[cfg(feature = "testing")]
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.wire.write(bytes);
        self.sender.bypassed(*written.as_ref().unwrap_or(&0));
        self.wire.socket_mut().take_write_error().map_or(written.map(drop), Err)
    }

    /// Takes what came and forgets it; false when the connection is over.
    #[cfg(feature = "testing")]
    pub(crate) fn discard(&mut self) -> bool {
        let mut scratch = [0; 4096];
        let wire = &mut self.wire;
        loop {
            wire.socket_mut().refresh();
            match wire.read(&mut scratch) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => {
                    return error.kind() == ErrorKind::WouldBlock && wire.socket_mut().take_write_error().is_none();
                }
            }
        }
    }
}

/// Writing failed, or reading at the bottom did.
fn broken(error: &std::io::Error) -> Broken {
    Broken::because(DisconnectReason::Transport(error.to_string().into()))
}

fn not_unpacked(error: &str) -> Broken {
    let text = format!("a message that `decode` does not take: {error}");
    Broken { reason: DisconnectReason::Protocol(text.into()), code: Some(CloseFrame::INVALID_PAYLOAD) }
}

#[cold]
fn broke_a_rule(Fault { code, what }: Fault) -> Broken {
    Broken { reason: DisconnectReason::Protocol(what.into()), code: Some(code) }
}
