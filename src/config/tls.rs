//! [`Tls`]: whom to trust, who to be, and which library does it.

use std::fmt;
use std::path::PathBuf;

use crate::error::ConfigError;
use crate::handshake::TlsVersion;

/// The library that encrypts a `wss://` connection. Options and faults are the same with each, unless a method of [`Tls`] says
/// otherwise.
///
/// The default is `NativeTls` if the feature `native-tls` is on, and `Rustls` otherwise. Cargo turns a feature on for the whole
/// build when any crate in it asks for the feature, so a dependency can change the default from rustls to OpenSSL. A program
/// that must use one library names it: `Tls::new().backend(TlsBackend::Rustls)`.
///
/// ```
/// use ws_supervisor::{ClientConfig, Tls, TlsBackend};
///
/// let config = ClientConfig::new("wss://venue.example")?.tls(Tls::new().backend(TlsBackend::Rustls));
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum TlsBackend {
    /// The system's library, by native-tls: OpenSSL on Linux. The system's updates and policies apply. Needs the feature
    /// `native-tls`, which is on by default.
    #[cfg(feature = "native-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "native-tls")))]
    #[default]
    NativeTls,
    /// rustls, which needs no library of the system's, and takes less than half of OpenSSL 3.0's time for a small record. Use
    /// rustls where a venue changes its keys on an open connection (RFC 8446 section 4.6.3): OpenSSL 3.0 ends a connection on
    /// which a write is blocked at that moment.
    /// rustls trusts the system's roots; the cryptography is ring's, or what the process has installed as rustls' default
    /// provider. Needs the feature `rustls`.
    #[cfg(feature = "rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
    #[cfg_attr(not(feature = "native-tls"), default)]
    Rustls,
}

#[cfg(not(any(feature = "native-tls", feature = "rustls")))]
compile_error!("ws-supervisor needs one of the features `native-tls` (on by default) and `rustls`");

/// The SHA-256 by which a server's certificate or its key is known: 32 bytes.
///
/// ```
/// use ws_supervisor::{Pin, Tls};
///
/// // openssl x509 -in server.pem -pubkey -noout | openssl pkey -pubin -outform der | sha256sum
/// let pin = Pin::public_key([0x5a; 32]);
/// let tls = Tls::new().pin(pin);
/// # let _ = tls;
/// ```
#[cfg(feature = "pinning")]
#[cfg_attr(docsrs, doc(cfg(feature = "pinning")))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pin(pub(crate) Pinned, pub(crate) [u8; 32]);

#[cfg(feature = "pinning")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pinned {
    Certificate,
    PublicKey,
}

#[cfg(feature = "pinning")]
impl Pin {
    /// The SHA-256 of the whole certificate in DER. It changes with every renewal.
    pub fn certificate(sha256: [u8; 32]) -> Self {
        Self(Pinned::Certificate, sha256)
    }

    /// The SHA-256 of the certificate's public key, as its `SubjectPublicKeyInfo` in DER (RFC 7469 section 2.4). It outlives
    /// renewals that keep the key.
    pub fn public_key(sha256: [u8; 32]) -> Self {
        Self(Pinned::PublicKey, sha256)
    }
}

/// How a `wss://` connection is encrypted: whom it trusts, and who it says it is. The default trusts the system's roots,
/// speaks TLS 1.2 and 1.3, and shows no certificate.
///
/// ```
/// use ws_supervisor::{ClientConfig, Tls, TlsVersion};
///
/// let tls = Tls::new()
///     .root_file("/etc/desk/venue-ca.pem") // read again at every attempt
///     .without_system_roots()
///     .identity_files("/etc/desk/client.pem", "/etc/desk/client.key")
///     .min_version(TlsVersion::Tls13);
/// let config = ClientConfig::new("wss://venue.example/ws")?.tls(tls);
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[must_use = "its methods return the changed value"]
pub struct Tls {
    pub(crate) backend: TlsBackend,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) root_files: Vec<PathBuf>,
    pub(crate) only_own_roots: bool,
    pub(crate) identity: Option<Identity>,
    pub(crate) versions: (Option<TlsVersion>, Option<TlsVersion>),
    pub(crate) server_name: Option<String>,
    pub(crate) hides_name: bool,
    pub(crate) alpn: Vec<String>,
    #[cfg(feature = "pinning")]
    pub(crate) pins: Vec<Pin>,
    pub(crate) accepts_any_certificate: bool,
    pub(crate) accepts_any_name: bool,
}

/// Who the client is: its certificate and key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    Pem { chain: Vec<u8>, key: Vec<u8> },
    Files { chain: PathBuf, key: PathBuf },
    Pkcs12 { der: Vec<u8>, password: String },
}

impl Tls {
    /// The files that are read at each attempt.
    #[cfg(feature = "serde")]
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identity = match &self.identity {
            Some(Identity::Files { chain, key }) => vec![chain, key],
            _ => Vec::new(),
        };
        self.root_files.iter().chain(identity)
    }

    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who encrypts. Defaults to the system's library.
    pub fn backend(mut self, backend: TlsBackend) -> Self {
        self.backend = backend;
        self
    }

    /// Trusts these CA certificates too: one or more in PEM, or one in DER. Call it again for more. The same as
    /// [`ClientConfig::root_certificate`](crate::ClientConfig::root_certificate).
    pub fn root_certificate(mut self, certificates: impl Into<Vec<u8>>) -> Self {
        self.roots.push(certificates.into());
        self
    }

    /// Trusts the CA certificates in this file too, which is read again at every attempt to connect: a new CA needs no
    /// restart. That it cannot be read fails the attempt, which is tried again like any other.
    pub fn root_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_files.push(path.into());
        self
    }

    /// Trusts only the certificates that are named here, none of the system's.
    pub fn without_system_roots(mut self) -> Self {
        self.only_own_roots = true;
        self
    }

    /// Shows this certificate when the server asks for one: the chain in PEM, the client's own first, and its key in PEM as
    /// PKCS#8 (`BEGIN PRIVATE KEY`).
    pub fn identity_pem(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Identity::Pem { chain: chain.into(), key: key.into() });
        self
    }

    /// As [`identity_pem`](Tls::identity_pem), from two files, which are read again at every attempt to connect: a renewed
    /// certificate needs no restart.
    pub fn identity_files(mut self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some(Identity::Files { chain: chain.into(), key: key.into() });
        self
    }

    /// As [`identity_pem`](Tls::identity_pem), from a PKCS#12 archive (`.p12`, `.pfx`). Only over
    /// [`NativeTls`](TlsBackend::NativeTls): rustls reads none.
    pub fn identity_pkcs12(mut self, der: impl Into<Vec<u8>>, password: impl Into<String>) -> Self {
        self.identity = Some(Identity::Pkcs12 { der: der.into(), password: password.into() });
        self
    }

    /// Refuses older versions than this. Defaults to TLS 1.2.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.versions.0 = Some(version);
        self
    }

    /// Refuses newer versions than this. Defaults to the newest.
    pub fn max_version(mut self, version: TlsVersion) -> Self {
        self.versions.1 = Some(version);
        self
    }

    /// The name that the server is asked for (SNI, RFC 6066 section 3) and that its certificate must have, in place of the
    /// URL's host: for a venue that is reached by an address, or through a port of this machine.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Does not tell the server's name in the clear (no SNI). Its certificate must have it all the same.
    pub fn without_sni(mut self) -> Self {
        self.hides_name = true;
        self
    }

    /// Offers these protocols (ALPN, RFC 7301), in order of preference; `http/1.1` is the one that a WebSocket's upgrade
    /// uses. Defaults to none. What the server chose is in [`Handshake`](crate::Handshake).
    pub fn alpn(mut self, protocols: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.alpn = protocols.into_iter().map(Into::into).collect();
        self
    }

    /// Accepts only a server whose own certificate matches one of the pins, besides all other checks. Call it again for
    /// more: pin the next key too, before the venue changes to it. Checked before a byte of the upgrade is sent. Defaults to
    /// none.
    #[cfg(feature = "pinning")]
    #[cfg_attr(docsrs, doc(cfg(feature = "pinning")))]
    pub fn pin(mut self, pin: Pin) -> Self {
        self.pins.push(pin);
        self
    }

    /// **Dangerous.** Accepts any certificate, expired, self-signed, for any host: whoever sits on the line can read and
    /// change all orders. With `Tls::pin` it is how to trust one self-signed certificate, which then is what is
    /// checked. A warning is logged when the client is made.
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.accepts_any_certificate = true;
        self
    }

    /// **Dangerous.** Accepts a trusted certificate of any host: whoever has one can pass for the venue. A warning is logged
    /// when the client is made. [`server_name`](Tls::server_name) is the safe way to another name.
    pub fn danger_accept_invalid_hostnames(mut self) -> Self {
        self.accepts_any_name = true;
        self
    }

    /// What each dangerous switch that is on is called.
    pub(crate) fn dangers(&self) -> impl Iterator<Item = &'static str> {
        let certificates = self.accepts_any_certificate.then_some("danger_accept_invalid_certificates");
        let names = self.accepts_any_name.then_some("danger_accept_invalid_hostnames");
        certificates.into_iter().chain(names)
    }

    pub(crate) fn is_pinned(&self) -> bool {
        #[cfg(feature = "pinning")]
        return !self.pins.is_empty();
        #[cfg(not(feature = "pinning"))]
        false
    }

    pub(crate) fn faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        let mut rule = |holds: bool, rule: &str| {
            if !holds {
                faults.push(ConfigError::new("tls", rule));
            }
        };
        for root in &self.roots {
            rule(are_certificates(root), "a root must be one or more certificates in PEM, or one in DER");
        }
        let own = !self.roots.is_empty() || !self.root_files.is_empty() || self.accepts_any_certificate;
        rule(own || !self.only_own_roots, "`without_system_roots` needs a root of your own, or nothing is trusted");
        match &self.identity {
            Some(Identity::Pem { chain, key }) => match identity_fault(chain, key) {
                Some(fault) => rule(false, fault),
                None => {
                    rule(is_identity(chain, key), "the identity's certificate or key is none, though it looks like it")
                }
            },
            #[cfg(feature = "rustls")]
            Some(Identity::Pkcs12 { .. }) if self.backend == TlsBackend::Rustls => {
                rule(false, "rustls reads no PKCS#12: turn it into PEM (`openssl pkcs12 -in … -nodes`)");
            }
            #[cfg(feature = "native-tls")]
            Some(Identity::Pkcs12 { der, password }) => {
                let identity = native_tls::Identity::from_pkcs12(der, password);
                let words = identity.err().map(|error| error.to_string());
                let text = "the identity must be a PKCS#12 archive that the password opens";
                rule(words.is_none(), &format!("{text}: {}", words.unwrap_or_default()));
            }
            _ => {}
        }
        let (min, max) = self.versions;
        let is_range = min.zip(max).is_none_or(|(min, max)| min <= max);
        rule(is_range, "`min_version` must not be above `max_version`");
        rule(
            self.server_name.as_ref().is_none_or(|name| is_host(name)),
            "`server_name` must be a host's name or an address",
        );
        let fits = self.alpn.iter().all(|name| (1..256).contains(&name.len()));
        rule(fits, "an ALPN protocol must have between 1 and 255 bytes");
        // RFC 7301 section 3.1: all of them, each with a byte for its length, in two bytes' worth.
        let length: usize = self.alpn.iter().map(|name| name.len() + 1).sum();
        rule(length < 1 << 14, "the ALPN protocols must have less than 16 KiB together");
        faults
    }
}

/// What a client's certificate and key are not, and what makes them so.
pub(crate) fn identity_fault(chain: &[u8], key: &[u8]) -> Option<&'static str> {
    let holds = |bytes: &[u8], words: &str| bytes.windows(words.len()).any(|window| window == words.as_bytes());
    if !holds(chain, "BEGIN CERTIFICATE") {
        return Some("the identity's certificate must be PEM (`openssl x509 -inform der -in … -out …`)");
    }
    if holds(key, "ENCRYPTED") {
        return Some("the identity's key must not be encrypted (`openssl pkcs8 -in … -out …`)");
    }
    let is_key = holds(key, "BEGIN PRIVATE KEY");
    (!is_key).then_some("the identity's key must be PEM in PKCS#8 (`openssl pkcs8 -topk8 -nocrypt -in … -out …`)")
}

fn is_host(name: &str) -> bool {
    let is_part = |part: &str| (1..64).contains(&part.len()) && part.bytes().all(is_of_a_name);
    name.parse::<std::net::IpAddr>().is_ok() || (name.len() < 254 && name.split('.').all(is_part))
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// Whether these are certificates, in PEM or one in DER.
pub(crate) fn are_certificates(bytes: &[u8]) -> bool {
    #[cfg(feature = "native-tls")]
    return parse_roots(bytes).is_some();
    #[cfg(not(feature = "native-tls"))]
    {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        use x509_cert::der::Decode;
        let pem: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        pem.is_ok_and(|all| !all.is_empty()) || x509_cert::Certificate::from_der(bytes).is_ok()
    }
}

fn is_identity(chain: &[u8], key: &[u8]) -> bool {
    #[cfg(feature = "native-tls")]
    return native_tls::Identity::from_pkcs8(chain, key).is_ok();
    #[cfg(not(feature = "native-tls"))]
    {
        use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
        are_certificates(chain) && PrivateKeyDer::from_pem_slice(key).is_ok()
    }
}

/// The certificates in PEM, or the one in DER.
#[cfg(feature = "native-tls")]
pub(crate) fn parse_roots(bytes: &[u8]) -> Option<Vec<native_tls::Certificate>> {
    let all = native_tls::Certificate::stack_from_pem(bytes).unwrap_or_default();
    match all.is_empty() {
        true => native_tls::Certificate::from_der(bytes).ok().map(|one| vec![one]),
        false => Some(all),
    }
}

impl fmt::Debug for Tls {
    /// Without certificates and keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("backend", &self.backend)
            .field("system_roots", &!self.only_own_roots)
            .field("versions", &self.versions)
            .field("server_name", &self.server_name)
            .field("dangers", &self.dangers().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
