//! What bytes go through, one layer on the other: the socket at the bottom, TLS on it, and TLS to the venue on TLS to a proxy.

use std::io::{Read, Write};

#[cfg(feature = "native-tls")]
use native_tls::TlsStream;

use super::socket::Socket;
use crate::handshake::TlsSession;

/// Reads and writes as the socket does, never blocking. Of an encrypted one a write counts bytes once their whole record is
/// in the kernel; until then it blocks, and the next one begins with the same bytes.
pub(crate) trait Layer: Read + Write + Send {
    fn socket(&self) -> &Socket;

    fn socket_mut(&mut self) -> &mut Socket;

    /// How many layers of TLS there are.
    fn depth(&self) -> u32 {
        0
    }

    /// Whether another read may bring something though the socket is not asked. TLS beneath TLS may have decrypted what nobody
    /// asked it for yet: only a read that finds nothing tells.
    fn may_hold_more(&self) -> bool {
        self.depth() > 1 || self.socket().has_ahead()
    }

    /// Whether it has found something that the next read is to tell, though no more bytes come.
    fn has_found_something(&self) -> bool {
        false
    }

    /// What was agreed on, of the uppermost layer of TLS.
    fn session(&self) -> Option<TlsSession> {
        None
    }

    /// Says that it ends (RFC 8446 section 6.1), if there is room for that at once.
    fn say_goodbye(&mut self) {}
}

impl Layer for Socket {
    fn socket(&self) -> &Socket {
        self
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self
    }
}

impl Layer for Box<dyn Layer> {
    fn socket(&self) -> &Socket {
        (**self).socket()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        (**self).socket_mut()
    }

    fn depth(&self) -> u32 {
        (**self).depth()
    }

    fn has_found_something(&self) -> bool {
        (**self).has_found_something()
    }

    fn session(&self) -> Option<TlsSession> {
        (**self).session()
    }

    fn say_goodbye(&mut self) {
        (**self).say_goodbye();
    }
}

#[cfg(feature = "native-tls")]
impl<L: Layer> Layer for TlsStream<L> {
    fn socket(&self) -> &Socket {
        self.get_ref().socket()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.get_mut().socket_mut()
    }

    fn depth(&self) -> u32 {
        self.get_ref().depth() + 1
    }

    fn has_found_something(&self) -> bool {
        self.get_ref().has_found_something()
    }

    fn session(&self) -> Option<TlsSession> {
        let alpn = self.negotiated_alpn().ok().flatten();
        Some(TlsSession { alpn: alpn.map(|name| String::from_utf8_lossy(&name).into()), ..TlsSession::default() })
    }

    fn say_goodbye(&mut self) {
        let _ = self.shutdown();
        self.get_mut().say_goodbye();
    }
}
