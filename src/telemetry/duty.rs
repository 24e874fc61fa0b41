//! How long each turn of a worker's loop takes, seen from any thread (Aeron's duty cycle tracker).

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::telemetry::counter::Counter;

/// What a turn of a worker's loop is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Doing {
    /// A method of your [`Handler`](crate::Handler).
    Handler,
    /// [`prepare`](crate::ClientConfig::prepare).
    Prepare,
    /// Signing in, by the [`Venue`](crate::venue::Venue).
    SignIn,
    /// [`on_open`](crate::ClientConfig::on_open).
    OnOpen,
    /// [`reconcile`](crate::ClientConfig::reconcile).
    Reconcile,
    /// Work of the library's own, such as asking for channels, in which the venue's code has a part.
    Upkeep,
}

impl Doing {
    const ALL: [Self; 6] = [Self::Handler, Self::Prepare, Self::SignIn, Self::OnOpen, Self::Reconcile, Self::Upkeep];
}

impl Doing {
    /// One word for it: for labels and counts.
    ///
    /// ```
    /// assert_eq!(ws_supervisor::Doing::Handler.kind(), "handler");
    /// ```
    pub fn kind(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Prepare => "prepare",
            Self::SignIn => "sign_in",
            Self::OnOpen => "on_open",
            Self::Reconcile => "reconcile",
            Self::Upkeep => "upkeep",
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Handler => "its handler",
            Self::Prepare => "its `prepare`",
            Self::SignIn => "its venue's signing in",
            Self::OnOpen => "its `on_open`",
            Self::Reconcile => "its `reconcile`",
            Self::Upkeep => "its own upkeep, or its venue's part in that,",
        })
    }
}

/// Written by the worker, read by anyone.
#[derive(Debug)]
pub(crate) struct Duty {
    base: Instant,
    threshold: Duration,
    /// Nanoseconds since `base` at which the turn that lasts still began; 0 while the worker sleeps.
    began: AtomicU64,
    doing: AtomicU8,
    longest: Counter,
    excesses: Counter,
    /// The turn that was told of already, by its beginning.
    told: AtomicU64,
}

impl Duty {
    pub(crate) fn new(base: Instant, threshold: Duration) -> Self {
        let (longest, excesses) = (Counter::default(), Counter::default());
        let (began, doing, told) = (AtomicU64::new(0), AtomicU8::new(0), AtomicU64::new(0));
        Self { base, threshold, began, doing, longest, excesses, told }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// A turn begins, unless one lasts already.
    pub(crate) fn begin(&self, at: Instant, doing: Doing) {
        if self.began.load(Ordering::Relaxed) == 0 {
            self.doing.store(doing as u8, Ordering::Relaxed);
            self.began.store(self.nanos(at), Ordering::Relaxed);
        }
    }

    /// The turn is over. Returns how long it took, and by what, when that was longer than the threshold.
    pub(crate) fn end(&self, at: Instant) -> Option<(Duration, Doing)> {
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
            (took, self.doing())
        })
    }

    /// For whoever watches: how long the turn that lasts still has taken, once for each turn beyond the threshold.
    pub(crate) fn stalled(&self, now: Instant) -> Option<(Duration, Doing)> {
        let began = self.began.load(Ordering::Relaxed);
        if began == 0 || began == self.told.load(Ordering::Relaxed) {
            return None;
        }
        let lasts = Duration::from_nanos(self.nanos(now).saturating_sub(began));
        (lasts > self.threshold).then(|| {
            self.told.store(began, Ordering::Relaxed);
            (lasts, self.doing())
        })
    }

    fn doing(&self) -> Doing {
        Doing::ALL[usize::from(self.doing.load(Ordering::Relaxed)) % Doing::ALL.len()]
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

/// How long the worker has left its socket unread since its consumer is behind.
#[derive(Debug)]
pub(crate) struct Pauses {
    base: Instant,
    /// Nanoseconds since `base`, at least 1; 0 while it reads.
    since: AtomicU64,
    total: Counter,
    told: AtomicU64,
}

impl Pauses {
    pub(crate) fn new(base: Instant) -> Self {
        Self { base, since: AtomicU64::new(0), total: Counter::default(), told: AtomicU64::new(0) }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    pub(crate) fn begin(&self, at: Instant) {
        self.since.store(self.nanos(at), Ordering::Relaxed);
    }

    pub(crate) fn end(&self, at: Instant) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since > 0 {
            self.total.add(self.nanos(at).saturating_sub(since));
        }
    }

    /// How long the pause has lasted so far.
    pub(crate) fn lasts(&self, now: Instant) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed);
        (since > 0).then(|| Duration::from_nanos(self.nanos(now).saturating_sub(since)))
    }

    /// As `lasts`, once a pause that is longer than that.
    pub(crate) fn is_long(&self, now: Instant, threshold: Duration) -> Option<Duration> {
        let lasts = self.lasts(now).filter(|lasts| *lasts > threshold)?;
        let since = self.since.load(Ordering::Relaxed);
        (self.told.swap(since, Ordering::Relaxed) != since).then_some(lasts)
    }

    pub(crate) fn total(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.total.get()) + self.lasts(now).unwrap_or_default()
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
        duty.begin(at(10), Doing::Handler);
        assert_eq!(duty.end(at(20)), None);
        assert_eq!((duty.longest(), duty.excesses()), (Duration::from_millis(10), 0));
        duty.begin(at(50), Doing::Prepare);
        duty.begin(at(140), Doing::Handler);
        assert_eq!(duty.stalled(at(149)), None);
        assert_eq!(duty.stalled(at(151)), Some((Duration::from_millis(101), Doing::Prepare)));
        assert_eq!(duty.stalled(at(300)), None, "once a turn");
        assert_eq!(duty.end(at(350)), Some((Duration::from_millis(300), Doing::Prepare)));
        assert_eq!((duty.longest(), duty.excesses()), (Duration::from_millis(300), 1));
        assert_eq!(duty.end(at(900)), None, "sleep is not a turn");
        assert_eq!(duty.stalled(at(900)), None);
        duty.begin(at(1000), Doing::Handler);
        assert!(duty.stalled(at(1200)).is_some(), "a new turn is told of again");
    }
}
