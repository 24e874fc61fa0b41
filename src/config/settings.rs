//! [`Settings`]: what a configuration comes to, parsed once and checked whole before anything starts. All defaults are here,
//! and which of several wins: what was set, the venue's, a preset's, ours.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::uri::Authority;

use super::decode::Decode;
use super::proxy::Proxy;
use super::socket::SocketOptions;
use super::tls::{Tls, TlsBackend, are_certificates};
use super::{ClientConfig, OnOpenFn, PrepareFn, ReconcileFn, ResolveFn};
use crate::correlation::Correlation;
use crate::error::ConfigError;
use crate::handshake::SubprotocolChoice;
use crate::inbound::delivery::Delivery;
use crate::outbound::accepted::Load;
use crate::overflow::Overflow;
use crate::policy::heartbeat::Heartbeat;
use crate::policy::idle::IdleStrategy;
use crate::policy::rate_limit::RateLimit;
use crate::policy::reconnect::ReconnectRules;
use crate::policy::restart::Restart;
use crate::policy::staleness::StaleRules;
use crate::record::tap::Tap;
use crate::state::Tag;
use crate::target::{Header, Target, parse_header};
use crate::venue::Venue;

pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) fallbacks: Vec<Target>,
    pub(crate) name: Option<String>,
    pub(crate) headers: Vec<Header>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) subprotocol_choice: SubprotocolChoice,
    pub(crate) host: Option<String>,
    pub(crate) user_agent: bool,
    pub(crate) redirects: u32,
    pub(crate) certificate_retry: Option<Duration>,
    pub(crate) tls: Tls,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) socket: SocketOptions,
    pub(crate) dial_limit: Option<RateLimit>,
    pub(crate) restart: Restart,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) stale: StaleRules,
    pub(crate) reconnect: ReconnectRules,
    pub(crate) park_on: Vec<u16>,
    pub(crate) park_on_close: Vec<u16>,
    pub(crate) connect_timeout: Duration,
    pub(crate) close_timeout: Duration,
    /// Moved out when the client is made: code of the caller's is let go of at the end.
    pub(crate) hooks: Hooks,
    pub(crate) overflow: Overflow,
    pub(crate) event_capacity: usize,
    pub(crate) event_bytes: usize,
    pub(crate) send_capacity: usize,
    pub(crate) send_bytes: usize,
    pub(crate) queue_while_disconnected: usize,
    pub(crate) max_message_size: usize,
    pub(crate) max_frame_size: Option<usize>,
    pub(crate) read_buffer: usize,
    #[cfg(feature = "compression")]
    pub(crate) compression: Option<super::compression::Compression>,
    pub(crate) nodelay: bool,
    pub(crate) idle: IdleStrategy,
    pub(crate) core: Option<usize>,
    pub(crate) priority: Option<u8>,
    pub(crate) kernel_timestamps: bool,
    pub(crate) stack_size: Option<usize>,
    pub(crate) stall_threshold: Duration,
    pub(crate) channels: Vec<Arc<str>>,
    pub(crate) correlation: Correlation,
    pub(crate) request_timeout: Duration,
    pub(crate) limits: Vec<RateLimit>,
    pub(crate) max_age: Option<Duration>,
    #[cfg(feature = "record")]
    pub(crate) recorder: Option<crate::record::Recorder>,
}

/// Code of the caller's, which may hold anything, a handle of this very client too.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) delivery: Delivery,
    pub(crate) resolver: Option<Arc<ResolveFn>>,
    pub(crate) prepare: Option<Arc<PrepareFn>>,
    pub(crate) on_open: Option<Arc<OnOpenFn>>,
    pub(crate) reconcile: Option<Arc<ReconcileFn>>,
    /// On the first connection too.
    pub(crate) reconciles_first: bool,
    pub(crate) venue: Option<Arc<dyn Venue>>,
    pub(crate) decode: Option<Decode>,
}

impl Hooks {
    /// What the venue is called, or this.
    pub(crate) fn venue_or<'a>(&'a self, host: &'a str) -> &'a str {
        self.venue.as_ref().map(|venue| venue.name()).filter(|name| !name.is_empty()).unwrap_or(host)
    }
}

/// Faults as they are found.
struct Faults(Vec<ConfigError>);

impl Faults {
    fn rule(&mut self, holds: bool, option: &'static str, rule: &str) {
        if !holds {
            self.0.push(ConfigError::new(option, rule));
        }
    }

    fn keep<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|fault| self.0.push(fault)).ok()
    }
}

impl ClientConfig {
    /// Checks the whole and settles what it comes to.
    pub(crate) fn resolve(&self) -> Result<Settings, Vec<ConfigError>> {
        let config = self.clone();
        let (venue, presets) = (config.venue, config.presets);
        let small = |value: usize| presets.small.then_some(value);
        let heartbeat = config.heartbeat.or_else(|| venue.as_ref().map(|venue| venue.heartbeat()));
        let heartbeat = heartbeat.or(presets.small.then(|| Heartbeat::ping_pong(Duration::from_secs(30))));
        let correlation = config.correlation.or_else(|| venue.as_ref().map(|venue| venue.correlation()));
        let mut limits = config.limits;
        limits.extend(venue.iter().flat_map(|venue| venue.rate_limits()));
        let mut faults = Faults(Vec::new());

        if let Some(name) = &config.name {
            faults.rule(!name.trim().is_empty(), "name", "must not be empty");
            faults.rule(!name.chars().any(char::is_control), "name", "must not hold control characters");
        }
        let headers =
            config.headers.iter().filter_map(|(name, value)| faults.keep(parse_header(name, value))).collect();
        for (index, name) in config.subprotocols.iter().enumerate() {
            // RFC 6455 section 4.1 asks for the same characters as a header's name, and for distinct ones.
            faults.rule(HeaderName::from_bytes(name.as_bytes()).is_ok(), "subprotocol", "must be a token of RFC 9110");
            faults.rule(!config.subprotocols[..index].contains(name), "subprotocol", "must not be offered twice");
        }
        for root in &config.roots {
            let rule = "must be one or more certificates in PEM, or one in DER";
            faults.rule(are_certificates(root), "root_certificate", rule);
        }
        let mut tls = config.tls;
        // What is wrong with these is told above.
        let roots = config.roots.into_iter().filter(|root| are_certificates(root));
        tls.roots.extend(roots);
        faults.0.extend(tls.faults());
        let of_proxy = config.proxy.iter().flat_map(|proxy| proxy.to_proxy().faults());
        faults.0.extend(of_proxy.map(|fault| ConfigError::new("proxy", format!("its `tls`: {}", fault.rule()))));
        faults.0.extend(config.socket.faults());
        let is_host = config.host.as_ref().is_none_or(|host| host.parse::<Authority>().is_ok() && !host.contains('@'));
        faults.rule(is_host, "host_header", "must be a host, and perhaps a port");
        let settings = Settings {
            target: config.target,
            fallbacks: config.fallbacks,
            name: config.name,
            headers,
            subprotocols: config.subprotocols,
            subprotocol_choice: config.subprotocol_choice,
            host: config.host,
            user_agent: config.user_agent,
            redirects: config.redirects,
            certificate_retry: config.certificate_retry,
            tls,
            proxy: config.proxy,
            socket: config.socket,
            dial_limit: config.dial_limit,
            restart: config.restart,
            heartbeat: heartbeat.unwrap_or_else(|| Heartbeat::ping_pong(Duration::from_secs(20))),
            stale: config.stale,
            reconnect: config.reconnect,
            park_on: config.park_on,
            park_on_close: config.park_on_close,
            connect_timeout: config.connect_timeout,
            close_timeout: config.close_timeout,
            overflow: config.overflow,
            event_capacity: config.event_capacity.or(small(256)).unwrap_or(4096),
            send_capacity: config.send_capacity.or(small(64)).unwrap_or(1024),
            event_bytes: config.event_bytes,
            send_bytes: config.send_bytes,
            queue_while_disconnected: config.queue_while_disconnected,
            max_message_size: config.max_message_size,
            max_frame_size: config.max_frame_size,
            read_buffer: config.read_buffer.or(small(4 << 10)).unwrap_or(128 << 10),
            #[cfg(feature = "compression")]
            compression: config.compression,
            nodelay: config.nodelay,
            idle: config.idle.or(presets.own_core.map(|_| IdleStrategy::BusySpin)).unwrap_or_default(),
            core: config.core.or(presets.own_core),
            priority: config.priority,
            kernel_timestamps: config.kernel_timestamps,
            stack_size: config.stack_size,
            stall_threshold: config.stall_threshold,
            max_age: config.max_age.or_else(|| venue.as_ref().and_then(|venue| venue.max_age())),
            hooks: Hooks {
                delivery: config.delivery,
                resolver: config.resolver,
                prepare: config.prepare,
                on_open: config.on_open,
                reconcile: config.reconcile,
                reconciles_first: config.reconciles_first,
                venue,
                decode: config.decode,
            },
            channels: config.channels,
            correlation: correlation.unwrap_or_else(Correlation::json_rpc),
            request_timeout: config.request_timeout,
            limits,
            #[cfg(feature = "record")]
            recorder: config.recorder,
        };
        settings.check(&mut faults);
        if faults.0.is_empty() { Ok(settings) } else { Err(faults.0) }
    }
}

impl Settings {
    /// One of the URLs, by its number.
    pub(crate) fn place(&self, at: usize) -> &Target {
        at.checked_sub(1).map_or(&self.target, |at| &self.fallbacks[at])
    }

    /// The client's end of its recorder, if it has one.
    pub(crate) fn tap(&self, tag: &Tag) -> Option<Tap> {
        #[cfg(feature = "record")]
        return self.recorder.as_ref().and_then(|recorder| recorder.tap(tag.name.clone()));
        #[cfg(not(feature = "record"))]
        {
            let _ = tag;
            None
        }
    }

    fn check(&self, faults: &mut Faults) {
        let positive = "must be greater than zero";
        faults.rule(!self.connect_timeout.is_zero(), "connect_timeout", positive);
        faults.rule(!self.close_timeout.is_zero(), "close_timeout", positive);
        for limit in &self.limits {
            faults.rule(limit.leaves_something(), "rate_limit", "its `reserve` must be smaller than the bucket");
        }
        faults.rule(!self.request_timeout.is_zero(), "request_timeout", positive);
        #[cfg(feature = "compression")]
        for rule in self.compression.iter().filter_map(|compression| compression.fault()) {
            faults.rule(false, "compression", rule);
        }
        faults.rule(self.stale.after != Some(Duration::ZERO), "stale_after", positive);
        faults.rule(self.stale.channel_after != Some(Duration::ZERO), "stale_channel_after", positive);
        let can_tell = self.hooks.venue.as_ref().is_some_and(|venue| venue.names_channels());
        let rule = "needs a `venue` that knows whose a message is (`Venue::names_channels`)";
        faults.rule(can_tell || self.stale.channel_after.is_none(), "stale_channel_after", rule);
        let has_use = self.stale.after.is_some() || self.stale.channel_after.is_some() || self.stale.gate.is_none();
        faults.rule(has_use, "stale_while", "needs `stale_after` or `stale_channel_after`");
        let weaker = self.target.tls && self.fallbacks.iter().any(|fallback| !fallback.tls);
        faults.rule(!weaker, "fallback_url", "must not lead from `wss` to `ws`");
        faults.rule(self.max_age != Some(Duration::ZERO), "max_age", positive);
        let knows_how = self.channels.is_empty() || self.hooks.venue.is_some();
        faults.rule(knows_how, "subscribe", "needs a `venue`, which knows how to subscribe");
        faults.keep(self.reconnect.validate());
        faults.keep(self.heartbeat.validate());
        let (least, rule) = match self.tls.backend {
            #[cfg(feature = "native-tls")]
            TlsBackend::NativeTls => (64 << 10, "must be at least 64 KiB"),
            #[cfg(feature = "rustls")]
            TlsBackend::Rustls => (128 << 10, "must be at least 128 KiB, which rustls needs"),
        };
        faults.rule(self.stack_size.is_none_or(|bytes| bytes >= least), "stack_size", rule);
        let real = self.priority.is_none_or(|priority| (1..=99).contains(&priority));
        faults.rule(real, "real_time_priority", "must be 1 to 99");
        let has_timestamps = cfg!(target_os = "linux") || !self.kernel_timestamps;
        faults.rule(has_timestamps, "kernel_timestamps", "needs Linux");
        faults.rule(!self.stall_threshold.is_zero(), "stall_threshold", positive);
        faults.rule(self.event_capacity > 0, "event_capacity", positive);
        let countable = (1..=Load::MAX_MESSAGES).contains(&self.send_capacity);
        faults.rule(countable, "send_capacity", "must be between 1 and 16,777,215");
        let countable = self.queue_while_disconnected <= Load::MAX_MESSAGES;
        faults.rule(countable, "queue_while_disconnected", "must be at most 16,777,215");
        faults.rule(self.event_bytes > 0, "event_bytes", positive);
        let countable = (1..=Load::MAX_BYTES).contains(&self.send_bytes);
        faults.rule(countable, "send_bytes", "must be between 1 byte and 512 GiB");
        faults.rule(self.max_message_size > 0, "max_message_size", positive);
        faults.rule(self.max_frame_size != Some(0), "max_frame_size", positive);
        faults.rule(self.certificate_retry != Some(Duration::ZERO), "certificate_retry", positive);
        let in_range = (1024..=16 << 20).contains(&self.read_buffer);
        faults.rule(in_range, "read_buffer", "must be between 1 KiB and 16 MiB");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::TlsVersion;
    use crate::venue::Venue;

    fn ok() -> ClientConfig {
        ClientConfig::new("ws://127.0.0.1:1/p?token=secret").unwrap()
    }

    #[test]
    fn every_bad_option_is_named() {
        let zero = Duration::ZERO;
        let second = Duration::from_secs(1);
        let bad: Vec<(&str, ClientConfig)> = vec![
            ("name", ok().name("")),
            ("name", ok().name("  ")),
            ("name", ok().name("a\0b")),
            ("header", ok().header("no spaces", "v")),
            ("header", ok().header("X", "a\r\nEvil: 1")),
            ("header", ok().header("Host", "h")),
            ("header", ok().header("Sec-WebSocket-Key", "k")),
            ("subprotocol", ok().subprotocol("a b")),
            ("subprotocol", ok().subprotocol("a").subprotocol("a")),
            ("root_certificate", ok().root_certificate("not pem")),
            ("connect_timeout", ok().connect_timeout(zero)),
            ("close_timeout", ok().close_timeout(zero)),
            ("backoff", ok().backoff(zero, second)),
            ("backoff", ok().backoff(second * 2, second)),
            ("jitter", ok().jitter(-0.1)),
            ("jitter", ok().jitter(1.5)),
            ("jitter", ok().jitter(f64::NAN)),
            ("stable_after", ok().stable_after(zero)),
            ("heartbeat", ok().heartbeat(Heartbeat::ping_pong(zero))),
            ("heartbeat", ok().heartbeat(Heartbeat::ping_pong(second).max_missed(0))),
            ("heartbeat", ok().heartbeat(Heartbeat::deribit(Duration::from_millis(1500)))),
            ("request_timeout", ok().request_timeout(zero)),
            ("max_age", ok().max_age(zero)),
            ("stale_after", ok().stale_after(zero)),
            ("stale_channel_after", ok().stale_channel_after(second)),
            ("tls", ok().tls(Tls::new().without_system_roots())),
            ("tls", ok().tls(Tls::new().root_certificate("no certificate"))),
            ("tls", ok().tls(Tls::new().identity_pem("no certificate", "no key"))),
            ("tls", ok().tls(Tls::new().min_version(TlsVersion::Tls13).max_version(TlsVersion::Tls12))),
            ("tls", ok().tls(Tls::new().alpn([""]))),
            ("tls", ok().tls(Tls::new().alpn(vec!["x".repeat(200); 100]))),
            ("tls", ok().tls(Tls::new().server_name("a\0b"))),
            ("tls", ok().tls(Tls::new().server_name("a:443"))),
            ("proxy", ok().proxy(Proxy::new("https://p").unwrap().tls(Tls::new().alpn([""])))),
            ("stale_while", ok().stale_while(|| true)),
            ("fallback_url", ClientConfig::new("wss://h").unwrap().fallback_url("ws://h").unwrap()),
            ("socket", ok().socket(SocketOptions::new().user_timeout(Duration::MAX))),
            ("socket", ok().socket(SocketOptions::new().interface("a\0b"))),
            ("socket", ok().socket(SocketOptions::new().dscp(64))),
            ("socket", ok().socket(SocketOptions::new().keepalive(zero, second, 1))),
            ("host_header", ok().host_header("a\nb")),
            ("host_header", ok().host_header("a b/c")),
            ("subscribe", ok().subscribe(["a"])),
            ("stack_size", ok().stack_size(1)),
            ("stall_threshold", ok().stall_threshold(zero)),
            ("event_capacity", ok().event_capacity(0)),
            ("event_bytes", ok().event_bytes(0)),
            ("send_capacity", ok().send_capacity(0)),
            ("send_capacity", ok().send_capacity(usize::MAX)),
            ("send_bytes", ok().send_bytes(0)),
            ("queue_while_disconnected", ok().queue_while_disconnected(usize::MAX)),
            ("max_message_size", ok().max_message_size(0)),
            ("max_frame_size", ok().max_frame_size(0)),
            ("certificate_retry", ok().certificate_retry(zero)),
            ("read_buffer", ok().read_buffer(0)),
        ];
        for (option, config) in bad {
            let faults = config.validate().expect_err(option);
            assert_eq!(faults.iter().map(ConfigError::option).collect::<Vec<_>>(), [option]);
        }
        ok().validate().unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said_with_what_mends_it() {
        let certificate = "-----BEGIN CERTIFICATE-----";
        for (chain, key, mend) in [
            ("0", "", "openssl x509 -inform der"),
            (certificate, "-----BEGIN ENCRYPTED PRIVATE KEY-----", "must not be encrypted"),
            (certificate, "-----BEGIN EC PRIVATE KEY-----", "openssl pkcs8 -topk8"),
            (certificate, "-----BEGIN RSA PRIVATE KEY-----", "openssl pkcs8 -topk8"),
        ] {
            let faults = ok().tls(Tls::new().identity_pem(chain, key)).validate().unwrap_err();
            assert!(faults.len() == 1 && faults[0].rule().contains(mend), "{faults:?}");
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let faults = ok().name("").header("Host", "h").header("a b", "v").send_capacity(0).validate().unwrap_err();
        let options: Vec<_> = faults.iter().map(ConfigError::option).collect();
        assert_eq!(options, ["name", "header", "header", "send_capacity"]);
    }

    #[test]
    fn what_is_set_wins_over_the_venue_and_the_venue_over_a_preset_in_any_order() {
        use crate::venue::binance::Binance;
        let of_venue = Binance::spot().heartbeat();
        type Step = fn(ClientConfig) -> ClientConfig;
        let venue: Step = |config| config.venue(Binance::spot());
        let preset: Step = |config| config.many_clients().low_latency(3);
        let set: Step = |config| {
            let heartbeat = Heartbeat::ping_pong(Duration::from_secs(7));
            config.heartbeat(heartbeat).send_capacity(9).pin_to(1)
        };
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let all = order.iter().fold(ok(), |config, step| [venue, preset, set][*step](config)).resolve().unwrap();
            assert_eq!(all.heartbeat.interval(), Some(Duration::from_secs(7)), "{order:?}");
            assert_eq!((all.send_capacity, all.event_capacity, all.read_buffer), (9, 256, 4 << 10), "{order:?}");
            assert_eq!((all.core, all.idle), (Some(1), IdleStrategy::BusySpin), "{order:?}");
            let without =
                order.iter().fold(ok(), |config, step| [venue, preset, |c| c][*step](config)).resolve().unwrap();
            assert_eq!(without.heartbeat.kind(), of_venue.kind(), "{order:?}");
            assert_eq!((without.core, without.send_capacity), (Some(3), 64), "{order:?}");
        }
    }

    #[test]
    fn debug_prints_no_secret() {
        let shown = format!("{:?}", ok().header("Authorization", "secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
