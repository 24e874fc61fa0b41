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
            Self::Closed => 2,
            Self::Cut => 1,
        }
    }
}

/// With so much against it a channel is set aside: two closed connections or four cut ones.
pub(super) const STRIKES: u32 = 4;

/// For at least so long; then the next connection tries it once more, since it may have been the network, and venues change
/// their minds.
pub(super) const SET_ASIDE_FOR: Duration = Duration::from_secs(600);

/// Cuts in a row that make a channel a suspect: two while it is asked for, or four just after it was acknowledged.
pub(super) const CUTS: u32 = 4;

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

/// Channels that prove themselves within this time are looked at together.
const SLACK: Duration = Duration::from_millis(50);

/// What the server acknowledged a moment ago, each with the time at which it has stood that.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    joined: VecDeque<(Instant, Together)>,
    /// How many of them have suspects among them.
    trials: usize,
}

impl Fresh {
    pub(super) fn push(&mut self, together: Together, now: Instant) {
        self.trials += usize::from(together.on_trial);
        self.joined.push_back((now + PROBATION, together));
    }

    /// When to look which of them have stood it.
    pub(super) fn due(&self) -> Option<Instant> {
        self.joined.front().map(|(until, _)| *until + SLACK)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.joined.is_empty()
    }

    pub(super) fn has_trial(&self) -> bool {
        self.trials > 0
    }

    /// The next request for channels that have stood it.
    pub(super) fn next_proven(&mut self, now: Option<Instant>) -> Option<Vec<Arc<str>>> {
        self.joined.front().filter(|(until, _)| now.is_none_or(|now| *until <= now))?;
        let (_, together) = self.joined.pop_front()?;
        self.trials -= usize::from(together.on_trial);
        Some(together.names)
    }

    /// Whom the end is blamed on: those on trial; or else what was being asked for; or else what is fresh.
    pub(super) fn blamed(&mut self, asked: Vec<Together>) -> Vec<Arc<str>> {
        let is_trial = self.has_trial() || asked.iter().any(|together| together.on_trial);
        let fresh = std::mem::take(self).joined.into_iter().map(|(_, together)| together).collect();
        let all = if asked.is_empty() || is_trial { [asked, fresh].concat() } else { asked };
        all.into_iter().filter(|together| together.on_trial || !is_trial).flat_map(|together| together.names).collect()
    }
}
