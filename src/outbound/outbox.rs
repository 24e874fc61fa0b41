//! What the worker took from its callers: what waits to be written and what is being written. A message stays here until
//! the kernel has its last byte.

use std::collections::VecDeque;
use std::time::Instant;

use crate::outbound::accepted::{Accepted, Fee};
use crate::policy::rate_limit;
use crate::policy::rate_limit::{Over, RateLimit};
use crate::telemetry::counter::Counter;
use crate::transport::{Broken, Outgoing, Transport};

/// Bytes handed to the transport in one go.
const BATCH: u64 = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Pings and heartbeats: before everything else.
    urgent: VecDeque<Outgoing>,
    waiting: VecDeque<Accepted>,
    /// In the transport's buffer, each with the count of bytes written at which it is out.
    in_flight: VecDeque<(u64, Accepted)>,
    /// The session is not open yet: only what is urgent is written.
    pub(crate) only_urgent: bool,
    limits: Vec<RateLimit>,
    /// The rate limits let the next message pass no sooner than this.
    limited_until: Option<Instant>,
}

impl Outbox {
    pub(crate) fn new(limits: Vec<RateLimit>) -> Self {
        Self { limits, ..Self::default() }
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
    pub(crate) fn hold(&mut self) {
        (self.only_urgent, self.limited_until) = (true, None);
    }

    /// The session could not be opened: what it wanted to say is forgotten.
    pub(crate) fn clear_urgent(&mut self) {
        self.urgent.clear();
    }

    pub(crate) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Whether nothing waits: the time to take more from the callers.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty() && self.urgent.is_empty()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Writes as much as the kernel takes; true when all is out.
    /// `clock` is asked only where a rate limit holds something up.
    pub(crate) fn write_out(
        &mut self,
        transport: &mut Transport,
        sent: &Counter,
        clock: fn() -> Instant,
    ) -> Result<bool, Broken> {
        loop {
            // Nothing is added to the transport's buffer before it is empty: that keeps the count of bytes exact,
            // since a pong that tungstenite adds on its own then always comes after what is counted here.
            let result = transport.flush();
            self.count_written(transport.written(), sent);
            if !result? {
                return Ok(false);
            }
            if self.urgent.is_empty() && self.waiting.is_empty() {
                return Ok(true);
            }
            if !self.fill(transport, sent, clock)? {
                return Ok(false);
            }
        }
    }

    /// False when all that is left is held up.
    fn fill(&mut self, transport: &mut Transport, sent: &Counter, clock: fn() -> Instant) -> Result<bool, Broken> {
        let base = transport.written();
        let mut end = base;
        while end - base < BATCH {
            let outgoing = if let Some(outgoing) = self.urgent.pop_front() {
                end += transport.frame_len(&outgoing);
                outgoing
            } else if self.only_urgent || !self.may_go(clock) {
                return Ok(end != base);
            } else if let Some(item) = self.waiting.pop_front() {
                if item.receipt.as_ref().is_some_and(|receipt| !receipt.begin()) {
                    continue;
                }
                let outgoing = Outgoing::Message(item.message.clone());
                end += transport.frame_len(&outgoing);
                self.in_flight.push_back((end, item));
                outgoing
            } else {
                break;
            };
            let result = transport.queue(outgoing);
            self.count_written(transport.written(), sent);
            result?;
        }
        Ok(true)
    }

    /// Whether the rate limits let the next one pass.
    fn may_go(&mut self, clock: fn() -> Instant) -> bool {
        let Some(Accepted { message, fee: fee @ Fee::Owed { .. }, .. }) = self.waiting.front_mut() else { return true };
        let Fee::Owed { passed } = fee else { return true };
        let now = clock();
        if self.limited_until.is_some_and(|until| now < until) {
            return false;
        }
        match rate_limit::charge_on(&self.limits, message, passed, now) {
            Err(Over::Wait(time)) => {
                self.limited_until = Some(now + time);
                false
            }
            // What can never pass was refused when it came, unless its cost has changed since.
            Ok(()) | Err(Over::Never { .. }) => {
                (*fee, self.limited_until) = (Fee::Paid, None);
                true
            }
        }
    }

    /// The kernel has so many bytes.
    pub(crate) fn count_written(&mut self, written: u64, sent: &Counter) {
        while self.in_flight.front().is_some_and(|(end, _)| *end <= written) {
            if let Some((_, item)) = self.in_flight.pop_front() {
                sent.add(1);
                if let Some(receipt) = item.receipt {
                    receipt.confirm(true);
                }
            }
        }
    }

    /// Everything that is not fully written, oldest first; heartbeats of the old connection are forgotten. A
    /// message whose caller took it back is left out.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Accepted> + use<> {
        self.urgent.clear();
        self.limited_until = None;
        let in_flight = std::mem::take(&mut self.in_flight).into_iter().map(|(_, item)| item);
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let not_begun = waiting.filter(|item| item.receipt.as_ref().is_none_or(|receipt| receipt.begin()));
        in_flight.chain(not_begun)
    }

    /// Puts back what waits for the next connection.
    pub(crate) fn requeue(&mut self, items: Vec<Accepted>) {
        self.waiting = items.into();
    }
}
