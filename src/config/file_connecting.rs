//! The parts of a client in a file that say how it gets there: the socket, TLS, the proxy, each as its builder.

use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file_parts::Time;
use crate::config::proxy::Proxy;
use crate::config::socket::SocketOptions;
use crate::config::tls::{Tls, TlsBackend};
use crate::error::ConfigError;
use crate::handshake::TlsVersion;

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub(crate) struct Keepalive {
    idle: Time,
    interval: Time,
    retries: u32,
}

/// The TCP socket, as `SocketOptions`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct SocketFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    local_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keepalive: Option<Keepalive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_buffer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_buffer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dscp: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    busy_poll: Option<Time>,
}

impl SocketFile {
    pub(crate) fn build(self) -> SocketOptions {
        SocketOptions {
            local_address: self.local_address,
            interface: self.interface,
            keepalive: self.keepalive.map(|all| (all.idle.0, all.interval.0, all.retries)),
            user_timeout: self.user_timeout.map(|time| time.0),
            receive_buffer: self.receive_buffer,
            send_buffer: self.send_buffer,
            dscp: self.dscp,
            busy_poll: self.busy_poll.map(|time| time.0),
        }
    }

    pub(crate) fn of(options: &SocketOptions) -> Self {
        let keepalive = options.keepalive.map(|(idle, interval, retries)| Keepalive {
            idle: Time(idle),
            interval: Time(interval),
            retries,
        });
        Self {
            local_address: options.local_address,
            interface: options.interface.clone(),
            keepalive,
            user_timeout: options.user_timeout.map(Time),
            receive_buffer: options.receive_buffer,
            send_buffer: options.send_buffer,
            dscp: options.dscp,
            busy_poll: options.busy_poll.map(Time),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub(crate) struct IdentityFiles {
    /// The certificate and those between it and the root, in PEM.
    pub(crate) chain: PathBuf,
    /// Its key, in PEM.
    pub(crate) key: PathBuf,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub(crate) struct Pem {
    chain: String,
    key: String,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub(crate) struct Pkcs12 {
    /// The archive, read when the file is.
    file: PathBuf,
    password: String,
}

#[cfg(feature = "pinning")]
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PinFile {
    /// The SHA-256 of the certificate, in hexadecimal.
    Certificate(String),
    /// The SHA-256 of its public key, in hexadecimal.
    PublicKey(String),
}

/// TLS, as `Tls`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct TlsFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<TlsBackend>,
    /// Certificates in PEM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) root_certificate: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) root_file: Vec<PathBuf>,
    pub(crate) without_system_roots: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) identity_pem: Option<Pem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) identity_files: Option<IdentityFiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) identity_pkcs12: Option<Pkcs12>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_version: Option<TlsVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_version: Option<TlsVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server_name: Option<String>,
    pub(crate) without_sni: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) alpn: Vec<String>,
    #[cfg(feature = "pinning")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) pin: Vec<PinFile>,
    pub(crate) danger_accept_invalid_certificates: bool,
    pub(crate) danger_accept_invalid_hostnames: bool,
}

/// Whether it is on, and what it does.
type Switch = (bool, fn(Tls) -> Tls);

impl TlsFile {
    pub(crate) fn build(self) -> Result<Tls, ConfigError> {
        let mut tls = self.backend.map_or(Tls::new(), |backend| Tls::new().backend(backend));
        tls = self.root_certificate.into_iter().fold(tls, Tls::root_certificate);
        tls = self.root_file.into_iter().fold(tls, Tls::root_file);
        if let Some(Pem { chain, key }) = self.identity_pem {
            tls = tls.identity_pem(chain, key);
        }
        if let Some(IdentityFiles { chain, key }) = self.identity_files {
            tls = tls.identity_files(chain, key);
        }
        if let Some(Pkcs12 { file, password }) = self.identity_pkcs12 {
            let refuse = |error: std::io::Error| ConfigError::new("tls", format!("{}: {error}", file.display()));
            tls = tls.identity_pkcs12(std::fs::read(&file).map_err(refuse)?, password);
        }
        tls = self.min_version.into_iter().fold(tls, Tls::min_version);
        tls = self.max_version.into_iter().fold(tls, Tls::max_version);
        tls = self.server_name.into_iter().fold(tls, Tls::server_name);
        #[cfg(feature = "pinning")]
        for pin in self.pin {
            use crate::config::tls::Pin;
            let (make, hex): (fn([u8; 32]) -> Pin, _) = match &pin {
                PinFile::Certificate(hex) => (Pin::certificate, hex),
                PinFile::PublicKey(hex) => (Pin::public_key, hex),
            };
            let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok();
            let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
            let rule = "a pin must be 64 hexadecimal digits";
            tls = tls.pin(make(bytes.ok_or_else(|| ConfigError::new("tls", rule))?));
        }
        let switches: [Switch; 4] = [
            (self.without_system_roots, Tls::without_system_roots),
            (self.without_sni, Tls::without_sni),
            (self.danger_accept_invalid_certificates, Tls::danger_accept_invalid_certificates),
            (self.danger_accept_invalid_hostnames, Tls::danger_accept_invalid_hostnames),
        ];
        tls = switches.into_iter().filter(|(on, _)| *on).fold(tls, |tls, (_, switch)| switch(tls));
        Ok(if self.alpn.is_empty() { tls } else { tls.alpn(self.alpn) })
    }
}

/// The proxy, as `Proxy`: a URL, or the environment's.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ProxyFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    pub(crate) from_environment: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bypass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsFile>,
}

impl ProxyFile {
    pub(crate) fn build(self) -> Result<Proxy, ConfigError> {
        let proxy = match (self.url, self.from_environment) {
            (Some(url), false) => Proxy::new(url)?,
            (None, true) => Proxy::from_environment(),
            _ => return Err(ConfigError::new("proxy", "must have either a `url`, or `from_environment = true`")),
        };
        let proxy = self.bypass.iter().fold(proxy, Proxy::bypass);
        Ok(match self.tls {
            Some(tls) => proxy.tls(tls.build()?),
            None => proxy,
        })
    }
}
