//! The TLS handshake, resumed as often as the layer below blocks, by whichever library: what it is to trust and show, and what
//! its errors mean. Here native-tls; rustls has a room of its own.

use std::fs;
use std::path::Path;

use native_tls::{HandshakeError, Protocol, TlsConnector};
use parking_lot::Mutex;

use super::attempt::{Attempt, Halt};
use crate::config::tls::{Identity, Tls, TlsBackend, parse_roots};
use crate::error::{ConnectError, TlsFault};
use crate::handshake::TlsVersion;
use crate::transport::Layer;

/// Encrypts `below`, on the other end of which is to be `host`.
pub(super) fn secure<L: Layer + 'static>(
    attempt: &Attempt<'_>,
    tls: &Tls,
    host: &str,
    below: L,
) -> Result<Box<dyn Layer>, Halt> {
    // An address's zone is this machine's own name for a link: no certificate has it (RFC 6874 section 4).
    let host = tls.server_name.as_deref().unwrap_or_else(|| host.split('%').next().unwrap_or_default());
    let material = Material::read(tls)?;
    match tls.backend {
        TlsBackend::NativeTls => handshake(attempt, tls, &material, host, below),
        #[cfg(feature = "rustls")]
        TlsBackend::Rustls => super::rustls::handshake(attempt, tls, &material, host, below),
    }
}

fn handshake<L: Layer + 'static>(
    attempt: &Attempt<'_>,
    tls: &Tls,
    material: &Material,
    host: &str,
    below: L,
) -> Result<Box<dyn Layer>, Halt> {
    let connector = CONNECTORS.get(material, || connector(tls, material))?;
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
            Err(HandshakeError::Failure(error)) => return Err(failed(&error)),
        }
    }
}

/// What a connector is made of, files read. Clients with the same share one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    pub(super) roots: Vec<Vec<u8>>,
    pub(super) only_own_roots: bool,
    pub(super) shown: Option<Shown>,
    pub(super) versions: (Option<TlsVersion>, Option<TlsVersion>),
    hides_name: bool,
    alpn: Vec<String>,
    dangers: (bool, bool),
}

/// Whom the client says it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Shown {
    Pem { chain: Vec<u8>, key: Vec<u8> },
    Pkcs12 { der: Vec<u8>, password: String },
}

impl Material {
    fn read(tls: &Tls) -> Result<Self, Halt> {
        let mut roots = tls.roots.clone();
        for path in &tls.root_files {
            let bytes = read(path)?;
            if parse_roots(&bytes).is_none() {
                return Err(unusable(format!("no certificate, PEM or DER, in {}", path.display())));
            }
            roots.push(bytes);
        }
        let shown = match tls.identity.clone() {
            None => None,
            Some(Identity::Pem { chain, key }) => Some(Shown::Pem { chain, key }),
            Some(Identity::Files { chain, key }) => Some(Shown::Pem { chain: read(&chain)?, key: read(&key)? }),
            Some(Identity::Pkcs12 { der, password }) => Some(Shown::Pkcs12 { der, password }),
        };
        Ok(Self {
            roots,
            only_own_roots: tls.only_own_roots,
            shown,
            versions: tls.versions,
            hides_name: tls.hides_name,
            alpn: tls.alpn.clone(),
            dangers: (tls.accepts_any_certificate, tls.accepts_any_name),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Halt> {
    fs::read(path).map_err(|error| unusable(format!("cannot read {}: {error}", path.display())))
}

/// Reading the system's roots takes a tenth of a second and a megabyte: once for all clients with the same material.
pub(super) struct Cache<T>(Mutex<Vec<(Material, T)>>);

/// Files that are renewed leave old material behind.
const MOST_KEPT: usize = 32;

impl<T: Clone> Cache<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(super) fn get(&self, material: &Material, make: impl FnOnce() -> Result<T, Halt>) -> Result<T, Halt> {
        if let Some((_, kept)) = self.0.lock().iter().find(|(other, _)| other == material) {
            return Ok(kept.clone());
        }
        let made = make()?;
        let mut kept = self.0.lock();
        let excess = (kept.len() + 1).saturating_sub(MOST_KEPT);
        kept.drain(..excess);
        kept.push((material.clone(), made.clone()));
        Ok(made)
    }
}

static CONNECTORS: Cache<TlsConnector> = Cache::new();

fn connector(tls: &Tls, material: &Material) -> Result<TlsConnector, Halt> {
    let mut builder = TlsConnector::builder();
    for certificate in material.roots.iter().filter_map(|root| parse_roots(root)).flatten() {
        builder.add_root_certificate(certificate);
    }
    builder.disable_built_in_roots(tls.only_own_roots);
    let identity = match &material.shown {
        None => None,
        Some(Shown::Pem { chain, key }) => Some(native_tls::Identity::from_pkcs8(chain, key)),
        Some(Shown::Pkcs12 { der, password }) => Some(native_tls::Identity::from_pkcs12(der, password)),
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
    builder.build().map_err(|error| failed(&error))
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
        (&["mismatch"], TlsFault::WrongHost),
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
