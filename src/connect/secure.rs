//! TLS, by whichever library the configuration names.

use super::attempt::{Attempt, Halt};
use super::tls::loaded;
use crate::config::tls::{Tls, TlsBackend};
use crate::target::without_zone;
use crate::transport::Layer;

/// Encrypts `below`, on the other end of which is to be `host`.
pub(super) fn secure<L: Layer + 'static>(
    attempt: &Attempt<'_>,
    tls: &Tls,
    host: &str,
    below: L,
) -> Result<Box<dyn Layer>, Halt> {
    // An address's zone is this machine's own name for a link: no certificate has it (RFC 6874 section 4), nor the dot that
    // ends a name for DNS.
    let host = without_zone(host).trim_end_matches('.');
    let tls = &loaded(tls)?;
    match tls.backend {
        #[cfg(feature = "native-tls")]
        TlsBackend::NativeTls => super::native_tls::handshake(attempt, tls, host, below),
        #[cfg(feature = "rustls")]
        TlsBackend::Rustls => super::rustls::handshake(attempt, tls, host, below),
    }
}
