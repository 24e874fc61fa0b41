//! Bytes and frames: one socket that never blocks (`socket`), TLS over it, tungstenite's framing over that, and the
//! one wait that a readable socket, a deadline or a caller can end (`wait`). Platform code is here, in `wake` and, for
//! cores and priorities, in `worker/thread`; others only name descriptors.

mod frames;
mod socket;
mod unacknowledged;
mod wait;
mod wire;

use std::io::{Cursor, ErrorKind};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::event::PollFlags;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

pub(crate) use self::socket::Socket;
pub(crate) use self::wait::{HANG_UP, Waited, poll_until, wait};
pub(crate) use self::wire::Wire;
use crate::message::{CloseFrame, Message};
use crate::state::DisconnectReason;

#[cfg(feature = "testing")]
use std::io::{self, Read, Write};

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(Message),
    Ping,
    Pong(Bytes),
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

/// One open WebSocket connection.
pub(crate) struct Transport {
    ws: WebSocket<Wire>,
    role: Role,
    write_limit: usize,
    /// All that came is taken apart: without new bytes from the socket there is nothing to read.
    hungry: bool,
    /// Something may not have left yet: a frame, or the answer to a ping or a close.
    unflushed: bool,
    for_readers: bool,
}

/// What tungstenite takes at a time. It clears so much memory before every read, while a tick waits; the socket's own
/// buffer, which is never cleared, is what makes the system calls few.
const CHUNK: usize = 8 << 10;

/// The end that is no close.
pub(crate) const ENDED: &str = "ended by the server without a close frame";

const WRITE_BUFFER: usize = 64 << 10;

impl Transport {
    /// Over a wire on which the upgrade is done; `tail` is what came after it.
    pub(crate) fn new(mut wire: Wire, tail: Vec<u8>, role: Role, max_message: usize) -> Self {
        // tungstenite would take the tail, but size its buffers by it from then on: a few bytes, and each message that
        // outlives the next one would cost allocations of its own.
        wire.tail = Cursor::new(tail);
        wire.follow_frames();
        let write_limit = 4 * WRITE_BUFFER;
        let config = WebSocketConfig::default()
            .read_buffer_size(CHUNK)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(write_limit)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        let ws = WebSocket::from_raw_socket(wire, role, Some(config));
        Self { ws, role, write_limit, hungry: false, unflushed: false, for_readers: false }
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
        // The framing may have taken as much, and not taken it apart yet.
        self.ws.get_ref().socket().taken().saturating_sub(2 * CHUNK as u64)
    }

    /// Bytes of the WebSocket layer that the kernel has.
    pub(crate) fn written(&self) -> u64 {
        self.ws.get_ref().written
    }

    /// As bytes of the TCP connection, those of the WebSocket layer that have just been counted as written.
    pub(crate) fn end_on_the_wire(&self, end: u64) -> u64 {
        self.ws.get_ref().end_on_the_wire(end)
    }

    /// Bytes of the TCP connection that the peer's kernel has; `None` where the system does not say.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        self.ws.get_ref().socket().acknowledged()
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
        self.ws.get_ref().socket().is_mid_frame()
    }

    /// How many nanoseconds before that the kernel had them, if it was asked.
    pub(crate) fn in_socket(&self) -> Option<NonZeroU64> {
        self.ws.get_ref().socket().in_socket()
    }

    /// As `in_socket`, once a batch of reads.
    pub(crate) fn take_in_socket(&mut self) -> Option<NonZeroU64> {
        self.ws.get_mut().socket_mut().take_in_socket()
    }

    /// Reads the next message or frame without blocking.
    #[inline]
    pub(crate) fn read(&mut self) -> Result<Incoming, Broken> {
        if self.hungry && !self.ws.get_mut().socket_mut().fill() {
            return Ok(Incoming::Nothing);
        }
        self.hungry = false;
        match self.ws.read() {
            Ok(whole) => {
                self.ws.get_mut().has_brought_a_frame();
                Ok(self.brought(whole))
            }
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                if self.ws.get_mut().take_exhausted() {
                    return Ok(Incoming::Part);
                }
                self.hungry = true;
                Ok(Incoming::Nothing)
            }
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => Ok(Incoming::Ended),
            Err(error) => Err(self.broken_by(error)),
        }
    }

    #[inline(always)]
    fn brought(&mut self, whole: tungstenite::Message) -> Incoming {
        use tungstenite::Message as Whole;
        match whole {
            Whole::Ping(_) => {
                self.unflushed = true;
                Incoming::Ping
            }
            Whole::Pong(payload) => Incoming::Pong(payload),
            Whole::Close(frame) => {
                self.unflushed = true;
                Incoming::Close(frame.map(|frame| self.as_sent(CloseFrame::from_wire(frame))))
            }
            message => match Message::received(message, self.read_at(), self.in_socket()) {
                Some(message) if self.detaches() => Incoming::Message(message.kept()),
                Some(message) => Incoming::Message(message),
                None => Incoming::Nothing,
            },
        }
    }

    /// tungstenite puts its own verdict in the place of a code that may not be on the wire (RFC 6455 section 7.4).
    fn as_sent(&self, frame: CloseFrame) -> CloseFrame {
        if frame.code != CloseFrame::PROTOCOL_ERROR || &*frame.reason != "Protocol violation" {
            return frame;
        }
        self.ws.get_ref().close_frame().unwrap_or(frame)
    }

    /// Reading has failed; if that was at a close frame, what that says is the reason.
    #[cold]
    fn broken_by(&self, error: tungstenite::Error) -> Broken {
        let Broken { reason, code } = broken(error);
        let close = self.ws.get_ref().close_frame().filter(|_| matches!(reason, DisconnectReason::Protocol(_)));
        Broken { reason: close.map_or(reason, |frame| DisconnectReason::ClosedByServer(Some(frame))), code }
    }

    /// Whether a message should own its memory: it waits for a reader, and little came with it that it could share.
    #[inline]
    fn detaches(&self) -> bool {
        self.for_readers && self.ws.get_ref().socket().last_read() < CHUNK / 2
    }

    /// What is read is for readers on other threads, who may keep it for long.
    pub(crate) fn is_for_readers(&mut self) {
        self.for_readers = true;
    }

    /// Bytes that `outgoing` takes on the wire (RFC 6455 section 5.2).
    pub(crate) fn frame_len(&self, outgoing: &Outgoing) -> u64 {
        let payload = match outgoing {
            Outgoing::Message(message) => message.len(),
            Outgoing::Ping(payload) => payload.len(),
            Outgoing::Close(frame) => 2 + frame.reason.len(),
        };
        let length = match payload {
            0..126 => 0,
            126..65536 => 2,
            _ => 8,
        };
        let mask = if self.role == Role::Client { 4 } else { 0 };
        (2 + length + mask + payload) as u64
    }

    /// Puts a frame into the write buffer. Whether it has left, `written` tells after a `flush`.
    pub(crate) fn queue(&mut self, outgoing: Outgoing) -> Result<(), Broken> {
        let needed = WRITE_BUFFER * 2 + self.frame_len(&outgoing) as usize;
        if needed > self.write_limit {
            self.write_limit = needed;
            self.ws.set_config(|config| config.max_write_buffer_size = needed);
        }
        self.unflushed = true;
        let result = match outgoing {
            Outgoing::Message(message) => {
                let kind = if message.is_text() { Data::Text } else { Data::Binary };
                let frame = Frame::message(message.into_bytes(), OpCode::Data(kind), true);
                self.ws.write(tungstenite::Message::Frame(frame))
            }
            Outgoing::Ping(payload) => self.ws.write(tungstenite::Message::Ping(payload)),
            Outgoing::Close(frame) => self.ws.close(Some(frame.into_wire())),
        };
        self.written_so_far(result).map(drop)
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

fn broken(error: tungstenite::Error) -> Broken {
    use tungstenite::Error as E;
    use tungstenite::error::ProtocolError as P;
    let text = || error.to_string().into_boxed_str();
    let (reason, code) = match &error {
        E::Io(io) => (DisconnectReason::Transport(io.to_string().into()), None),
        E::Protocol(P::ResetWithoutClosingHandshake) => (DisconnectReason::Transport(ENDED.into()), None),
        E::Capacity(_) => (DisconnectReason::Protocol(text()), Some(CloseFrame::TOO_LARGE)),
        E::Utf8(_) => (DisconnectReason::Protocol(text()), Some(CloseFrame::INVALID_PAYLOAD)),
        E::Protocol(_) => (DisconnectReason::Protocol(text()), Some(CloseFrame::PROTOCOL_ERROR)),
        _ => (DisconnectReason::Transport(text()), None),
    };
    Broken { reason, code }
}
