//! What every thread of one client may touch: who it is, its mailbox, what it asked for and wants, its state, its commands,
//! its figures. It knows neither the configuration nor the worker.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::asked::{Asked, Caller};
use crate::command::{Command, CommandKind, Commands, Decided};
use crate::correlation::Correlation;
use crate::deadline::later;
use crate::error::SendError;
use crate::handshake::Handshake;
use crate::lifecycle::StopError;
use crate::message::{CloseFrame, Message};
use crate::outbound::mailbox::Mailbox;
use crate::policy::admission::{Charge, Door, Unwritten};
use crate::policy::rate_limit::Price;
use crate::policy::requests::Requests;
use crate::policy::subscriptions::Subscriptions;
use crate::policy::terms::Tables;
use crate::record::tap::{Shown, Tap};
use crate::request::RequestId;
use crate::state::{ReadyState, Tag};
use crate::status::Status;
use crate::telemetry::duty::{Duty, Pauses};
use crate::telemetry::health::Health;
use crate::telemetry::stats::Counters;
use crate::user_code::Panics;
use crate::wanted::Wanted;

pub(crate) struct Core {
    pub(crate) tag: Tag,
    pub(crate) mailbox: Mailbox,
    pub(crate) asked: Asked,
    pub(crate) wanted: Wanted,
    pub(crate) status: Status,
    /// Of the latest connection.
    pub(crate) handshake: Mutex<Option<Arc<Handshake>>>,
    /// What its handler is to be told; `None` without one.
    pub(crate) told: Option<Told>,
    pub(crate) commands: Commands,
    /// Sent in place of 1000 when the client is closed.
    pub(crate) close_frame: Mutex<Option<CloseFrame>>,
    /// The line is to be tried at once.
    pub(crate) tries_line: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) health: Health,
    pub(crate) duty: Duty,
    pub(crate) pauses: Pauses,
    pub(crate) correlation: Correlation,
    pub(crate) request_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) thread: Mutex<Option<ThreadId>>,
    /// Panics of the user's code outside a run.
    pub(crate) panics: Panics,
}

/// Values that callers have for a handler.
pub(crate) struct Told {
    enter: Sender<Box<dyn Any + Send>>,
    queue: Receiver<Box<dyn Any + Send>>,
    /// How many wait, or are just being put there: asked after every message.
    waiting: AtomicUsize,
}

/// So many wait for a handler at most.
pub(crate) const MAX_TOLD: usize = 1_024;

impl Default for Told {
    fn default() -> Self {
        let (enter, queue) = crossbeam_channel::unbounded();
        Self { enter, queue, waiting: AtomicUsize::new(0) }
    }
}

impl Told {
    /// False: too many wait.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < MAX_TOLD
    }

    pub(crate) fn tell(&self, value: Box<dyn Any + Send>) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // The receiver is ours.
        let _ = self.enter.send(value);
    }
}

impl Core {
    /// Where what comes and goes is recorded, if it is.
    #[inline]
    pub(crate) fn tap(&self) -> Option<&Tap> {
        self.mailbox.source.books.tap.as_ref()
    }

    /// How a recording says that something is delivered now: with an open connection, or in which state without.
    pub(crate) fn shown(&self, epoch: Option<u64>) -> Shown {
        Shown::Now(epoch.is_none().then(|| self.status.get().unless_open()))
    }

    /// The next value for the handler.
    pub(crate) fn next_told(&self) -> Option<Box<dyn Any + Send>> {
        let told = self.told.as_ref()?;
        let value = told.queue.try_recv().ok()?;
        told.waiting.fetch_sub(1, Ordering::AcqRel);
        Some(value)
    }

    /// Whether there is one.
    #[inline]
    pub(crate) fn has_told(&self) -> bool {
        self.told.as_ref().is_some_and(|told| told.waiting.load(Ordering::Acquire) > 0)
    }

    /// Whether a caller has something for the worker: a command, a value for the handler, or a message that could be written.
    #[inline]
    pub(crate) fn wants_a_turn(&self, can_write: bool) -> bool {
        (can_write && self.mailbox.source.books.has_waiting()) || self.commands.pending() || self.has_told()
    }

    /// Gives the worker a command, which interrupts anything that it does. Returns what was decided if its run has ended.
    pub(crate) fn command(&self, kind: CommandKind, grace: Duration) -> (Command, Option<Decided>) {
        let given = Instant::now();
        let command = Command { kind, given, deadline: later(given, grace) };
        let decided = self.commands.give(command);
        self.mailbox.wake.wake();
        (command, decided)
    }

    /// From now on the client's own close frame says this.
    pub(crate) fn set_close_frame(&self, code: u16, reason: &str) -> Result<(), StopError> {
        let frame = CloseFrame::to_send(code, reason).map_err(|rule| StopError::InvalidCloseFrame(rule.into()))?;
        *self.close_frame.lock() = Some(frame);
        Ok(())
    }

    /// Has the worker ask at once whether the line is alive.
    pub(crate) fn try_line(&self) {
        self.tries_line.store(true, Ordering::Release);
        self.mailbox.wake.wake();
    }

    /// Whether it is to.
    pub(crate) fn is_to_try_line(&self) -> bool {
        self.tries_line.load(Ordering::Acquire)
    }

    pub(crate) fn take_try_line(&self) -> bool {
        self.is_to_try_line() && self.tries_line.swap(false, Ordering::AcqRel)
    }

    /// From now on this thread is the client's own.
    pub(crate) fn set_thread(&self) {
        *self.thread.lock() = Some(std::thread::current().id());
    }

    /// Whether the caller is this client's own worker, which must not wait for itself.
    pub(crate) fn is_own_thread(&self) -> bool {
        *self.thread.lock() == Some(std::thread::current().id())
    }
}

/// Locks are taken one at a time, each for one look.
impl Tables for Core {
    type Caller = Caller;

    fn requests<T>(&self, look: impl FnOnce(&mut Requests<Caller>) -> T) -> T {
        self.asked.look(look)
    }

    fn subscriptions<T>(&self, look: impl FnOnce(&mut Subscriptions) -> T) -> T {
        self.wanted.look(look)
    }

    fn requests_due(&self) -> Option<Instant> {
        self.asked.due()
    }

    #[inline]
    fn expects_no_answer(&self) -> bool {
        self.asked.is_idle()
    }

    fn answered(&self, method: &str, took: Duration) {
        self.counters.request_latency.record(method, took);
    }

    fn next_id(&self) -> RequestId {
        self.asked.next_id()
    }

    fn reserve(&self, id: &RequestId) {
        self.asked.reserve(id);
    }

    fn admit_heartbeat(&self, message: Message, now: Instant) -> Result<Message, SendError> {
        let admission = &self.mailbox.admission;
        let price = admission.price(&message);
        admission.admit(message, Door::WORKERS, Charge::Regardless(&price), || now)
    }

    fn write(
        &self,
        regardless: bool,
        now: Instant,
        write: &dyn Fn() -> Result<Message, Box<str>>,
    ) -> Result<(Message, Price), Unwritten> {
        // What waited for this connection goes first, once it is open; before that nothing of it leaves at all.
        let is_open = self.status.get() == ReadyState::Open;
        let door = Door { queued: if is_open { self.mailbox.queued() } else { 0 }, ..Door::WORKERS };
        self.mailbox.admission.write(door, regardless, || now, write)
    }

    fn refund(&self, price: &mut Price) {
        self.mailbox.admission.limits.refund(price);
    }
}
