//! A client as a file has it: each key is the name of the method that it stands for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file_connecting::{ProxyFile, SocketFile, TlsFile};
use super::file_parts::{Backoff, HeartbeatFile, Idle, Limit, Time, VenueFile};
#[cfg(feature = "compression")]
use super::file_parts::{CompressionFile, DecodeFile};
use crate::config::ClientConfig;
use crate::error::ConfigError;
use crate::handshake::SubprotocolChoice;
use crate::overflow::Overflow;
use crate::policy::idle::IdleStrategy;
use crate::policy::rate_limit::RateLimit;
use crate::policy::restart::Restart;
use crate::policy::staleness::StaleAction;

/// A client. Each key is the option of `ClientConfig` of that name, whose documentation has its meaning and its default.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ClientFile {
    /// `ws://` or `wss://`. Every client must have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// Defaults to the client's key in `clients`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) fallback_url: Vec<String>,
    /// Names and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) header: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) subprotocol: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subprotocol_choice: Option<SubprotocolChoice>,
    /// Certificates in PEM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) root_certificate: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_header: Option<String>,
    pub(crate) without_user_agent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) redirects: Option<u32>,
    /// How often to try again when a certificate is not accepted, instead of parking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_retry: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<ProxyFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<SocketFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dial_limit: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tcp_nodelay: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) restart: Option<Restart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heartbeat: Option<HeartbeatFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stale_after: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stale_channel_after: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stale_action: Option<StaleAction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) park_on: Option<Vec<u16>>,
    /// Codes of the server's close frame that park the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) park_on_close: Option<Vec<u16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backoff: Option<Backoff>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jitter: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stable_after: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) close_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overflow: Option<Overflow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) event_capacity: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) event_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) send_capacity: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) send_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue_while_disconnected: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_message_size: Option<usize>,
    /// Longer messages are sent in fragments of this length, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_frame_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read_buffer: Option<usize>,
    #[cfg(feature = "compression")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compression: Option<CompressionFile>,
    #[cfg(feature = "compression")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decode: Option<DecodeFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) venue: Option<VenueFile>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) subscribe: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rate_limit: Vec<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_age: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_strategy: Option<Idle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pin_to: Option<usize>,
    #[cfg(feature = "real-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) real_time_priority: Option<u8>,
    #[cfg(feature = "kernel-timestamps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel_timestamps: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stack_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stall_threshold: Option<Time>,
    /// The preset for a core of its own: this core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) low_latency: Option<usize>,
    /// The preset for thousands of clients.
    pub(crate) many_clients: bool,
}

impl ClientFile {
    /// The configuration, and what is wrong with it, each with its key.
    pub(crate) fn build(
        self,
        name: &str,
        limits: &BTreeMap<String, RateLimit>,
    ) -> Result<ClientConfig, Vec<ConfigError>> {
        let mut faults = Vec::new();
        let url = self.url.as_ref().ok_or_else(|| ConfigError::new("url", "every client must have one"));
        let config = url.and_then(ClientConfig::new).or_else(|fault| {
            // The other options are looked at all the same.
            faults.push(fault);
            ClientConfig::new("wss://localhost")
        });
        let mut config = config.map_err(|fault| vec![fault])?.name(self.name.as_deref().unwrap_or(name));
        for url in &self.fallback_url {
            match config.clone().fallback_url(url) {
                Ok(with) => config = with,
                Err(fault) => faults.push(fault),
            }
        }
        for (name, value) in self.header {
            config = config.header(name, value);
        }
        config = self.subprotocol.into_iter().fold(config, ClientConfig::subprotocol);
        config = self.root_certificate.into_iter().fold(config, ClientConfig::root_certificate);
        if self.without_user_agent {
            config = config.without_user_agent();
        }
        if self.many_clients {
            config = config.many_clients();
        }
        let mut built = |config: ClientConfig, result: Result<ClientConfig, ConfigError>| match result {
            Ok(with) => with,
            Err(fault) => {
                faults.push(fault);
                config
            }
        };
        if let Some(tls) = self.tls {
            config = built(config.clone(), tls.build().map(|tls| config.tls(tls)));
        }
        if let Some(proxy) = self.proxy {
            config = built(config.clone(), proxy.build().map(|proxy| config.proxy(proxy)));
        }
        if let Some(heartbeat) = self.heartbeat {
            config = built(config.clone(), heartbeat.build().map(|heartbeat| config.heartbeat(heartbeat)));
        }
        let find = |limit: &Limit, option: &'static str| match limit {
            Limit::Own(limit) => limit.build().map_err(|fault| ConfigError::new(option, fault.rule())),
            Limit::Named(name) => limits
                .get(name)
                .cloned()
                .ok_or_else(|| ConfigError::new(option, "`limits` has none of this name, or that is wrong")),
        };
        if let Some(limit) = &self.dial_limit {
            config = built(config.clone(), find(limit, "dial_limit").map(|limit| config.dial_limit(limit)));
        }
        for limit in &self.rate_limit {
            config = built(config.clone(), find(limit, "rate_limit").map(|limit| config.rate_limit(limit)));
        }
        match self.venue {
            Some(VenueFile::BinanceSpot) => config = config.venue(crate::venue::binance::Binance::spot()),
            Some(VenueFile::BinanceFutures) => config = config.venue(crate::venue::binance::Binance::futures()),
            #[cfg(feature = "deribit")]
            Some(VenueFile::Deribit(deribit)) => {
                config = built(config.clone(), deribit.build().map(|venue| config.venue(venue)));
            }
            None => {}
        }
        if !self.subscribe.is_empty() {
            config = config.subscribe(self.subscribe);
        }
        if let Some(Backoff { base, cap }) = self.backoff {
            config = config.backoff(base.0, cap.0);
        }
        macro_rules! set {
            ($map:expr => $($option:ident)*) => { $(
                config = self.$option.into_iter().fold(config, |config, value| config.$option(($map)(value)));
            )* };
        }
        set! { |value| value =>
            subprotocol_choice host_header redirects tcp_nodelay restart stale_action park_on park_on_close max_retries jitter overflow
            event_capacity event_bytes send_capacity send_bytes queue_while_disconnected max_message_size max_frame_size read_buffer
            pin_to
            stack_size low_latency
        }
        set! { |time: Time| time.0 =>
            connect_timeout stale_after stale_channel_after stable_after close_timeout request_timeout max_age stall_threshold
            certificate_retry
        }
        set! { SocketFile::build => socket }
        set! { IdleStrategy::from => idle_strategy }
        #[cfg(feature = "compression")]
        {
            set! { CompressionFile::build => compression }
            config = match self.decode {
                Some(DecodeFile::Gzip) => config.decode(crate::config::decode::Decode::gzip()),
                Some(DecodeFile::DeflateRaw) => config.decode(crate::config::decode::Decode::deflate_raw()),
                None => config,
            };
        }
        #[cfg(feature = "real-time")]
        set! { |value| value => real_time_priority }
        #[cfg(feature = "kernel-timestamps")]
        set! { |value| value => kernel_timestamps }
        faults.extend(config.validate().err().into_iter().flatten());
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }
}
