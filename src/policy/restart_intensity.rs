//! How often is too often: OTP's restart intensity as one small pure function of time.
//!
//! The rule is that of OTP's supervisor: at each restart, restarts older than the window are forgotten (one exactly as
//! old as the window still counts), this one is added, and more than `max_restarts` in the list is too many.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub(crate) struct RestartIntensity {
    max_restarts: usize,
    window: Duration,
    recent: VecDeque<Instant>,
}

impl RestartIntensity {
    pub(crate) fn new(max_restarts: usize, window: Duration) -> Self {
        Self { max_restarts, window, recent: VecDeque::new() }
    }

    /// A restart is due now. False: it is one too many.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        while self.recent.front().is_some_and(|at| now.saturating_duration_since(*at) > self.window) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.recent.len() <= self.max_restarts
    }

    /// Someone looked into it and starts anew.
    pub(crate) fn forgive(&mut self) {
        self.recent.clear();
    }
}

#[cfg(test)]
#[cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]
mod tests {
    use super::*;
    #[cfg(feature = "property-tests")]
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_eleventh_within_sixty_seconds_is_refused() {
        let t0 = Instant::now();
        let mut intensity = RestartIntensity::new(10, 60 * S);
        for n in 0..10 {
            assert!(intensity.allows(t0 + n * S));
        }
        assert!(!intensity.allows(t0 + 60 * S), "the window includes its edge");
    }

    #[test]
    fn the_window_slides() {
        let t0 = Instant::now();
        let mut intensity = RestartIntensity::new(10, 60 * S);
        for n in 0..10 {
            assert!(intensity.allows(t0 + n * S));
        }
        assert!(intensity.allows(t0 + 60 * S + Duration::from_nanos(1)));
    }

    #[test]
    fn zero_refuses_the_first() {
        assert!(!RestartIntensity::new(0, S).allows(Instant::now()));
    }

    #[cfg(feature = "property-tests")]
    proptest! {
        #[test]
        fn agrees_with_counting(max in 0usize..6, window in 1u64..50, gaps in proptest::collection::vec(0u64..20, 1..60)) {
            let start = Instant::now();
            let mut intensity = RestartIntensity::new(max, Duration::from_secs(window));
            let (mut at, mut all) = (0, vec![]);
            for gap in gaps {
                at += gap;
                all.push(at);
                let within = all.iter().filter(|earlier| at - **earlier <= window).count();
                prop_assert_eq!(intensity.allows(start + Duration::from_secs(at)), within <= max);
            }
        }
    }
}
