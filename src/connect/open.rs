//! The steps of an attempt, one after the other.

use tungstenite::protocol::Role;

use super::attempt::{Attempt, Halt};
#[cfg(feature = "rustls")]
use super::rustls;
use super::{handshake, resolve, tcp, tls};
use crate::config::tls::TlsBackend;
use crate::error::Phase;
use crate::transport::{Extensions, Socket, Transport, Wire};

pub(crate) fn open(attempt: &Attempt<'_>) -> Result<Transport, Halt> {
    let target = &attempt.dial.target;
    let addresses = resolve::resolve(attempt)?;
    attempt.phase.set(Phase::Tcp);
    let tcp = tcp::connect(attempt, &addresses)?;
    (attempt.register)(&tcp);
    let mut socket = Socket::new(tcp, if target.tls { attempt.settings.read_buffer } else { 0 });
    if attempt.settings.kernel_timestamps {
        socket.ask_for_stamps().map_err(|error| attempt.broken(&error))?;
    }
    let mut wire = if target.tls {
        attempt.phase.set(Phase::Tls);
        // An address's zone is this machine's own name for a link: no certificate has it (RFC 6874 section 4).
        let host = target.host.split('%').next().unwrap_or_default();
        match attempt.settings.tls_backend {
            TlsBackend::NativeTls => Wire::tls(tls::handshake(attempt, host, socket)?),
            #[cfg(feature = "rustls")]
            TlsBackend::Rustls => Wire::tls(rustls::handshake(attempt, host, socket)?),
        }
    } else {
        Wire::plain(socket)
    };
    attempt.phase.set(Phase::Handshake);
    let (tail, agreed) = handshake::upgrade(attempt, &mut wire)?;
    let extensions = agreed.map_or_else(Extensions::default, |agreed| agreed.for_client(attempt.settings));
    let extensions = Extensions { unpack: attempt.unpack.cloned(), ..extensions };
    let (buffer, max_message) = (attempt.settings.read_buffer, attempt.settings.max_message_size);
    Ok(Transport::new(wire, tail, Role::Client, buffer, max_message, extensions))
}
