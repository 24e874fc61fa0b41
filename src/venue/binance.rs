//! Binance: market data streams, raw and combined. Rules from the venue's documentation, "WebSocket Streams" of spot
//! and of USDⓈ-M futures.
//!
//! ```
//! use ws_supervisor::{ClientConfig, venue::binance::Binance};
//!
//! let config = ClientConfig::new("wss://stream.binance.com:9443/stream")?
//!     .name("binance-prices")
//!     .venue(Binance::spot())
//!     .subscribe(["btcusdt@trade", "btcusdt@depth@100ms"]);
//! # let _ = config;
//! # Ok::<(), ws_supervisor::ConfigError>(())
//! ```

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Batch, Venue};
use crate::correlation::{Answer, Correlation};
use crate::message::{Message, MessageRef};
use crate::policy::heartbeat::Heartbeat;
use crate::policy::rate_limit::RateLimit;
use crate::request::Request;

/// Streams asked for in one request: well below what a connection may carry, and short enough to read in a log.
const BATCH: usize = 100;

/// Binance's market data streams. Channels are stream names, such as `btcusdt@trade`; a name with capitals in it is
/// another, unknown stream.
///
/// The venue acknowledges a request as a whole and does not check whether a stream of that name exists: a misspelt one
/// is silent. Watch for that with your own eyes, or with [`list_subscriptions`].
#[derive(Clone, Debug)]
pub struct Binance {
    max_silence: Duration,
    messages_a_second: u32,
}

impl Binance {
    /// Spot: the venue pings every 20 s and takes 5 messages a second on a connection.
    pub fn spot() -> Self {
        Self { max_silence: Duration::from_secs(60), messages_a_second: 5 }
    }

    /// USDⓈ-M futures: the venue pings every 3 minutes and takes 10 messages a second on a connection.
    pub fn futures() -> Self {
        Self { max_silence: Duration::from_secs(400), messages_a_second: 10 }
    }

    fn request(method: &'static str, channels: &[Arc<str>]) -> Vec<Batch> {
        channels.chunks(BATCH).map(|chunk| Batch::new(Request::new(method, chunk), chunk)).collect()
    }
}

/// Asks which streams the connection has: `client.call::<Vec<String>>(list_subscriptions())`.
pub fn list_subscriptions() -> Request {
    Request::new("LIST_SUBSCRIPTIONS", ())
}

/// The endpoint of one raw stream: `wss://stream.binance.com:9443/ws/<stream>`. Its messages come bare.
///
/// ```
/// use ws_supervisor::venue::binance;
/// assert_eq!(binance::raw_url("wss://stream.binance.com:9443", "btcusdt@trade"), "wss://stream.binance.com:9443/ws/btcusdt@trade");
/// ```
pub fn raw_url(base: &str, stream: &str) -> String {
    format!("{}/ws/{stream}", base.trim_end_matches('/'))
}

/// The endpoint of combined streams: messages come as `{"stream": …, "data": …}`. Without streams it is the place to
/// [subscribe](crate::ClientConfig::subscribe) at.
///
/// ```
/// use ws_supervisor::venue::binance;
/// let url = binance::combined_url("wss://stream.binance.com:9443", &["btcusdt@trade", "ethusdt@trade"]);
/// assert_eq!(url, "wss://stream.binance.com:9443/stream?streams=btcusdt@trade/ethusdt@trade");
/// ```
pub fn combined_url(base: &str, streams: &[&str]) -> String {
    let base = base.trim_end_matches('/');
    match streams {
        [] => format!("{base}/stream"),
        streams => format!("{base}/stream?streams={}", streams.join("/")),
    }
}

impl Venue for Binance {
    fn name(&self) -> &str {
        "binance"
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::server_ping(self.max_silence)
    }

    /// JSON-RPC in all but the version. `id` and `result` or `error`.
    fn correlation(&self) -> Correlation {
        Correlation::new(
            |id, method, params| {
                let (id, method) = (id.json(), Value::from(method));
                Message::text(match params {
                    Some(params) => format!(r#"{{"method":{method},"params":{params},"id":{id}}}"#),
                    None => format!(r#"{{"method":{method},"id":{id}}}"#),
                })
            },
            |message| Answer::parse(message, "\"id\""),
        )
    }

    /// For the one connection, pings and pongs included in the venue's count: one a second is left to those.
    fn rate_limits(&self) -> Vec<RateLimit> {
        let limit = RateLimit::window(self.messages_a_second - 1, Duration::from_secs(1));
        limit.into_iter().map(RateLimit::per_connection).collect()
    }

    /// The venue ends a connection at 24 hours; it is replaced ten minutes before.
    fn max_age(&self) -> Option<Duration> {
        Some(Duration::from_secs(24 * 3600 - 600))
    }

    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        Self::request("SUBSCRIBE", channels)
    }

    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        Self::request("UNSUBSCRIBE", channels)
    }

    /// The result is null, and stands for all of them.
    fn acknowledges(&self, _: &str, result: &Value) -> bool {
        result.is_null()
    }

    /// Combined streams say whose a message is; bare ones (`/ws`) do not, and their silence can't be told apart.
    fn names_channels(&self) -> bool {
        true
    }

    fn channel_of<'m>(&self, message: MessageRef<'m>) -> Option<Cow<'m, str>> {
        #[derive(Deserialize)]
        struct Combined<'a> {
            #[serde(borrow)]
            stream: Cow<'a, str>,
        }
        serde_json::from_str(message.as_text()?).ok().map(|combined: Combined<'m>| combined.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_streams_say_whose_a_message_is() {
        let of = |text: &str| {
            let message = Message::from(text);
            Binance::spot().channel_of(message.view()).map(Cow::into_owned)
        };
        assert_eq!(of(r#"{"stream":"btcusdt@trade","data":{"e":"trade","p":"1"}}"#).as_deref(), Some("btcusdt@trade"));
        assert_eq!((of(r#"{"e":"trade","s":"BTCUSDT"}"#), of("no JSON")), (None, None));
    }

    #[test]
    fn requests_read_as_in_the_documentation() {
        let names: Vec<Arc<str>> = ["btcusdt@aggTrade", "btcusdt@depth"].map(Arc::from).into();
        let text = |request: &Request| {
            let message = Binance::spot().correlation().encode(request, &1.into()).unwrap();
            message.as_text().unwrap().to_owned()
        };
        let batches = Binance::spot().subscribe(&names);
        let expected = r#"{"method":"SUBSCRIBE","params":["btcusdt@aggTrade","btcusdt@depth"],"id":1}"#;
        assert_eq!(text(&batches[0].request), expected);
        assert_eq!(text(&list_subscriptions()), r#"{"method":"LIST_SUBSCRIPTIONS","id":1}"#);
        let many: Vec<Arc<str>> = (0..250).map(|n| n.to_string().into()).collect();
        let sizes: Vec<_> = Binance::futures().unsubscribe(&many).iter().map(|batch| batch.channels.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
