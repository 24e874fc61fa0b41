//! What the worker took from its callers: what waits to be written and what is being written. A message stays here until
//! the kernel has its last byte.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::message::Message;
use crate::outbound::accepted::{Accepted, Bound, Load, Tally};
use crate::policy::rate_limit::{Limits, Over};
use crate::record::tap::Tap;
use crate::transport::{Broken, Outgoing, Transport};

/// Bytes handed to the transport in one go.
const BATCH: u64 = 64 << 10;

/// What is counted of accepted messages: those that wait, and what became of the others.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) tally: Tally,
    /// Accepted for the open connection.
    pub(crate) open: Load,
    /// Accepted for whichever comes next.
    pub(crate) queued: Load,
    /// Where what goes out is recorded, if it is.
    pub(crate) tap: Option<Tap>,
}

impl Books {
    /// Whether anything waits, or is just being put there.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting() > 0
    }

    /// How many messages wait.
    pub(crate) fn waiting(&self) -> usize {
        self.open.messages() + self.queued.messages()
    }

    /// It waits no more.
    pub(crate) fn leave(&self, item: &Accepted) {
        if !item.own {
            let load = if item.epoch.is_none() { &self.queued } else { &self.open };
            load.leave(item.message.len());
        }
    }

    /// It was not written, and who sent it has it back, the limits' tokens with it.
    pub(crate) fn not_sent(&self, item: &mut Accepted, limits: &Limits) {
        self.leave(item);
        limits.refund(&mut item.price);
        if !item.own {
            self.tally.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A message that the kernel has, until it is old enough to be forgotten.
#[derive(Debug)]
struct Sent {
    /// Bytes of the TCP connection at which it is out.
    end: u64,
    len: usize,
    /// `None` for a request: whoever asked has its own account.
    message: Option<Message>,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Pings and heartbeats: before everything else.
    urgent: VecDeque<Outgoing>,
    waiting: VecDeque<Accepted>,
    /// In the transport's buffer, each with the count of bytes written at which it is out.
    in_flight: VecDeque<(u64, Accepted)>,
    /// The session is not open yet: only what is urgent is written.
    pub(crate) only_urgent: bool,
    limits: Limits,
    /// The latest that were written, for when the line breaks before the peer has acknowledged them.
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    /// Bytes of this connection that are counted.
    bytes_seen: u64,
    /// So much is kept before the peer's kernel is asked what it has; and how much it is next time.
    keeps: Bound,
    look_at: Bound,
    /// Written on the connection that was let go of, and never acknowledged.
    uncertain: Vec<Message>,
    /// The rate limits let the next message pass no sooner than this.
    limited_until: Option<Instant>,
}

impl Outbox {
    /// Keeps as much of what was written as may wait before it asks whether that has arrived.
    pub(crate) fn new(limits: Limits, keeps: Bound) -> Self {
        Self { limits, keeps, look_at: keeps, ..Self::default() }
    }

    /// When to try again, while the rate limits hold up what waited for a connection.
    pub(crate) fn limited_until(&self) -> Option<Instant> {
        self.limited_until.filter(|_| !self.only_urgent)
    }

    pub(crate) fn push(&mut self, item: Accepted) {
        self.waiting.push_back(item);
    }

    pub(crate) fn push_urgent(&mut self, outgoing: Outgoing) {
        self.urgent.push_back(outgoing);
    }

    /// A new connection, on which the session is still to be opened.
    pub(crate) fn hold(&mut self, now: Instant) {
        (self.only_urgent, self.limited_until, self.bytes_seen) = (true, None, 0);
        self.limits.begin_connection(now);
    }

    /// The session could not be opened: what it wanted to say is forgotten.
    pub(crate) fn clear_urgent(&mut self) {
        self.urgent.clear();
    }

    pub(crate) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty() && self.urgent.is_empty()
    }

    /// The time to take more from the callers: nothing waits, or nothing but what has yet to pay, which others may pass.
    pub(crate) fn takes_more(&self) -> bool {
        let none_on_its_way = self.in_flight.is_empty() && self.urgent.is_empty();
        none_on_its_way && (self.waiting.is_empty() || self.limited_until.is_some())
    }

    /// Heartbeats and the like that the peer does not take.
    pub(crate) fn urgent(&self) -> usize {
        self.urgent.len()
    }

    /// Writes as much as the kernel takes; true when all is out.
    /// `clock` is asked only where a rate limit holds something up.
    pub(crate) fn write_out(
        &mut self,
        transport: &mut Transport,
        books: &Books,
        clock: fn() -> Instant,
    ) -> Result<bool, Broken> {
        loop {
            // Nothing is added to the transport's buffer before it is empty: that keeps the count of bytes exact,
            // since a pong that tungstenite adds on its own then always comes after what is counted here.
            let result = transport.flush();
            self.count_written(transport, books);
            if !result? {
                return Ok(false);
            }
            if self.urgent.is_empty() && self.waiting.is_empty() {
                return Ok(true);
            }
            if !self.fill(transport, books, clock)? {
                return Ok(false);
            }
        }
    }

    /// False when all that is left is held up.
    fn fill(&mut self, transport: &mut Transport, books: &Books, clock: fn() -> Instant) -> Result<bool, Broken> {
        let base = transport.written();
        let mut end = base;
        while end - base < BATCH {
            let packed = if let Some(outgoing) = self.urgent.pop_front() {
                books.tap.iter().for_each(|tap| tap.outgoing(&outgoing));
                let packed = transport.pack(outgoing);
                end += packed.len;
                packed
            } else if self.only_urgent || !self.may_go(clock) {
                return Ok(end != base);
            } else if let Some(mut item) = self.waiting.pop_front() {
                if item.receipt.as_ref().is_some_and(|receipt| !receipt.begin()) {
                    books.not_sent(&mut item, &self.limits);
                    continue;
                }
                let packed = transport.pack(Outgoing::Message(item.message.clone()));
                end += packed.len;
                self.in_flight.push_back((end, item));
                packed
            } else {
                break;
            };
            let result = transport.queue(packed);
            self.count_written(transport, books);
            result?;
        }
        Ok(true)
    }

    /// Whether the rate limits let the next one pass.
    fn may_go(&mut self, clock: fn() -> Instant) -> bool {
        let Some(Accepted { price, receipt, .. }) = self.waiting.front_mut() else { return true };
        // What its sender took back goes nowhere and costs nothing.
        if receipt.as_ref().is_some_and(|receipt| receipt.is_taken_back()) {
            return true;
        }
        if price.has_paid() {
            return true;
        }
        let now = clock();
        if self.limited_until.is_some_and(|until| now < until) {
            return self.bring_paid_forward();
        }
        match self.limits.take(price, now) {
            Err(Over::Wait(time)) => {
                self.limited_until = Some(now + time);
                return self.bring_paid_forward();
            }
            // It was asked for when the message came, so this does not happen.
            Err(Over::Never { .. }) => self.limits.force(price, now),
            Ok(()) => {}
        }
        price.is_paid(|| now);
        self.limited_until = None;
        true
    }

    /// What has paid goes before what has yet to: a cancel, for which tokens are reserved, does not wait behind a queue.
    fn bring_paid_forward(&mut self) -> bool {
        let paid = self.waiting.iter().position(|item| item.price.has_paid());
        let item = paid.and_then(|at| self.waiting.remove(at));
        item.map(|item| self.waiting.push_front(item)).is_some()
    }

    pub(crate) fn count_bytes(&mut self, transport: &Transport, books: &Books) {
        let on_the_wire = transport.bytes_written();
        books.tally.bytes.add(on_the_wire - std::mem::replace(&mut self.bytes_seen, on_the_wire));
    }

    /// Counts what the kernel has by now.
    pub(crate) fn count_written(&mut self, transport: &Transport, books: &Books) {
        let written = transport.written();
        self.count_bytes(transport, books);
        while self.in_flight.front().is_some_and(|(end, _)| *end <= written) {
            let Some((end, item)) = self.in_flight.pop_front() else { return };
            books.leave(&item);
            books.tap.iter().for_each(|tap| tap.sent(&item.message, item.own));
            if item.own {
                continue;
            }
            books.tally.sent.add(1);
            let is_request = item.receipt.as_ref().is_some_and(|receipt| receipt.request_id().is_some());
            if let Some(receipt) = &item.receipt {
                receipt.confirm(true);
            }
            let len = item.message.len();
            let message = (!is_request).then_some(item.message);
            self.keep_sent(Sent { end: transport.end_on_the_wire(end), len, message }, transport);
        }
    }

    /// Keeps it until the peer's kernel has it, which is asked for once in a while only. So what is kept is bounded by that
    /// while, and by the kernel's send buffer.
    fn keep_sent(&mut self, sent: Sent, transport: &Transport) {
        self.sent_bytes += sent.len;
        self.sent.push_back(sent);
        if self.sent.len() <= self.look_at.messages && self.sent_bytes <= self.look_at.bytes {
            return;
        }
        // Where the system does not say, it may as well be forgotten.
        let arrived = transport.proven().unwrap_or(u64::MAX);
        let Bound { messages, bytes } = self.keeps;
        while let Some(oldest) = self.sent.front() {
            // What a venue behind a proxy does not prove has no bound of the kernel's.
            let is_old = self.sent.len() > messages || self.sent_bytes > bytes;
            if oldest.end > arrived && !(is_old && transport.is_through_a_proxy()) {
                break;
            }
            self.sent_bytes -= oldest.len;
            self.sent.pop_front();
        }
        self.look_at = Bound { messages: messages + self.sent.len(), bytes: bytes + self.sent_bytes };
    }

    /// The connection is let go of. Of its bytes so many have arrived for sure; `None`: nobody can say.
    pub(crate) fn settle_sent(&mut self, arrived: Option<u64>, books: &Books) {
        (self.sent_bytes, self.look_at) = (0, self.keeps);
        for Sent { end, message, .. } in self.sent.drain(..) {
            if arrived.is_some_and(|arrived| end > arrived) {
                books.tally.uncertain.add(1);
                self.uncertain.extend(message);
            }
        }
    }

    /// What was written and never acknowledged, oldest first.
    pub(crate) fn take_uncertain(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.uncertain)
    }

    /// Everything that is not fully written, oldest first; heartbeats of the old connection are forgotten. A
    /// message whose caller took it back is left out.
    pub(crate) fn take_all(&mut self, books: &Books) -> Vec<Accepted> {
        self.urgent.clear();
        self.limited_until = None;
        let mut all: Vec<_> = std::mem::take(&mut self.in_flight).into_iter().map(|(_, item)| item).collect();
        for mut item in std::mem::take(&mut self.waiting) {
            match item.receipt.as_ref().is_none_or(|receipt| receipt.begin()) {
                true => all.push(item),
                false => books.not_sent(&mut item, &self.limits),
            }
        }
        all
    }

    /// Puts back what waits for the next connection, where it pays anew: of one that was half written the venue has nothing.
    pub(crate) fn requeue(&mut self, mut items: Vec<Accepted>) {
        items.iter_mut().for_each(|item| self.limits.refund(&mut item.price));
        self.waiting = items.into();
    }
}
