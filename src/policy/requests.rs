//! Which requests wait for an answer: each is answered exactly once or fails exactly once. Pure but for a lock and two
//! atomics: given `now`, has no socket, thread or clock.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::error::{RequestError, SendError, Unanswered};
use crate::message::Message;
use crate::receipt::Receipt;
use crate::request::RequestId;
use crate::response::Response;

/// Requests that may be pending at once: memory is bounded, whatever callers and servers do.
const MAX_PENDING: usize = 65_536;

/// For so long requests that have failed are remembered, so that a late answer is known for what it is.
const MEMORY: Duration = Duration::from_secs(60);

/// While nothing is read, what the worker itself asked for gets this much longer, again and again.
const GRACE: Duration = Duration::from_secs(1);

/// Ids of callers' own choice that are larger than this do not move the client's own numbers.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// Whom the response is for.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Who waits on a channel.
    Caller(Sender<Response>),
    /// The handler, inline.
    Handler,
    /// The worker itself.
    Worker(Purpose),
}

/// What the worker asked for on its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A batch of channels, by its number.
    Subscription(u64),
    /// A new token before the old one expires.
    Renewal,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) method: Box<str>,
    pub(crate) message: Message,
    pub(crate) deadline: Instant,
    pub(crate) receipt: Arc<Receipt>,
    pub(crate) sink: Sink,
}

impl Pending {
    /// What is known at the end of its time: the receipt tells whether the worker had begun to write it.
    fn fail(self, id: RequestId, cause: Unanswered, written: bool) -> (Response, Sink) {
        let error = match written {
            true => RequestError::OutcomeUnknown { id: id.clone(), cause },
            false => RequestError::NotSent { message: self.message, cause },
        };
        (Response { id, method: self.method, outcome: Err(error) }, self.sink)
    }
}

/// Whom an answer answers.
#[derive(Debug)]
pub(crate) enum Claim {
    Pending(Pending),
    /// A request that was given up on; what for, if it was the worker's.
    Late {
        method: Box<str>,
        own: Option<Purpose>,
    },
    Nobody,
}

/// Why a request cannot be registered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Barred {
    Duplicate,
    Full,
}

impl Barred {
    pub(crate) fn error(&self, id: &RequestId, message: &Message) -> RequestError {
        match self {
            Self::Duplicate => RequestError::DuplicateId(id.clone()),
            Self::Full => RequestError::Refused(SendError::Full { message: message.clone() }),
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    pending: HashMap<RequestId, Pending>,
    given_up: HashMap<RequestId, GivenUp>,
    /// In the order in which they are forgotten; some may be gone already.
    to_forget: VecDeque<(Instant, RequestId)>,
}

/// A request that failed by its time, and may be answered late.
#[derive(Debug)]
struct GivenUp {
    method: Box<str>,
    message: Message,
    own: Option<Purpose>,
    forget_at: Instant,
}

/// What a connection's end leaves behind.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) id: RequestId,
    pub(crate) method: Box<str>,
    pub(crate) message: Message,
    /// For the handler; callers have been told.
    pub(crate) untold: Option<Response>,
}

impl Table {
    fn remember(&mut self, id: RequestId, pending: &Pending, now: Instant) {
        if self.to_forget.len() == MAX_PENDING {
            self.forget_one();
        }
        let (method, message) = (pending.method.clone(), pending.message.clone());
        let own = match pending.sink {
            Sink::Worker(purpose) => Some(purpose),
            _ => None,
        };
        let forget_at = now + MEMORY;
        self.to_forget.push_back((forget_at, id.clone()));
        self.given_up.insert(id, GivenUp { method, message, own, forget_at });
    }

    fn forget_one(&mut self) {
        let Some((at, id)) = self.to_forget.pop_front() else { return };
        // The same id may have been used again, and given up on again.
        if self.given_up.get(&id).is_some_and(|given_up| given_up.forget_at == at) {
            self.given_up.remove(&id);
        }
    }

    fn next(&self) -> Option<Instant> {
        let forget = self.to_forget.front().map(|(at, _)| *at);
        self.pending.values().map(|pending| pending.deadline).chain(forget).min()
    }
}

#[derive(Debug)]
pub(crate) struct Requests {
    table: Mutex<Table>,
    /// Requests that wait or are remembered: while there are none, no message is looked at.
    active: AtomicUsize,
    /// Nanoseconds since `base`, plus one, before which nothing is due; 0 is never. May be too early, not too late.
    due: AtomicU64,
    base: Instant,
    next: AtomicU64,
}

impl Requests {
    pub(crate) fn new(now: Instant) -> Self {
        Self { table: Mutex::default(), active: 0.into(), due: 0.into(), base: now, next: 1.into() }
    }

    /// An id that no other request of this client has or had.
    pub(crate) fn next_id(&self) -> RequestId {
        RequestId::Number(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The client's own numbers stay clear of those that callers choose.
    pub(crate) fn reserve(&self, id: &RequestId) {
        if let RequestId::Number(number @ ..=MAX_NUMBER) = id {
            self.next.fetch_max(number + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn pending(&self) -> usize {
        self.table.lock().pending.len()
    }

    /// When something is due at the earliest.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.load(Ordering::Relaxed).checked_sub(1).map(|nanos| self.base + Duration::from_nanos(nanos))
    }

    /// Whether something is due before `known`: the worker is about to sleep until then.
    pub(crate) fn due_before(&self, known: Option<Instant>) -> bool {
        self.due().is_some_and(|due| known.is_none_or(|known| due < known))
    }

    fn publish(&self, table: &Table, due: Option<Instant>) {
        let nanos = due.map_or(0, |due| due.saturating_duration_since(self.base).as_nanos() as u64 + 1);
        self.due.store(nanos, Ordering::Relaxed);
        self.active.store(table.pending.len() + table.given_up.len(), Ordering::Relaxed);
    }

    /// Before the request is written, so that no answer can be too quick. True: it is due sooner than anything else,
    /// and a worker that sleeps must hear of it.
    pub(crate) fn register(&self, id: RequestId, pending: Pending) -> Result<bool, Barred> {
        let mut table = self.table.lock();
        if table.pending.len() >= MAX_PENDING {
            return Err(Barred::Full);
        }
        if table.given_up.contains_key(&id) {
            return Err(Barred::Duplicate);
        }
        let deadline = pending.deadline;
        self.reserve(&id);
        match table.pending.entry(id) {
            Entry::Occupied(_) => return Err(Barred::Duplicate),
            Entry::Vacant(place) => drop(place.insert(pending)),
        }
        let due = self.due();
        let sooner = due.is_none_or(|due| deadline < due);
        self.publish(&table, if sooner { Some(deadline) } else { due });
        Ok(sooner)
    }

    /// Whether another request with this id waits, or may still be answered.
    pub(crate) fn is_taken(&self, id: &RequestId) -> bool {
        let table = self.table.lock();
        table.pending.contains_key(id) || table.given_up.contains_key(id)
    }

    /// It was not accepted after all.
    pub(crate) fn withdraw(&self, id: &RequestId) -> Option<Pending> {
        let mut table = self.table.lock();
        let pending = table.pending.remove(id);
        // `due` may stay too early: one needless look later on.
        self.publish(&table, self.due());
        pending
    }

    /// An answer came.
    pub(crate) fn claim(&self, id: &RequestId) -> Claim {
        let mut table = self.table.lock();
        let claim = match table.pending.remove(id) {
            Some(pending) => Claim::Pending(pending),
            None => match table.given_up.remove(id) {
                Some(given_up) => Claim::Late { method: given_up.method, own: given_up.own },
                None => Claim::Nobody,
            },
        };
        self.publish(&table, self.due());
        claim
    }

    /// Fails what is due by `now`. Callers are told here, so that none of them waits for what a handler does about
    /// another; the rest is returned. While not everything that came is read the worker's own requests are left alone:
    /// their answers may wait unread.
    pub(crate) fn expire(&self, now: Instant, caught_up: bool) -> Vec<(Response, Sink)> {
        let mut table = self.table.lock();
        let mut due = Vec::new();
        for (id, pending) in table.pending.iter_mut().filter(|(_, pending)| pending.deadline <= now) {
            match pending.sink {
                Sink::Worker(_) if !caught_up => pending.deadline = now + GRACE,
                _ => due.push(id.clone()),
            }
        }
        let failed = due.into_iter().filter_map(|id| time_out(&mut table, id, now)).filter_map(tell_caller).collect();
        while table.to_forget.front().is_some_and(|(at, _)| *at <= now) {
            table.forget_one();
        }
        let next = table.next();
        self.publish(&table, next);
        failed
    }

    /// Fails one request of a caller's, whose time has run out by the caller's clock.
    pub(crate) fn give_up(&self, id: &RequestId, receipt: &Arc<Receipt>, now: Instant) {
        let mut table = self.table.lock();
        if !table.pending.get(id).is_some_and(|pending| Arc::ptr_eq(&pending.receipt, receipt)) {
            // It has ended, and its id may be another's by now.
            return;
        }
        let failed = time_out(&mut table, id.clone(), now);
        self.publish(&table, self.due().or(Some(now + MEMORY)));
        let _ = failed.and_then(tell_caller);
    }

    /// The connection is over and these bytes never left.
    pub(crate) fn not_sent(&self, id: &RequestId) -> Option<(Response, Sink)> {
        let pending = self.withdraw(id)?;
        Some(pending.fail(id.clone(), Unanswered::Disconnected, false))
    }

    /// The connection is over: of what still waits nobody knows what became. Answers to what was given up on cannot
    /// come any more.
    pub(crate) fn disconnected(&self) -> Vec<Leftover> {
        let mut table = self.table.lock();
        let Table { pending, mut given_up, to_forget } = std::mem::take(&mut *table);
        self.publish(&table, None);
        drop(table);
        // In the order in which they were given up on.
        let foreign = to_forget.into_iter().filter_map(|(_, id)| given_up.remove_entry(&id));
        let foreign = foreign.filter(|(_, given_up)| given_up.own.is_none());
        let told = foreign.map(|(id, GivenUp { method, message, .. })| Leftover { id, method, message, untold: None });
        let waiting = pending.into_iter().filter(|(_, pending)| !matches!(pending.sink, Sink::Worker(_)));
        let untold = waiting.map(|(id, pending)| {
            let (method, message) = (pending.method.clone(), pending.message.clone());
            let rest = tell_caller(pending.fail(id.clone(), Unanswered::Disconnected, true));
            Leftover { id, method, message, untold: rest.map(|(response, _)| response) }
        });
        told.chain(untold).collect()
    }
}

/// Gives back what is not for a caller.
pub(crate) fn tell_caller((response, sink): (Response, Sink)) -> Option<(Response, Sink)> {
    match sink {
        Sink::Caller(sender) => {
            let _ = sender.try_send(response);
            None
        }
        sink => Some((response, sink)),
    }
}

fn time_out(table: &mut Table, id: RequestId, now: Instant) -> Option<(Response, Sink)> {
    let pending = table.pending.remove(&id)?;
    let written = !pending.receipt.take_back();
    if written {
        table.remember(id.clone(), &pending, now);
    }
    Some(pending.fail(id, Unanswered::TimedOut, written))
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
