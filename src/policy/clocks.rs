//! Has this machine slept, or this process been stopped? Two clocks tell: the monotonic one stands still while a machine is
//! suspended and the wall's does not, and a look that comes far too late was held up by something.

use std::time::{Duration, Instant, SystemTime};

/// Less than this is a busy machine, or a wall clock that is put right.
const NOTICED: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
    next_look: Instant,
}

impl Clocks {
    pub(crate) fn new(monotonic: Instant, wall: SystemTime) -> Self {
        Self { monotonic, wall, next_look: monotonic }
    }

    /// Whether there was a gap since the last look. The next is to be at `next_look`.
    pub(crate) fn show_a_gap(&mut self, monotonic: Instant, wall: SystemTime, next_look: Instant) -> bool {
        let passed = monotonic.saturating_duration_since(self.monotonic);
        // A wall clock that was put back passed no time.
        let passed_outside = wall.duration_since(self.wall).unwrap_or_default();
        let late = monotonic.saturating_duration_since(self.next_look);
        *self = Self { monotonic, wall, next_look };
        passed_outside > passed + NOTICED || late > NOTICED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspended_machine_and_a_stopped_process_show_and_a_busy_or_corrected_one_does_not() {
        const S: Duration = Duration::from_secs(1);
        let (mut monotonic, mut wall) = (Instant::now(), SystemTime::UNIX_EPOCH + 1_000_000 * S);
        let mut clocks = Clocks::new(monotonic, wall);
        let mut look = |passes: Duration, outside: Duration| {
            (monotonic, wall) = (monotonic + passes, wall + outside);
            clocks.show_a_gap(monotonic, wall, monotonic + S)
        };
        assert!(!look(S, S) && !look(3 * S, 3 * S), "on time, and late on a busy machine");
        assert!(look(S, 60 * S), "a minute of which the monotonic clock knows nothing");
        assert!(!look(S, S), "told once");
        assert!(look(10 * S, 10 * S), "stopped for nine seconds");
        assert!(!look(S, 2 * S), "a wall clock put forward by a second");
        wall -= 3600 * S;
        assert!(!clocks.show_a_gap(monotonic + S, wall, monotonic + 2 * S), "put back by an hour");
    }
}
