//! The TLS handshake, resumed as often as the socket blocks: native-tls drives it, we hold the clock.

use std::collections::HashMap;

use native_tls::{HandshakeError, TlsConnector, TlsStream};
use parking_lot::Mutex;

use super::attempt::{Attempt, Halt};
use crate::config::settings::Settings;
use crate::error::ConnectError;
use crate::transport::Socket;

pub(super) fn handshake(attempt: &Attempt<'_>, socket: Socket) -> Result<TlsStream<Socket>, Halt> {
    let mut result = connector(attempt.settings).map_err(failed)?.connect(&attempt.dial.target.host, socket);
    loop {
        match result {
            Ok(stream) => return Ok(stream),
            Err(HandshakeError::WouldBlock(mut paused)) => {
                attempt.unblock(paused.get_mut())?;
                result = paused.handshake();
            }
            Err(HandshakeError::Failure(error)) => return Err(failed(error)),
        }
    }
}

/// The certificates a connector trusts besides the system's.
type Pem = Vec<Vec<u8>>;

/// Reading the system's roots takes a tenth of a second and a megabyte: once for all clients with the same roots.
static CONNECTORS: Mutex<Option<HashMap<Pem, TlsConnector>>> = Mutex::new(None);

fn connector(settings: &Settings) -> native_tls::Result<TlsConnector> {
    if let Some(connector) = CONNECTORS.lock().get_or_insert_default().get(&settings.roots.pem) {
        return Ok(connector.clone());
    }
    let mut builder = TlsConnector::builder();
    for certificate in &settings.roots.parsed {
        builder.add_root_certificate(certificate.clone());
    }
    let connector = builder.build()?;
    CONNECTORS.lock().get_or_insert_default().insert(settings.roots.pem.clone(), connector.clone());
    Ok(connector)
}

fn failed(error: native_tls::Error) -> Halt {
    let message = describe(&error);
    // The TLS libraries name the cause only in words. Theirs: "certificate verify failed", "certificate expired",
    // "unknown ca" (an alert), "not trusted".
    let lower = message.to_ascii_lowercase();
    let certificate = ["certificate", "unknown ca", "not trusted"].iter().any(|words| lower.contains(words));
    ConnectError::Tls { certificate, message: message.into() }.into()
}

fn describe(error: &native_tls::Error) -> String {
    let text = error.to_string();
    // OpenSSL appends its source's file and line; what it found wrong comes between the last colons.
    match text.split("error:").nth(1) {
        Some(detail) => {
            let words: Vec<_> = detail.split(':').collect();
            let verdict = text.rsplit_once('(').map(|(_, verdict)| verdict.trim_end_matches(')'));
            let reason = words.get(3).copied().filter(|reason| !reason.is_empty()).unwrap_or(detail);
            match verdict {
                Some(verdict) if text.ends_with(')') => format!("{reason} ({verdict})"),
                _ => reason.to_owned(),
            }
        }
        None => text,
    }
}
