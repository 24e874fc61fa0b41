//! Bytes and frames: one socket that never blocks, TLS over it, tungstenite's framing over that, and the one wait that
//! a readable socket, a deadline or a caller can end. Sole platform code together with `wake`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use native_tls::TlsStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

use crate::event::DisconnectReason;
use crate::message::{CloseFrame, Message};
use crate::wake::Wake;

/// A TCP socket that never blocks, and remembers what the kernel last said about it.
#[derive(Debug)]
pub(crate) struct Socket {
    tcp: Arc<TcpStream>,
    /// The last read took all there was: another would only learn `WouldBlock`. `poll` clears it.
    drained: bool,
    /// The last write was refused: wait for room.
    full: bool,
}

impl Socket {
    /// `tcp` must be non-blocking.
    pub(crate) fn new(tcp: Arc<TcpStream>) -> Self {
        Self { tcp, drained: false, full: false }
    }

    /// What the peer of a blocked step waits for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.full { PollFlags::OUT | PollFlags::IN } else { PollFlags::IN }
    }

    pub(crate) fn tcp(&self) -> &Arc<TcpStream> {
        &self.tcp
    }

    pub(crate) fn refresh(&mut self) {
        self.drained = false;
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.drained {
            return Err(ErrorKind::WouldBlock.into());
        }
        loop {
            match (&*self.tcp).read(buffer) {
                Ok(read) => {
                    self.drained = read < buffer.len() && read > 0;
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.drained = error.kind() == ErrorKind::WouldBlock;
                    return Err(error);
                }
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match (&*self.tcp).write(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    self.full = matches!(&result, Err(error) if error.kind() == ErrorKind::WouldBlock);
                    return result;
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Plain or TLS, and how many bytes of the WebSocket layer have left: what decides whether a message was written.
/// Under TLS a byte counts when its whole record is in the kernel; a part of a record is of no use to the peer.
pub(crate) struct Wire {
    stream: Stream,
    written: u64,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Wire {
    pub(crate) fn plain(socket: Socket) -> Self {
        Self { stream: Stream::Plain(socket), written: 0 }
    }

    pub(crate) fn tls(stream: TlsStream<Socket>) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), written: 0 }
    }

    pub(crate) fn socket(&self) -> &Socket {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }

    pub(crate) fn socket_mut(&mut self) -> &mut Socket {
        match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_mut(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = match &mut self.stream {
            Stream::Plain(socket) => socket.write(buffer),
            Stream::Tls(tls) => tls.write(buffer),
        }?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What ended a wait. More than one may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) socket: bool,
    pub(crate) rung: bool,
    /// There was something to do, so the socket was not looked at.
    pub(crate) skipped: bool,
}

/// Sleeps until `socket` is ready for what is asked, `wake` rings, or `deadline` passes; or not at all when
/// `last_look`, called after callers can see that we are about to sleep, finds something to do.
pub(crate) fn wait(
    socket: Option<(BorrowedFd<'_>, PollFlags)>,
    wake: &Wake,
    deadline: Option<Instant>,
    last_look: impl FnOnce() -> bool,
) -> io::Result<Waited> {
    wake.announce();
    if last_look() {
        wake.retract(false);
        return Ok(Waited { skipped: true, ..Waited::default() });
    }
    let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
    let bell = wake.as_fd();
    let result = match socket {
        Some((socket, interest)) => {
            let mut fds = [PollFd::new(&bell, PollFlags::IN), PollFd::new(&socket, interest)];
            poll(&mut fds, timeout.as_ref()).map(|_| Waited {
                rung: !fds[0].revents().is_empty(),
                socket: !fds[1].revents().is_empty(),
                skipped: false,
            })
        }
        None => {
            let mut fds = [PollFd::new(&bell, PollFlags::IN)];
            poll(&mut fds, timeout.as_ref()).map(|_| Waited { rung: !fds[0].revents().is_empty(), ..Waited::default() })
        }
    };
    let waited = match result {
        Err(rustix::io::Errno::INTR) => Ok(Waited::default()),
        other => other.map_err(io::Error::from),
    };
    wake.retract(waited.as_ref().is_ok_and(|waited| waited.rung));
    waited
}

fn timespec(duration: std::time::Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(Message),
    Ping,
    Pong(Bytes),
    /// The peer's close frame; the answer to it is queued.
    Close(Option<CloseFrame>),
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
}

const WRITE_BUFFER: usize = 64 << 10;

impl Transport {
    /// Over a wire on which the upgrade is done; `tail` is what came after it.
    pub(crate) fn new(wire: Wire, tail: Vec<u8>, role: Role, read_buffer: usize, max_message: usize) -> Self {
        let write_limit = 4 * WRITE_BUFFER;
        let config = WebSocketConfig::default()
            .read_buffer_size(read_buffer)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(write_limit)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message));
        Self { ws: WebSocket::from_partially_read(wire, tail, role, Some(config)), role, write_limit }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
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

    /// Bytes of the WebSocket layer that the kernel has.
    pub(crate) fn written(&self) -> u64 {
        self.ws.get_ref().written
    }

    /// Reads the next message or frame without blocking. `now` stamps what came.
    pub(crate) fn read(&mut self, now: Instant) -> Result<Incoming, Broken> {
        use tungstenite::Message as Wire;
        match self.ws.read() {
            Ok(Wire::Ping(_)) => Ok(Incoming::Ping),
            Ok(Wire::Pong(payload)) => Ok(Incoming::Pong(payload)),
            Ok(Wire::Close(frame)) => Ok(Incoming::Close(frame.map(CloseFrame::from_wire))),
            Ok(message) => Ok(Message::received(message, now).map_or(Incoming::Nothing, Incoming::Message)),
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(Incoming::Nothing),
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => Ok(Incoming::Ended),
            Err(error) => Err(broken(error)),
        }
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
        let result = match outgoing {
            Outgoing::Message(message) => {
                let kind = if message.is_text() { Data::Text } else { Data::Binary };
                let frame = Frame::message(message.into_bytes(), OpCode::Data(kind), true);
                self.ws.write(tungstenite::Message::Frame(frame))
            }
            Outgoing::Ping(payload) => self.ws.write(tungstenite::Message::Ping(payload)),
            Outgoing::Close(frame) => self.ws.close(Some(frame.into_wire())),
        };
        blocked_is_fine(result).map(drop)
    }

    /// Writes what is in the buffer as far as the kernel takes it; true when nothing is left.
    pub(crate) fn flush(&mut self) -> Result<bool, Broken> {
        blocked_is_fine(self.ws.flush())
    }

    /// Writes bytes beneath the framing, as a server that breaks the rules does.
    #[cfg(feature = "testing")]
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.ws.get_mut().write(bytes).map(drop)
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
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// Ends the connection both ways, as far as the kernel is concerned.
    pub(crate) fn shut(&self) {
        let _ = self.tcp().shutdown(Shutdown::Both);
    }
}

fn blocked_is_fine(result: tungstenite::Result<()>) -> Result<bool, Broken> {
    match result {
        Ok(()) => Ok(true),
        Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(broken(error)),
    }
}

fn broken(error: tungstenite::Error) -> Broken {
    use tungstenite::Error as E;
    use tungstenite::error::ProtocolError as P;
    let text = || error.to_string().into_boxed_str();
    let (reason, code) = match &error {
        E::Io(io) => (DisconnectReason::Transport(io.to_string().into()), None),
        E::Protocol(P::ResetWithoutClosingHandshake) => {
            (DisconnectReason::Transport("ended by the server without a close frame".into()), None)
        }
        E::Capacity(_) => (DisconnectReason::Protocol(text()), Some(CloseFrame::TOO_LARGE)),
        E::Utf8(_) => (DisconnectReason::Protocol(text()), Some(CloseFrame::INVALID_PAYLOAD)),
        E::Protocol(_) => (DisconnectReason::Protocol(text()), Some(CloseFrame::PROTOCOL_ERROR)),
        _ => (DisconnectReason::Transport(text()), None),
    };
    Broken { reason, code }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        (Socket::new(Arc::new(near)), listener.accept().unwrap().0)
    }

    #[test]
    fn a_short_read_goes_straight_to_poll() {
        let (mut near, mut far) = pair();
        far.write_all(b"abc").unwrap();
        let wake = Wake::new().unwrap();
        let ready = |near: &Socket| {
            let deadline = Some(Instant::now() + Duration::from_secs(30));
            wait(Some((near.tcp().as_fd(), PollFlags::IN)), &wake, deadline, || false).unwrap()
        };
        assert!(ready(&near).socket);
        let mut buffer = [0; 8];
        assert_eq!(near.read(&mut buffer).unwrap(), 3);
        far.write_all(b"d").unwrap();
        assert!(ready(&near).socket);
        assert_eq!(near.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock, "no system call");
        near.refresh();
        assert_eq!(near.read(&mut buffer).unwrap(), 1);
        drop(far);
        assert!(ready(&near).socket);
        near.refresh();
        assert_eq!(near.read(&mut buffer).unwrap(), 0, "the end is not hidden");
    }

    #[test]
    fn a_caller_ends_the_wait_and_work_prevents_it() {
        let wake = Arc::new(Wake::new().unwrap());
        assert!(wait(None, &wake, None, || true).unwrap().skipped);
        let caller = std::thread::spawn({
            let wake = wake.clone();
            move || {
                while Arc::strong_count(&wake) > 1 {
                    wake.wake();
                    std::thread::yield_now();
                }
            }
        });
        assert!(wait(None, &wake, None, || false).unwrap().rung);
        drop(wake);
        caller.join().unwrap();
    }
}
