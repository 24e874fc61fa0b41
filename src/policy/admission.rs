//! The one admission: every message that is to be written passes here, whoever sends it.

use std::time::Instant;

use super::rate_limit::{Limits, Over, Price};
use crate::error::{RequestError, SendError};
use crate::message::Message;
use crate::request::{Request, RequestId};
use crate::state::ReadyState;

/// While what waited for a connection is let out at the limits' pace, others are told to try again after this.
const QUEUE_GOES_FIRST: std::time::Duration = std::time::Duration::from_millis(20);

#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) max_message_size: usize,
    pub(crate) limits: Limits,
}

/// What the door that the message comes to is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    /// `Err`: there is neither a connection nor a queue that would take it, for this state.
    pub(crate) open: Result<(), ReadyState>,
    /// There is no room in the channel or in the queue.
    pub(crate) full: bool,
    /// Messages that waited for this connection and are not out yet. Nothing may overtake them, but for what tokens are
    /// reserved for.
    pub(crate) queued: usize,
}

impl Door {
    /// On an open connection that the worker itself writes to.
    pub(crate) const WORKERS: Self = Self { open: Ok(()), full: false, queued: 0 };
}

/// How the rate limits see it, and what it pays them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge<'a> {
    Now(&'a Price),
    /// It waits for a connection, and pays when it leaves: now it is only asked whether it ever can.
    WhenWritten(&'a Price),
    /// It never waits (heartbeats, renewals), but the venue counts it.
    Regardless(&'a Price),
    /// It has paid.
    Paid,
}

/// Why a message was not written.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// A limit is in the way. With the message, if it had to be written for the limit to see.
    Over(Over, Option<Message>),
    /// It can't be written, and this is why.
    Fault(Box<str>),
    Refused(SendError),
}

impl Unwritten {
    /// As the refusal of a request, which is handed back as JSON-RPC 2.0 would write it where it was not written.
    pub(crate) fn refuse(self, request: &Request, id: &RequestId) -> RequestError {
        match self {
            Self::Over(over, early) => over.refuse(early.unwrap_or_else(|| request.draft(id))).into(),
            Self::Fault(text) => RequestError::Params(text),
            Self::Refused(error) => error.into(),
        }
    }
}

impl Admission {
    /// What a message pays. Runs code of the caller's: under no lock, and not inside the gate.
    pub(crate) fn price(&self, message: &Message) -> Price {
        if self.limits.is_empty() { Price::default() } else { self.limits.price(message) }
    }

    /// Accepts a message or hands it back. In this order, so that what is refused has cost nothing: its size, whether
    /// there is a connection, room, and last the rate limits. `clock` is asked only where a limit counts.
    pub(crate) fn admit(
        &self,
        message: Message,
        door: Door,
        charge: Charge<'_>,
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
        match self.charge(door, charge, clock) {
            Ok(()) => Ok(message),
            Err(over) => Err(over.refuse(message)),
        }
    }

    /// Writes a message once the rate limits let it pass, so that what it says of the time is true and a request that is
    /// refused is not written. Where a limit wants to see the message first, it is written before. Runs code of the
    /// caller's: under no lock, and not inside the gate.
    pub(crate) fn write(
        &self,
        door: Door,
        regardless: bool,
        clock: impl Fn() -> Instant,
        write: &dyn Fn() -> Result<Message, Box<str>>,
    ) -> Result<(Message, Price), Unwritten> {
        let early = if self.limits.read_messages() { Some(write().map_err(Unwritten::Fault)?) } else { None };
        let mut price = early.as_ref().map_or_else(|| self.price(&Message::text("")), |message| self.price(message));
        let charge = if regardless { Charge::Regardless(&price) } else { Charge::Now(&price) };
        if let Err(over) = self.charge(door, charge, &clock) {
            return Err(Unwritten::Over(over, early));
        }
        price.is_paid(&clock);
        let fault = match early.map_or_else(write, Ok) {
            Ok(message) if message.len() <= self.max_message_size => return Ok((message, price)),
            Ok(message) => Unwritten::Refused(SendError::TooLarge { message, limit: self.max_message_size }),
            Err(fault) => Unwritten::Fault(fault),
        };
        self.limits.refund(&mut price);
        Err(fault)
    }

    /// The rate limits' part of it.
    pub(crate) fn charge(&self, door: Door, charge: Charge<'_>, clock: impl FnOnce() -> Instant) -> Result<(), Over> {
        if self.limits.is_empty() {
            return Ok(());
        }
        match charge {
            Charge::Paid => Ok(()),
            Charge::WhenWritten(price) => self.limits.check(price),
            Charge::Now(price) if door.queued > 0 && !price.is_entitled() => Err(Over::Wait(QUEUE_GOES_FIRST)),
            Charge::Now(price) => self.limits.take(price, clock()),
            Charge::Regardless(price) => {
                self.limits.force(price, clock());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::RateLimit;
    use std::time::Duration;

    #[test]
    fn what_is_refused_for_another_reason_costs_nothing() {
        let limit = RateLimit::bucket(1, 1, Duration::from_secs(3600)).unwrap();
        let admission = Admission { max_message_size: 2, limits: Limits::for_client(&[limit]) };
        let price = admission.price(&"a".into());
        let (now_, later, regardless) = (Charge::Now(&price), Charge::WhenWritten(&price), Charge::Regardless(&price));
        let now = Instant::now();
        let admit = |text: &str, door, charge| admission.admit(text.into(), door, charge, || now);
        let closed = Door { open: Err(ReadyState::Backoff), ..Door::WORKERS };
        let full = Door { full: true, ..Door::WORKERS };
        let behind = Door { queued: 1, ..Door::WORKERS };
        assert!(matches!(admit("abc", closed, now_), Err(SendError::TooLarge { limit: 2, .. })));
        assert!(matches!(admit("a", closed, now_), Err(SendError::NotOpen { .. })));
        assert!(matches!(admit("a", full, now_), Err(SendError::Full { .. })));
        assert!(matches!(admit("a", behind, now_), Err(SendError::RateLimited { .. })));
        assert!(admit("a", full, later).is_err() && admit("a", behind, later).is_ok());
        assert!(admit("a", Door::WORKERS, now_).is_ok(), "the only token is still there");
        assert!(matches!(admit("a", Door::WORKERS, now_), Err(SendError::RateLimited { .. })));
        assert!(admit("a", Door::WORKERS, regardless).is_ok());
    }
}
