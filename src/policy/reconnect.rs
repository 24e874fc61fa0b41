//! When to dial again: the backoff and what resets it. Pure: given `now` and the dice.

use std::time::{Duration, Instant};

use crate::deadline::later;
use crate::error::ConfigError;

/// A server may ask for more patience than the backoff has, but not for ever.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Clients of a server that restarts come back spread over the first step of the backoff, and no more than this.
const MAX_SPREAD: Duration = Duration::from_secs(5);

/// A wait beyond all reason is a year.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// After the second crash in a row the next run waits this long before it dials, then twice as long each time, up to the
/// second: the first follows at once, but a loop of crashes does not turn as fast as it can.
const CRASH_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Whoever asks for it, no client dials more often than this: so many times at once, and once in so much time.
const DIALS_AT_ONCE: u32 = 20;
const DIAL_INTERVAL: Duration = Duration::from_millis(100);

/// Why an attempt failed, as far as that says when to try again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hint {
    /// The server asked to be left alone for so long.
    pub(crate) retry_after: Option<Duration>,
    /// It refused since it has too much to do: the next attempt is not at once, not even the first.
    pub(crate) overloaded: bool,
    /// It is about to restart, and all its clients lose their connections at the same moment: they come back one by one,
    /// within the first step of the backoff (IANA's registry of close codes on 1012).
    pub(crate) spread: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReconnectRules {
    pub(crate) max_retries: u32,
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
    pub(crate) jitter: f64,
    pub(crate) stable_after: Duration,
}

impl Default for ReconnectRules {
    fn default() -> Self {
        Self {
            max_retries: 10,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            jitter: 0.3,
            stable_after: Duration::from_secs(10),
        }
    }
}

impl ReconnectRules {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.base.is_zero() {
            return Err(ConfigError::new("backoff", "the base must be greater than zero"));
        }
        if self.cap < self.base {
            return Err(ConfigError::new("backoff", "the cap must not be less than the base"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(ConfigError::new("jitter", "must be between 0 and 1"));
        }
        if self.stable_after.is_zero() {
            return Err(ConfigError::new("stable_after", "must be greater than zero"));
        }
        Ok(())
    }

    /// The wait before the retry that follows `failures` failures in a row.
    fn delay(&self, failures: u32, dice: f64) -> Duration {
        let Some(doublings) = failures.checked_sub(2) else {
            return Duration::ZERO;
        };
        let whole = self.base.saturating_mul(2u32.saturating_pow(doublings)).min(self.cap).min(LONGEST);
        whole.mul_f64(1.0 - self.jitter * dice)
    }
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    RetryIn(Duration),
    /// This run of the worker has used up its retries; the wait stands for the next run.
    Exhausted,
}

/// The state of recovery. It lives as long as the client: a restart of the worker does not forget the backoff.
#[derive(Debug)]
pub(crate) struct Reconnect {
    rules: ReconnectRules,
    /// Failures since a connection was last stable.
    failures: u32,
    /// Retries used by this run of the worker since a connection was last stable.
    retries: u32,
    /// Panics since a connection was last stable.
    crashes: u32,
    not_before: Option<Instant>,
    opened_at: Option<Instant>,
    /// When all the dials that may follow at once may do so again.
    dials_from: Option<Instant>,
}

impl Reconnect {
    pub(crate) fn new(rules: ReconnectRules) -> Self {
        let (not_before, opened_at, dials_from) = (None, None, None);
        Self { rules, failures: 0, retries: 0, crashes: 0, not_before, opened_at, dials_from }
    }

    /// A new run of the worker: its retries count anew, the backoff goes on.
    pub(crate) fn new_run(&mut self) {
        self.retries = 0;
    }

    /// Forgets everything: someone decided that a fresh start is due. How often it may dial is not forgotten.
    pub(crate) fn reset(&mut self) {
        *self = Self { dials_from: self.dials_from, ..Self::new(self.rules.clone()) };
    }

    /// An attempt begins.
    pub(crate) fn dials(&mut self, now: Instant) {
        self.dials_from = Some(self.dials_from.map_or(now, |from| from.max(now)) + DIAL_INTERVAL);
    }

    fn may_dial_at(&self) -> Option<Instant> {
        self.dials_from.and_then(|from| from.checked_sub(DIAL_INTERVAL * (DIALS_AT_ONCE - 1)))
    }

    /// Failures in a row since a connection was last stable.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next attempt is due; `None`: at once.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.not_before.max(self.may_dial_at())
    }

    /// When a pause after a crash ends, if there is one.
    pub(crate) fn crash_pause_ends(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.crashes > 1)
    }

    pub(crate) fn opened(&mut self, now: Instant) {
        self.opened_at = Some(now);
        self.not_before = None;
    }

    /// When the open connection becomes stable, if it is not already.
    pub(crate) fn stable_at(&self) -> Option<Instant> {
        if self.failures == 0 && self.retries == 0 && self.crashes == 0 {
            return None;
        }
        self.opened_at.map(|at| later(at, self.rules.stable_after))
    }

    /// Forgets earlier failures if the open connection has lasted long enough.
    pub(crate) fn forget_if_stable(&mut self, now: Instant) {
        if self.stable_at().is_some_and(|at| now >= at) {
            (self.failures, self.retries, self.crashes) = (0, 0, 0);
        }
    }

    /// An attempt failed in whatever phase, or an open connection was lost. `dice` is between 0 and 1.
    pub(crate) fn failed(&mut self, now: Instant, hint: Hint, dice: f64) -> Next {
        self.forget_if_stable(now);
        self.opened_at = None;
        self.failures = self.failures.saturating_add(1);
        let failures = if hint.overloaded { self.failures.max(2) } else { self.failures };
        let spread = if hint.spread { self.rules.base.min(MAX_SPREAD).mul_f64(dice) } else { Duration::ZERO };
        let wait = self.rules.delay(failures, dice).max(hint.retry_after.unwrap_or_default()).max(spread);
        self.not_before = Some(later(now, wait));
        if self.retries >= self.rules.max_retries {
            return Next::Exhausted;
        }
        self.retries += 1;
        Next::RetryIn(wait)
    }

    /// The wait that a server asked for, with jitter: later than it asked for, never sooner, since it asked all its clients for
    /// the same. Never longer than `MAX_RETRY_AFTER`.
    pub(crate) fn asked(&self, retry_after: Duration, dice: f64) -> Duration {
        retry_after.min(MAX_RETRY_AFTER).mul_f64(1.0 + self.rules.jitter * dice).min(MAX_RETRY_AFTER)
    }

    /// The open connection was given up on purpose, for another.
    pub(crate) fn rotated(&mut self, now: Instant) -> Next {
        self.forget_if_stable(now);
        self.opened_at = None;
        Next::RetryIn(Duration::ZERO)
    }

    /// The worker panicked. Not the network's fault: from an open connection the next run dials at once, the first time;
    /// then it pauses more and more, and meets the restart intensity. A wait that was under way still stands.
    pub(crate) fn crashed(&mut self, now: Instant) {
        self.forget_if_stable(now);
        self.opened_at = None;
        self.crashes = self.crashes.saturating_add(1);
        if let Some(doublings) = self.crashes.checked_sub(2) {
            let (first, last) = CRASH_PAUSE;
            let pause = first.saturating_mul(2u32.saturating_pow(doublings)).min(last);
            self.not_before = self.not_before.max(Some(now + pause));
        }
    }
}

#[cfg(test)]
#[cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]
mod tests {
    use super::*;
    #[cfg(feature = "property-tests")]
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn rules() -> ReconnectRules {
        ReconnectRules { jitter: 0.0, ..ReconnectRules::default() }
    }

    #[test]
    fn the_first_retry_is_at_once_and_the_waits_double_to_the_cap() {
        let now = Instant::now();
        let mut reconnect = Reconnect::new(rules());
        let waits: Vec<_> = (0..11).map(|_| reconnect.failed(now, Hint::default(), 0.0)).collect();
        let expected: Vec<_> = [0, 1, 2, 4, 8, 16, 30, 30, 30, 30].iter().map(|s| Next::RetryIn(S * *s)).collect();
        assert_eq!(waits[..10], expected);
        assert_eq!(waits[10], Next::Exhausted);
    }

    #[test]
    fn a_handshake_alone_resets_nothing() {
        let mut now = Instant::now();
        let mut reconnect = Reconnect::new(rules());
        let mut waits = vec![];
        for _ in 0..5 {
            reconnect.opened(now);
            now += S;
            match reconnect.failed(now, Hint::default(), 0.0) {
                Next::RetryIn(wait) => waits.push(wait.as_secs()),
                Next::Exhausted => panic!(),
            }
        }
        assert_eq!(waits, [0, 1, 2, 4, 8]);
        reconnect.opened(now);
        assert_eq!(reconnect.failed(now + 10 * S, Hint::default(), 0.0), Next::RetryIn(Duration::ZERO));
    }

    #[test]
    fn the_wait_outlives_a_restart_and_a_panic_does_not_feed_it() {
        let now = Instant::now();
        let mut reconnect = Reconnect::new(ReconnectRules { max_retries: 0, ..rules() });
        for wait in [0, 1, 2, 4] {
            reconnect.new_run();
            assert_eq!(reconnect.failed(now, Hint::default(), 0.0), Next::Exhausted);
            assert_eq!(reconnect.not_before(), Some(now + S * wait));
        }
        reconnect.opened(now);
        for pause in [0, 50, 100, 200, 400, 800, 1000, 1000] {
            reconnect.crashed(now);
            reconnect.new_run();
            let at = (pause > 0).then(|| now + Duration::from_millis(pause));
            assert_eq!(reconnect.not_before(), at, "the first at once, then less and less often");
            reconnect.opened(now);
        }
        assert_eq!(reconnect.failures(), 4);
        reconnect.crashed(now + 10 * S);
        assert_eq!(reconnect.not_before(), None, "the last connection was stable");
    }

    #[test]
    fn whoever_asks_no_client_dials_more_often_than_the_floor() {
        let start = Instant::now();
        let (mut now, mut dials) = (start, 0);
        let mut reconnect = Reconnect::new(rules());
        while now < start + 10 * S {
            match reconnect.not_before().filter(|at| *at > now) {
                Some(at) => now = at,
                None => {
                    reconnect.dials(now);
                    dials += 1;
                }
            }
            reconnect.reset();
        }
        assert_eq!(dials, 120 - 1, "20 at once, then 10 a second");
    }

    #[test]
    fn a_duration_of_for_ever_is_one_like_any_other() {
        let (now, ever) = (Instant::now(), Duration::MAX);
        for jitter in [0.0, 1.0] {
            let rules = ReconnectRules { base: ever, cap: ever, stable_after: ever, jitter, ..rules() };
            rules.validate().unwrap();
            let mut reconnect = Reconnect::new(rules);
            for dice in [0.0, 0.5, 1.0] {
                reconnect.opened(now);
                let hint = Hint { retry_after: Some(reconnect.asked(ever, dice)), overloaded: true, spread: true };
                reconnect.failed(now, hint, dice);
                reconnect.forget_if_stable(now);
            }
        }
    }

    #[test]
    fn a_server_with_too_much_to_do_is_not_asked_again_at_once() {
        let mut reconnect = Reconnect::new(rules());
        let hint = Hint { overloaded: true, ..Hint::default() };
        assert_eq!(reconnect.failed(Instant::now(), hint, 0.0), Next::RetryIn(S));
    }

    /// Default settings against a venue that is down for a day: how many restarts in the worst minute?
    #[test]
    fn a_venue_down_for_a_day_never_nears_the_restart_intensity() {
        let start = Instant::now();
        let mut now = start;
        let mut reconnect = Reconnect::new(ReconnectRules::default());
        let mut restarts: Vec<Instant> = vec![];
        while now < start + 86_400 * S {
            now = reconnect.not_before().unwrap_or(now).max(now);
            if reconnect.failed(now, Hint::default(), 1.0) == Next::Exhausted {
                restarts.push(now);
                reconnect.new_run();
            }
        }
        let worst = restarts.iter().map(|r| restarts.iter().filter(|o| *o >= r && **o <= *r + 60 * S).count()).max();
        assert!(worst.unwrap() <= 1, "{worst:?}");
        assert!(restarts.len() > 100);
    }

    #[test]
    fn retry_after_is_honoured_within_reason() {
        let reconnect = Reconnect::new(rules());
        assert_eq!(reconnect.asked(7 * S, 0.0), 7 * S);
        assert_eq!(reconnect.asked(86_400 * S, 0.0), MAX_RETRY_AFTER);
        let jittery = Reconnect::new(ReconnectRules::default());
        assert_eq!(jittery.asked(10 * S, 0.5), Duration::from_millis(11_500), "never sooner");
        assert_eq!(jittery.asked(3600 * S, 1.0), MAX_RETRY_AFTER, "never later than that, jitter included");
        let mut reconnect = Reconnect::new(rules());
        let hint = Hint { retry_after: Some(7 * S), ..Hint::default() };
        assert_eq!(reconnect.failed(Instant::now(), hint, 0.0), Next::RetryIn(7 * S));
    }

    #[test]
    fn clients_of_a_server_that_restarts_come_back_spread_over_the_first_step() {
        let hint = Hint { spread: true, ..Hint::default() };
        for (dice, wait) in [(0.0, 0), (0.25, 250), (1.0, 1000)] {
            let mut reconnect = Reconnect::new(rules());
            assert_eq!(reconnect.failed(Instant::now(), hint, dice), Next::RetryIn(Duration::from_millis(wait)));
        }
    }

    #[cfg(feature = "property-tests")]
    proptest! {
        #[test]
        fn waits_stay_between_the_jittered_and_the_whole_delay(
            failures in 1u32..200, jitter in 0.0f64..=1.0, dice in 0.0f64..=1.0, base in 1u64..5000, extra in 0u64..100_000,
        ) {
            let base = Duration::from_millis(base);
            let cap = base + Duration::from_millis(extra);
            let rules = ReconnectRules { jitter, base, cap, ..ReconnectRules::default() };
            let whole = ReconnectRules { jitter: 0.0, ..rules.clone() }.delay(failures, 0.0);
            let wait = rules.delay(failures, dice);
            prop_assert!(whole <= cap && wait <= whole);
            prop_assert!(wait + Duration::from_micros(1) >= whole.mul_f64(1.0 - jitter));
        }

        #[test]
        fn failures_only_fall_after_a_stable_connection(steps in proptest::collection::vec((any::<bool>(), 0u64..20), 1..60)) {
            let mut now = Instant::now();
            let mut reconnect = Reconnect::new(rules());
            for (opens, lasts) in steps {
                let before = reconnect.failures();
                if opens { reconnect.opened(now); }
                now += S * u32::try_from(lasts).unwrap();
                reconnect.new_run();
                reconnect.failed(now, Hint::default(), 0.0);
                let stable = opens && lasts >= 10;
                prop_assert_eq!(reconnect.failures(), if stable { 1 } else { before + 1 });
            }
        }
    }
}
