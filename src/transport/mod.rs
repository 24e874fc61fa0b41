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
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

pub(crate) use self::deflate::{Deflate, Inflate};
use self::head::Fault;
pub(crate) use self::layer::Layer;
use self::proof::Proof;
pub(crate) use self::receiver::Unpack;
use self::receiver::{Next, Receiver};
#[cfg(feature = "rustls")]
pub(crate) use self::rustls::Rustls;
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

/// What a frame that is to be queued is, and how much it takes on the wire.
pub(crate) struct Packed {
    outgoing: Outgoing,
    compressed: Option<Bytes>,
    pub(crate) len: u64,
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
    /// Writes; what comes never passes here.
    ws: WebSocket<Wire>,
    receiver: Receiver,
    deflate: Option<Box<Deflate>>,
    unpack: Option<Arc<Unpack>>,
    role: Role,
    write_limit: usize,
    /// Something may not have left yet: a frame, or the answer to a ping or a close.
    unflushed: bool,
    /// When the bytes came that the receiver has, and how long before that the kernel had them, if it was asked.
    came_at: Instant,
    in_socket: Option<NonZeroU64>,
    /// Of what came last something whole has come.
    is_whole: bool,
    /// Set where a proxy is in between.
    proof: Option<Proof>,
}

/// The end that is no close.
pub(crate) const ENDED: &str = "ended by the server without a close frame";

const WRITE_BUFFER: usize = 64 << 10;

/// Bytes that are taken in one go while nothing whole comes of them: others want their turn.
const BUDGET: usize = 64 << 10;

impl Transport {
    /// Over a wire on which the upgrade is done; `tail` is what came after it. One read brings up to `buffer` bytes.
    pub(crate) fn new(
        mut wire: Wire,
        tail: Vec<u8>,
        role: Role,
        buffer: usize,
        max_message: usize,
        extensions: Extensions,
    ) -> Self {
        wire.tail = Cursor::new(tail);
        let write_limit = 4 * WRITE_BUFFER;
        let config = WebSocketConfig::default()
            .read_buffer_size(0)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(write_limit);
        let ws = WebSocket::from_raw_socket(wire, role, Some(config));
        let Extensions { inflate, deflate, unpack } = extensions;
        let mut receiver = Receiver::new(buffer, role == Role::Server, max_message, inflate);
        if unpack.is_some() {
            receiver.will_unpack();
        }
        let (came_at, in_socket) = (Instant::now(), None);
        let (unflushed, is_whole, proof) = (false, true, None);
        Self { ws, receiver, deflate, unpack, role, write_limit, unflushed, came_at, in_socket, is_whole, proof }
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
        self.ws.get_ref().socket().tcp()
    }

    /// What to wait for before the next turn.
    pub(crate) fn interest(&self) -> PollFlags {
        self.ws.get_ref().socket().interest()
    }

    /// Whether a write waits for room in the kernel.
    pub(crate) fn is_full(&self) -> bool {
        self.ws.get_ref().socket().full
    }

    /// `poll` says that the socket has something to say.
    pub(crate) fn refresh(&mut self) {
        self.ws.get_mut().socket_mut().refresh();
    }

    /// Bytes of the TCP connection that have arrived by now, read or not.
    pub(crate) fn arrived(&self) -> u64 {
        self.ws.get_ref().socket().arrived()
    }

    /// Bytes of the TCP connection of which all that is whole has been told for sure.
    pub(crate) fn heard(&self) -> u64 {
        self.ws.get_ref().read_for_sure().saturating_sub(self.receiver.unread() as u64)
    }

    /// Bytes of the WebSocket layer that the kernel has.
    pub(crate) fn written(&self) -> u64 {
        self.ws.get_ref().written
    }

    /// Bytes of the TCP connection that the kernel has.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.ws.get_ref().socket().written()
    }

    /// Bytes of the TCP connection that were taken from the kernel.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.ws.get_ref().socket().came()
    }

    /// As bytes of the TCP connection, those of the WebSocket layer that have just been counted as written.
    pub(crate) fn end_on_the_wire(&self, end: u64) -> u64 {
        self.ws.get_ref().end_on_the_wire(end)
    }

    /// Bytes of the TCP connection that the peer's kernel has; `None` where the system does not say.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        self.ws.get_ref().socket().acknowledged()
    }

    /// Those that have arrived for sure: at the peer's kernel, and where that is a proxy's, at the venue.
    pub(crate) fn proven(&self) -> Option<u64> {
        self.proof.as_ref().map_or_else(|| self.acknowledged(), |proof| Some(proof.proven()))
    }

    /// The end of TLS, if there is room for it at once.
    pub(crate) fn say_goodbye(&mut self) {
        self.ws.get_mut().say_goodbye();
    }

    pub(crate) fn acknowledge(&mut self) {
        self.ws.get_mut().socket_mut().acknowledge();
    }

    /// When bytes were last taken from the socket.
    pub(crate) fn read_at(&self) -> Instant {
        self.ws.get_ref().socket().read_at()
    }

    /// Whether those bytes were the beginning of a message, or the middle of one, and nothing whole.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.is_whole
    }

    /// As `in_socket`, once a batch of reads.
    pub(crate) fn take_in_socket(&mut self) -> Option<NonZeroU64> {
        self.ws.get_mut().socket_mut().take_in_socket()
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
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Incoming::Nothing),
                    Err(error) => return Err(broken(error.into())),
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
        let result = self.ws.get_mut().read(self.receiver.space());
        let socket = self.ws.get_ref().socket();
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
                // Nothing is answered any more behind our close frame (RFC 6455 section 5.5.1). That the answer can't be
                // written is for the next flush to say: what the peer said before it is still to be read.
                if self.ws.can_write() {
                    self.unflushed = true;
                    let payload = Bytes::copy_from_slice(self.receiver.control());
                    let _ = self.ws.write(tungstenite::Message::Pong(payload));
                }
                Ok(Incoming::Ping)
            }
            Next::Pong => {
                if let Some(proof) = &mut self.proof {
                    proof.answered(self.receiver.control());
                }
                Ok(Incoming::Pong)
            }
            Next::Close(frame) => {
                self.unflushed = true;
                let answers_ours = !self.ws.can_write();
                if let Some(proof) = self.proof.as_mut().filter(|_| answers_ours) {
                    proof.all(self.ws.get_ref().socket().written());
                }
                // The peer may be gone already; what it said counts.
                let _ = self.ws.close(frame.clone().map(CloseFrame::into_wire));
                Ok(Incoming::Close(frame))
            }
            Next::BadClose(frame, fault) => {
                let Broken { reason, code } = broke_a_rule(fault);
                let reason = frame.map_or(reason, |frame| DisconnectReason::ClosedByServer(Some(frame)));
                Err(Broken { reason, code })
            }
            Next::Message | Next::Nothing | Next::Part => {
                if let Some(unpack) = self.unpack.as_ref().filter(|_| self.receiver.is_binary()) {
                    let result = self.receiver.unpack(&**unpack).map_err(|error| not_unpacked(&error))?;
                    result.map_err(broke_a_rule)?;
                }
                Ok(Incoming::Message)
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

    /// Compresses it, if that is agreed on, and says how much it takes on the wire (RFC 6455 section 5.2). What is packed is
    /// queued next: what is compressed later builds upon it.
    pub(crate) fn pack(&mut self, outgoing: Outgoing) -> Packed {
        let mut compressed = None;
        let payload = match &outgoing {
            Outgoing::Message(message) => {
                compressed = self.deflate.as_mut().and_then(|deflate| deflate.message(message.as_bytes()));
                compressed.as_ref().map_or(message.len(), Bytes::len)
            }
            Outgoing::Ping(payload) => payload.len(),
            Outgoing::Close(frame) => 2 + frame.reason.len(),
        };
        let length = match payload {
            0..126 => 0,
            126..65536 => 2,
            _ => 8,
        };
        let mask = if self.role == Role::Client { 4 } else { 0 };
        Packed { outgoing, compressed, len: (2 + length + mask + payload) as u64 }
    }

    /// Puts a frame into the write buffer. Whether it has left, `written` tells after a `flush`.
    pub(crate) fn queue(&mut self, packed: Packed) -> Result<(), Broken> {
        let Packed { outgoing, compressed, len } = packed;
        let needed = WRITE_BUFFER * 2 + len as usize;
        if needed > self.write_limit {
            self.write_limit = needed;
            self.ws.set_config(|config| config.max_write_buffer_size = needed);
        }
        self.unflushed = true;
        let result = match outgoing {
            Outgoing::Message(message) => {
                let kind = if message.is_text() { Data::Text } else { Data::Binary };
                let is_compressed = compressed.is_some();
                let payload = compressed.unwrap_or_else(|| message.into_bytes());
                let mut frame = Frame::message(payload, OpCode::Data(kind), true);
                frame.header_mut().rsv1 = is_compressed;
                self.ws.write(tungstenite::Message::Frame(frame))
            }
            Outgoing::Ping(payload) => {
                // The buffer was empty before what is queued now, in which pings come first.
                if let Some(proof) = &mut self.proof {
                    proof.asked(payload.clone(), self.ws.get_ref().socket().written());
                }
                self.ws.write(tungstenite::Message::Ping(payload))
            }
            Outgoing::Close(frame) => self.ws.close(Some(frame.into_wire())),
        };
        self.written_so_far(result).map(drop)
    }

    /// Our close frame leaves, as far as there is room for it.
    pub(crate) fn close(&mut self, frame: CloseFrame) -> Result<(), Broken> {
        let packed = self.pack(Outgoing::Close(frame));
        self.queue(packed)?;
        self.flush().map(drop)
    }

    /// Writes what is in the buffer as far as the kernel takes it; true when nothing is left.
    pub(crate) fn flush(&mut self) -> Result<bool, Broken> {
        if self.unflushed {
            let result = self.ws.flush();
            self.unflushed = !self.written_so_far(result)?;
        }
        Ok(!self.unflushed)
    }

    /// Whether all went out. A kernel that is full is fine, a line that broke is not.
    fn written_so_far(&mut self, result: tungstenite::Result<()>) -> Result<bool, Broken> {
        if let Some(error) = self.ws.get_mut().socket_mut().take_write_error() {
            return Err(broken(error.into()));
        }
        match result {
            Ok(()) => Ok(true),
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(broken(error)),
        }
    }

    /// Writes bytes beneath the framing, as a server that breaks the rules does.
    #[cfg(feature = "testing")]
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let wire = self.ws.get_mut();
        let written = wire.write(bytes);
        wire.socket_mut().take_write_error().map_or(written.map(drop), Err)
    }

    /// Takes what came and forgets it; false when the connection is over.
    #[cfg(feature = "testing")]
    pub(crate) fn discard(&mut self) -> bool {
        let mut scratch = [0; 4096];
        let wire = self.ws.get_mut();
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
fn broken(error: tungstenite::Error) -> Broken {
    let text = match error {
        tungstenite::Error::Io(io) => io.to_string(),
        error => error.to_string(),
    };
    Broken::because(DisconnectReason::Transport(text.into()))
}

fn not_unpacked(error: &str) -> Broken {
    let text = format!("a message that `decode` does not take: {error}");
    Broken { reason: DisconnectReason::Protocol(text.into()), code: Some(CloseFrame::INVALID_PAYLOAD) }
}

#[cold]
fn broke_a_rule(Fault { code, what }: Fault) -> Broken {
    Broken { reason: DisconnectReason::Protocol(what.into()), code: Some(code) }
}
