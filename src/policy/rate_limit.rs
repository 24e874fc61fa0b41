//! How much may be written, and how fast: token buckets in front of every message, by the generic cell rate algorithm
//! (GCRA). Written here because the field's crate can neither give a token back nor go into debt, and a message has to
//! pay all limits or none, a heartbeat to go whatever they say.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::error::{ConfigError, SendError};
use crate::message::Message;

/// A limit on what a client writes, as venues have them. Heartbeats, answers to the venue's tests, pings and close
/// frames are never held up by it. A clone shares the bucket: give clones to the clients of one account.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, RateLimit};
///
/// // The whole account: a bucket of 100 requests, refilled by 20 a second.
/// let account = RateLimit::bucket(100, 20, Duration::from_secs(1))?;
/// let orders = ClientConfig::new("wss://venue.example/orders")?.rate_limit(account.clone());
/// let prices = ClientConfig::new("wss://venue.example/prices")?.rate_limit(account);
/// # let _ = (orders, prices);
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct RateLimit {
    bucket: Arc<Bucket>,
    scope: Scope,
    cost: Option<Arc<Cost>>,
    /// Tokens that are left to messages for which the function says so.
    reserve: Option<(u32, Arc<Entitled>)>,
}

type Cost = dyn Fn(&Message) -> u32 + Send + Sync;

type Entitled = dyn Fn(&Message) -> bool + Send + Sync;

/// Whose messages a bucket counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Those of every client that has a clone.
    Shared,
    /// Those of one client, over all its connections.
    Client,
    /// Those of one connection: the next begins with a full bucket.
    Connection,
}

/// Why a message has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Over {
    /// For so long, if nobody else comes first.
    Wait(Duration),
    /// For ever: it costs more than the bucket holds.
    Never { cost: u32, capacity: u32 },
}

impl Over {
    /// The refusal of a message that is over.
    pub(crate) fn refuse(self, message: Message) -> SendError {
        match self {
            Self::Wait(retry_after) => SendError::RateLimited { message, retry_after },
            Self::Never { cost, capacity } => SendError::TooCostly { message, cost, capacity },
        }
    }
}

/// Time is counted in nanoseconds since the first `now` that anyone gave.
#[derive(Debug)]
struct Bucket {
    capacity: u32,
    /// Nanoseconds in which a token drips.
    interval: u64,
    base: OnceLock<Instant>,
    /// The latest `now`: one that is given late is no earlier.
    latest: AtomicU64,
    /// When the bucket is full again; earlier than now when it is. Further away than it takes to fill means debt.
    full_at: AtomicU64,
    /// When it was full last, as far as anybody has seen.
    was_full: AtomicU64,
}

impl Bucket {
    fn new(capacity: u32, interval: u64) -> Self {
        let (latest, full_at, was_full) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { capacity, interval, base: OnceLock::new(), latest, full_at, was_full }
    }

    fn nanos(&self, now: Instant) -> u64 {
        let nanos = self.nanos_at(now);
        self.latest.fetch_max(nanos, Ordering::Relaxed).max(nanos)
    }

    fn nanos_at(&self, at: Instant) -> u64 {
        let base = *self.base.get_or_init(|| at);
        u64::try_from(at.saturating_duration_since(base).as_nanos()).unwrap_or(u64::MAX / 2)
    }

    /// Something was taken at `now`, when the bucket was to be full at `full_at`.
    fn took(&self, now: u64, full_at: u64) {
        if full_at <= now {
            self.was_full.fetch_max(now, Ordering::Relaxed);
        }
    }

    fn time_for(&self, tokens: u32) -> u64 {
        self.interval * u64::from(tokens)
    }

    /// Takes what a message pays, if what it must leave remains.
    fn take(&self, toll: &Toll, now: Instant) -> Result<(), Over> {
        let now = self.nanos(now);
        let fits = |full_at| self.after(toll, now, full_at).ok();
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(|full_at| self.took(now, full_at)).or_else(|full_at| self.after(toll, now, full_at).map(drop))
    }

    /// Whether it could be taken now.
    fn look(&self, toll: &Toll, now: Instant) -> Result<(), Over> {
        self.after(toll, self.nanos(now), self.full_at.load(Ordering::Relaxed)).map(drop)
    }

    /// When the bucket is full again, once that is taken.
    fn after(&self, toll: &Toll, now: u64, full_at: u64) -> Result<u64, Over> {
        let most = self.capacity.saturating_sub(toll.left);
        if toll.tokens > most {
            return Err(Over::Never { cost: toll.tokens, capacity: most });
        }
        let (after, limit) = (full_at.max(now) + self.time_for(toll.tokens), now + self.time_for(most));
        if after <= limit { Ok(after) } else { Err(Over::Wait(Duration::from_nanos(after - limit))) }
    }

    /// Takes them though they may not be there: the next ones wait for that. The debt is never more than the bucket holds.
    fn force(&self, tokens: u32, now: Instant) {
        let now = self.nanos(now);
        let most = now + 2 * self.time_for(self.capacity);
        let after = |full_at: u64| Some((full_at.max(now) + self.time_for(tokens)).min(most));
        let forced = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        forced.into_iter().for_each(|full_at| self.took(now, full_at));
    }

    /// Gives back what was taken before `paid_at`, unless the bucket has been full since: then it has dripped back already, and
    /// perhaps gone to others.
    fn refund(&self, tokens: u32, paid_at: Instant) {
        if self.was_full.load(Ordering::Relaxed) <= self.nanos_at(paid_at) {
            self.give_back(tokens);
        }
    }

    fn give_back(&self, tokens: u32) {
        let before = |full_at: u64| Some(full_at.saturating_sub(self.time_for(tokens)));
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, before);
    }
}

impl RateLimit {
    /// A bucket of `capacity` tokens, full at first, into which `refill` tokens drip evenly over each `period`. Each
    /// message takes one, unless [`cost`](RateLimit::cost) says otherwise.
    ///
    /// # Errors
    /// When one of the three is zero, `refill` tokens a `period` are more than one a nanosecond, or an empty bucket would
    /// take more than a century to fill.
    pub fn bucket(capacity: u32, refill: u32, period: Duration) -> Result<Self, ConfigError> {
        let interval = period.checked_div(refill).unwrap_or_default();
        Self::drip(capacity, interval)
    }

    /// Never more than `limit` messages in any window of `period`, however it is laid. A quarter of the limit may go at
    /// once, the rest is spread evenly over the window: a bucket that holds all of the limit and is refilled in one
    /// period would let almost twice the limit pass in the first. One message fewer than the
    /// limit is sent in a window, so that one that the network delays can't push the venue's count over.
    ///
    /// # Errors
    /// When one of the two is zero.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::RateLimit;
    /// let binance = RateLimit::window(5, Duration::from_secs(1))?;
    /// # let _ = binance;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn window(limit: u32, period: Duration) -> Result<Self, ConfigError> {
        if limit == 0 {
            return Err(ConfigError::new("rate_limit", "the limit must be at least 1"));
        }
        let burst = (limit / 4).max(1);
        let refill = (limit - burst).max(1);
        // Rounded up: a nanosecond too short, and over a million messages there is one too many.
        let interval = period.as_nanos().div_ceil(refill.into());
        Self::drip(burst, Duration::from_nanos(u64::try_from(interval).unwrap_or(u64::MAX)))
    }

    /// With one token in each interval.
    fn drip(capacity: u32, interval: Duration) -> Result<Self, ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("rate_limit", rule));
        if capacity == 0 {
            return refuse("the bucket must hold at least one token");
        }
        if interval.is_zero() {
            return refuse("must refill, by at most one token a nanosecond");
        }
        // A century in nanoseconds, and then some: sums of two such stay far from the end of 64 bits.
        let nanos = u64::try_from(interval.as_nanos())
            .ok()
            .filter(|nanos| u128::from(*nanos) * u128::from(capacity) <= u128::from(u64::MAX / 4));
        let Some(nanos) = nanos else { return refuse("must be full again within a century") };
        let bucket = Arc::new(Bucket::new(capacity, nanos));
        Ok(Self { bucket, scope: Scope::Shared, cost: None, reserve: None })
    }

    /// What a message costs; 0 for one that this limit does not count. Of the same bucket: clones made before share it
    /// too. The function runs on the thread that sends, under no lock. A request is written before it is asked; should
    /// it then have to wait, it is written anew when it is let out.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::RateLimit;
    /// let orders_only = RateLimit::bucket(20, 5, Duration::from_secs(1))?
    ///     .cost(|message| u32::from(message.as_text().is_some_and(|text| text.contains("/buy"))));
    /// # let _ = orders_only;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn cost(mut self, cost: impl Fn(&Message) -> u32 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Leaves so many tokens to messages for which `entitled` says so, as cancels: orders can't use up the bucket that a
    /// cancel needs. Runs as [`cost`](RateLimit::cost) does. Must be smaller than the bucket, which the configuration is checked
    /// for. While messages that waited for a connection go out at the limit's pace,
    /// only the entitled overtake them. Defaults to none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{Client, ClientConfig, RateLimit, SendError};
    /// # let server = ws_supervisor::testing::Server::echo()?;
    /// # let url = server.url();
    /// let limit = RateLimit::bucket(3, 1, Duration::from_secs(60))?
    ///     .reserve(1, |message| message.as_text().is_some_and(|text| text.starts_with("cancel")));
    /// let client = Client::connect(ClientConfig::new(url)?.rate_limit(limit))?;
    /// client.send("order 1")?;
    /// client.send("order 2")?;
    /// assert!(matches!(client.send("order 3"), Err(SendError::RateLimited { .. })));
    /// client.send("cancel all")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(mut self, tokens: u32, entitled: impl Fn(&Message) -> bool + Send + Sync + 'static) -> Self {
        self.reserve = Some((tokens, Arc::new(entitled)));
        self
    }

    /// Gives each client a bucket of its own, though the configuration is cloned.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{ClientConfig, RateLimit};
    /// let each = RateLimit::bucket(10, 10, Duration::from_secs(1))?.per_client();
    /// let config = ClientConfig::new("wss://venue.example")?.rate_limit(each);
    /// let (one, another) = (config.clone(), config);
    /// # let _ = (one, another);
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn per_client(mut self) -> Self {
        self.scope = Scope::Client;
        self
    }

    /// Counts each connection by itself: a client's next connection begins with a full bucket. For venues that limit what
    /// comes over one connection.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::RateLimit;
    /// let binance = RateLimit::window(5, Duration::from_secs(1))?.per_connection();
    /// # let _ = binance;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn per_connection(mut self) -> Self {
        self.scope = Scope::Connection;
        self
    }

    /// Whether others than the entitled could ever send.
    pub(crate) fn leaves_something(&self) -> bool {
        self.reserve.as_ref().is_none_or(|(reserve, _)| *reserve < self.bucket.capacity)
    }

    fn toll(&self, message: &Message) -> Toll {
        let tokens = self.cost.as_ref().map_or(1, |cost| cost(message));
        let (left, entitled) = match &self.reserve {
            Some((_, entitled)) if tokens > 0 && entitled(message) => (0, true),
            Some((reserve, _)) if tokens > 0 => (*reserve, false),
            _ => (0, false),
        };
        Toll { tokens, left, entitled }
    }
}

impl RateLimit {
    /// One token, whatever it is for; or for how long there is none.
    pub(crate) fn take_one(&self, now: Instant) -> Result<(), Duration> {
        self.bucket.take(&Toll { tokens: 1, left: 0, entitled: false }, now).map_err(|over| match over {
            Over::Wait(wait) => wait,
            Over::Never { .. } => Duration::MAX,
        })
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimit(bucket of {}, {:?})", self.bucket.capacity, self.scope)
    }
}

/// What a message pays to one limit, and how many tokens it must leave there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Toll {
    tokens: u32,
    left: u32,
    /// Tokens are reserved for such as this.
    entitled: bool,
}

/// What a message pays to each limit. Found out by code of the caller's, so never under a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Price {
    tolls: Box<[Toll]>,
    /// When it was paid, if it was and that is more than nothing.
    paid_at: Option<Instant>,
}

impl Price {
    /// It was paid just now. The clock is not asked where nothing is paid.
    pub(crate) fn is_paid(&mut self, clock: impl FnOnce() -> Instant) {
        if !self.tolls.is_empty() {
            self.paid_at = Some(clock());
        }
    }

    /// Whether it has been paid, as far as the limits take anything.
    pub(crate) fn has_paid(&self) -> bool {
        self.tolls.is_empty() || self.paid_at.is_some()
    }

    /// Whether a limit reserves tokens for it.
    pub(crate) fn is_entitled(&self) -> bool {
        self.tolls.iter().any(|toll| toll.entitled)
    }
}

/// All limits of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits(Vec<RateLimit>);

impl Limits {
    /// For one client: what is not shared becomes its own.
    pub(crate) fn for_client(limits: &[RateLimit]) -> Self {
        let own = |limit: &RateLimit| match limit.scope {
            Scope::Shared => limit.clone(),
            Scope::Client | Scope::Connection => {
                let Bucket { capacity, interval, .. } = *limit.bucket;
                RateLimit { bucket: Arc::new(Bucket::new(capacity, interval)), ..limit.clone() }
            }
        };
        Self(limits.iter().map(own).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a message has to be written before its price is known.
    pub(crate) fn read_messages(&self) -> bool {
        self.0.iter().any(|limit| limit.cost.is_some() || limit.reserve.is_some())
    }

    pub(crate) fn price(&self, message: &Message) -> Price {
        Price { tolls: self.0.iter().map(|limit| limit.toll(message)).collect(), paid_at: None }
    }

    /// Takes what a message pays from every bucket, or nothing from any.
    pub(crate) fn take(&self, price: &Price, now: Instant) -> Result<(), Over> {
        // Asked first, so that what will be refused takes nothing meanwhile from those who need less; and all of them, so that
        // the wait that is told is the longest.
        if self.0.len() > 1 {
            let refusals = self.tolls(price).filter_map(|(limit, toll)| limit.bucket.look(toll, now).err());
            refusals.max().map_or(Ok(()), Err)?;
        }
        for (index, (limit, toll)) in self.tolls(price).enumerate() {
            if let Err(over) = limit.bucket.take(toll, now) {
                self.tolls(price).take(index).for_each(|(limit, toll)| limit.bucket.give_back(toll.tokens));
                return Err(over);
            }
        }
        Ok(())
    }

    /// Takes it though it may not be there.
    pub(crate) fn force(&self, price: &Price, now: Instant) {
        self.tolls(price).for_each(|(limit, toll)| limit.bucket.force(toll.tokens, now));
    }

    /// What was paid was for nothing: it is given back, once.
    pub(crate) fn refund(&self, price: &mut Price) {
        if let Some(paid_at) = price.paid_at.take() {
            self.tolls(price).for_each(|(limit, toll)| limit.bucket.refund(toll.tokens, paid_at));
        }
    }

    /// Whether a message pays more than one of the buckets ever holds.
    pub(crate) fn check(&self, price: &Price) -> Result<(), Over> {
        self.tolls(price).try_for_each(|(limit, toll)| match limit.bucket.capacity.saturating_sub(toll.left) {
            capacity if toll.tokens > capacity => Err(Over::Never { cost: toll.tokens, capacity }),
            _ => Ok(()),
        })
    }

    /// A connection begins.
    pub(crate) fn begin_connection(&self, now: Instant) {
        for RateLimit { bucket, .. } in self.0.iter().filter(|limit| limit.scope == Scope::Connection) {
            bucket.full_at.store(0, Ordering::Relaxed);
            bucket.took(bucket.nanos(now), 0);
        }
    }

    fn tolls<'a>(&'a self, price: &'a Price) -> impl Iterator<Item = (&'a RateLimit, &'a Toll)> {
        self.0.iter().zip(&price.tolls).filter(|(_, toll)| toll.tokens > 0)
    }
}

#[cfg(test)]
#[path = "rate_limit_tests.rs"]
mod tests;
