//! Deribit, API v2 over WebSocket. Rules from the venue's documentation (docs.deribit.com: Authentication, Connection
//! Management, Rate Limits, and the reference of each method).
//!
//! ```no_run
//! use std::time::Duration;
//! use ws_supervisor::{ClientConfig, Supervisor, venue::deribit::{self, Deribit, Order}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let venue = Deribit::new()
//!     .client_signature(std::env::var("DERIBIT_ID")?, std::env::var("DERIBIT_SECRET")?)
//!     .heartbeat_interval(Duration::from_secs(30))
//!     .cancel_on_disconnect(true);
//! let config = ClientConfig::new("wss://test.deribit.com/ws/api/v2")?
//!     .name("deribit")
//!     .venue(venue)
//!     .subscribe(["book.BTC-PERPETUAL.raw", "user.orders.BTC-PERPETUAL.raw"]);
//! let supervisor = Supervisor::start()?;
//! let client = supervisor.spawn_client(config)?;
//! client.wait_until_open(Duration::from_secs(10))?;
//! let order = Order::limit("BTC-PERPETUAL", 10.0, 20_000.0).label("first").post_only(true);
//! let placed: serde_json::Value = client.call(deribit::buy(&order))?;
//! # let _ = placed;
//! # Ok(())
//! # }
//! ```

mod requests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;

pub use self::requests::*;
use super::{Batch, Renewal, Venue};
use crate::error::SessionError;
use crate::message::{Message, MessageRef};
use crate::policy::heartbeat::Heartbeat;
use crate::policy::rate_limit::RateLimit;
use crate::request::{Request, RpcError};
use crate::session::Session;

/// Channels asked for in one request.
const BATCH: usize = 250;

/// Errors of `public/auth` that no retry mends: invalid_credentials, unauthorized, forbidden, Invalid params. From the
/// documentation's list of RPC error codes.
const FATAL: [i64; 4] = [13_004, 13_009, 13_021, -32_602];

/// Deribit's dialect. Clone it for the clients of one account: clones share the account's credits.
#[derive(Clone)]
pub struct Deribit {
    credentials: Option<Credentials>,
    heartbeat: Duration,
    cancel_on_disconnect: bool,
    session: Option<Box<str>>,
    limits: Vec<RateLimit>,
}

#[derive(Clone)]
struct Credentials {
    id: Box<str>,
    secret: Secret,
    sign: bool,
}

/// Never printed.
#[derive(Clone)]
struct Secret(Box<str>);

impl Default for Deribit {
    fn default() -> Self {
        Self::new()
    }
}

impl Deribit {
    /// Not signed in, heartbeats every 30 s, and the limits of an account without trading volume: 50,000 credits refilled
    /// by 10,000 a second, 500 for each request that does not reach the matching engine (heartbeats among them, for which
    /// some of it is set aside); 20 at once and 5 a second of those that do; 10 subscriptions at once and 10 in 3 s; 50
    /// lists of instruments at once and one a second. Of each a little is left unused, since what leaves here at even
    /// intervals does not arrive so, and the venue ends the session of whoever exceeds it. Of the matching engine's a part
    /// is for requests that cancel: orders can't use it up.
    pub fn new() -> Self {
        let second = Duration::from_secs(1);
        let mut limits = Vec::new();
        limits.extend(matching_engine(20, 5));
        limits.extend(RateLimit::bucket(47_000, 9_500, second).map(|limit| limit.cost(cost(Pool::Common, 500))));
        limits.extend(RateLimit::bucket(9, 19, 6 * second).map(|limit| limit.cost(cost(Pool::Subscribe, 1))));
        limits.extend(RateLimit::bucket(48, 19, 20 * second).map(|limit| limit.cost(cost(Pool::Instruments, 1))));
        Self {
            credentials: None,
            heartbeat: Duration::from_secs(30),
            cancel_on_disconnect: false,
            session: None,
            limits,
        }
    }

    /// Signs in by sending id and secret (`grant_type` `client_credentials`).
    pub fn client_credentials(self, id: impl Into<Box<str>>, secret: impl Into<Box<str>>) -> Self {
        self.sign_in(id, secret, false)
    }

    /// Signs in by a signature, without sending the secret (`grant_type` `client_signature`: HMAC-SHA256 of
    /// "timestamp\nnonce\ndata"). The timestamp is this machine's clock, so that must be right.
    pub fn client_signature(self, id: impl Into<Box<str>>, secret: impl Into<Box<str>>) -> Self {
        self.sign_in(id, secret, true)
    }

    fn sign_in(mut self, id: impl Into<Box<str>>, secret: impl Into<Box<str>>, sign: bool) -> Self {
        self.credentials = Some(Credentials { id: id.into(), secret: Secret(secret.into()), sign });
        self
    }

    /// How often the venue sends heartbeats: whole seconds, at least 10. Defaults to 30 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat = interval;
        self
    }

    /// Has the venue cancel this connection's orders when it ends; enabled again after every sign-in, before anything
    /// can be traded. The venue does not do so after `private/logout`, and notices a dead line by its heartbeats. Without
    /// credentials here, whoever signs in has to ask for it. Defaults to false.
    pub fn cancel_on_disconnect(mut self, enabled: bool) -> Self {
        self.cancel_on_disconnect = enabled;
        self
    }

    /// Signs in to a session of this name (scope `session:name`) instead of one that is the connection's own (scope
    /// `connection`). Its token outlives the connection, and an account has 16 of them.
    pub fn session(mut self, name: impl Into<Box<str>>) -> Self {
        self.session = Some(name.into());
        self
    }

    /// The limit of requests that reach the matching engine, as `private/get_account_summary` tells it for your account:
    /// so many at once, so many a second. A margin is kept of it: one fewer at once and 5 % less a second are sent, and half as
    /// many a second where only one may be sent at once.
    ///
    /// ```
    /// use ws_supervisor::venue::deribit::Deribit;
    /// let tier_1 = Deribit::new().matching_engine_limit(100, 30)?;
    /// # let _ = tier_1;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// When one of them is zero.
    pub fn matching_engine_limit(mut self, burst: u32, a_second: u32) -> Result<Self, crate::error::ConfigError> {
        self.limits[0] = matching_engine(burst, a_second)?;
        Ok(self)
    }

    fn auth(&self, credentials: &Credentials) -> Value {
        let scope = self.session.as_ref().map_or("connection".to_owned(), |name| format!("session:{name}"));
        let Credentials { id, secret, sign } = credentials;
        if !sign {
            return json!({"grant_type": "client_credentials", "client_id": id, "client_secret": secret.0, "scope": scope});
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (timestamp, nonce) = (since.as_millis() as u64, format!("{:016x}", fastrand::u64(..)));
        json!({
            "grant_type": "client_signature", "client_id": id, "timestamp": timestamp, "nonce": nonce, "data": "",
            "signature": signature(&secret.0, timestamp, &nonce, ""), "scope": scope,
        })
    }
}

/// What `client_signature` asks for, in lower-case hexadecimal.
pub(crate) fn signature(secret: &str, timestamp: u64, nonce: &str, data: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(format!("{timestamp}\n{nonce}\n{data}").as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for Deribit {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deribit")
            .field("client_id", &self.credentials.as_ref().map(|credentials| &credentials.id))
            .field("heartbeat", &self.heartbeat)
            .field("cancel_on_disconnect", &self.cancel_on_disconnect)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Token {
    expires_in: u64,
    refresh_token: String,
}

impl Token {
    /// Four fifths of its time, at most a day: a renewal that fails leaves time to sign in afresh. A sign-in to a named
    /// session voids the refresh token of the last one there, which may be another client's: those sign in anew.
    fn renewal(&self, venue: &Deribit) -> Renewal {
        let after = Duration::from_secs(self.expires_in).mul_f64(0.8).min(Duration::from_secs(86_400));
        match (&venue.session, venue.credentials.clone()) {
            (Some(_), Some(credentials)) => {
                let venue = venue.clone();
                Renewal::new(after, move || Request::new("public/auth", venue.auth(&credentials)))
            }
            _ => {
                let params = json!({"grant_type": "refresh_token", "refresh_token": self.refresh_token});
                Renewal::new(after, Request::new("public/auth", params))
            }
        }
    }
}

impl Venue for Deribit {
    fn name(&self) -> &str {
        "deribit"
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::deribit(self.heartbeat)
    }

    fn rate_limits(&self) -> Vec<RateLimit> {
        self.limits.clone()
    }

    fn authenticate(&self, session: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
        let Some(credentials) = &self.credentials else { return Ok(None) };
        let token: Token = session.request("public/auth", self.auth(credentials)).map_err(|error| {
            let fatal = error.rpc().is_some_and(|rpc| FATAL.contains(&rpc.code));
            if fatal { error.into_fatal() } else { error }
        })?;
        if self.cancel_on_disconnect {
            let scope = json!({"scope": "connection"});
            let _: Value = session.request("private/enable_cancel_on_disconnect", scope)?;
        }
        Ok(Some(token.renewal(self)))
    }

    fn renewed(&self, result: &Value) -> Result<Option<Renewal>, SessionError> {
        let token = Token::deserialize(result).map_err(SessionError::retryable)?;
        Ok(Some(token.renewal(self)))
    }

    /// The documentation's errors that say "later": too_many_requests, retry, settlement_in_progress,
    /// matching_engine_queue_full, system_maintenance, temporarily_unavailable.
    fn is_temporary(&self, error: &RpcError) -> bool {
        [10_028, 10_040, 10_041, 10_047, 11_051, 13_028].contains(&error.code)
    }

    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        batches("subscribe", channels)
    }

    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        batches("unsubscribe", channels)
    }

    fn names_channels(&self) -> bool {
        true
    }

    fn channel_of<'m>(&self, message: MessageRef<'m>) -> Option<Cow<'m, str>> {
        #[derive(Deserialize)]
        struct Notification<'a> {
            #[serde(borrow)]
            params: Params<'a>,
        }
        #[derive(Deserialize)]
        struct Params<'a> {
            #[serde(borrow)]
            channel: Cow<'a, str>,
        }
        let notification: Notification<'m> = serde_json::from_str(message.as_text()?).ok()?;
        Some(notification.params.channel)
    }
}

/// Channels that are the account's own go by the private method; public ones by the public one, which a client that is
/// signed in may use too.
fn batches(verb: &str, channels: &[Arc<str>]) -> Vec<Batch> {
    let (private, public): (Vec<_>, Vec<_>) =
        channels.iter().cloned().partition(|channel| channel.starts_with("user."));
    let batch = |scope: &str, channels: &[Arc<str>]| {
        Batch::new(Request::new(format!("{scope}/{verb}"), json!({"channels": channels})), channels)
    };
    let public = public.chunks(BATCH).map(|chunk| batch("public", chunk));
    public.chain(private.chunks(BATCH).map(|chunk| batch("private", chunk))).collect()
}

/// Which of an account's limits a message counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pool {
    MatchingEngine,
    Subscribe,
    Instruments,
    Common,
    None,
}

/// The venue's limit with a margin: one fewer at once and a twentieth less a second; where no more than one may go at once,
/// half as many a second, since the network may bring two close together. A tenth of it, at least one, is for what
/// cancels.
fn matching_engine(burst: u32, a_second: u32) -> Result<RateLimit, crate::error::ConfigError> {
    let (most, of_60) = if burst > 1 { (burst - 1, 57) } else { (burst, 30) };
    let a_minute = a_second.saturating_mul(of_60);
    let limit = RateLimit::bucket(most, a_minute, Duration::from_secs(60))?.cost(cost(Pool::MatchingEngine, 1));
    let cancels = |message: &Message| method(message).is_some_and(|method| method.starts_with("private/cancel"));
    Ok(if most < 3 { limit } else { limit.reserve((burst / 10).max(1), cancels) })
}

/// What a message costs of one of them.
fn cost(of: Pool, cost: u32) -> impl Fn(&Message) -> u32 {
    move |message| if pool(message) == of { cost } else { 0 }
}

/// By the documentation's list of requests that reach the matching engine, and of those that have a limit of their own.
pub(crate) fn pool(message: &Message) -> Pool {
    const METHODS: [&str; 13] = [
        "buy",
        "sell",
        "edit",
        "edit_by_label",
        "cancel",
        "cancel_by_label",
        "cancel_all",
        "cancel_all_by_currency",
        "cancel_all_by_instrument",
        "cancel_all_by_kind_or_type",
        "close_position",
        "verify_block_trade",
        "execute_block_trade",
    ];
    match method(message) {
        Some("public/subscribe" | "private/subscribe") => Pool::Subscribe,
        Some("public/get_instruments") => Pool::Instruments,
        // The documentation exempts mass quotes: they have rules of their own.
        Some("private/mass_quote") => Pool::None,
        Some(method) if method.strip_prefix("private/").is_some_and(|name| METHODS.contains(&name)) => {
            Pool::MatchingEngine
        }
        _ => Pool::Common,
    }
}

/// A request's method, found without parsing the rest of it.
fn method(message: &Message) -> Option<&str> {
    let text = message.as_text()?;
    // Inside another string its quotes would be escaped, and as a value no colon would follow.
    text.match_indices("\"method\"").find_map(|(at, key)| {
        let value = text[at + key.len()..].trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        value.split('"').next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_hmac_sha256() {
        // The expected value is from Python's hmac and hashlib.
        let signed = signature("AMANDASECRECT", 1_576_074_319_000, "1iqt2wls", "");
        assert_eq!(signed, "56590594f97921b09b18f166befe0d1319b198bbcdad7ca73382de2f88fe9aa1");
    }

    #[test]
    fn costs_are_found_by_the_method_whatever_else_the_message_says() {
        let me = |text: &str| pool(&Message::text(text)) == Pool::MatchingEngine;
        assert!(me(r#"{"jsonrpc":"2.0","id":1,"method":"private/buy","params":{"label":"x"}}"#));
        assert!(me(
            r#"{"params":{"label":"method","note":"\"method\":\"public/test\""},"method" : "private/cancel_all"}"#
        ));
        assert!(!me(r#"{"method":"private/get_positions","params":{"label":"private/buy"}}"#));
        assert!(!me(r#"{"method":"public/buy"}"#));
        assert!(!me("private/buy"));
        assert_eq!(pool(&Message::text(r#"{"method":"public/ticker"}"#)), Pool::Common);
        assert_eq!(pool(&Message::text(r#"{"method":"private/subscribe"}"#)), Pool::Subscribe);
        assert_eq!(pool(&Message::text(r#"{"method":"private/unsubscribe"}"#)), Pool::Common);
    }

    #[test]
    fn a_notification_says_whose_it_is() {
        let of = |text: &str| {
            let message = Message::from(text);
            Deribit::new().channel_of(message.view()).map(Cow::into_owned)
        };
        let book = r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.BTC-PERPETUAL.raw","data":{"bids":[]}}}"#;
        assert_eq!(of(book).as_deref(), Some("book.BTC-PERPETUAL.raw"));
        assert_eq!(of(r#"{"jsonrpc":"2.0","id":1,"result":[]}"#), None);
    }

    #[test]
    fn private_channels_go_by_the_private_method() {
        let names: Vec<Arc<str>> = ["user.orders.BTC-PERPETUAL.raw", "book.BTC-PERPETUAL.raw"].map(Arc::from).into();
        let batches = batches("subscribe", &names);
        let told: Vec<_> = batches.iter().map(|batch| (&*batch.request.method, &*batch.channels[0])).collect();
        assert_eq!(told, [("public/subscribe", &*names[1]), ("private/subscribe", &*names[0])]);
        let many: Vec<Arc<str>> = (0..600).map(|n| n.to_string().into()).collect();
        assert_eq!(super::batches("unsubscribe", &many).len(), 3);
    }

    #[test]
    fn secrets_are_never_printed() {
        let venue = Deribit::new().client_credentials("the-id", "the-secret");
        let request = Request::new("public/auth", venue.auth(venue.credentials.as_ref().unwrap()));
        assert!(venue.correlation().encode(&request, &1.into()).unwrap().as_text().unwrap().contains("the-secret"));
        let signed = Deribit::new().client_signature("the-id", "the-secret");
        assert!(!signed.auth(signed.credentials.as_ref().unwrap()).to_string().contains("the-secret"));
        assert!(!format!("{venue:?} {request:?}").contains("the-secret"));
    }
}
