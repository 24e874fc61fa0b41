//! What a certificate says of itself.

use x509_cert::Certificate;
use x509_cert::der::Decode;
#[cfg(feature = "rustls")]
use x509_cert::der::Encode;

/// Whose it is, who issued it, and for how long.
pub(super) fn describe(der: &[u8]) -> Option<Box<str>> {
    let certificate = Certificate::from_der(der).ok()?;
    let inner = certificate.tbs_certificate();
    let validity = inner.validity();
    let text = format!(
        "`{}`, issued by `{}`, valid from {} to {}",
        inner.subject(),
        inner.issuer(),
        validity.not_before,
        validity.not_after
    );
    Some(text.into())
}

#[cfg(feature = "rustls")]
pub(super) fn is_signed_by_itself(der: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_der(der) else { return false };
    let inner = certificate.tbs_certificate();
    inner.subject().to_der().ok() == inner.issuer().to_der().ok()
}

/// An RSA key of less than 2,048 bits, which nobody accepts any more.
#[cfg(feature = "rustls")]
pub(super) fn has_weak_key(der: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_der(der) else { return false };
    let key = certificate.tbs_certificate().subject_public_key_info();
    // RFC 3279 section 2.3.1. The modulus is nearly all of it.
    key.algorithm.oid.to_string() == "1.2.840.113549.1.1.1" && key.subject_public_key.raw_bytes().len() < 2048 / 8
}

#[cfg(feature = "pinning")]
pub(super) fn matches(pin: crate::config::tls::Pin, der: &[u8]) -> bool {
    use crate::config::tls::{Pin, Pinned};
    use sha2::{Digest, Sha256};
    use x509_cert::der::Encode;
    let Pin(pinned, expected) = pin;
    let digest = match pinned {
        Pinned::Certificate => Sha256::digest(der),
        Pinned::PublicKey => {
            let Ok(certificate) = Certificate::from_der(der) else { return false };
            let key = certificate.tbs_certificate().subject_public_key_info().to_der();
            Sha256::digest(key.unwrap_or_default())
        }
    };
    digest[..] == expected
}
