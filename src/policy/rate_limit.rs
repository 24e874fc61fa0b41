//! How much may be written, and how fast: token buckets in front of every message. The arithmetic is governor's (GCRA,
//! lock-free); what is ours is what a message costs and who shares a bucket.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

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
    meter: Arc<Meter>,
    capacity: u32,
    cost: Arc<dyn Fn(&Message) -> u32 + Send + Sync>,
}

/// Why a message has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

type Bucket = RateLimiter<NotKeyed, InMemoryState, Given, NoOpMiddleware<Nanos>>;

/// governor reads a clock; this one shows the latest `now` that anyone gave.
#[derive(Clone, Debug, Default)]
struct Given(Arc<Latest>);

#[derive(Debug, Default)]
struct Latest {
    base: OnceLock<Instant>,
    /// Nanoseconds since `base`.
    nanos: AtomicU64,
}

impl Given {
    fn give(&self, now: Instant) {
        let base = *self.0.base.get_or_init(|| now);
        let nanos = u64::try_from(now.saturating_duration_since(base).as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.fetch_max(nanos, Ordering::Relaxed);
    }
}

impl Clock for Given {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.nanos.load(Ordering::Relaxed).into()
    }
}

struct Meter {
    bucket: Bucket,
    given: Given,
}

impl Meter {
    fn take(&self, tokens: NonZeroU32, now: Instant) -> Result<(), Over> {
        self.given.give(now);
        match self.bucket.check_n(tokens) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(Over::Wait(not_until.wait_time_from(self.given.now()))),
            Err(capacity) => Err(Over::Never { cost: tokens.get(), capacity: capacity.0 }),
        }
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
        let burst = (limit / 4).max(limit.min(1));
        let refill = (limit - burst).max(1);
        // Rounded up: a nanosecond too short, and over a million messages there is one too many.
        let interval = period.as_nanos().div_ceil(refill.into());
        Self::drip(burst, Duration::from_nanos(u64::try_from(interval).unwrap_or(u64::MAX)))
    }

    /// With one token in each interval.
    fn drip(capacity: u32, interval: Duration) -> Result<Self, ConfigError> {
        let refuse = |rule: &str| ConfigError::new("rate_limit", rule);
        let size = NonZeroU32::new(capacity).ok_or_else(|| refuse("the bucket must hold at least one token"))?;
        let never = || refuse("must refill, by at most one token a nanosecond");
        // governor counts in nanoseconds of 64 bits.
        if interval.as_nanos().saturating_mul(capacity.into()) > u128::from(u64::MAX / 4) {
            return Err(refuse("must be full again within a century"));
        }
        let quota = Quota::with_period(interval).ok_or_else(never)?.allow_burst(size);
        let given = Given::default();
        let meter = Meter { bucket: RateLimiter::direct_with_clock(quota, given.clone()), given };
        Ok(Self { meter: Arc::new(meter), capacity, cost: Arc::new(|_| 1) })
    }

    /// What a message costs; 0 for one that this limit does not count. Of the same bucket: clones made before share it
    /// too. The function runs on the thread that sends.
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
        self.cost = Arc::new(cost);
        self
    }

    fn charge(&self, message: &Message, now: Instant) -> Result<(), Over> {
        match NonZeroU32::new((self.cost)(message)) {
            Some(tokens) => self.meter.take(tokens, now),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimit(bucket of {})", self.capacity)
    }
}

/// Takes what a message costs from every bucket. Should a later one refuse, what an earlier one gave is spent.
pub(crate) fn charge(limits: &[RateLimit], message: &Message, now: Instant) -> Result<(), Over> {
    limits.iter().try_for_each(|limit| limit.charge(message, now))
}

/// As `charge`, from where an earlier attempt was stopped: `passed` counts the limits that have let the message pass.
pub(crate) fn charge_on(limits: &[RateLimit], message: &Message, passed: &mut usize, now: Instant) -> Result<(), Over> {
    for limit in limits.iter().skip(*passed) {
        limit.charge(message, now)?;
        *passed += 1;
    }
    Ok(())
}

/// Whether a message costs more than one of the buckets ever holds.
pub(crate) fn check(limits: &[RateLimit], message: &Message) -> Result<(), Over> {
    limits.iter().try_for_each(|limit| match (limit.cost)(message) {
        cost if cost > limit.capacity => Err(Over::Never { cost, capacity: limit.capacity }),
        _ => Ok(()),
    })
}

#[cfg(test)]
#[cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]
mod tests {
    use super::*;
    #[cfg(feature = "property-tests")]
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_bucket_is_full_at_first_and_says_how_long_to_wait() {
        let t0 = Instant::now();
        let limit = RateLimit::bucket(4, 2, 1000 * MS).unwrap().cost(|m| m.len() as u32);
        let message = |cost: usize| Message::text("x".repeat(cost));
        assert_eq!(limit.charge(&message(0), t0), Ok(()));
        assert_eq!(limit.charge(&message(5), t0), Err(Over::Never { cost: 5, capacity: 4 }));
        assert_eq!(limit.charge(&message(3), t0), Ok(()));
        assert_eq!(limit.charge(&message(3), t0), Err(Over::Wait(1000 * MS)));
        let t1 = t0 + 1000 * MS;
        assert_eq!(limit.clone().charge(&message(3), t1), Ok(()), "a clone has the same bucket");
        assert_eq!(limit.charge(&message(1), t1), Err(Over::Wait(500 * MS)));
        assert_eq!(limit.charge(&message(1), t0), Err(Over::Wait(500 * MS)), "time given late is no earlier");
    }

    #[test]
    fn limits_that_cannot_be_meant_are_refused() {
        let second = Duration::from_secs(1);
        for (capacity, refill, period) in [
            (u32::MAX, 1, 3600 * second),
            (10, 1, Duration::MAX),
            (0, 1, second),
            (1, 0, second),
            (1, 1, Duration::ZERO),
            (1, 2, Duration::from_nanos(1)),
        ] {
            assert_eq!(RateLimit::bucket(capacity, refill, period).unwrap_err().option(), "rate_limit");
        }
        assert!(RateLimit::window(0, second).is_err() && RateLimit::window(1, Duration::ZERO).is_err());
        assert!(RateLimit::window(1, second).is_ok());
    }

    #[cfg(feature = "property-tests")]
    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_limit(
            limit in 1u32..40, period in 10u64..2000, pauses in prop::collection::vec(0u64..60, 1..400),
        ) {
            let start = Instant::now();
            let bucket = RateLimit::window(limit, period as u32 * MS).unwrap();
            let (mut now, mut passed) = (0, vec![]);
            for pause in pauses {
                now += pause;
                if bucket.charge(&Message::text(""), start + now as u32 * MS).is_ok() {
                    passed.push(now);
                }
            }
            for (index, from) in passed.iter().enumerate() {
                let within = passed[index..].iter().take_while(|at| **at < from + period).count();
                prop_assert!(within <= limit as usize, "{} of {} in {} ms from {}", within, limit, period, from);
            }
            prop_assert!(!passed.is_empty());
        }
    }
}
