//! What was asked of the server and not answered yet: the table of requests, for callers' threads and the worker. Two
//! numbers beside it spare most looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::error::RequestError;
use crate::policy::requests::{Requests, Told, Whom};
use crate::receipt::Receipt;
use crate::request::RequestId;
use crate::response::Response;

/// Where a caller waits for its response.
pub(crate) type Caller = Sender<Response>;

/// Ids of callers' own choice that are larger than this do not move the client's own numbers.
///
/// Venues that read numbers as doubles echo none above 2^53; a client that begins at half of that never comes there.
const MAX_NUMBER: u64 = 1 << 52;

#[derive(Debug)]
pub(crate) struct Asked {
    table: Mutex<Requests<Caller>>,
    /// Requests that wait or are remembered.
    active: AtomicUsize,
    /// Nanoseconds since `base`, plus one, at which something is due; 0 is never.
    due: AtomicU64,
    base: Instant,
    next: AtomicU64,
}

impl Asked {
    pub(crate) fn new(now: Instant) -> Self {
        Self { table: Mutex::default(), active: 0.into(), due: 0.into(), base: now, next: 1.into() }
    }

    /// One look at the table, under its lock.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Requests<Caller>) -> T) -> T {
        let mut table = self.table.lock();
        let result = look(&mut table);
        let nanos = table.due().map_or(0, |due| due.saturating_duration_since(self.base).as_nanos() as u64 + 1);
        self.due.store(nanos, Ordering::Relaxed);
        self.active.store(table.active(), Ordering::Relaxed);
        result
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0
    }

    /// Whether the server may still answer a request of a caller's or a handler's: one that was written.
    pub(crate) fn awaits_answers(&self) -> bool {
        !self.is_idle() && self.look(|table| table.awaits_answers())
    }

    /// When something is due at the earliest. May be too early, not too late.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.load(Ordering::Relaxed).checked_sub(1).map(|nanos| self.base + Duration::from_nanos(nanos))
    }

    /// Whether something is due before `known`: the worker is about to sleep until then.
    pub(crate) fn due_before(&self, known: Option<Instant>) -> bool {
        self.due().is_some_and(|due| known.is_none_or(|known| due < known))
    }

    /// An id that no other request of this client has or had.
    pub(crate) fn next_id(&self) -> RequestId {
        RequestId::Number(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The next number is this one: a replay gives the ids of the run that it repeats.
    #[cfg(all(feature = "record", feature = "testing"))]
    pub(crate) fn continue_at(&self, id: u64) {
        self.next.store(id, Ordering::Relaxed);
    }

    /// The id that a request wishes to have, unless another's answer may still come under it; or the next.
    pub(crate) fn id_for(&self, wished: Option<&RequestId>) -> Result<RequestId, RequestError> {
        let Some(id) = wished else { return Ok(self.next_id()) };
        if self.look(|table| table.is_taken(id)) {
            return Err(RequestError::DuplicateId(id.clone()));
        }
        self.reserve(id);
        Ok(id.clone())
    }

    /// The client's own numbers stay clear of those that callers choose.
    pub(crate) fn reserve(&self, id: &RequestId) {
        if let RequestId::Number(number @ ..=MAX_NUMBER) = id {
            self.next.fetch_max(number + 1, Ordering::Relaxed);
        }
    }

    /// Fails one request of a caller's, whose time has run out by the caller's own clock.
    pub(crate) fn give_up(&self, id: &RequestId, receipt: &Arc<Receipt>, now: Instant) {
        let told = self.look(|table| table.give_up(id, receipt, now));
        let _ = told.and_then(tell_caller);
    }
}

/// Hands a response to who waits; gives it back if nobody does any more.
pub(crate) fn answer_caller(response: Response, caller: &Caller) -> Option<Response> {
    caller.try_send(response).err().map(|unclaimed| unclaimed.into_inner())
}

/// Tells a caller; gives back what is for somebody else.
pub(crate) fn tell_caller((response, whom): Told<Caller>) -> Option<Told<Caller>> {
    match whom {
        Whom::Caller(caller) => {
            let _ = answer_caller(response, &caller);
            None
        }
        whom => Some((response, whom)),
    }
}
