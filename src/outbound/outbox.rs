//! What the worker took from its callers: what waits to be written and what is being written. A message stays here until
//! the kernel has its last byte.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::message::Message;
use crate::outbound::accepted::{Accepted, Bound, Load, Tally};
use crate::policy::rate_limit::{Limits, Over};
use crate::record::tap::Tap;
use crate::transport::{Broken, Outgoing, Transport};
use crate::unsettled::Resent;

/// Bytes handed to the transport in one go.
const BATCH: usize = 64 << 10;

/// So many bytes of messages are kept before the kernel is asked whether they have arrived.
const KEPT_BYTES: usize = 256 << 10;

/// Pauses between two such questions while no other message is sent, at first and at most.
const REVIEW: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

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
    /// `None` for a request, which has its own account.
    message: Option<Message>,
    /// It is a caller's, and counted as such.
    is_counted: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Pings and heartbeats: before everything else.
    urgent: VecDeque<Outgoing>,
    waiting: VecDeque<Accepted>,
    /// Handed to the transport, which reports each when the kernel has all of it.
    in_flight: VecDeque<Accepted>,
    /// Accepted for another connection than the open one: never written, returned when this connection ends.
    foreign: Vec<Accepted>,
    /// The open connection. `None` before the session is open: only what is urgent is written.
    epoch: Option<u64>,
    limits: Limits,
    /// The latest that were written, for when the line breaks before the peer has acknowledged them.
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    /// Bytes of this connection that are counted.
    bytes_seen: u64,
    /// So much is kept before the peer's kernel is asked what it has; and how much it is next time.
    keeps: Bound,
    look_at: Bound,
    /// When it is asked next, without another message being sent, and how long after the time before.
    review: Option<(Instant, Duration)>,
    /// Written on the connection that was let go of, and never acknowledged.
    uncertain: Vec<Message>,
    /// The rate limits let the next message pass no sooner than this.
    limited_until: Option<Instant>,
}

impl Outbox {
    /// Keeps as much of what was written as may wait before it asks whether that has arrived.
    pub(crate) fn new(limits: Limits, keeps: Bound) -> Self {
        let mut outbox = Self { limits, keeps, ..Self::default() };
        outbox.set_next_look();
        outbox
    }

    /// When to try again, while the rate limits delay messages that waited for a connection.
    pub(crate) fn limited_until(&self) -> Option<Instant> {
        self.limited_until.filter(|_| self.epoch.is_some())
    }

    /// The session is open: messages that were accepted for this connection may be written.
    pub(crate) fn open(&mut self, epoch: u64) {
        self.epoch = Some(epoch);
    }

    /// From now on only what is urgent is written.
    pub(crate) fn only_urgent_from_now_on(&mut self) {
        self.epoch = None;
    }

    pub(crate) fn is_only_urgent(&self) -> bool {
        self.epoch.is_none()
    }

    pub(crate) fn push(&mut self, item: Accepted) {
        self.waiting.push_back(item);
    }

    pub(crate) fn push_urgent(&mut self, outgoing: Outgoing) {
        self.urgent.push_back(outgoing);
    }

    /// A new connection, on which the session is still to be opened.
    pub(crate) fn hold(&mut self, now: Instant) {
        (self.epoch, self.limited_until, self.bytes_seen) = (None, None, 0);
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

    /// Writes until about so many bytes have left, as far as the kernel takes them. True when all is out. A message that is
    /// longer than `most` is not begun where `leaves_long` says so.
    /// `clock` is asked only where a rate limit delays something.
    pub(crate) fn write_out(
        &mut self,
        transport: &mut Transport,
        books: &Books,
        clock: fn() -> Instant,
        most: usize,
        leaves_long: bool,
    ) -> Result<bool, Broken> {
        let until = transport.written().saturating_add(most as u64);
        loop {
            if transport.lets_pings_pass() {
                self.fill_controls(transport, books);
            }
            let left = until.saturating_sub(transport.written()) as usize;
            let result = transport.flush(left.max(1));
            self.count_written(transport, books);
            if !result? {
                return Ok(false);
            }
            if self.urgent.is_empty() && self.waiting.is_empty() {
                return Ok(true);
            }
            if left == 0 || !self.fill(transport, books, clock, leaves_long.then_some(left)) {
                return Ok(false);
            }
        }
    }

    /// Hands over pings that need not wait for the end of a message.
    fn fill_controls(&mut self, transport: &mut Transport, books: &Books) {
        while self.urgent.front().is_some_and(|outgoing| matches!(outgoing, Outgoing::Ping(_))) {
            let Some(outgoing) = self.urgent.pop_front() else { return };
            books.tap.iter().for_each(|tap| tap.outgoing(&outgoing));
            transport.queue(outgoing, false);
        }
    }

    /// Hands messages to the transport. False when all that are left are delayed.
    fn fill(
        &mut self,
        transport: &mut Transport,
        books: &Books,
        clock: fn() -> Instant,
        longest: Option<usize>,
    ) -> bool {
        while transport.buffered() < BATCH && !transport.is_in_a_message() {
            if let Some(outgoing) = self.urgent.pop_front() {
                books.tap.iter().for_each(|tap| tap.outgoing(&outgoing));
                transport.queue(outgoing, false);
                continue;
            }
            let Some(epoch) = self.epoch else { return transport.buffered() > 0 };
            let is_long = |item: &Accepted| longest.is_some_and(|longest| item.message.len() > longest);
            if self.waiting.front().is_some_and(is_long) || !self.may_go(clock) {
                return transport.buffered() > 0;
            }
            let Some(mut item) = self.waiting.pop_front() else { break };
            // A message is never written on another connection than the one that it was accepted for.
            if item.epoch.is_some_and(|of| of != epoch) {
                self.foreign.push(item);
                continue;
            }
            if item.receipt.as_ref().is_some_and(|receipt| !receipt.begin()) {
                books.not_sent(&mut item, &self.limits);
                continue;
            }
            transport.queue(Outgoing::Message(item.message.clone()), true);
            self.in_flight.push_back(item);
        }
        true
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
    pub(crate) fn count_written(&mut self, transport: &mut Transport, books: &Books) {
        self.count_bytes(transport, books);
        while let Some(end) = transport.next_written() {
            let Some(item) = self.in_flight.pop_front() else { return };
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
            self.keep_sent(Sent { end, len, message, is_counted: true }, transport);
        }
    }

    /// Keeps messages that opened the session, and that the kernel has, as those of callers.
    pub(crate) fn keep_resent(&mut self, messages: Vec<Resent>, transport: &Transport) {
        for Resent { message, .. } in messages {
            let (end, len) = (transport.written(), message.len());
            self.keep_sent(Sent { end, len, message: Some(message), is_counted: false }, transport);
        }
    }

    /// Keeps a message until the peer's kernel has it. The kernel is asked once in a while only, so what is kept is bounded by
    /// that while and by the kernel's send buffer.
    fn keep_sent(&mut self, sent: Sent, transport: &Transport) {
        self.sent_bytes += sent.len;
        self.sent.push_back(sent);
        if self.sent.len() > self.look_at.messages || self.sent_bytes > self.look_at.bytes {
            self.forget_arrived(transport);
        }
        if self.sent_bytes > KEPT_BYTES && self.review.is_none() {
            self.review = Some((Instant::now() + REVIEW.0, REVIEW.0));
        }
    }

    /// When the kernel is to be asked again what has arrived, so that large messages don't stay in memory until more are sent.
    pub(crate) fn review_at(&self) -> Option<Instant> {
        self.review.map(|(at, _)| at)
    }

    pub(crate) fn review_sent(&mut self, transport: &Transport, now: Instant) {
        if let Some((_, pause)) = self.review.take_if(|(at, _)| *at <= now) {
            self.forget_arrived(transport);
            let pause = (pause * 2).min(REVIEW.1);
            self.review = (self.sent_bytes > KEPT_BYTES).then_some((now + pause, pause));
        }
    }

    /// Forgets messages that the peer's kernel has.
    fn forget_arrived(&mut self, transport: &Transport) {
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
        self.set_next_look();
    }

    /// The kernel is asked again when so much more than now is kept.
    fn set_next_look(&mut self) {
        let Bound { messages, bytes } = self.keeps;
        self.look_at = Bound { messages: messages + self.sent.len(), bytes: bytes.min(KEPT_BYTES) + self.sent_bytes };
    }

    /// The connection is let go of. Of its bytes so many have arrived for sure; `None`: nobody can say.
    pub(crate) fn settle_sent(&mut self, arrived: Option<u64>, books: &Books) {
        (self.sent_bytes, self.review) = (0, None);
        for Sent { end, message, is_counted, .. } in self.sent.drain(..) {
            if arrived.is_some_and(|arrived| end > arrived) {
                books.tally.uncertain.add(u64::from(is_counted));
                self.uncertain.extend(message);
            }
        }
        self.set_next_look();
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
        let mut all = std::mem::take(&mut self.foreign);
        all.extend(std::mem::take(&mut self.in_flight));
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

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
