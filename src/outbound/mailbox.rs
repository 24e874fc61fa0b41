//! Where a message is accepted: what it pays is found out, then the gate, a place, the admission, the channel; then the line
//! is told. How the writing is shared between the worker and its callers is in `line`. No code of the caller's runs
//! between the gate and the channel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::accepted::{Accepted, Bound, Load};
use super::gate::{Gate, Pass};
use super::line::Line;
use super::link::{Link, Source};
use super::outbox::Books;
use crate::error::SendError;
use crate::message::Message;
use crate::policy::admission::{Admission, Charge, Door};
use crate::policy::rate_limit::Price;
use crate::receipt::Receipt;
use crate::record::tap::Tap;
use crate::state::ReadyState;
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
    /// For the open connection, and for the next.
    open: Bound,
    queued: Bound,
}

/// Who else wants to know of a message before anyone can write it.
pub(crate) trait Enlists {
    type Error: From<SendError>;
    /// It is about to be accepted for this connection, or for the next.
    fn enlist(&mut self, message: &Message, epoch: Option<u64>) -> Result<Option<Arc<Receipt>>, Self::Error>;
}

/// Nobody else.
pub(crate) struct Nobody;

impl Enlists for Nobody {
    type Error = SendError;

    fn enlist(&mut self, _: &Message, _: Option<u64>) -> Result<Option<Arc<Receipt>>, SendError> {
        Ok(None)
    }
}

impl Mailbox {
    pub(crate) fn new(admission: Admission, open: Bound, max_queued: usize, tap: Option<Tap>) -> io::Result<Self> {
        let (enter, queue) = crossbeam_channel::unbounded();
        let wake = Arc::new(Wake::new()?);
        let queued = Bound { messages: max_queued, ..open };
        Ok(Self {
            gate: Gate::new(max_queued > 0),
            line: Line::new(wake.clone(), Link::new(admission.limits.clone(), open)),
            wake,
            source: Source { queue, books: Books { tap, ..Books::default() } },
            admission,
            enter,
            open,
            queued,
        })
    }

    /// Accepts a message from a handle, on any thread.
    pub(crate) fn accept<E: Enlists>(
        &self,
        message: Message,
        state: impl FnOnce() -> ReadyState,
        others: E,
    ) -> Result<(), E::Error> {
        let price = self.admission.price(&message);
        self.accept_at(message, price, state, others)
    }

    /// As `accept`, for a message whose price is known. One that has been paid is given back should it be refused.
    pub(crate) fn accept_at<E: Enlists>(
        &self,
        message: Message,
        mut price: Price,
        state: impl FnOnce() -> ReadyState,
        mut others: E,
    ) -> Result<(), E::Error> {
        let passage = self.gate.enter();
        let epoch = match passage.pass {
            Pass::Open { epoch } => Some(epoch),
            Pass::Queue | Pass::Shut | Pass::Ended => None,
        };
        let waits = passage.pass == Pass::Queue && self.queued.messages > 0;
        let (load, bound) = self.load(waits);
        let is_open = epoch.is_some() || waits;
        let length = message.len();
        let has_place = is_open && load.enter(length, bound);
        let door = Door {
            // Between the two looks it may have opened.
            open: if is_open { Ok(()) } else { Err(state().unless_open()) },
            full: is_open && !has_place,
            queued: if waits { 0 } else { self.queued() },
        };
        let (pays_now, charge) = match (price.has_paid(), waits) {
            (true, _) => (false, Charge::Paid),
            (false, true) => (false, Charge::WhenWritten(&price)),
            (false, false) => (true, Charge::Now(&price)),
        };
        let admitted = self.admission.admit(message, door, charge, Instant::now).map_err(E::Error::from);
        if pays_now && admitted.is_ok() {
            price.is_paid(Instant::now);
        }
        let enlisted = admitted.and_then(|message| others.enlist(&message, epoch).map(|receipt| (message, receipt)));
        let (message, receipt) = match enlisted {
            Ok(accepted) => accepted,
            Err(error) => {
                if has_place {
                    load.leave(length);
                }
                self.admission.limits.refund(&mut price);
                return Err(error);
            }
        };
        self.source.books.tally.accepted.fetch_add(1, Ordering::Relaxed);
        // The receiver is ours, so this cannot fail.
        let _ = self.enter.send(Accepted { message, epoch, receipt, price, own: false });
        drop(passage);
        self.line.pass_on(&self.source);
        Ok(())
    }

    fn load(&self, waits: bool) -> (&Load, Bound) {
        match waits {
            true => (&self.source.books.queued, self.queued),
            false => (&self.source.books.open, self.open),
        }
    }

    /// Accepts a message of a handler's for the open connection; the handler puts it into the outbox itself.
    pub(crate) fn accept_here(
        &self,
        message: Message,
        open: Result<(), ReadyState>,
        charge: Charge<'_>,
        now: Instant,
    ) -> Result<Message, SendError> {
        let length = message.len();
        let has_place = open.is_ok() && self.source.books.open.enter(length, self.open);
        let door = Door { open, full: open.is_ok() && !has_place, queued: self.queued() };
        let admitted = self.admission.admit(message, door, charge, || now);
        match &admitted {
            Ok(_) => drop(self.source.books.tally.accepted.fetch_add(1, Ordering::Relaxed)),
            Err(_) if has_place => self.source.books.open.leave(length),
            Err(_) => {}
        }
        admitted
    }

    /// A handler's message was not put into the outbox after all.
    pub(crate) fn withdraw_here(&self, length: usize, price: &mut Price) {
        self.source.books.open.leave(length);
        self.source.books.tally.accepted.fetch_sub(1, Ordering::Relaxed);
        self.admission.limits.refund(price);
    }

    /// Messages that wait for the next connection.
    pub(crate) fn queued(&self) -> usize {
        self.source.books.queued.messages()
    }
}
