//! The open connection and all that waits to be written on it: what the line's lock guards. Whoever holds the lock is the
//! connection's one owner.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crossbeam_channel::Receiver;
use rustix::event::PollFlags;

use crate::outbound::accepted::{Accepted, Bound};
use crate::outbound::line::{Guard, Line, WriteSide};
use crate::outbound::outbox::{Books, Outbox};
use crate::policy::rate_limit::Limits;
use crate::transport::{Broken, SLICE, Transport, Waited, poll_until};
use crate::unsettled::Resent;

/// Messages taken from the callers' channel in one go.
const TAKEN_AT_ONCE: usize = 256;

/// A caller writes at most about this much by itself, and no part of a longer message: `send` takes a bounded time, whatever
/// the message's length. The worker writes the rest.
const CALLERS_SLICE: usize = 64 << 10;

/// Where messages come from that callers sent, and where they are counted.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) queue: Receiver<Accepted>,
    pub(crate) books: Books,
}

#[derive(Default)]
pub(crate) struct Link {
    pub(crate) outbox: Outbox,
    pub(crate) transport: Option<Transport>,
    /// A caller found the connection broken; the worker has yet to hear of it.
    broken: Option<Broken>,
    /// Only read to its end any more: writing failed, or our close frame is the last that goes out.
    only_read: bool,
}

impl Link {
    pub(crate) fn new(limits: Limits, keeps: Bound) -> Self {
        Self { outbox: Outbox::new(limits, keeps), ..Self::default() }
    }

    /// Messages that `reconcile` sent are returned when the peer has not acknowledged them by the connection's end.
    pub(crate) fn keep_resent(&mut self, messages: Vec<Resent>) {
        if let Some(transport) = &self.transport {
            self.outbox.keep_resent(messages, transport);
        }
    }

    /// A connection on which the session is still to be opened.
    pub(crate) fn open(&mut self, transport: Transport) {
        (self.transport, self.broken, self.only_read) = (Some(transport), None, false);
        self.outbox.hold(Instant::now());
    }

    /// Nothing more is written on it.
    pub(crate) fn only_read_from_now_on(&mut self) {
        self.only_read = true;
        self.outbox.only_urgent_from_now_on();
    }

    /// The one way out of a connection. What the kernel has by now was written, whoever wrote it: the goodbye, a pong of
    /// the framing's own, a flush that failed later. Only what is left after this count may be handed back.
    /// What the peer's kernel has not acknowledged by now may never arrive.
    pub(crate) fn let_go(&mut self, books: &Books) {
        if let Some(mut transport) = self.transport.take() {
            self.outbox.count_written(&mut transport, books);
            self.outbox.settle_sent(transport.proven(), books);
            transport.say_goodbye();
            self.outbox.count_bytes(&transport, books);
        }
    }

    /// The session is open: messages of callers may be written.
    pub(crate) fn release(&mut self, epoch: u64) {
        self.outbox.open(epoch);
    }

    /// Takes what callers sent, but no more than the transport can carry away. True when something was taken.
    pub(crate) fn take(&mut self, sent: &Receiver<Accepted>) -> bool {
        if !self.outbox.takes_more() {
            return false;
        }
        let mut taken = false;
        for item in sent.try_iter().take(TAKEN_AT_ONCE) {
            self.outbox.push(item);
            taken = true;
        }
        taken
    }

    /// Takes all that is there: what waited for this connection goes before whatever is sent on it.
    pub(crate) fn take_all(&mut self, sent: &Receiver<Accepted>) {
        sent.try_iter().for_each(|item| self.outbox.push(item));
    }

    /// Forgets messages that have arrived, when it is time to ask for that.
    pub(crate) fn review_sent(&mut self, now: Instant) {
        if let Some(transport) = &self.transport {
            self.outbox.review_sent(transport, now);
        }
    }

    /// Writes a slice of the messages that wait, as far as the kernel takes them; true when all are out.
    pub(crate) fn write_out(&mut self, books: &Books) -> Result<bool, Broken> {
        self.write_slice(books, SLICE, false)
    }

    fn write_slice(&mut self, books: &Books, most: usize, leaves_long: bool) -> Result<bool, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        match &mut self.transport {
            Some(transport) if !self.only_read => {
                self.outbox.write_out(transport, books, Instant::now, most, leaves_long)
            }
            _ => Ok(false),
        }
    }
}

impl WriteSide for Link {
    type Source = Source;

    /// Not before the session is open, and not on a connection that is known to be broken: that is the worker's to see to.
    fn is_open_to_callers(&self) -> bool {
        self.transport.is_some() && !self.outbox.is_only_urgent() && self.broken.is_none() && !self.only_read
    }

    fn is_unfinished(&self) -> bool {
        !self.outbox.takes_more()
    }

    fn write_from(&mut self, source: &Source) -> bool {
        self.take(&source.queue);
        match self.write_slice(&source.books, CALLERS_SLICE, true) {
            Ok(all_out) => all_out && source.queue.is_empty(),
            Err(broken) => {
                self.broken = Some(broken);
                false
            }
        }
    }
}

/// The worker's sleep while a connection is there. Meanwhile callers may write on it.
pub(crate) fn sleep(
    line: &Line<Link>,
    link: &mut Guard<'_, Link>,
    socket: Option<(BorrowedFd<'_>, PollFlags)>,
    deadline: Option<Instant>,
    last_look: impl FnOnce(&Link) -> bool,
) -> io::Result<Waited> {
    let slept = line.sleep(link, last_look, |wake| {
        let waited = poll_until(socket.as_slice(), wake, deadline);
        let rung = waited.as_ref().is_ok_and(|waited| waited.rung);
        (waited, rung)
    });
    slept.unwrap_or(Ok(Waited { skipped: true, ..Waited::default() }))
}
