//! How often to look whether a consumer has made room.

use std::time::{Duration, Instant};

/// How often to look whether a consumer has made room: soon, and less and less often while it makes none.
#[derive(Default)]
pub(crate) struct Pacer {
    last: Duration,
    handed_over: u64,
}

impl Pacer {
    const FIRST: Duration = Duration::from_micros(50);
    const LAST: Duration = Duration::from_millis(50);

    /// When to look again; `None` when there is nothing to look for, and the next wait begins anew, as it does after
    /// something was handed over.
    pub(crate) fn next(&mut self, now: Instant, waits: bool, handed_over: u64) -> Option<Instant> {
        if !waits || handed_over != self.handed_over {
            (self.last, self.handed_over) = (Duration::ZERO, handed_over);
        }
        waits.then(|| {
            self.last = (self.last * 2).clamp(Self::FIRST, Self::LAST);
            now + self.last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_looked_at_less_and_less_often_until_it_moves() {
        let now = Instant::now();
        let mut pacer = Pacer::default();
        let mut pause = |waits, handed_over| pacer.next(now, waits, handed_over).map(|at| at - now);
        assert_eq!(pause(false, 0), None);
        let pauses: Vec<_> = (0..12).map(|_| pause(true, 0).unwrap()).collect();
        assert_eq!(pauses[0], Pacer::FIRST);
        assert!(pauses.windows(2).all(|pair| pair[1] == (pair[0] * 2).min(Pacer::LAST)), "{pauses:?}");
        assert_eq!(pauses[11], Pacer::LAST);
        assert_eq!(pause(true, 1), Some(Pacer::FIRST), "the consumer reads, if slowly");
        assert_eq!(pause(true, 1), Some(Pacer::FIRST * 2));
        assert_eq!(pause(false, 1), None);
        assert_eq!(pause(true, 1), Some(Pacer::FIRST));
    }
}
