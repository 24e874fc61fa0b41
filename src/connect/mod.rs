//! From a configuration to an open connection: resolve, TCP, proxy, TLS, upgrade, under one deadline that a stop can cut short
//! at any point.

pub(crate) mod attempt;
#[cfg(any(feature = "pinning", feature = "rustls"))]
mod certificate;
#[cfg_attr(not(feature = "compression"), path = "no_compression.rs")]
pub(crate) mod compression;
mod handshake;
mod http;
#[cfg(feature = "native-tls")]
mod native_tls;
pub(crate) mod open;
mod proxy;
mod resolve;
#[cfg(feature = "rustls")]
mod rustls;
mod secure;
mod tcp;
mod tls;
