//! TLS over a socket that never blocks, whichever library does it.

use std::io::{Read, Write};

use native_tls::TlsStream;

use super::socket::Socket;

/// Reads and writes as the socket does, never blocking. A write counts bytes once their whole record is in the kernel; until
/// then it blocks, and the next one begins with the same bytes.
pub(crate) trait Encrypted: Read + Write + Send {
    fn socket(&self) -> &Socket;

    fn socket_mut(&mut self) -> &mut Socket;

    /// Whether it has found something that the next read is to tell, though no more bytes come.
    fn has_found_something(&self) -> bool {
        false
    }

    /// Says that it ends (RFC 8446 section 6.1), if there is room for that at once.
    fn say_goodbye(&mut self);
}

impl Encrypted for TlsStream<Socket> {
    fn socket(&self) -> &Socket {
        self.get_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.get_mut()
    }

    fn say_goodbye(&mut self) {
        let _ = self.shutdown();
    }
}
