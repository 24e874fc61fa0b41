//! The TLS handshake by native-tls, resumed as often as the layer below blocks, and what its errors mean.

use native_tls::{HandshakeError, Protocol, TlsConnector};

use super::attempt::{Attempt, Halt};
use super::tls::{Cache, alerted, check_pins, refused, unread, unusable};
use crate::config::tls::{Identity, Tls, parse_roots};
use crate::error::TlsFault;
use crate::handshake::TlsVersion;
use crate::transport::Layer;

pub(super) fn handshake<L: Layer + 'static>(
    attempt: &Attempt<'_>,
    tls: &Tls,
    host: &str,
    below: L,
) -> Result<Box<dyn Layer>, Halt> {
    let connector = CONNECTORS.get(tls, || attempt.check(), || connector(tls))?;
    let mut result = connector.connect(host, below);
    loop {
        match result {
            Ok(stream) => {
                let certificate = stream.peer_certificate().ok().flatten();
                check_pins(tls, certificate.and_then(|one| one.to_der().ok()).as_deref())?;
                return Ok(Box::new(stream));
            }
            Err(HandshakeError::WouldBlock(mut paused)) => {
                attempt.unblock(paused.get_mut().socket_mut())?;
                result = paused.handshake();
            }
            Err(HandshakeError::Failure(error)) => return Err(CONNECTORS.doubt(tls, failed(&error))),
        }
    }
}

static CONNECTORS: Cache<TlsConnector> = Cache::new();

fn connector(tls: &Tls) -> Result<TlsConnector, Halt> {
    let mut builder = TlsConnector::builder();
    for certificate in tls.roots.iter().filter_map(|root| parse_roots(root)).flatten() {
        builder.add_root_certificate(certificate);
    }
    builder.disable_built_in_roots(tls.only_own_roots);
    let identity = match &tls.identity {
        None => None,
        Some(Identity::Pem { chain, key }) => Some(native_tls::Identity::from_pkcs8(chain, key)),
        Some(Identity::Pkcs12 { der, password }) => Some(native_tls::Identity::from_pkcs12(der, password)),
        Some(Identity::Files { .. }) => return Err(unread()),
    };
    if let Some(identity) = identity {
        builder.identity(identity.map_err(|error| unusable(format!("the client's certificate or key: {error}")))?);
    }
    let protocol = |version| match version {
        TlsVersion::Tls12 => Protocol::Tlsv12,
        TlsVersion::Tls13 => Protocol::Tlsv13,
    };
    builder.min_protocol_version(tls.versions.0.map(protocol).or(Some(Protocol::Tlsv12)));
    builder.max_protocol_version(tls.versions.1.map(protocol));
    builder.use_sni(!tls.hides_name);
    builder.request_alpns(&tls.alpn.iter().map(String::as_str).collect::<Vec<_>>());
    builder.danger_accept_invalid_certs(tls.accepts_any_certificate);
    builder.danger_accept_invalid_hostnames(tls.accepts_any_name || tls.accepts_any_certificate);
    builder.build().map_err(|error| unusable(format!("the client's certificate, its key or the roots: {error}")))
}

fn failed(error: &native_tls::Error) -> Halt {
    let text = error.to_string();
    refusal(&text).unwrap_or_else(|| {
        let message = describe(&text);
        refused(fault(&message), message)
    })
}

/// The TLS libraries name the cause only in words: OpenSSL's verdicts, Apple's and Windows' names of the same.
fn fault(message: &str) -> TlsFault {
    let lower = message.to_ascii_lowercase();
    let causes: [(&[&str], TlsFault); 10] = [
        (&["has expired", "certificate expired"], TlsFault::Expired),
        (&["not yet valid"], TlsFault::NotYetValid),
        (&["hostname mismatch", "ip address mismatch", "email address mismatch"], TlsFault::WrongHost),
        (&["self-signed", "self signed"], TlsFault::SelfSigned),
        (&["issuer certificate", "unable to verify the first", "not trusted"], TlsFault::UnknownIssuer),
        (&["too weak", "key too small"], TlsFault::Weak),
        (&["revoked"], TlsFault::Revoked),
        (&["certificate"], TlsFault::BadCertificate),
        (&["protocol version", "unsupported protocol", "no protocols available"], TlsFault::Version),
        (&["wrong version number", "packet length too long", "http request"], TlsFault::NotTls),
    ];
    let known = causes.iter().find(|(words, _)| words.iter().any(|words| lower.contains(words)));
    known.map_or(TlsFault::Other, |(_, fault)| *fault)
}

/// The server's alert, if this tells of one: its verdict on us, not ours on it.
pub(super) fn refusal(text: &str) -> Option<Halt> {
    let lower = text.to_ascii_lowercase();
    (lower.contains("ssl routines") && lower.contains("alert")).then(|| alerted(describe(text)))
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
