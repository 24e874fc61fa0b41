//! The handshake by rustls, and what its errors mean.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, InvalidMessage, OtherError,
    RootCertStore, SignatureScheme, SupportedProtocolVersion,
};

use super::attempt::{Attempt, Halt};
use super::certificate::{describe, has_weak_key, is_signed_by_itself};
use super::tls::{Cache, alerted, check_pins, refused, unread, unusable};
use crate::config::tls::{Identity, Tls};
use crate::error::{ConnectError, TlsFault};
use crate::handshake::TlsVersion;
use crate::transport::{Layer, Rustls};

pub(super) fn handshake<L: Layer + 'static>(
    attempt: &Attempt<'_>,
    tls: &Tls,
    host: &str,
    below: L,
) -> Result<Box<dyn Layer>, Halt> {
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| unusable(format!("`{host}` is no name that a certificate can have")))?;
    let config = CONFIGS.get(tls, || attempt.check(), || config(tls))?;
    let connection = ClientConnection::new(config, name).map_err(|error| failed(&error))?;
    let mut stream = Rustls::new(connection, below);
    loop {
        match stream.handshake() {
            Ok(()) => {
                let chain = stream.connection().peer_certificates();
                check_pins(tls, chain.and_then(|chain| chain.first()).map(AsRef::as_ref))?;
                return Ok(Box::new(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(stream.socket_mut())?,
            Err(error) => {
                let halt = verdict(&error).unwrap_or_else(|| attempt.broken(&error));
                return Err(CONFIGS.doubt(tls, halt));
            }
        }
    }
}

static CONFIGS: Cache<Arc<ClientConfig>> = Cache::new();

fn config(tls: &Tls) -> Result<Arc<ClientConfig>, Halt> {
    let mut roots = RootCertStore::empty();
    if !tls.only_own_roots {
        let system = rustls_native_certs::load_native_certs();
        if let (true, Some(error)) = (system.certs.is_empty(), system.errors.first()) {
            return Err(unusable(format!("the system's roots: {error}")));
        }
        roots.add_parsable_certificates(system.certs);
    }
    for root in &tls.roots {
        let pem: Vec<_> = CertificateDer::pem_slice_iter(root).filter_map(Result::ok).collect();
        let certificates = if pem.is_empty() { vec![CertificateDer::from(root.clone())] } else { pem };
        roots.add_parsable_certificates(certificates);
    }
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().ok();
    let judge = Judge {
        chain,
        provider: provider.clone(),
        accepts_any_certificate: tls.accepts_any_certificate,
        accepts_any_name: tls.accepts_any_name,
    };
    let (min, max) = tls.versions;
    let offered = |version| min.is_none_or(|min| min <= version) && max.is_none_or(|max| version <= max);
    let all: [(TlsVersion, &SupportedProtocolVersion); 2] = [(TlsVersion::Tls12, &TLS12), (TlsVersion::Tls13, &TLS13)];
    let versions: Vec<_> = all.iter().filter(|(version, _)| offered(*version)).map(|(_, one)| *one).collect();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions);
    let builder = builder.map_err(|error| failed(&error))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(judge));
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(Identity::Pem { chain, key }) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok).collect();
            let key = PrivateKeyDer::from_pem_slice(key);
            let key = key.map_err(|error| unusable(format!("the client's key: {error}")))?;
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|error| unusable(own_certificate_fault(&error)))?
        }
        Some(Identity::Files { .. }) => return Err(unread()),
        Some(Identity::Pkcs12 { .. }) => return Err(unusable("rustls reads no PKCS#12".into())),
    };
    config.enable_sni = !tls.hides_name;
    config.alpn_protocols = tls.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(Arc::new(config))
}

/// What rustls says of our own certificate: its words are made for a peer's.
fn own_certificate_fault(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))
            if inner.to_string().contains("UnsupportedCertVersion") =>
        {
            "the client's certificate is of X.509 version 1, which rustls does not take: issue one of version 3, or use \
             `TlsBackend::NativeTls`"
                .into()
        }
        Error::InvalidCertificate(fault) => format!("the client's certificate: {fault}"),
        error => format!("the client's certificate or key: {error}"),
    }
}

/// Verifies as rustls does by itself, remembers what it refused, and looks away where it was told to.
#[derive(Debug)]
struct Judge {
    /// `None` when nobody at all is trusted.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    accepts_any_certificate: bool,
    accepts_any_name: bool,
}

/// Why a certificate was refused, and what it was.
#[derive(Debug)]
struct Refused {
    error: CertificateError,
    fault: TlsFault,
    presented: Option<Box<str>>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {}

fn with_what_was_presented(error: Error, certificate: &[u8]) -> Error {
    let Error::InvalidCertificate(error) = error else { return error };
    let fault = match fault(&error) {
        // What comes of it differs, and the reason is this.
        TlsFault::BadCertificate | TlsFault::UnknownIssuer if has_weak_key(certificate) => TlsFault::Weak,
        // A certificate that is a CA's own cannot be a server's (RFC 5280 section 4.2.1.9), so those who sign themselves fail.
        TlsFault::BadCertificate | TlsFault::UnknownIssuer if is_signed_by_itself(certificate) => TlsFault::SelfSigned,
        fault => fault,
    };
    let refused = Refused { error, fault, presented: describe(certificate) };
    CertificateError::Other(OtherError(Arc::new(refused))).into()
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = match &self.chain {
            Some(chain) => chain.verify_server_cert(certificate, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        use CertificateError::{NotValidForName, NotValidForNameContext};
        match &verified {
            Err(Error::InvalidCertificate(_)) if self.accepts_any_certificate => Ok(ServerCertVerified::assertion()),
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if self.accepts_any_name =>
            {
                Ok(ServerCertVerified::assertion())
            }
            _ => verified.map_err(|error| with_what_was_presented(error, certificate)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
            .map_err(|error| with_what_was_presented(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
            .map_err(|error| with_what_was_presented(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What rustls has to say, if the error is one of its own.
pub(super) fn verdict(error: &io::Error) -> Option<Halt> {
    error.get_ref()?.downcast_ref().map(failed)
}

fn failed(error: &Error) -> Halt {
    match error {
        Error::AlertReceived(description) => alerted(in_words(&format!("{description:?}"))),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => refused(TlsFault::NotTls, error.to_string()),
        Error::PeerIncompatible(_) => refused(TlsFault::Version, error.to_string()),
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => match other.downcast_ref() {
            Some(Refused { error, fault, presented }) => {
                let (message, presented) = (error.to_string().into(), presented.clone());
                ConnectError::Tls { fault: *fault, message, presented }.into()
            }
            None => refused(TlsFault::BadCertificate, error.to_string()),
        },
        Error::InvalidCertificate(inner) => refused(fault(inner), error.to_string()),
        Error::NoCertificatesPresented => refused(TlsFault::BadCertificate, error.to_string()),
        error => refused(TlsFault::Other, error.to_string()),
    }
}

fn fault(error: &CertificateError) -> TlsFault {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => TlsFault::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => TlsFault::NotYetValid,
        E::NotValidForName | E::NotValidForNameContext { .. } => TlsFault::WrongHost,
        E::Revoked => TlsFault::Revoked,
        E::UnknownIssuer => TlsFault::UnknownIssuer,
        E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            TlsFault::Weak
        }
        _ => TlsFault::BadCertificate,
    }
}

/// An alert by its name in one word: `CertificateRequired`.
fn in_words(name: &str) -> String {
    let spaced = |c: char| if c.is_uppercase() { format!(" {}", c.to_lowercase()) } else { c.to_string() };
    let words: String = name.replace("CA", "Ca").replace("ised", "ized").chars().map(spaced).collect();
    format!("alert{words}")
}
