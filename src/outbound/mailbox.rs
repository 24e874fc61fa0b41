//! Where a handle's message is accepted: the gate, a place, the admission, the channel; then the line is told. How the
//! writing is shared between the worker and its callers is in `line`.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};

use super::accepted::{Accepted, Fee, Places};
use super::gate::{Gate, Pass};
use super::line::Line;
use super::link::{Link, Source};
use crate::error::SendError;
use crate::message::Message;
use crate::policy::admission::{Admission, Charge, Door};
use crate::receipt::Receipt;
use crate::request::RequestId;
use crate::state::ReadyState;
use crate::telemetry::counter::Counter;
use crate::wake::Wake;

pub(crate) struct Mailbox {
    pub(crate) gate: Gate,
    pub(crate) wake: Arc<Wake>,
    /// Locked by the worker while it runs and does not sleep; by a caller only if it is free; by others only when there
    /// is no worker.
    pub(crate) line: Line<Link>,
    pub(crate) source: Source,
    pub(crate) admission: Admission,
    enter: Sender<Accepted>,
    places: Places,
    capacity: usize,
    max_queued: usize,
}

/// Who else wants to know of a message before anyone can write it, and what to do when it is not accepted after all.
pub(crate) trait Enlists {
    type Error: From<SendError>;
    /// It is about to be accepted for this connection, or for the next.
    fn enlist(&mut self, message: &Message, epoch: Option<u64>) -> Result<Option<Arc<Receipt>>, Self::Error>;
    fn withdraw(&mut self, id: &RequestId);
}

/// Nobody else.
pub(crate) struct Nobody;

impl Enlists for Nobody {
    type Error = SendError;

    fn enlist(&mut self, _: &Message, _: Option<u64>) -> Result<Option<Arc<Receipt>>, SendError> {
        Ok(None)
    }

    fn withdraw(&mut self, _: &RequestId) {}
}

impl Mailbox {
    pub(crate) fn new(admission: Admission, capacity: usize, max_queued: usize) -> io::Result<Self> {
        let (enter, queue) = crossbeam_channel::bounded(capacity.max(max_queued));
        let wake = Arc::new(Wake::new()?);
        Ok(Self {
            gate: Gate::new(max_queued > 0),
            line: Line::new(wake.clone(), Link::new(admission.limits.clone())),
            wake,
            source: Source { queue, sent: Counter::default() },
            admission,
            enter,
            places: Places::default(),
            capacity,
            max_queued,
        })
    }

    /// Accepts a message from a handle, on any thread.
    pub(crate) fn accept<E: Enlists>(
        &self,
        message: Message,
        state: impl FnOnce() -> ReadyState,
        mut others: E,
    ) -> Result<(), E::Error> {
        let passage = self.gate.enter();
        let epoch = match passage.pass {
            Pass::Open { epoch } => Some(epoch),
            Pass::Queue | Pass::Shut => None,
        };
        let waits = epoch.is_none() && passage.pass == Pass::Queue && self.max_queued > 0;
        let place = if waits { self.places.take(self.max_queued) } else { None };
        let door = Door {
            open: if epoch.is_some() || waits { Ok(()) } else { Err(state()) },
            // Asked before a rate limit is charged; without limits the channel's own refusal will do.
            full: (waits && place.is_none()) || (!self.admission.limits.is_empty() && self.enter.is_full()),
            queued: if waits { 0 } else { self.places.taken() },
        };
        let (charge, fee) = match waits {
            true => (Charge::WhenWritten, Fee::Owed { passed: 0 }),
            false => (Charge::Now, Fee::Paid),
        };
        let message = self.admission.admit(message, door, charge, Instant::now)?;
        let receipt = others.enlist(&message, epoch)?;
        match self.enter.try_send(Accepted { message, epoch, receipt, fee, place }) {
            Ok(()) => {
                drop(passage);
                self.line.pass_on(&self.source);
                Ok(())
            }
            Err(TrySendError::Full(item) | TrySendError::Disconnected(item)) => {
                // Before the passage is let go of: a disconnect that follows would fail the request a second time.
                if let Some(id) = item.receipt.as_ref().and_then(|receipt| receipt.request_id()) {
                    others.withdraw(id);
                }
                Err(SendError::Full { message: item.message }.into())
            }
        }
    }

    /// The door that a handler's message comes to. `waiting` is how many it has in the outbox already.
    pub(crate) fn handlers_door(&self, open: Result<(), ReadyState>, waiting: usize) -> Door {
        Door { open, full: waiting >= self.capacity, queued: self.places.taken() }
    }

    /// Messages that wait for the next connection.
    pub(crate) fn queued(&self) -> usize {
        self.places.taken()
    }
}
