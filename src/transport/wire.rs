//! The wire: plain or encrypted, over a socket that never blocks; what framing reads from and writes to.

use std::io::{self, Cursor, ErrorKind, Read, Write};

use native_tls::TlsStream;
use tungstenite::protocol::frame::coding::CloseCode;

use super::socket::Socket;

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
    /// The latest bytes that were taken: tungstenite does not tell of a close frame whose code may not be on the wire.
    latest: [u8; LARGEST_CONTROL_FRAME],
}

/// RFC 6455 section 5.5: a control frame's payload has at most 125 bytes, and from a server no mask.
const LARGEST_CONTROL_FRAME: usize = 127;

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
            latest: [0; LARGEST_CONTROL_FRAME],
        }
    }

    pub(crate) fn tls(stream: TlsStream<Socket>) -> Self {
        Self {
            stream: Stream::Tls(Box::new(stream)),
            tail: Cursor::default(),
            written: 0,
            budget: BUDGET,
            exhausted: false,
            latest: [0; LARGEST_CONTROL_FRAME],
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

    fn remember(&mut self, bytes: &[u8]) {
        let keep = LARGEST_CONTROL_FRAME - bytes.len().min(LARGEST_CONTROL_FRAME);
        self.latest.copy_within(LARGEST_CONTROL_FRAME - keep.., 0);
        self.latest[keep..].copy_from_slice(&bytes[bytes.len() - (LARGEST_CONTROL_FRAME - keep)..]);
    }

    /// The code and the reason of the first close frame in the latest bytes whose code may not be on the wire.
    pub(super) fn forbidden_close(&self) -> Option<(u16, &[u8])> {
        (0..LARGEST_CONTROL_FRAME).find_map(|at| match self.latest[at..] {
            [0x88, length @ 2..=125, high, low, ref rest @ ..] => {
                let code = u16::from_be_bytes([high, low]);
                let reason = rest.get(..usize::from(length) - 2)?;
                (!CloseCode::from(code).is_allowed()).then_some((code, reason))
            }
            _ => None,
        })
    }

    /// Something whole has come.
    #[inline]
    pub(super) fn has_brought_a_frame(&mut self) {
        self.budget = BUDGET;
        self.socket_mut().has_brought_a_frame();
    }

    /// Whether reading ended for want of a budget, and not of bytes.
    pub(super) fn take_exhausted(&mut self) -> bool {
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
            self.remember(&buffer[..read]);
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
        self.remember(&buffer[..read]);
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
