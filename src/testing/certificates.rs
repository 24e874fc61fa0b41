//! A CA and a server's certificate, made anew for each server.

use std::io;

use native_tls::{Identity, TlsAcceptor};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

pub(super) struct Certificates {
    pub(super) ca_pem: String,
    pub(super) acceptor: TlsAcceptor,
}

impl Certificates {
    pub(super) fn new(host: &str) -> io::Result<Self> {
        let failed = |error: rcgen::Error| io::Error::other(error.to_string());
        let ca_key = KeyPair::generate().map_err(failed)?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "ws-supervisor test CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = ca.self_signed(&ca_key).map_err(failed)?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut names = vec![host.to_owned()];
        if host == "localhost" {
            names.push("127.0.0.1".into());
        }
        let certificate =
            CertificateParams::new(names).map_err(failed)?.signed_by(&key, &ca, &ca_key).map_err(failed)?;
        let identity = Identity::from_pkcs8(certificate.pem().as_bytes(), key.serialize_pem().as_bytes());
        let acceptor = identity.and_then(TlsAcceptor::new).map_err(io::Error::other)?;
        Ok(Self { ca_pem: ca.pem(), acceptor })
    }
}
