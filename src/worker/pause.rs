//! Reading is held up, since the consumer is behind: who is told, and what the heartbeat makes of it.

use std::time::{Duration, Instant};

use super::run::Run;
use crate::event::Event;
use crate::policy::connection::Connection;

/// A pause is told of when it has lasted this long: shorter ones come and go with every burst.
const TOLD_AFTER: Duration = Duration::from_millis(100);

pub(super) struct Pause {
    since: Option<Instant>,
    told: bool,
    /// The peer has ended the connection, which is found out again when reading goes on.
    pub(super) hung_up: bool,
    /// The consumer has not caught up with what an earlier connection brought.
    pub(super) behind_an_earlier_line: bool,
}

impl Pause {
    pub(super) fn new(behind_an_earlier_line: bool) -> Self {
        Self { since: None, told: false, hung_up: false, behind_an_earlier_line }
    }

    /// When the consumer is to be told of it.
    pub(super) fn tells_at(&self) -> Option<Instant> {
        self.since.filter(|_| !self.told).map(|since| since + TOLD_AFTER)
    }
}

impl Run<'_> {
    /// Notes whether reading is held up now.
    pub(super) fn pause(&mut self, pause: &mut Pause, is_paused: bool, connection: &mut Connection, now: Instant) {
        match (is_paused, pause.since) {
            (false, None) => {}
            (true, None) => {
                pause.since = Some(now);
                self.core.pauses.begin(now);
            }
            (true, Some(_)) => {
                if pause.tells_at().is_some_and(|at| now >= at) {
                    pause.told = true;
                    self.emit(Event::ReadingPaused);
                }
            }
            (false, Some(since)) => {
                connection.reads_again(now);
                self.core.pauses.end(now);
                if pause.told {
                    self.emit(Event::ReadingResumed { after: now.saturating_duration_since(since) });
                }
                (pause.since, pause.told) = (None, false);
                (pause.hung_up, pause.behind_an_earlier_line) = (false, false);
            }
        }
    }
}
