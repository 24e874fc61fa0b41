//! The wire: plain or encrypted, over a socket that never blocks; what the receiver reads from and framing writes to.

use std::io::{self, Cursor, ErrorKind, Read, Write};

use super::layer::Layer;
use super::socket::Socket;
use crate::handshake::TlsSession;

/// Plain or TLS, and how many bytes of the WebSocket layer have left: what decides whether a message was written.
/// Under TLS a byte counts when its whole record is in the kernel; a part of a record is of no use to the peer.
pub(crate) struct Wire {
    stream: Stream,
    /// What came with the answer to the upgrade: read first.
    pub(super) tail: Cursor<Vec<u8>>,
    pub(super) written: u64,
    /// So many bytes were offered to TLS, which has not taken them yet: their record may be half out.
    held_up: usize,
    /// TLS needs something from the peer before it can write (a renegotiation, RFC 5246 section 7.4.1.1): the bytes that had
    /// come by then.
    reads_first: Option<u64>,
    /// The last read filled its buffer: TLS may have more that it has decrypted already.
    more: bool,
    /// What TLS met behind bytes that were told first.
    met: Option<io::Result<usize>>,
}

enum Stream {
    Plain(Socket),
    Tls(Box<dyn Layer>),
}

/// What a record holds (RFC 8446 section 5.1).
const PLAINTEXT: usize = 16 << 10;

/// A record has at most so much, its own overhead among it: RFC 5246 section 6.2.3, which allows more than RFC 8446.
const RECORD: u64 = (16 << 10) + 2048 + 5;

impl Wire {
    pub(crate) fn plain(socket: Socket) -> Self {
        Self::over(Stream::Plain(socket))
    }

    pub(crate) fn encrypted(stream: Box<dyn Layer>) -> Self {
        Self::over(Stream::Tls(stream))
    }

    fn over(stream: Stream) -> Self {
        Self { stream, tail: Cursor::default(), written: 0, held_up: 0, reads_first: None, more: false, met: None }
    }

    /// Whether a read may bring something without asking the kernel, or the kernel may have something.
    fn may_have_more(&self) -> bool {
        let found = matches!(&self.stream, Stream::Tls(tls) if tls.has_found_something());
        self.more || self.met.is_some() || found || self.socket().may_have_more()
    }

    /// Bytes of the TCP connection of which what is decrypted has been read for sure.
    pub(super) fn read_for_sure(&self) -> u64 {
        let tail = self.tail.get_ref().len() as u64 - self.tail.position();
        let held = match &self.stream {
            Stream::Plain(_) => tail,
            Stream::Tls(tls) => tail + RECORD * u64::from(tls.depth()),
        };
        self.socket().taken().saturating_sub(held)
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

    /// Whether a write can't go on before more bytes have come: to wait until the kernel has room would return at once, again
    /// and again.
    pub(super) fn reads_first(&self) -> bool {
        self.reads_first.is_some_and(|came| came == self.socket().came())
    }

    /// The end of TLS.
    pub(super) fn say_goodbye(&mut self) {
        if let Stream::Tls(tls) = &mut self.stream {
            tls.say_goodbye();
        }
    }

    /// How it is encrypted.
    pub(crate) fn session(&self) -> Option<TlsSession> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(tls) => tls.session(),
        }
    }
}

impl Layer for Wire {
    fn socket(&self) -> &Socket {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.socket(),
        }
    }

    fn socket_mut(&mut self) -> &mut Socket {
        match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.socket_mut(),
        }
    }
}

impl Read for Wire {
    /// As many records as came, while there is room for them: one system call may have brought hundreds.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tail.position() < self.tail.get_ref().len() as u64 {
            return self.tail.read(buffer);
        }
        if !self.may_have_more() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let tls = match &mut self.stream {
            Stream::Plain(socket) => return socket.read(buffer),
            Stream::Tls(tls) => tls,
        };
        if let Some(met) = self.met.take() {
            return met;
        }
        let mut read = 0;
        loop {
            match tls.read(&mut buffer[read..]) {
                Ok(some) if some > 0 => {
                    read += some;
                    tls.socket_mut().brought_data();
                }
                result if read == 0 => {
                    self.more = false;
                    return result;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                met => {
                    self.met = Some(met);
                    break;
                }
            }
            if read == buffer.len() || !tls.may_hold_more() {
                break;
            }
        }
        self.more = read == buffer.len();
        Ok(read)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = match &mut self.stream {
            Stream::Plain(socket) => socket.write(buffer),
            Stream::Tls(tls) => {
                // A record at most, and the same again until it is out: OpenSSL, which may go on from one to the next, tells of
                // neither when that blocks, though the peer has the first.
                let offered = if self.held_up > 0 { self.held_up } else { PLAINTEXT }.min(buffer.len());
                let result = tls.write(&buffer[..offered]);
                let blocks = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                self.held_up = if blocks { offered } else { 0 };
                let socket = tls.socket();
                self.reads_first = (blocks && !socket.full).then(|| socket.came());
                result
            }
        }?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    /// TLS that needs an answer of the peer's before it writes.
    struct Renegotiating(Socket);

    impl Read for Renegotiating {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Renegotiating {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            if self.0.came() == 0 { Err(ErrorKind::WouldBlock.into()) } else { self.0.write(buffer) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Layer for Renegotiating {
        fn socket(&self) -> &Socket {
            &self.0
        }

        fn socket_mut(&mut self) -> &mut Socket {
            &mut self.0
        }
    }

    #[test]
    fn a_write_that_waits_for_the_peer_does_not_wait_for_room() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let mut wire = Wire::encrypted(Box::new(Renegotiating(Socket::new(Arc::new(near), 8))));
        assert_eq!(wire.write(b"order").unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(wire.reads_first());
        far.write_all(b"answer").unwrap();
        assert!(wire.read(&mut [0; 8]).unwrap() > 0);
        assert!(!wire.reads_first(), "it may go on");
        assert_eq!(wire.write(b"order").unwrap(), 5);
        assert!(!wire.reads_first());
    }
}
