//! The parts of a client in a file: times, limits, heartbeats, sockets, TLS, proxies, venues, each as its builder.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::proxy::Proxy;
use crate::config::socket::SocketOptions;
use crate::config::tls::{Tls, TlsBackend};
use crate::error::ConfigError;
use crate::handshake::TlsVersion;
use crate::message::{Message, MessageRef};
use crate::policy::heartbeat::Heartbeat;
use crate::policy::idle::IdleStrategy;
use crate::policy::rate_limit::RateLimit;

/// A time as people write it: "30s", "250ms", "1h 30m".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const RULE: &str = "must be a time with its unit, such as \"30s\" or \"250ms\"";
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = value.as_str().ok_or_else(|| D::Error::custom(RULE))?;
        humantime::parse_duration(text).map(Self).map_err(|_| D::Error::custom(RULE))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A time with its unit, such as \"30s\" or \"250ms\"." })
    }
}

/// A rate limit: by its name in `limits`, so that clients share it, or of this client's own.
#[derive(Clone, Debug)]
pub(crate) enum Limit {
    Named(String),
    Own(LimitFile),
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Limit;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of one of `limits`, or a table with `bucket` or `window`")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Limit, E> {
                Ok(Limit::Named(name.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Limit, A::Error> {
                LimitFile::deserialize(MapAccessDeserializer::new(map)).map(Limit::Own)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(name) => name.serialize(serializer),
            Self::Own(limit) => limit.serialize(serializer),
        }
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let own = generator.subschema_for::<LimitFile>();
        json_schema!({ "anyOf": [{ "type": "string", "description": "The name of one of `limits`." }, own] })
    }
}

/// A rate limit, as `RateLimit`: a bucket, or a window.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct LimitFile {
    /// A bucket of `capacity` tokens into which `refill` drip each `period`.
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<Bucket>,
    /// At most `limit` messages in any window of `period`.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
    /// Each client has one of its own, though it is shared by name.
    per_client: bool,
    /// Each connection begins with a full one.
    per_connection: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct Bucket {
    capacity: u32,
    refill: u32,
    period: Time,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct Window {
    limit: u32,
    period: Time,
}

impl LimitFile {
    pub(crate) fn build(&self) -> Result<RateLimit, ConfigError> {
        let limit = match (&self.bucket, &self.window) {
            (Some(bucket), None) => RateLimit::bucket(bucket.capacity, bucket.refill, bucket.period.0)?,
            (None, Some(window)) => RateLimit::window(window.limit, window.period.0)?,
            _ => return Err(ConfigError::new("rate_limit", "must have either a `bucket` or a `window`")),
        };
        let limit = if self.per_client { limit.per_client() } else { limit };
        Ok(if self.per_connection { limit.per_connection() } else { limit })
    }
}

/// The wait between retries.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub(crate) struct Backoff {
    pub(crate) base: Time,
    pub(crate) cap: Time,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeartbeatFileKind {
    Disabled,
    #[default]
    PingPong,
    ServerPing,
    #[cfg(feature = "deribit")]
    Deribit,
    Message,
    Expect,
}

/// A heartbeat. What is told by messages is recognised by a text that they hold.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct HeartbeatFile {
    pub(crate) kind: HeartbeatFileKind,
    /// Of `ping_pong`, `deribit` and `message`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<Time>,
    /// Of `server_ping` and `expect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_silence: Option<Time>,
    /// Misses in a row that end the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_missed: Option<u32>,
    /// Of `message`: what is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<String>,
    /// Of `message` and `expect`: what the venue's message holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) contains: Option<String>,
}

impl HeartbeatFile {
    pub(crate) fn build(&self) -> Result<Heartbeat, ConfigError> {
        let needs = |what: &str| ConfigError::new("heartbeat", format!("this kind needs `{what}`"));
        let interval = self.interval.map(|time| time.0).ok_or_else(|| needs("interval"));
        let silence = self.max_silence.map(|time| time.0).ok_or_else(|| needs("max_silence"));
        let holds = || {
            let text = self.contains.clone().ok_or_else(|| needs("contains"))?;
            Ok(move |message: MessageRef<'_>| message.as_text().is_some_and(|all| all.contains(&text)))
        };
        let heartbeat = match self.kind {
            HeartbeatFileKind::Disabled => Heartbeat::disabled(),
            HeartbeatFileKind::PingPong => Heartbeat::ping_pong(interval?),
            HeartbeatFileKind::ServerPing => Heartbeat::server_ping(silence?),
            #[cfg(feature = "deribit")]
            HeartbeatFileKind::Deribit => Heartbeat::deribit(interval?),
            HeartbeatFileKind::Message => {
                let payload = self.payload.clone().ok_or_else(|| needs("payload"))?;
                Heartbeat::message(interval?, Message::text(payload), holds()?)
            }
            HeartbeatFileKind::Expect => Heartbeat::expect(silence?, holds()?),
        };
        Ok(self.max_missed.map_or(heartbeat.clone(), |missed| heartbeat.max_missed(missed)))
    }
}

/// What the worker does with nothing to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Idle {
    Park,
    BusySpin,
    /// Spins, yields, then sleeps.
    Backoff {
        spins: u32,
        yields: u32,
    },
}

impl From<Idle> for IdleStrategy {
    fn from(idle: Idle) -> Self {
        match idle {
            Idle::Park => Self::Park,
            Idle::BusySpin => Self::BusySpin,
            Idle::Backoff { spins, yields } => Self::Backoff { spins, yields },
        }
    }
}

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

/// permessage-deflate, as `Compression::deflate()` with these changes.
#[cfg(feature = "compression")]
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct CompressionFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    above: Option<usize>,
    client_no_context_takeover: bool,
    server_no_context_takeover: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_max_window_bits: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_max_window_bits: Option<u8>,
}

#[cfg(feature = "compression")]
impl CompressionFile {
    pub(crate) fn build(self) -> crate::config::compression::Compression {
        use crate::config::compression::Compression;
        let mut compression = Compression::deflate();
        compression = self.level.into_iter().fold(compression, Compression::level);
        compression = self.above.into_iter().fold(compression, Compression::above);
        compression = self.client_max_window_bits.into_iter().fold(compression, Compression::client_max_window_bits);
        compression = self.server_max_window_bits.into_iter().fold(compression, Compression::server_max_window_bits);
        if self.client_no_context_takeover {
            compression = compression.client_no_context_takeover();
        }
        if self.server_no_context_takeover {
            compression = compression.server_no_context_takeover();
        }
        compression
    }
}

/// How the venue packs its binary messages.
#[cfg(feature = "compression")]
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DecodeFile {
    Gzip,
    DeflateRaw,
}

/// A venue whose dialect the library speaks: its name, or a table with its name and its options.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VenueFile {
    BinanceSpot,
    BinanceFutures,
    #[cfg(feature = "deribit")]
    Deribit(DeribitFile),
}

/// Deribit, as `venue::deribit::Deribit`.
#[cfg(feature = "deribit")]
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct DeribitFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_credentials: Option<Credentials>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_signature: Option<Credentials>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_interval: Option<Time>,
    cancel_on_disconnect: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matching_engine_limit: Option<MatchingEngine>,
}

#[cfg(feature = "deribit")]
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct Credentials {
    id: String,
    secret: String,
}

#[cfg(feature = "deribit")]
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct MatchingEngine {
    burst: u32,
    a_second: u32,
}

#[cfg(feature = "deribit")]
impl DeribitFile {
    pub(crate) fn build(self) -> Result<crate::venue::deribit::Deribit, ConfigError> {
        use crate::venue::deribit::Deribit;
        let mut venue = Deribit::new().cancel_on_disconnect(self.cancel_on_disconnect);
        venue = match (self.client_credentials, self.client_signature) {
            (Some(_), Some(_)) => {
                let rule = "must have one of `client_credentials` and `client_signature`";
                return Err(ConfigError::new("venue", rule));
            }
            (Some(Credentials { id, secret }), None) => venue.client_credentials(id, secret),
            (None, Some(Credentials { id, secret })) => venue.client_signature(id, secret),
            (None, None) => venue,
        };
        venue = self.heartbeat_interval.into_iter().fold(venue, |venue, time| venue.heartbeat_interval(time.0));
        venue = self.session.into_iter().fold(venue, Deribit::session);
        match self.matching_engine_limit {
            Some(MatchingEngine { burst, a_second }) => venue.matching_engine_limit(burst, a_second),
            None => Ok(venue),
        }
    }
}
