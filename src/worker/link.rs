//! The open connection and all that waits to be written on it. The worker holds its lock for as long as it runs, but
//! for its sleep: meanwhile a caller who wants something written does it here, in the worker's stead, rather than wake
//! a thread for it. Whoever holds the lock is the connection's one owner; nobody ever waits for it but the worker, and
//! that for one write of a caller's.

use crossbeam_channel::Receiver;

use crate::command::Outbound;
use crate::session::rate_limit::RateLimit;
use crate::shared::Shared;
use crate::stats::Counter;
use crate::transport::{Broken, Transport};
use crate::worker::outbox::Outbox;

/// Messages taken from the callers' channel in one go.
const TAKEN: usize = 256;

#[derive(Default)]
pub(crate) struct Link {
    pub(crate) outbox: Outbox,
    pub(crate) transport: Option<Transport>,
    /// A caller found the connection broken; the worker has yet to hear of it.
    broken: Option<Broken>,
    /// Only read to its end any more.
    pub(crate) writes_broken: bool,
}

impl Link {
    pub(crate) fn new(limits: Vec<RateLimit>) -> Self {
        Self { outbox: Outbox::new(limits), ..Self::default() }
    }

    /// A connection on which the session is still to be opened.
    pub(crate) fn open(&mut self, transport: Transport) {
        (self.transport, self.broken, self.writes_broken) = (Some(transport), None, false);
        self.outbox.hold();
    }

    /// The one way out of a connection. What the kernel has by now was written, whoever wrote it: the goodbye, a pong of
    /// the framing's own, a flush that failed later. Only what is left after this count may be handed back.
    pub(crate) fn let_go(&mut self, sent: &Counter) {
        if let Some(transport) = self.transport.take() {
            self.outbox.count_written(transport.written(), sent);
        }
    }

    /// The session is open: what callers send may be written.
    pub(crate) fn release(&mut self) {
        self.outbox.held = false;
    }

    /// Takes what callers sent, but no more than the transport can carry away: the bounded channel is what holds a
    /// caller back. True when something was taken.
    pub(crate) fn take(&mut self, sent: &Receiver<Outbound>) -> bool {
        if !self.outbox.is_empty() {
            return false;
        }
        for item in sent.try_iter().take(TAKEN) {
            self.outbox.push(item);
        }
        !self.outbox.is_empty()
    }

    /// Writes what waits, as far as the kernel takes it; true when all is out.
    pub(crate) fn drive(&mut self, sent: &Counter) -> Result<bool, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        match &mut self.transport {
            Some(transport) if !self.writes_broken => self.outbox.drive(transport, sent),
            _ => Ok(false),
        }
    }

    /// On a caller's thread, for a worker that sleeps: writes what callers sent. False when the worker must see to it.
    fn write_for_worker(&mut self, shared: &Shared) -> bool {
        if self.transport.is_none() || self.outbox.held || self.broken.is_some() || self.writes_broken {
            return false;
        }
        if !self.outbox.is_empty() {
            // The kernel is full, and the worker waits for room.
            return true;
        }
        self.take(&shared.outbound.1);
        match self.drive(&shared.counters.sent) {
            // More than one go came together, or the kernel is full: that is work for the worker.
            Ok(all_out) => all_out && shared.outbound.1.is_empty(),
            Err(broken) => {
                self.broken = Some(broken);
                false
            }
        }
    }
}

/// A message was enqueued: sees to it that it is written. Never waits.
pub(crate) fn pass_on(shared: &Shared) {
    if !shared.wake.is_parked() {
        return;
    }
    if let Some(mut link) = shared.link.try_lock() {
        if link.write_for_worker(shared) {
            return;
        }
    }
    shared.wake.ring();
}
