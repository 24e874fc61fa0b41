//! TLS by whichever library: what it is to trust and to show, which clients share what was made of that, and what both agree
//! an alert means. Each library has a room of its own.

use std::fs;
use std::path::Path;

use parking_lot::Mutex;

use super::attempt::Halt;
use crate::config::tls::{Identity, Tls, are_certificates, identity_fault};
use crate::error::{ConnectError, TlsFault};

/// The same with what is in its files in their place. Clients for which it is equal share what is made of it, whatever the server
/// is called.
pub(super) fn loaded(tls: &Tls) -> Result<Tls, Halt> {
    let mut loaded = Tls { server_name: None, ..tls.clone() };
    for path in std::mem::take(&mut loaded.root_files) {
        let bytes = read(&path)?;
        if !are_certificates(&bytes) {
            return Err(unusable(format!("no certificate, PEM or DER, in {}", path.display())));
        }
        loaded.roots.push(bytes);
    }
    if let Some(Identity::Files { chain, key }) = &tls.identity {
        let (chain_pem, key_pem) = (read(chain)?, read(key)?);
        if let Some(fault) = identity_fault(&chain_pem, &key_pem) {
            return Err(unusable(format!("{}, {}: {fault}", chain.display(), key.display())));
        }
        loaded.identity = Some(Identity::Pem { chain: chain_pem, key: key_pem });
    }
    Ok(loaded)
}

/// What is not `loaded` does not come so far.
pub(super) fn unread() -> Halt {
    unusable("the identity's files were not read".into())
}

fn read(path: &Path) -> Result<Vec<u8>, Halt> {
    fs::read(path).map_err(|error| unusable(format!("cannot read {}: {error}", path.display())))
}

/// Reading the system's roots takes a tenth of a second and a megabyte: once for all clients with the same settings.
pub(super) struct Cache<T>(Mutex<Vec<(Tls, T)>>);

/// Files that are renewed leave what was made of the old behind.
const MOST_KEPT: usize = 32;

impl<T: Clone> Cache<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(super) fn get(&self, tls: &Tls, make: impl FnOnce() -> Result<T, Halt>) -> Result<T, Halt> {
        if let Some((_, kept)) = self.0.lock().iter().find(|(other, _)| other == tls) {
            return Ok(kept.clone());
        }
        let made = make()?;
        let mut kept = self.0.lock();
        let excess = (kept.len() + 1).saturating_sub(MOST_KEPT);
        kept.drain(..excess);
        kept.push((tls.clone(), made.clone()));
        Ok(made)
    }

    /// What came of a handshake speaks against the roots: they are read anew for the next.
    pub(super) fn doubt(&self, tls: &Tls, halt: Halt) -> Halt {
        if let Halt::Failed(ConnectError::Tls { fault: TlsFault::UnknownIssuer | TlsFault::SelfSigned, .. }) = &halt {
            self.0.lock().retain(|(other, _)| other != tls);
        }
        halt
    }
}

/// Before a byte of the upgrade is sent.
#[cfg(feature = "pinning")]
pub(super) fn check_pins(tls: &Tls, certificate: Option<&[u8]>) -> Result<(), Halt> {
    use super::certificate::{describe, matches};
    let presented = certificate.unwrap_or_default();
    if tls.pins.is_empty() || tls.pins.iter().any(|pin| matches(*pin, presented)) {
        return Ok(());
    }
    let message = "its certificate matches none of the pins".into();
    Err(ConnectError::Tls { fault: TlsFault::Pin, message, presented: describe(presented) }.into())
}

#[cfg(not(feature = "pinning"))]
pub(super) fn check_pins(_: &Tls, _: Option<&[u8]>) -> Result<(), Halt> {
    Ok(())
}

pub(super) fn refused(fault: TlsFault, message: impl Into<Box<str>>) -> Halt {
    ConnectError::Tls { fault, message: message.into(), presented: None }.into()
}

/// Something of the configuration's cannot be used.
pub(super) fn unusable(message: String) -> Halt {
    refused(TlsFault::Configuration, message)
}

/// The server's alert, in words.
pub(super) fn alerted(message: String) -> Halt {
    let lower = message.to_ascii_lowercase();
    let fault = if ["certificate", "unknown ca", "access denied"].iter().any(|words| lower.contains(words)) {
        TlsFault::WantsCertificate
    } else if lower.contains("protocol version") {
        TlsFault::Version
    } else {
        TlsFault::RefusedByServer
    };
    let message = if lower.contains("unrecognized name") {
        format!("{message} (it does not serve this host's name)")
    } else {
        message
    };
    refused(fault, message)
}
