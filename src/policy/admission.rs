//! The one admission: every message that is to be written passes here, whoever sends it.

use std::time::Instant;

use super::rate_limit::{self, Over, RateLimit};
use crate::error::SendError;
use crate::message::Message;
use crate::state::ReadyState;

/// While what waited for a connection is let out at the limits' pace, others are told to try again after this.
const QUEUE_GOES_FIRST: std::time::Duration = std::time::Duration::from_millis(20);

#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) max_message_size: usize,
    pub(crate) limits: Vec<RateLimit>,
}

/// What the door that the message comes to is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    /// `Err`: there is neither a connection nor a queue that would take it, for this state.
    pub(crate) open: Result<(), ReadyState>,
    /// There is no room in the channel or in the queue.
    pub(crate) full: bool,
    /// Messages that waited for this connection and are not out yet. Nothing may overtake them.
    pub(crate) queued: usize,
}

impl Door {
    /// On an open connection that the worker itself writes to.
    pub(crate) const WORKERS: Self = Self { open: Ok(()), full: false, queued: 0 };
}

/// How the rate limits see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge {
    Now,
    /// It waits for a connection, and is charged when it leaves: now it is only asked whether it ever can.
    WhenWritten,
    /// It never waits (heartbeats, renewals), but the venue counts it.
    Regardless,
}

impl Admission {
    /// Accepts a message or hands it back. In this order, so that what is refused has cost nothing: its size, whether
    /// there is a connection, room, and last the rate limits. `clock` is asked only where a limit counts.
    pub(crate) fn admit(
        &self,
        message: Message,
        door: Door,
        charge: Charge,
        clock: impl FnOnce() -> Instant,
    ) -> Result<Message, SendError> {
        if message.len() > self.max_message_size {
            return Err(SendError::TooLarge { message, limit: self.max_message_size });
        }
        if let Err(state) = door.open {
            return Err(SendError::NotOpen { message, state });
        }
        if door.full {
            return Err(SendError::Full { message });
        }
        if self.limits.is_empty() {
            return Ok(message);
        }
        let passed = match charge {
            Charge::WhenWritten => rate_limit::check(&self.limits, &message),
            Charge::Now if door.queued > 0 => Err(Over::Wait(QUEUE_GOES_FIRST)),
            Charge::Now => rate_limit::charge(&self.limits, &message, clock()),
            Charge::Regardless => {
                let _ = rate_limit::charge(&self.limits, &message, clock());
                Ok(())
            }
        };
        match passed {
            Ok(()) => Ok(message),
            Err(over) => Err(over.refuse(message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_refused_for_another_reason_costs_nothing() {
        let limits = vec![RateLimit::bucket(1, 1, Duration::from_secs(3600)).unwrap()];
        let admission = Admission { max_message_size: 2, limits };
        let now = Instant::now();
        let admit = |text: &str, door, charge| admission.admit(text.into(), door, charge, || now);
        let closed = Door { open: Err(ReadyState::Backoff), ..Door::WORKERS };
        let full = Door { full: true, ..Door::WORKERS };
        let behind = Door { queued: 1, ..Door::WORKERS };
        assert!(matches!(admit("abc", closed, Charge::Now), Err(SendError::TooLarge { limit: 2, .. })));
        assert!(matches!(admit("a", closed, Charge::Now), Err(SendError::NotOpen { .. })));
        assert!(matches!(admit("a", full, Charge::Now), Err(SendError::Full { .. })));
        assert!(matches!(admit("a", behind, Charge::Now), Err(SendError::RateLimited { .. })));
        assert!(admit("a", full, Charge::WhenWritten).is_err() && admit("a", behind, Charge::WhenWritten).is_ok());
        assert!(admit("a", Door::WORKERS, Charge::Now).is_ok(), "the only token is still there");
        assert!(matches!(admit("a", Door::WORKERS, Charge::Now), Err(SendError::RateLimited { .. })));
        assert!(admit("a", Door::WORKERS, Charge::Regardless).is_ok());
    }
}
