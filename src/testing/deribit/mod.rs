//! An embedded Deribit: a server that speaks the venue's dialect and holds clients to its documented rules. Its messages
//! have the fields of recorded ones. It serves `wss://…/ws/api/v2`, and over HTTP the few public methods that client
//! libraries ask first.

mod desk;
mod exchange;
mod market;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use parking_lot::Mutex;
use serde_json::Value;

use self::exchange::{Exchange, Rules, Seat};
use super::script::{Conduct, Say};
use super::{Inner, Script, Server};
use crate::message::Message;

/// An embedded Deribit, for your tests and demonstrations (features `testing` and `deribit`). The rules it enforces:
/// nothing private without signing in; a token of the connection's own dies with it; a `test_request` that is not
/// answered, or credits that run out, end the session; unknown channels are refused; raw channels need an account;
/// cancel-on-disconnect cancels. What broke a rule is in [`violations`](DeribitServer::violations).
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{Client, ClientConfig, testing::DeribitServer, venue::deribit::{self, Deribit, Order}};
///
/// let server = DeribitServer::start()?; // knows the account "id" with the secret "secret"
/// let venue = Deribit::new().client_signature("id", "secret").cancel_on_disconnect(true);
/// let config = ClientConfig::new(server.url())?.venue(venue).subscribe(["user.orders.BTC-PERPETUAL.raw"]);
/// let client = Client::connect(config)?;
/// let order = Order::limit("BTC-PERPETUAL", 10.0, 1_000.0).label("low");
/// let placed: serde_json::Value = client.call(deribit::buy(&order))?;
/// assert_eq!(placed["order"]["order_state"], "open");
/// client.close()?;
/// assert!(server.wait_until(Duration::from_secs(5), |server| server.open_orders() == 0));
/// assert_eq!(server.violations(), Vec::<String>::new());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a server ends its connections"]
pub struct DeribitServer {
    server: Server,
    shared: Arc<Shared>,
    feed: Option<(Sender<()>, JoinHandle<()>)>,
}

struct Shared {
    exchange: Mutex<Exchange>,
    inner: OnceLock<Weak<Inner>>,
}

impl Shared {
    /// Does something to the exchange, and delivers what others are to hear of it.
    fn with<T>(&self, act: impl FnOnce(&mut Exchange) -> T) -> T {
        // Delivered under the lock: what one connection hears is in the order in which it happened.
        let mut exchange = self.exchange.lock();
        let result = act(&mut exchange);
        let mail = std::mem::take(&mut exchange.mail);
        if let Some(inner) = self.inner.get().and_then(Weak::upgrade) {
            mail.into_iter().for_each(|(peer, message)| inner.push_to(peer, message));
        }
        result
    }
}

/// Settings of a [`DeribitServer`].
#[must_use = "a builder does nothing until `start`"]
pub struct DeribitServerBuilder {
    rules: Rules,
    tls: bool,
    every: Option<Duration>,
}

impl DeribitServerBuilder {
    /// Knows this account too.
    pub fn account(mut self, id: &str, secret: &str) -> Self {
        self.rules.accounts.insert(id.into(), secret.into());
        self
    }

    /// The credits of an account and their refill a second. Defaults to 50,000 and 10,000.
    pub fn credits(mut self, capacity: u32, refill: u32) -> Self {
        self.rules.credits = (capacity.into(), refill.into());
        self
    }

    /// How many requests an account may send to the matching engine at once, and a second. Defaults to 20 and 5.
    pub fn matching_engine(mut self, burst: u32, a_second: u32) -> Self {
        self.rules.matching_engine = (burst.into(), a_second.into());
        self
    }

    /// How long one second of `set_heartbeat`'s interval lasts here. Defaults to a second.
    pub fn heartbeat_second(mut self, time: Duration) -> Self {
        self.rules.second = time;
        self
    }

    /// How long a token holds. Defaults to 15 minutes.
    pub fn token_lifetime(mut self, time: Duration) -> Self {
        self.rules.token_lifetime = time;
        self
    }

    /// Serves wss; clients must trust [`DeribitServer::ca_pem`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Lets something happen on the market once in this time. Defaults to when you call [`DeribitServer::step`].
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = Some(interval);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the operating system gives no port or thread.
    pub fn start(self) -> io::Result<DeribitServer> {
        let shared = Arc::new(Shared { exchange: Mutex::new(Exchange::new(self.rules)), inner: OnceLock::new() });
        let (desk, rest) = (shared.clone(), shared.clone());
        let script = Script::conducted(
            move |peer| {
                desk.with(|exchange| exchange.peers.insert(peer.index, Seat::default()));
                Box::new(Connection { shared: desk.clone(), index: peer.index })
            },
            move |target| rest.with(|exchange| desk::rest(exchange, target)),
        );
        let server = if self.tls { Server::start_tls(script)? } else { Server::start(script)? };
        let _ = shared.inner.set(Arc::downgrade(&server.inner));
        let feed = match self.every {
            None => None,
            Some(interval) => {
                let (stop, stopped) = crossbeam_channel::bounded(0);
                let shared = shared.clone();
                let run = move || {
                    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                        shared.with(Exchange::step);
                    }
                };
                Some((stop, std::thread::Builder::new().name("test-deribit".into()).spawn(run)?))
            }
        };
        Ok(DeribitServer { server, shared, feed })
    }
}

impl DeribitServer {
    /// With default rules and one account, `id` with the secret `secret`.
    ///
    /// # Errors
    /// When the operating system gives no port or thread.
    pub fn start() -> io::Result<Self> {
        Self::builder().start()
    }

    /// With rules of your choice.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::testing::DeribitServer;
    /// let server = DeribitServer::builder().account("desk", "hush").every(Duration::from_millis(10)).start()?;
    /// assert!(server.url().ends_with("/ws/api/v2"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn builder() -> DeribitServerBuilder {
        DeribitServerBuilder {
            rules: Rules {
                accounts: HashMap::from([("id".into(), "secret".into())]),
                credits: (50_000.0, 10_000.0),
                matching_engine: (20.0, 5.0),
                second: Duration::from_secs(1),
                token_lifetime: Duration::from_secs(900),
            },
            tls: false,
            every: None,
        }
    }

    /// `ws://127.0.0.1:port/ws/api/v2`, or `wss://127.0.0.1:port/ws/api/v2`.
    pub fn url(&self) -> String {
        format!("{}ws/api/v2", self.server.url())
    }

    /// The certificate of the CA that signed its own; empty without TLS.
    pub fn ca_pem(&self) -> String {
        self.server.ca_pem()
    }

    /// The server beneath: its records, and its faults.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Lets this many things happen on the market.
    pub fn step(&self, times: usize) {
        (0..times).for_each(|_| self.shared.with(Exchange::step));
    }

    /// Loses a change of this instrument's book, as if it had never been sent: the next one's `prev_change_id` is not the
    /// last one's `change_id`. Returns whether there is such an instrument.
    pub fn break_chain(&self, instrument: &str) -> bool {
        self.shared.with(|exchange| {
            let Some(index) = exchange.market(instrument) else { return false };
            exchange.markets[index].change_id += 1;
            exchange.step_market(index);
            true
        })
    }

    /// Orders that are open.
    pub fn open_orders(&self) -> usize {
        self.shared.with(|exchange| exchange.orders.values().filter(|order| order.state == "open").count())
    }

    /// Every order, as the venue describes it.
    pub fn orders(&self) -> Vec<Value> {
        self.shared.with(|exchange| exchange.orders.keys().map(|id| exchange.describe(*id)).collect())
    }

    /// The channels of each open connection, by its number.
    pub fn subscriptions(&self) -> Vec<(usize, BTreeSet<String>)> {
        self.shared.with(|exchange| exchange.peers.iter().map(|(peer, seat)| (*peer, seat.channels.clone())).collect())
    }

    /// What clients did against the rules.
    pub fn violations(&self) -> Vec<String> {
        self.shared.with(|exchange| exchange.violations.clone())
    }

    /// Waits until `condition` holds, at most `timeout`; returns whether it does.
    pub fn wait_until(&self, timeout: Duration, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        while !condition(self) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for DeribitServer {
    fn drop(&mut self) {
        if let Some((stop, feed)) = self.feed.take() {
            drop(stop);
            let _ = feed.join();
        }
    }
}

/// One connection's place at the exchange.
struct Connection {
    shared: Arc<Shared>,
    index: usize,
}

impl Conduct for Connection {
    fn message(&mut self, message: &Message) -> Vec<Say> {
        self.shared.with(|exchange| desk::answer(exchange, self.index, message, Instant::now()))
    }

    fn due(&self) -> Option<Instant> {
        let exchange = self.shared.exchange.lock();
        exchange.peers.get(&self.index)?.heartbeat.as_ref().map(|pulse| pulse.next)
    }

    fn tick(&mut self, now: Instant) -> Vec<Say> {
        self.shared.with(|exchange| exchange.pulse(self.index, now))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.with(|exchange| exchange.disconnect(self.index));
    }
}

impl std::fmt::Debug for DeribitServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeribitServer").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DeribitServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeribitServerBuilder").finish_non_exhaustive()
    }
}
