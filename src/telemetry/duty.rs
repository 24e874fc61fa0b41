//! How long each turn of a worker's loop takes, seen from any thread (Aeron's duty cycle tracker).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::telemetry::counter::Counter;

/// Written by the worker, read by anyone.
#[derive(Debug)]
pub(crate) struct Duty {
    base: Instant,
    threshold: Duration,
    /// Nanoseconds since `base` at which the turn that lasts still began; 0 while the worker sleeps.
    began: AtomicU64,
    longest: Counter,
    excesses: Counter,
    /// The turn that was told of already, by its beginning.
    told: AtomicU64,
}

impl Duty {
    pub(crate) fn new(base: Instant, threshold: Duration) -> Self {
        let (longest, excesses) = (Counter::default(), Counter::default());
        Self { base, threshold, began: AtomicU64::new(0), longest, excesses, told: AtomicU64::new(0) }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// A turn begins, unless one lasts already.
    pub(crate) fn begin(&self, at: Instant) {
        if self.began.load(Ordering::Relaxed) == 0 {
            self.began.store(self.nanos(at), Ordering::Relaxed);
        }
    }

    /// The turn is over. Returns how long it took when that was longer than the threshold.
    pub(crate) fn end(&self, at: Instant) -> Option<Duration> {
        let began = self.began.load(Ordering::Relaxed);
        if began == 0 {
            return None;
        }
        self.began.store(0, Ordering::Relaxed);
        let took = self.nanos(at).saturating_sub(began);
        if took > self.longest.get() {
            self.longest.set(took);
        }
        let took = Duration::from_nanos(took);
        (took > self.threshold).then(|| {
            self.excesses.add(1);
            took
        })
    }

    /// For whoever watches: how long the turn that lasts still has taken, once for each turn beyond the threshold.
    pub(crate) fn stalled(&self, now: Instant) -> Option<Duration> {
        let began = self.began.load(Ordering::Relaxed);
        if began == 0 || began == self.told.load(Ordering::Relaxed) {
            return None;
        }
        let lasts = Duration::from_nanos(self.nanos(now).saturating_sub(began));
        (lasts > self.threshold).then(|| {
            self.told.store(began, Ordering::Relaxed);
            lasts
        })
    }

    pub(crate) fn threshold(&self) -> Duration {
        self.threshold
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest.get())
    }

    pub(crate) fn excesses(&self) -> u64 {
        self.excesses.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_lasts_is_told_of_once_and_counted_when_it_ends() {
        let base = Instant::now();
        let at = |ms| base + Duration::from_millis(ms);
        let duty = Duty::new(base, Duration::from_millis(100));
        duty.begin(at(10));
        assert_eq!(duty.end(at(20)), None);
        assert_eq!((duty.longest(), duty.excesses()), (Duration::from_millis(10), 0));
        duty.begin(at(50));
        duty.begin(at(140));
        assert_eq!(duty.stalled(at(149)), None);
        assert_eq!(duty.stalled(at(151)), Some(Duration::from_millis(101)));
        assert_eq!(duty.stalled(at(300)), None, "once a turn");
        assert_eq!(duty.end(at(350)), Some(Duration::from_millis(300)));
        assert_eq!((duty.longest(), duty.excesses()), (Duration::from_millis(300), 1));
        assert_eq!(duty.end(at(900)), None, "sleep is not a turn");
        assert_eq!(duty.stalled(at(900)), None);
        duty.begin(at(1000));
        assert!(duty.stalled(at(1200)).is_some(), "a new turn is told of again");
    }
}
