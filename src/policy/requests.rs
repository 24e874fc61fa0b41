//! Which requests wait for an answer: each is answered exactly once or fails exactly once. Whom to tell is returned, never
//! told here.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{RequestError, Unanswered};
use crate::message::Message;
use crate::receipt::Receipt;
use crate::request::RequestId;
use crate::response::Response;

/// Requests that may be pending at once: memory is bounded, whatever callers and servers do.
pub(crate) const MAX_PENDING: usize = 65_536;

/// For so long requests that have failed are remembered, so that a late answer is known for what it is.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The other parts of an answer follow within this time: while they may, each message has to be looked at.
const PARTS_FOLLOW: Duration = Duration::from_secs(5);

/// While nothing is read, what the worker itself asked for gets this much longer, again and again.
const LONGER_UNREAD: Duration = Duration::from_secs(1);

/// Whom the response is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Whom<C> {
    /// Who waits, on a thread of their own.
    Caller(C),
    /// Who takes the events, a handler or a reader: in its place among them.
    Consumer,
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
pub(crate) struct Pending<C> {
    pub(crate) method: Box<str>,
    pub(crate) message: Message,
    pub(crate) asked_at: Instant,
    pub(crate) deadline: Instant,
    pub(crate) receipt: Arc<Receipt>,
    pub(crate) whom: Whom<C>,
}

impl<C> Pending<C> {
    fn is_own(&self) -> bool {
        matches!(self.whom, Whom::Worker(_))
    }

    /// What is known at the end of its time: the receipt tells whether the worker had begun to write it.
    fn fail(self, id: RequestId, cause: Unanswered, written: bool) -> Told<C> {
        let error = match written {
            true => RequestError::OutcomeUnknown { id: id.clone(), cause },
            false => RequestError::NotSent { message: self.message, cause },
        };
        (Response { id, method: self.method, outcome: Err(error) }, self.whom)
    }
}

/// What became of a request, and whom to tell.
pub(crate) type Told<C> = (Response, Whom<C>);

/// Whom an answer answers.
#[derive(Debug)]
pub(crate) enum Claim<C> {
    Pending(RequestId, Pending<C>),
    /// A request that was given up on; what for, if it was the worker's.
    Late {
        id: RequestId,
        method: Box<str>,
        own: Option<Purpose>,
    },
    Nobody,
}

/// Why a request cannot be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barred {
    Duplicate,
    Full,
}

impl Barred {
    pub(crate) fn error(self, id: &RequestId, message: &Message) -> RequestError {
        match self {
            Self::Duplicate => RequestError::DuplicateId(id.clone()),
            Self::Full => RequestError::TooManyPending { message: message.clone(), limit: MAX_PENDING },
        }
    }
}

/// A request that failed by its time, and may be answered late.
#[derive(Debug)]
struct GivenUp {
    order: u64,
    method: Box<str>,
    message: Message,
    own: Option<Purpose>,
    /// Nobody waited any more, though there was time.
    abandoned: bool,
    forget_at: Instant,
}

/// What a connection's end leaves behind.
#[derive(Debug)]
pub(crate) struct Leftover<C> {
    /// Rises with each request that was made.
    pub(crate) order: u64,
    pub(crate) id: RequestId,
    pub(crate) method: Box<str>,
    pub(crate) message: Message,
    /// `None`: its time had run out before, and whoever asked was told then.
    pub(crate) told: Option<Told<C>>,
}

/// How a client's requests have ended so far; in [`Stats`](crate::Stats). The library's own are not among them.
///
/// ```
/// use ws_supervisor::RequestOutcomes;
/// assert_eq!(RequestOutcomes::default().answered, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestOutcomes {
    /// The server carried them out.
    pub answered: u64,
    /// The server refused them.
    pub refused: u64,
    /// Never written in full: the server cannot act on them.
    pub not_sent: u64,
    /// Written, and their time ran out: the server may have acted on them.
    pub timed_out: u64,
    /// Written, and the connection ended: the server may have acted on them.
    pub disconnected: u64,
    /// Nobody waits for them any more: their [`PendingResponse`](crate::PendingResponse) was dropped before they ended.
    pub abandoned: u64,
    /// Of those whose time had run out: answered after all.
    pub late: u64,
}

#[derive(Debug)]
pub(crate) struct Requests<C> {
    outcomes: RequestOutcomes,
    /// Each with the number of requests made before it.
    pending: HashMap<RequestId, (u64, Pending<C>)>,
    made: u64,
    given_up: HashMap<RequestId, GivenUp>,
    /// In the order in which they came, and are forgotten; some may be gone already.
    to_forget: VecDeque<(Instant, RequestId)>,
    /// When something is due at the earliest. May be too early, which costs a needless look, never too late.
    due: Option<Instant>,
}

impl<C> Default for Requests<C> {
    fn default() -> Self {
        Self {
            outcomes: RequestOutcomes::default(),
            pending: HashMap::new(),
            made: 0,
            given_up: HashMap::new(),
            to_forget: VecDeque::new(),
            due: None,
        }
    }
}

impl<C> Requests<C> {
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether a request that is not the worker's own was written and is not answered.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.pending.values().any(|(_, pending)| !pending.is_own() && pending.receipt.has_begun())
    }

    pub(crate) fn outcomes(&self) -> RequestOutcomes {
        self.outcomes
    }

    /// Requests that wait or are remembered: while there are none, no message needs to be looked at.
    pub(crate) fn active(&self) -> usize {
        self.pending.len() + self.given_up.len()
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn is_due_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Before the request is written, so that no answer can be too quick. True: it is due sooner than anything else,
    /// and a worker that sleeps must hear of it.
    pub(crate) fn register(&mut self, id: RequestId, pending: Pending<C>) -> Result<bool, Barred> {
        if self.pending.len() >= MAX_PENDING {
            return Err(Barred::Full);
        }
        let deadline = pending.deadline;
        match self.pending.entry(id) {
            Entry::Occupied(_) => return Err(Barred::Duplicate),
            Entry::Vacant(place) => {
                // An answer under this id is this one's from now on.
                self.given_up.remove(place.key());
                place.insert((self.made, pending));
                self.made += 1;
            }
        }
        let sooner = self.due.is_none_or(|due| deadline < due);
        self.is_due_by(deadline);
        Ok(sooner)
    }

    /// Whether another request with this id waits.
    pub(crate) fn is_taken(&self, id: &RequestId) -> bool {
        self.pending.contains_key(id)
    }

    /// Nobody waits for it any more: it gives up its place, and an answer that still comes is a late one.
    pub(crate) fn abandon(&mut self, id: &RequestId, receipt: &Arc<Receipt>, now: Instant) {
        if self.pending.get(id).is_some_and(|(_, pending)| Arc::ptr_eq(&pending.receipt, receipt)) {
            if let Some((order, pending)) = self.pending.remove(id) {
                self.outcomes.abandoned += u64::from(!pending.is_own());
                self.remember(id.clone(), order, &pending, now, true);
            }
        }
    }

    /// An answer came. One under an id of another JSON type answers the request that has the same id in its own.
    pub(crate) fn claim(&mut self, id: &RequestId, is_refusal: bool) -> Claim<C> {
        let known = |id: &RequestId| self.pending.contains_key(id) || self.given_up.contains_key(id);
        let other = if known(id) { None } else { id.in_the_other_type().filter(known) };
        let id = other.as_ref().unwrap_or(id);
        if let Some((_, pending)) = self.pending.remove(id) {
            if !pending.is_own() {
                *(if is_refusal { &mut self.outcomes.refused } else { &mut self.outcomes.answered }) += 1;
            }
            return Claim::Pending(id.clone(), pending);
        }
        let Some(GivenUp { method, own, abandoned, .. }) = self.given_up.remove(id) else { return Claim::Nobody };
        self.outcomes.late += u64::from(own.is_none() && !abandoned);
        Claim::Late { id: id.clone(), method, own }
    }

    /// It ends without an answer.
    fn fail(&mut self, pending: Pending<C>, id: RequestId, cause: Unanswered, written: bool) -> Told<C> {
        if !pending.is_own() {
            let outcome = match (written, cause) {
                (false, _) => &mut self.outcomes.not_sent,
                (true, Unanswered::TimedOut) => &mut self.outcomes.timed_out,
                (true, Unanswered::Disconnected) => &mut self.outcomes.disconnected,
            };
            *outcome += 1;
        }
        pending.fail(id, cause, written)
    }

    /// Fails what is due by `now`, in the order in which it was made. While not everything that came is read the worker's own
    /// requests are left alone: their answers may wait unread.
    pub(crate) fn expire(&mut self, now: Instant, caught_up: bool) -> Vec<Told<C>> {
        let mut due = Vec::new();
        for (id, (order, pending)) in self.pending.iter_mut().filter(|(_, (_, pending))| pending.deadline <= now) {
            match pending.whom {
                Whom::Worker(_) if !caught_up => pending.deadline = now + LONGER_UNREAD,
                _ => due.push((*order, id.clone())),
            }
        }
        due.sort_unstable_by_key(|(order, _)| *order);
        let failed = due.into_iter().filter_map(|(_, id)| self.time_out(id, now)).collect();
        while self.to_forget.front().is_some_and(|(at, _)| *at <= now) {
            self.forget_one();
        }
        let forget = self.to_forget.front().map(|(at, _)| *at);
        self.due = self.pending.values().map(|(_, pending)| pending.deadline).chain(forget).min();
        failed
    }

    /// Fails one request whose time has run out by the clock of the one who asked.
    pub(crate) fn give_up(&mut self, id: &RequestId, receipt: &Arc<Receipt>, now: Instant) -> Option<Told<C>> {
        if !self.pending.get(id).is_some_and(|(_, pending)| Arc::ptr_eq(&pending.receipt, receipt)) {
            // It has ended, and its id may be another's by now.
            return None;
        }
        self.time_out(id.clone(), now)
    }

    /// The connection is over and these bytes never left. Returns the request's place in the order of all, too.
    pub(crate) fn not_sent(&mut self, id: &RequestId) -> Option<(u64, Told<C>)> {
        let (order, pending) = self.pending.remove(id)?;
        Some((order, self.fail(pending, id.clone(), Unanswered::Disconnected, false)))
    }

    /// The connection is over: whether the server acted on a request that is still pending is unknown. Late answers to
    /// requests that timed out can't arrive any more. In the order in which the requests were made.
    pub(crate) fn disconnected(&mut self) -> Vec<Leftover<C>> {
        let Self { pending, made, given_up, outcomes, .. } = std::mem::take(self);
        (self.outcomes, self.made) = (outcomes, made);
        let foreign = given_up.into_iter().filter(|(_, given_up)| given_up.own.is_none());
        let before = foreign.map(|(id, GivenUp { order, method, message, .. })| Leftover {
            order,
            id,
            method,
            message,
            told: None,
        });
        let waiting = pending.into_iter().filter(|(_, (_, pending))| !pending.is_own());
        let now = waiting.map(|(id, (order, pending))| {
            let (method, message) = (pending.method.clone(), pending.message.clone());
            let told = self.fail(pending, id.clone(), Unanswered::Disconnected, true);
            Leftover { order, id, method, message, told: Some(told) }
        });
        let mut all: Vec<_> = before.chain(now).collect();
        all.sort_unstable_by_key(|left| left.order);
        all
    }

    fn time_out(&mut self, id: RequestId, now: Instant) -> Option<Told<C>> {
        let (order, pending) = self.pending.remove(&id)?;
        let written = !pending.receipt.take_back();
        if written {
            self.remember(id.clone(), order, &pending, now, false);
        }
        Some(self.fail(pending, id, Unanswered::TimedOut, written))
    }

    fn remember(&mut self, id: RequestId, order: u64, pending: &Pending<C>, now: Instant, abandoned: bool) {
        let (method, message) = (pending.method.clone(), pending.message.clone());
        let own = match pending.whom {
            Whom::Worker(purpose) => Some(purpose),
            _ => None,
        };
        self.keep(id, GivenUp { order, method, message, own, abandoned, forget_at: now + REMEMBERED });
    }

    /// The answer that came was a part: what else comes under this id is for the same.
    pub(crate) fn expect_more(&mut self, id: RequestId, purpose: Purpose, now: Instant) {
        let (method, message) = ("".into(), Message::text(""));
        let (own, order) = (Some(purpose), self.made);
        self.keep(id, GivenUp { order, method, message, own, abandoned: false, forget_at: now + PARTS_FOLLOW });
    }

    fn keep(&mut self, id: RequestId, given_up: GivenUp) {
        if self.to_forget.len() == MAX_PENDING {
            self.forget_one();
        }
        self.is_due_by(given_up.forget_at);
        self.to_forget.push_back((given_up.forget_at, id.clone()));
        self.given_up.insert(id, given_up);
    }

    fn forget_one(&mut self) {
        let Some((at, id)) = self.to_forget.pop_front() else { return };
        // The same id may have been used again, and given up on again.
        if self.given_up.get(&id).is_some_and(|given_up| given_up.forget_at == at) {
            self.given_up.remove(&id);
        }
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
