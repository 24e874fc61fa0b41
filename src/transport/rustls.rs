//! TLS by rustls.

use std::io::{self, ErrorKind, Read, Write};

use rustls::Connection;

use super::layer::Layer;
use super::socket::Socket;
use crate::handshake::{TlsSession, TlsVersion};

pub(crate) struct Rustls<L> {
    connection: Connection,
    below: L,
    /// Bytes of the caller's that are encrypted, and of whose record the kernel has not taken all.
    taken: usize,
    /// Something is decrypted that nobody has read: what came with the end of the handshake, too.
    holds: bool,
    /// What was wrong with a record: told when all that came before it has been read.
    fault: Option<rustls::Error>,
    /// The peer has said that it ends: likewise.
    is_over: bool,
}

/// What a record may hold (RFC 8446 section 5.1).
const RECORD: usize = 16 << 10;

impl<L: Layer> Rustls<L> {
    pub(crate) fn new(connection: impl Into<Connection>, below: L) -> Self {
        Self { connection: connection.into(), below, taken: 0, holds: false, fault: None, is_over: false }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// As far as it goes without blocking.
    pub(crate) fn handshake(&mut self) -> io::Result<()> {
        loop {
            self.write_records()?;
            if !self.connection.is_handshaking() {
                return Ok(());
            }
            let goes_on = self.read_records()?;
            if let Some(fault) = self.fault.take() {
                return Err(io::Error::new(ErrorKind::InvalidData, fault));
            }
            if !goes_on {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }

    fn write_records(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.below)?;
        }
        Ok(())
    }

    /// False at the end of the connection.
    fn read_records(&mut self) -> io::Result<bool> {
        let read = self.connection.read_tls(&mut self.below)?;
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.is_over = state.peer_has_closed();
                self.holds = state.plaintext_bytes_to_read() > 0;
            }
            Err(fault) => self.fault = Some(fault),
        }
        // The alert that says why, or an answer to a change of keys; that leaves with whatever is written next, if there is
        // no room for it now. Not behind a record of the caller's: it would leave uncounted.
        if self.taken == 0 {
            let _ = self.write_records();
        }
        Ok(read > 0)
    }
}

impl<L: Layer> Read for Rustls<L> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.holds = false,
                // The end of TCP without the end of TLS.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            if let Some(fault) = self.fault.take() {
                return Err(io::Error::new(ErrorKind::InvalidData, fault));
            }
            self.read_records()?;
        }
    }
}

impl<L: Layer> Write for Rustls<L> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.taken == 0 {
            self.write_records()?;
            self.taken = self.connection.writer().write(&buffer[..buffer.len().min(RECORD)])?;
        }
        self.write_records()?;
        Ok(std::mem::take(&mut self.taken))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<L: Layer> Layer for Rustls<L> {
    fn socket(&self) -> &Socket {
        self.below.socket()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.below.socket_mut()
    }

    fn depth(&self) -> u32 {
        self.below.depth() + 1
    }

    fn has_found_something(&self) -> bool {
        self.holds || self.fault.is_some() || self.is_over || self.below.has_found_something()
    }

    fn session(&self) -> Option<TlsSession> {
        let version = match self.connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => Some(TlsVersion::Tls12),
            Some(rustls::ProtocolVersion::TLSv1_3) => Some(TlsVersion::Tls13),
            _ => None,
        };
        let cipher = self.connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let alpn = self.connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into());
        Some(TlsSession { version, cipher: cipher.map(Into::into), alpn })
    }

    fn say_goodbye(&mut self) {
        // Half a record stays half a record: what is not counted by now is told unsent.
        if self.taken > 0 {
            return;
        }
        self.connection.send_close_notify();
        let _ = self.write_records();
        self.below.say_goodbye();
    }
}
