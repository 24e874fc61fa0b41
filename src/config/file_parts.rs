//! The parts of a client in a file: times, limits, heartbeats, compression, venues, each as its builder.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::ConfigError;
use crate::message::{Message, MessageRef};
use crate::policy::heartbeat::Heartbeat;
use crate::policy::idle::IdleStrategy;
use crate::policy::rate_limit::RateLimit;

/// A time as people write it: "30s", "250ms", "1h 30m".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

pub(crate) const TIME_RULE: &str =
    "must be a time with its unit (ns, us, ms, s, m, h, d), such as \"30s\", \"250ms\" or \"1h 30m\"";

/// Units of time. Those of a calendar are none: `M` is read as minutes by some, and a month has no length.
const UNITS: [&str; 7] = ["ns", "us", "ms", "s", "m", "h", "d"];

/// Reads a time.
pub(crate) fn time(text: &str) -> Option<Duration> {
    let units = text.split(|c: char| c.is_ascii_digit() || c.is_whitespace()).filter(|unit| !unit.is_empty());
    let is_known = units.into_iter().all(|unit| UNITS.contains(&unit));
    humantime::parse_duration(text).ok().filter(|_| is_known && text.trim() != "0")
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        value.as_str().and_then(time).map(Self).ok_or_else(|| D::Error::custom(TIME_RULE))
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
        json_schema!({ "type": "string", "pattern": "^\\s*[0-9]+\\s*[a-zA-Z]", "description": "A time with its unit, such as \"30s\" or \"250ms\"." })
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

/// A venue whose dialect the library speaks: its name, or a table of its name and its options.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VenueFile {
    BinanceSpot,
    BinanceFutures,
    #[cfg(feature = "deribit")]
    Deribit(DeribitFile),
}

impl<'de> Deserialize<'de> for VenueFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = VenueFile;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a venue's name, or a table of its name and its options")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<VenueFile, E> {
                match name {
                    "binance_spot" => Ok(VenueFile::BinanceSpot),
                    "binance_futures" => Ok(VenueFile::BinanceFutures),
                    #[cfg(feature = "deribit")]
                    "deribit" => Ok(VenueFile::Deribit(DeribitFile::default())),
                    _ => Err(E::custom(VENUES)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VenueFile, A::Error> {
                match map.next_key::<String>()?.as_deref() {
                    #[cfg(feature = "deribit")]
                    Some("deribit") => Ok(VenueFile::Deribit(map.next_value()?)),
                    _ => Err(A::Error::custom(VENUES)),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

const VENUES: &str = if cfg!(feature = "deribit") {
    "must be one of `binance_spot`, `binance_futures`, `deribit`, or a table with `deribit` and its options"
} else {
    "must be one of `binance_spot`, `binance_futures`"
};

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
