//! The options of [`ClientConfig`] that make a connection a session: who signs in, what is restored, what is limited.

use std::sync::Arc;
use std::time::Duration;

use super::ClientConfig;
use crate::correlation::Correlation;
use crate::dial::Dial;
use crate::error::SessionError;
use crate::policy::rate_limit::RateLimit;
use crate::session::Session;
use crate::unsettled::Unsettled;
use crate::venue::Venue;

impl ClientConfig {
    /// Speaks this venue's dialect: its heartbeat, its way to sign in and to subscribe, its limits, its connections' age.
    /// What you set yourself wins, before or after this call. Defaults to none: then [`subscribe`](ClientConfig::subscribe) is not there.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, venue::binance::Binance};
    /// let config = ClientConfig::new("wss://stream.binance.com:9443/stream")?.venue(Binance::spot());
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn venue(mut self, venue: impl Venue) -> Self {
        self.venue = Some(Arc::new(venue));
        self
    }

    /// Channels that the client wants from the start, as if [`Client::subscribe`](crate::Client::subscribe) had been
    /// called; call it again for more. They are subscribed to before [`Event::Open`](crate::Event::Open), which tells
    /// what the server refused. Defaults to none.
    ///
    /// ```
    /// use ws_supervisor::{Client, ClientConfig, Event, testing::DeribitServer, venue::deribit::Deribit};
    ///
    /// let server = DeribitServer::start()?;
    /// let config = ClientConfig::new(server.url())?.venue(Deribit::new()).subscribe(["trades.BTC-PERPETUAL.100ms"]);
    /// let client = Client::connect(config)?;
    /// match client.events().recv()? {
    ///     Event::Open { restored, .. } => assert_eq!(&*restored[0], "trades.BTC-PERPETUAL.100ms"),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscribe<C: AsRef<str>>(mut self, channels: impl IntoIterator<Item = C>) -> Self {
        self.channels.extend(channels.into_iter().map(|channel| Arc::from(channel.as_ref())));
        self
    }

    /// Called before every attempt to connect: may set the URL, headers and a token afresh. It runs on the client's
    /// thread and may block; while it does, the client can neither be stopped nor told anything, so keep an eye on
    /// [`Dial::deadline`]. Its error fails the attempt, its panic is the worker's. Defaults to nothing.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// # fn fresh_token() -> Result<String, std::io::Error> { Ok("abc".into()) }
    ///
    /// let config = ClientConfig::new("wss://venue.example/ws")?.prepare(|dial| {
    ///     let token = fresh_token().map_err(ws_supervisor::SessionError::retryable)?;
    ///     dial.header("Authorization", format!("Bearer {token}"))?;
    ///     Ok(())
    /// });
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn prepare(mut self, prepare: impl Fn(&mut Dial) -> Result<(), SessionError> + Send + Sync + 'static) -> Self {
        self.prepare = Some(Arc::new(prepare));
        self
    }

    /// Called after every handshake (and after a [`venue`](ClientConfig::venue) has signed in), before anyone is told
    /// that the client is open: straight-line code that may send, ask and wait. It runs on the client's thread, until
    /// [`connect_timeout`](ClientConfig::connect_timeout) at the latest. Its error ends the attempt: retried, or with
    /// [`SessionError::fatal`] the client is parked. Its panic is the worker's. Defaults to nothing.
    ///
    /// ```
    /// use serde_json::{Value, json};
    /// use ws_supervisor::ClientConfig;
    ///
    /// let config = ClientConfig::new("wss://venue.example/ws")?.on_open(|session| {
    ///     let _: Value = session
    ///         .request("login", json!({"key": "k"}))
    ///         .map_err(|error| if error.rpc().is_some() { error.into_fatal() } else { error })?;
    ///     session.send("start")?;
    ///     Ok(())
    /// });
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn on_open(
        mut self,
        on_open: impl Fn(&mut Session<'_>) -> Result<(), SessionError> + Send + Sync + 'static,
    ) -> Self {
        self.on_open = Some(Arc::new(on_open));
        self
    }

    /// Called on every connection but the first, when it is signed in and its channels are restored, before anything of
    /// the caller's may be sent: the place to ask the venue what became of open orders. It is given what the last open
    /// connection left undecided, which [`Event::Disconnected`](crate::Event::Disconnected) has told too: send again what still
    /// holds in one of the two places. Until it returns, sends are refused as without a connection; its error ends the
    /// attempt, and the next connection has to settle the same. Defaults to nothing: traffic flows at once.
    ///
    /// ```
    /// use serde_json::{Value, json};
    /// use ws_supervisor::ClientConfig;
    ///
    /// let config = ClientConfig::new("wss://venue.example/ws")?.reconcile(|session, unsettled| {
    ///     println!("{} never sent, {} unknown", unsettled.unsent.len(), unsettled.unknown.len());
    ///     let orders: Vec<Value> = session.request("private/get_open_orders", json!({}))?;
    ///     println!("{} open orders", orders.len());
    ///     Ok(())
    /// });
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn reconcile(
        mut self,
        reconcile: impl Fn(&mut Session<'_>, &Unsettled) -> Result<(), SessionError> + Send + Sync + 'static,
    ) -> Self {
        self.reconcile = Some(Arc::new(reconcile));
        self
    }

    /// As [`reconcile`](ClientConfig::reconcile), and on the first connection of the process as well, where `unsettled` is
    /// empty: a process that was restarted does not know its open orders, and the venue does.
    ///
    /// ```
    /// use serde_json::{Value, json};
    /// use ws_supervisor::ClientConfig;
    ///
    /// let config = ClientConfig::new("wss://venue.example/ws")?.reconcile_from_start(|session, _| {
    ///     let orders: Vec<Value> = session.request("private/get_open_orders", json!({}))?;
    ///     println!("{} orders are open from an earlier life", orders.len());
    ///     Ok(())
    /// });
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn reconcile_from_start(
        mut self,
        reconcile: impl Fn(&mut Session<'_>, &Unsettled) -> Result<(), SessionError> + Send + Sync + 'static,
    ) -> Self {
        self.reconciles_first = true;
        self.reconcile(reconcile)
    }

    /// How requests are written and answers recognised. Defaults to [`Correlation::json_rpc`], or to the
    /// [`venue`](ClientConfig::venue)'s.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Correlation, venue::{Venue, binance::Binance}};
    /// let config = ClientConfig::new("wss://venue.example")?.correlation(Binance::spot().correlation());
    /// # let _ = config.correlation(Correlation::json_rpc());
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn correlation(mut self, correlation: Correlation) -> Self {
        self.correlation = Some(correlation);
        self
    }

    /// How long a request waits for its answer, and `subscribe` for its acknowledgements. Defaults to 30 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.request_timeout(Duration::from_secs(5));
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn request_timeout(mut self, time: Duration) -> Self {
        self.request_timeout = time;
        self
    }

    /// Limits what is written; call it again for more limits, each of which a message must pass, in this order, a venue's
    /// own last. Tokens taken from an earlier limit are returned if a later one refuses. Heartbeat messages never wait,
    /// but count. What [waited for a connection](ClientConfig::queue_while_disconnected) is let out at the limits' pace,
    /// and until it is out new messages are refused. Defaults to none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{Client, ClientConfig, RateLimit, SendError};
    /// # let server = ws_supervisor::testing::Server::echo()?;
    /// # let url = server.url();
    /// let one_an_hour = RateLimit::window(1, Duration::from_secs(3600))?;
    /// let client = Client::connect(ClientConfig::new(url)?.rate_limit(one_an_hour))?;
    /// client.send("first")?;
    /// assert!(matches!(client.send("second"), Err(SendError::RateLimited { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.limits.push(limit);
        self
    }

    /// Replaces a connection once it is this old: waits up to 10 s for the answers to pending requests, closes it and
    /// dials at once. Defaults to the [`venue`](ClientConfig::venue)'s, or to any age.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.max_age(Duration::from_secs(23 * 3600));
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }
}
