//! The handshake by rustls, resumed as often as the socket blocks, and what its errors mean.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Error, InvalidMessage, RootCertStore};

use super::attempt::{Attempt, Halt};
use super::tls::{Pem, alert, with_advice};
use crate::config::settings::Settings;
use crate::error::ConnectError;
use crate::transport::{Encrypted, Rustls, Socket};

pub(super) fn handshake(attempt: &Attempt<'_>, host: &str, socket: Socket) -> Result<Rustls, Halt> {
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| refused(false, format!("`{host}` is no name that a certificate can have")))?;
    let connection = config(attempt.settings).and_then(|config| ClientConnection::new(config, name));
    let mut stream = Rustls::new(connection.map_err(|error| failed(&error))?, socket);
    loop {
        match stream.handshake() {
            Ok(()) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(stream.socket_mut())?,
            Err(error) => return Err(verdict(&error).unwrap_or_else(|| attempt.broken(&error))),
        }
    }
}

/// Reading the system's roots takes a tenth of a second and a megabyte: once for all clients with the same roots.
static CONFIGS: Mutex<Option<HashMap<Pem, Arc<ClientConfig>>>> = Mutex::new(None);

fn config(settings: &Settings) -> Result<Arc<ClientConfig>, Error> {
    let pem = &settings.roots.pem;
    if let Some(config) = CONFIGS.lock().get_or_insert_default().get(pem) {
        return Ok(config.clone());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let own = pem.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem));
    roots.add_parsable_certificates(own.filter_map(Result::ok));
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    CONFIGS.lock().get_or_insert_default().insert(pem.clone(), config.clone());
    Ok(config)
}

/// What rustls has to say, if the error is one of its own.
pub(super) fn verdict(error: &io::Error) -> Option<Halt> {
    error.get_ref()?.downcast_ref().map(failed)
}

fn failed(error: &Error) -> Halt {
    let certificate = matches!(error, Error::InvalidCertificate(_) | Error::NoCertificatesPresented);
    match error {
        Error::AlertReceived(description) => alert(&format!("{description:?}")),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            refused(false, with_advice(error.to_string(), "wrong version number"))
        }
        Error::PeerIncompatible(_) => refused(false, with_advice(error.to_string(), "protocol version")),
        error => refused(certificate, error.to_string()),
    }
}

fn refused(certificate: bool, message: String) -> Halt {
    ConnectError::Tls { certificate, by_server: false, message: message.into() }.into()
}
