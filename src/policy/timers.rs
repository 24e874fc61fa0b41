//! A handler's timers: pure, given `now`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Earliest first; of those due at the same instant, the one that was scheduled first.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, u64)>>,
    scheduled: u64,
}

impl Timers {
    pub(crate) fn schedule(&mut self, at: Instant, token: u64) {
        self.scheduled += 1;
        self.heap.push(Reverse((at, self.scheduled, token)));
    }

    pub(crate) fn cancel(&mut self, token: u64) -> bool {
        let before = self.heap.len();
        self.heap.retain(|Reverse((_, _, other))| *other != token);
        self.heap.len() != before
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes out the first that is due by `until` and wanted.
    #[cfg(all(feature = "record", feature = "testing"))]
    pub(crate) fn take(&mut self, wanted: impl Fn(Instant, u64) -> bool, until: Instant) -> Option<(Instant, u64)> {
        let found =
            self.heap.iter().map(|Reverse(timer)| *timer).filter(|(at, _, token)| *at <= until && wanted(*at, *token));
        let (at, number, token) = found.min()?;
        self.heap.retain(|Reverse((_, other, _))| *other != number);
        Some((at, token))
    }

    /// How many have been scheduled: what is scheduled while timers fire has to wait for the next turn.
    pub(crate) fn mark(&self) -> u64 {
        self.scheduled
    }

    /// The next token that is due, of those scheduled up to `mark`.
    pub(crate) fn due(&mut self, now: Instant, mark: u64) -> Option<u64> {
        self.heap.peek().filter(|Reverse((at, scheduled, _))| *at <= now && *scheduled <= mark)?;
        self.heap.pop().map(|Reverse((_, _, token))| token)
    }
}

#[cfg(test)]
#[cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]
mod tests {
    use super::*;
    #[cfg(feature = "property-tests")]
    use proptest::prelude::*;
    use std::time::Duration;

    #[cfg(feature = "property-tests")]
    proptest! {
        /// Against the plainest model: a list, sorted.
        #[test]
        fn timers_fire_once_in_order_and_never_early(
            times in prop::collection::vec((0u64..50, 0u64..8), 0..40), cancelled in 0u64..8, until in 0u64..60
        ) {
            let start = Instant::now();
            let mut timers = Timers::default();
            for (at, token) in &times {
                timers.schedule(start + Duration::from_millis(*at), *token);
            }
            let had = times.iter().any(|(_, token)| *token == cancelled);
            prop_assert_eq!(timers.cancel(cancelled), had);
            let mut expected: Vec<_> =
                times.iter().copied().filter(|(at, token)| *token != cancelled && *at <= until).collect();
            expected.sort_by_key(|(at, _)| *at);
            let (now, mark) = (start + Duration::from_millis(until), timers.mark());
            let fired: Vec<_> = std::iter::from_fn(|| timers.due(now, mark)).collect();
            prop_assert_eq!(fired, expected.into_iter().map(|(_, token)| token).collect::<Vec<_>>());
            prop_assert!(timers.next().is_none_or(|next| next > now));
        }
    }

    #[test]
    fn what_is_scheduled_while_timers_fire_waits_for_the_next_turn() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.schedule(now, 1);
        let mark = timers.mark();
        assert_eq!(timers.due(now, mark), Some(1));
        timers.schedule(now, 2);
        assert_eq!(timers.due(now, mark), None);
        assert_eq!(timers.due(now, timers.mark()), Some(2));
    }
}
