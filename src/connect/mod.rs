//! From a configuration to an open connection: resolve, TCP, TLS, upgrade, under one deadline that a stop can cut short at
//! any point.

pub(crate) mod attempt;
#[cfg_attr(not(feature = "compression"), path = "no_compression.rs")]
pub(crate) mod compression;
mod handshake;
pub(crate) mod open;
mod resolve;
#[cfg(feature = "rustls")]
mod rustls;
mod tcp;
mod tls;
