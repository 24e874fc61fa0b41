//! The event queue of one client: a crossbeam channel that the caller reads, and a backlog behind it where the overflow
//! policy can drop, sum up and keep the order.

use std::sync::Arc;

use parking_lot::Mutex;

use super::backlog::{Backlog, Overrun};
use super::burst::Burst;
use super::outlet::{Capacity, Deserted, Outlet, SharedTail, Tail, Unread, put};
use crate::event::Event;
use crate::handed_back::HandedBack;
use crate::lifecycle::End;
use crate::logger;
use crate::message::{Message, MessageRef};
use crate::overflow::{AtLimit, Overflow, Stage};
use crate::policy::requests::MAX_PENDING;
use crate::state::Tag;

/// Lifecycle events that wait behind a full queue before they are summed up.
const LIFECYCLE_LIMIT: usize = 1024;

pub(crate) struct Queue {
    tail: SharedTail,
    /// Something waits there for room; of that, so many bytes of answers, which no policy drops.
    waits: bool,
    answers_behind: usize,
    tag: Tag,
    overflow: Overflow,
    /// What the channel takes before it counts as full.
    capacity: Capacity,
    unread: Unread,
    /// How much more the channel takes for sure; looked up again when used up.
    room: usize,
    byte_room: usize,
    burst: Burst,
    handed_over: u64,
    /// So many messages handed back are kept when events are summed up.
    handed_back_limit: usize,
    /// Bytes of messages of a connection that is over that may still be kept without room.
    rest: usize,
    warned: bool,
    /// What is to be logged, once no lock is held.
    log: Option<&'static str>,
    deserted: bool,
    /// What nobody could be told of, and how many messages of the server's nobody could be given.
    orphans: HandedBack,
    lost: u64,
}

fn bytes_of(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.len(),
        Event::Messages(messages) => messages.bytes(),
        Event::Response(response) | Event::LateResponse(response) => {
            response.outcome.as_ref().map_or(0, |result| result.as_bytes().len())
        }
        Event::Collapsed { handed_back, .. } => {
            let results = handed_back.responses.iter().filter_map(|response| response.outcome.as_ref().ok());
            results.map(|result| result.as_bytes().len()).sum()
        }
        _ => 0,
    }
}

fn messages_in(event: &Event) -> usize {
    match event {
        Event::Message(_) => 1,
        Event::Messages(messages) => messages.len(),
        _ => 0,
    }
}

impl Queue {
    pub(crate) fn new(
        outlet: Outlet,
        tag: Tag,
        overflow: Overflow,
        capacity: Capacity,
        handed_back_limit: usize,
    ) -> Self {
        let behind = if overflow == Overflow::DropOldest { (capacity.events / 2).max(1) } else { 0 };
        let bytes = if behind > 0 { capacity.bytes / 2 } else { capacity.bytes };
        let burst = Burst::to(&outlet);
        let tail = Tail { outlet: Some(outlet), backlog: Backlog::new(behind, bytes.max(1)) };
        Self {
            tail: Arc::new(Mutex::new(tail)),
            waits: false,
            answers_behind: 0,
            tag,
            overflow,
            capacity: Capacity { events: capacity.events.saturating_sub(behind).max(1), bytes },
            unread: Unread::default(),
            room: 0,
            byte_room: 0,
            burst,
            handed_over: 0,
            handed_back_limit,
            rest: 0,
            warned: false,
            log: None,
            deserted: false,
            orphans: HandedBack::default(),
            lost: 0,
        }
    }

    /// For whoever has to end it without the worker.
    pub(crate) fn tail(&self) -> SharedTail {
        self.tail.clone()
    }

    #[inline]
    fn has_room(&mut self) -> bool {
        (self.room > 0 && self.byte_room > 0) || self.find_room()
    }

    fn find_room(&mut self) -> bool {
        if !self.burst.is_empty() {
            self.flush();
        }
        if let Some(outlet) = &self.tail.lock().outlet {
            self.unread.read_up_to(outlet.taken());
        }
        self.room = self.capacity.events.saturating_sub(self.unread.events);
        self.byte_room = self.capacity.bytes.saturating_sub(self.unread.bytes);
        if self.room > self.capacity.events / 2 && self.byte_room > self.capacity.bytes / 2 {
            self.warned = false;
        }
        self.room > 0 && self.byte_room > 0
    }

    fn give(&mut self, event: Event) {
        self.takes_room(bytes_of(&event));
        self.burst.push(event);
        self.end_burst();
    }

    fn takes_room(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(1);
        self.byte_room = self.byte_room.saturating_sub(bytes);
        self.handed_over += 1;
    }

    fn end_burst(&mut self) {
        if self.burst.is_full() {
            self.flush();
        }
    }

    /// How many events were handed over so far: while this stands still, the consumer does.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over
    }

    /// Whether nobody is left who could read: the receiver of a shared channel was dropped.
    pub(crate) fn is_deserted(&self) -> bool {
        self.deserted
    }

    /// The connection is over, and so many bytes of it have arrived and are not delivered. Compressed messages are larger than
    /// that: of them as many bytes are kept as may wait to be read.
    pub(crate) fn begin_rest(&mut self, bytes: u64) {
        self.rest = usize::try_from(bytes).unwrap_or(usize::MAX).max(self.capacity.bytes);
    }

    /// Whether messages wait behind the channel.
    pub(crate) fn is_behind(&self) -> bool {
        self.waits && self.tail.lock().backlog.messages() > 0
    }

    /// Lets the consumer see what was handed over. Called when all that was read in one go is taken apart.
    pub(crate) fn flush(&mut self) {
        if self.burst.is_empty() {
            return;
        }
        let mut tail = self.tail.lock();
        for event in self.burst.drain() {
            let (bytes, messages) = (bytes_of(&event), messages_in(&event));
            match put(&mut tail.outlet, event) {
                Ok(number) => self.unread.push(number, messages.max(1), bytes),
                Err(Deserted(event)) => {
                    self.deserted |= tail.outlet.is_some();
                    self.lost += messages as u64;
                    self.orphans.extend(event.into_handed_back());
                }
            }
        }
    }

    /// Whether another message can be taken from the socket. `Backpressure` says no when the queue is full, the others only
    /// when as much of answers, which they don't drop, waits behind it.
    #[inline]
    pub(crate) fn has_room_to_read(&mut self) -> bool {
        let drops = self.overflow != Overflow::Backpressure;
        (drops && self.answers_behind < self.capacity.bytes) || self.makes_room_to_read(drops)
    }

    fn makes_room_to_read(&mut self, drops: bool) -> bool {
        let has_caught_up = self.refill();
        let has_room = if drops { self.answers_behind < self.capacity.bytes } else { has_caught_up && self.has_room() };
        if !has_room {
            self.flush();
            self.warn();
        }
        has_room
    }

    /// Moves what waits into the channel as far as there is room; true when nothing waits any more.
    pub(crate) fn hand_over(&mut self) -> bool {
        self.flush();
        self.refill()
    }

    fn refill(&mut self) -> bool {
        if !self.waits {
            return true;
        }
        while self.waits && self.has_room() {
            self.give_waiting();
        }
        self.flush();
        !self.waits
    }

    /// Gives the first of what waits.
    fn give_waiting(&mut self) {
        // A statement of its own: what gives it may need the lock.
        let event = self.tail.lock().backlog.pop();
        match event {
            Some(Event::Message(message)) => self.give(Event::Message(message)),
            Some(event) => {
                self.answers_behind = self.answers_behind.saturating_sub(bytes_of(&event));
                self.give(event);
            }
            None => (self.waits, self.answers_behind) = (false, 0),
        }
    }

    /// A message; returns how many messages were dropped for it.
    pub(crate) fn push_message(&mut self, message: Message, stage: Stage) -> Result<u64, Overrun> {
        if self.refill() && self.has_room() {
            self.give(Event::Message(message));
            return Ok(0);
        }
        self.warn();
        let backlog = &mut self.tail.lock().backlog;
        let at_limit = match self.overflow.at_limit(stage) {
            // A server that goes on talking while it is asked to close: what it says has a bound too.
            AtLimit::Keep if stage == Stage::Closing && backlog.bytes() >= self.capacity.bytes => AtLimit::DropNewest,
            // The kernel's buffer bounds what had arrived when the connection ended, but not its size when decompressed.
            AtLimit::Keep if stage == Stage::Over && message.len() > self.rest => AtLimit::DropNewest,
            at_limit => at_limit,
        };
        if stage == Stage::Over {
            self.rest = self.rest.saturating_sub(message.len());
        }
        let result = backlog.push_message(message, at_limit);
        self.waits = !backlog.is_empty();
        result
    }

    /// Whether the next message goes straight into a batch: nothing waits before it, and there is room.
    #[inline]
    pub(crate) fn batches_next(&mut self) -> bool {
        self.burst.makes_batches() && !self.waits && self.has_room()
    }

    /// A message from where it lies into a batch.
    #[inline]
    pub(crate) fn push_to_batch(&mut self, message: MessageRef<'_>) {
        self.takes_room(message.len());
        self.burst.push_view(message);
        self.end_burst();
    }

    /// Any other event: kept whatever the policy.
    pub(crate) fn push_event(&mut self, event: Event) {
        if self.refill() && self.has_room() {
            self.give(event);
            return self.flush();
        }
        self.flush();
        self.warn();
        self.waits = true;
        self.answers_behind += bytes_of(&event);
        let backlog = &mut self.tail.lock().backlog;
        if backlog.others() < LIFECYCLE_LIMIT {
            return backlog.push_event(event);
        }
        if !matches!(backlog.last_mut(), Some(Event::Collapsed { .. })) {
            self.log = Some("events are not read: from now on they are summarized");
            backlog.push_event(Event::Collapsed { events: 0, dropped: 0, handed_back: Box::default() });
        }
        if let Some(Event::Collapsed { events, handed_back, .. }) = backlog.last_mut() {
            *events += 1;
            handed_back.add_latest(event.into_handed_back(), self.handed_back_limit, MAX_PENDING);
        }
    }

    fn warn(&mut self) {
        if !self.warned {
            self.warned = true;
            self.log = Some("event queue full");
        }
    }

    /// Logs that the queue is full, or that events are summarized. Called by the worker, which holds no lock of the queue.
    pub(crate) fn log(&mut self) {
        if let Some(what) = self.log.take() {
            let (name, overflow) = (&self.tag.name, self.overflow);
            let (events, bytes) = (self.unread.events, self.unread.bytes);
            logger::warn!(client:% = name; "client `{name}`: {what} ({events} unread, {bytes} bytes, overflow policy {overflow:?})");
        }
    }

    /// No worker will hand over for a while: everything that waits is handed over, room or not. The backlog is bounded, so
    /// the channel stays so too.
    fn hand_over_all(&mut self) {
        while self.waits {
            self.give_waiting();
        }
        self.flush();
        (self.room, self.byte_room) = (0, 0);
    }

    /// What nobody could be told of, and how many messages nobody could be given. Called when there is no worker.
    pub(crate) fn take_orphans(&mut self) -> (HandedBack, u64) {
        let closed = self.tail.lock().outlet.is_none();
        if closed {
            self.hand_over_all();
        }
        (std::mem::take(&mut self.orphans), std::mem::take(&mut self.lost))
    }

    /// The client has ended, or is given up on: its last event, and nothing is left to wait for.
    pub(crate) fn conclude(&mut self, end: &End, event: Event) {
        self.push_event(event);
        self.hand_over_all();
        if matches!(end, End::Closed(_)) {
            self.tail.lock().outlet = None;
        }
    }
}

#[cfg(test)]
#[cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]
#[path = "queue_tests.rs"]
mod tests;
