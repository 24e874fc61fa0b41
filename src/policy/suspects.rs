//! Whom the end of a connection is blamed on: the channels that the server was being asked for, or had just acknowledged.
//! Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a server ended a connection, as far as that may be a channel's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a close frame that names no reason of the server's own.
    Closed,
    /// Without one. Networks do that too, so it has to happen more often.
    Cut,
}

impl Ending {
    /// What it counts towards [`STRIKES`].
    pub(super) fn weight(self) -> u32 {
        match self {
            Self::Closed => 3,
            Self::Cut => 2,
        }
    }
}

/// With so much against it a channel is set aside: two closed connections or three cut ones.
pub(super) const STRIKES: u32 = 6;

/// A connection that was cut so often while a channel was asked for makes that a suspect.
pub(super) const CUTS: u32 = 2;

/// A server that has acknowledged a channel may still close the connection over it for so long. What stands that proves
/// that the venue is well, and no outage to blame.
pub(super) const PROBATION: Duration = Duration::from_millis(500);

/// Channels of one request.
#[derive(Clone, Debug)]
pub(super) struct Together {
    pub(super) names: Vec<Arc<str>>,
    /// Suspects are among them, which are tried one request after the other.
    pub(super) on_trial: bool,
}

/// What the server acknowledged a moment ago, each with the time at which it has stood that.
#[derive(Debug, Default)]
pub(super) struct Fresh(VecDeque<(Instant, Together)>);

impl Fresh {
    pub(super) fn push(&mut self, together: Together, now: Instant) {
        self.0.push_back((now + PROBATION, together));
    }

    /// When nothing is fresh any more, and a suspect may be tried.
    pub(super) fn until(&self) -> Option<Instant> {
        self.0.back().map(|(until, _)| *until)
    }

    /// The next request for channels that have stood it.
    pub(super) fn next_proven(&mut self, now: Instant) -> Option<Vec<Arc<str>>> {
        let is_over = self.0.front().is_some_and(|(until, _)| *until <= now);
        if is_over { self.0.pop_front().map(|(_, together)| together.names) } else { None }
    }

    /// Whom the end is blamed on: those on trial; or else what was being asked for; or else, if the server said that it
    /// closes, what is fresh.
    pub(super) fn blamed(&mut self, asked: Vec<Together>, ending: Ending) -> Vec<Arc<str>> {
        let fresh = self.0.drain(..).map(|(_, together)| together);
        let fresh: Vec<_> = fresh.filter(|_| ending == Ending::Closed).collect();
        let is_trial = asked.iter().chain(&fresh).any(|together| together.on_trial);
        let all = if asked.is_empty() || is_trial { [asked, fresh].concat() } else { asked };
        all.into_iter().filter(|together| together.on_trial || !is_trial).flat_map(|together| together.names).collect()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
