//! The wire: plain or encrypted, over a socket that never blocks; what framing reads from and writes to.

use std::io::{self, Cursor, ErrorKind, Read, Write};

use native_tls::TlsStream;

use super::frames::Frames;
use super::socket::Socket;
use crate::message::CloseFrame;

/// Plain or TLS, and how many bytes of the WebSocket layer have left: what decides whether a message was written.
/// Under TLS a byte counts when its whole record is in the kernel; a part of a record is of no use to the peer.
pub(crate) struct Wire {
    stream: Stream,
    /// What came with the answer to the upgrade: read first.
    pub(super) tail: Cursor<Vec<u8>>,
    pub(super) written: u64,
    /// Bytes that may still be taken until something whole has come of them.
    budget: usize,
    exhausted: bool,
    /// Once the upgrade is over.
    frames: Option<Frames>,
}

/// Bytes that are taken in one go while nothing whole comes of them: a message may be split into millions of frames, and
/// whoever takes them apart looks neither at the clock nor at what is to be written.
const BUDGET: usize = 64 << 10;

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Wire {
    pub(crate) fn plain(socket: Socket) -> Self {
        Self {
            stream: Stream::Plain(socket),
            tail: Cursor::default(),
            written: 0,
            budget: BUDGET,
            exhausted: false,
            frames: None,
        }
    }

    pub(crate) fn tls(stream: TlsStream<Socket>) -> Self {
        Self {
            stream: Stream::Tls(Box::new(stream)),
            tail: Cursor::default(),
            written: 0,
            budget: BUDGET,
            exhausted: false,
            frames: None,
        }
    }

    /// Bytes of the TCP connection at which so many of the WebSocket layer's are out. Under TLS no earlier than that:
    /// records have a length of their own.
    pub(super) fn end_on_the_wire(&self, end: u64) -> u64 {
        let written = self.socket().written();
        match self.stream {
            Stream::Plain(_) => written - (self.written - end.min(self.written)),
            Stream::Tls(_) => written,
        }
    }

    /// From now on it is frames that come.
    pub(super) fn follow_frames(&mut self) {
        self.frames = Some(Frames::default());
    }

    /// The server's close frame, as it was sent.
    pub(super) fn close_frame(&self) -> Option<CloseFrame> {
        self.frames.as_ref()?.close()
    }

    #[inline]
    fn follow(&mut self, bytes: &[u8]) {
        if let Some(frames) = &mut self.frames {
            frames.follow(bytes);
        }
    }

    /// Something whole has come.
    #[inline]
    pub(super) fn has_brought_a_frame(&mut self) {
        self.budget = BUDGET;
        self.socket_mut().has_brought_a_frame();
    }

    /// Whether reading ended for want of a budget, and not of bytes.
    pub(crate) fn take_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }

    /// TLS says that it ends (RFC 8446 section 6.1), if there is room for that at once.
    pub(super) fn say_goodbye(&mut self) {
        if let Stream::Tls(tls) = &mut self.stream {
            let _ = tls.shutdown();
        }
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
        if self.tail.position() < self.tail.get_ref().len() as u64 {
            let read = self.tail.read(buffer)?;
            self.follow(&buffer[..read]);
            return Ok(read);
        }
        if self.budget == 0 {
            (self.budget, self.exhausted) = (BUDGET, true);
            return Err(ErrorKind::WouldBlock.into());
        }
        let read = match &mut self.stream {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }?;
        self.budget = self.budget.saturating_sub(read);
        self.follow(&buffer[..read]);
        Ok(read)
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
