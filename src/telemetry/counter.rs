//! A counter and a histogram, read from any thread without holding up the worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// One writer at a time (the worker, or the supervisor while there is no worker), any number of readers.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a histogram of times says, each value right to one part in a hundred; all zero while `count` is 0.
///
/// ```
/// use ws_supervisor::Percentiles;
/// let none_yet = Percentiles::default();
/// assert_eq!((none_yet.count, none_yet.p99.as_nanos()), (0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Percentiles {
    /// How many times were measured.
    pub count: u64,
    /// The shortest.
    pub min: Duration,
    /// Half of them were no longer.
    pub p50: Duration,
    /// 99 of 100 were no longer.
    pub p99: Duration,
    /// 999 of 1,000 were no longer.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

/// A histogram that takes memory with its first value. The lock is held for the one recording, or for one copy.
#[derive(Debug, Default)]
pub(crate) struct Times(Mutex<Option<Histogram<u32>>>);

impl Times {
    /// In a unit of the caller's.
    pub(crate) fn record(&self, value: u64) {
        let mut slot = self.0.lock();
        if slot.is_none() {
            // Two digits, and a range that grows as needed: some kilobytes.
            *slot = Histogram::new(2).ok();
        }
        if let Some(histogram) = &mut *slot {
            let _ = histogram.record(value.min(MAX_RECORDED));
        }
    }

    /// What came since `before` was the whole, which it then is: each value and how often.
    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, before: &mut Option<Histogram<u32>>) -> Vec<(u64, u64)> {
        let Some(now) = self.0.lock().clone() else { return Vec::new() };
        let news = now.iter_recorded().filter_map(|step| {
            let value = step.value_iterated_to();
            let seen = before.as_ref().map_or(0, |before| before.count_at(value));
            Some((value, u64::from(step.count_at_value().checked_sub(seen).filter(|more| *more > 0)?)))
        });
        let news = news.collect();
        *before = Some(now);
        news
    }

    pub(crate) fn percentiles(&self, unit: Duration) -> Percentiles {
        // A copy: the worker does not wait while the sums are made.
        let copy = self.0.lock().clone();
        let Some(histogram) = copy.filter(|histogram| !histogram.is_empty()) else {
            return Percentiles::default();
        };
        let time = |value: u64| unit.saturating_mul(u32::try_from(value).unwrap_or(u32::MAX));
        let at = |quantile| time(histogram.value_at_quantile(quantile));
        Percentiles {
            count: histogram.len(),
            min: time(histogram.min()),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: time(histogram.max()),
        }
    }
}

/// How long requests took, of all and by method.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// Microseconds.
    pub(crate) all: Times,
    methods: Mutex<BTreeMap<Box<str>, Arc<Times>>>,
}

/// Methods that are told apart: names come from the caller, and memory is bounded.
const MAX_METHODS: usize = 64;

impl Latencies {
    pub(crate) fn record(&self, method: &str, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.all.record(micros);
        let times = {
            let mut methods = self.methods.lock();
            match methods.get(method) {
                Some(times) => Some(times.clone()),
                None if methods.len() < MAX_METHODS => Some(methods.entry(method.into()).or_default().clone()),
                None => None,
            }
        };
        if let Some(times) = times {
            times.record(micros);
        }
    }

    pub(crate) fn by_method(&self) -> BTreeMap<Box<str>, Arc<Times>> {
        self.methods.lock().clone()
    }
}

/// More than an hour in microseconds, and four seconds in nanoseconds: what is longer counts as this.
const MAX_RECORDED: u64 = u32::MAX as u64;
