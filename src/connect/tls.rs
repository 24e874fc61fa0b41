//! The TLS handshake, resumed as often as the socket blocks: native-tls drives it, we hold the clock.

use std::collections::HashMap;

use native_tls::{HandshakeError, TlsConnector, TlsStream};
use parking_lot::Mutex;

use super::attempt::{Attempt, Halt};
use crate::config::settings::Settings;
use crate::error::ConnectError;
use crate::transport::Socket;

pub(super) fn handshake(attempt: &Attempt<'_>, host: &str, socket: Socket) -> Result<TlsStream<Socket>, Halt> {
    let mut result = connector(attempt.settings).map_err(failed)?.connect(host, socket);
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
pub(super) type Pem = Vec<Vec<u8>>;

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
    let text = error.to_string();
    refusal(&text).unwrap_or_else(|| {
        let message = describe(&text);
        // The TLS libraries name the cause only in words. Theirs: "certificate verify failed", "certificate expired",
        // "not trusted".
        let lower = message.to_ascii_lowercase();
        let certificate = ["certificate", "not trusted"].iter().any(|words| lower.contains(words));
        let message = with_advice(message, &lower).into();
        ConnectError::Tls { certificate, by_server: false, message }.into()
    })
}

/// The server's alert, if this tells of one: its verdict on us, not ours on it.
pub(super) fn refusal(text: &str) -> Option<Halt> {
    let lower = text.to_ascii_lowercase();
    if !lower.contains("ssl routines") || !lower.contains("alert") {
        return None;
    }
    Some(alert_that(with_advice(describe(text), &lower)))
}

fn alert_that(message: String) -> Halt {
    ConnectError::Tls { certificate: false, by_server: true, message: message.into() }.into()
}

/// The server's alert, by its name in one word: `CertificateRequired`.
#[cfg(feature = "rustls")]
pub(super) fn alert(name: &str) -> Halt {
    let spaced = |c: char| if c.is_uppercase() { format!(" {}", c.to_lowercase()) } else { c.to_string() };
    let words: String = name.replace("CA", "Ca").replace("ised", "ized").chars().map(spaced).collect();
    let message = format!("alert{words}");
    alert_that(with_advice(message.clone(), &message))
}

pub(super) fn with_advice(message: String, lower: &str) -> String {
    let holds = |words: &[&str]| words.iter().any(|words| lower.contains(words));
    let alert = lower.contains("alert");
    let advice = if holds(&["protocol version", "unsupported protocol", "no protocols available"]) {
        "no version of TLS that both sides speak: the server, or this system's library, wants a newer one"
    } else if alert && holds(&["certificate", "unknown ca", "access denied"]) {
        "it may want a client certificate, or one that it knows"
    } else if alert && holds(&["unrecognized name"]) {
        "it does not serve this host's name"
    } else if holds(&["wrong version number", "packet length too long", "http request"]) {
        "the server does not speak TLS here: is it a `ws://` port?"
    } else {
        return message;
    };
    format!("{message} ({advice})")
}

fn describe(text: &str) -> String {
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
        None => text.to_owned(),
    }
}
