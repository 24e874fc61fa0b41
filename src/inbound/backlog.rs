//! Events in order behind a bound: what waits for the session to open, and what waits for a consumer to make room.

use std::collections::VecDeque;

use crate::event::Event;
use crate::message::Message;
use crate::overflow::AtLimit;

/// One message too many, where none may be lost and none kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

#[derive(Debug)]
pub(crate) struct Backlog {
    events: VecDeque<Event>,
    messages: usize,
    bytes: usize,
    /// Messages, and bytes of messages, that it holds before one is too many.
    limit: usize,
    byte_limit: usize,
}

/// Messages that came while the session was being opened, kept for the consumer. They outlive a panic, so that each is
/// delivered or counted.
#[derive(Debug, Default)]
pub(crate) struct Held {
    backlog: Option<Backlog>,
    /// The session is not open yet: none of them may be delivered.
    opening: bool,
}

impl Held {
    /// Keeps messages from now on until `open`, within these bounds.
    pub(crate) fn begin(&mut self, limit: usize, byte_limit: usize) {
        (self.backlog, self.opening) = (Some(Backlog::new(limit, byte_limit)), true);
    }

    pub(crate) fn backlog(&mut self) -> Option<&mut Backlog> {
        self.backlog.as_mut()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.backlog.as_ref().is_some_and(Backlog::is_full)
    }

    /// The session is open: the messages may be delivered. Returns how many there are.
    pub(crate) fn open(&mut self) -> usize {
        self.opening = false;
        self.backlog.as_ref().map_or(0, Backlog::messages)
    }

    /// Whether there are some that may be delivered.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.backlog.is_some() && !self.opening
    }

    /// The next of them, in order, once the session is open.
    pub(crate) fn next(&mut self) -> Option<Event> {
        if !self.is_ready() {
            return None;
        }
        let next = self.backlog.as_mut().and_then(Backlog::pop);
        if next.is_none() {
            self.backlog = None;
        }
        next
    }

    /// Drops those that are left. Returns how many messages they were.
    pub(crate) fn drop_rest(&mut self) -> u64 {
        self.opening = false;
        self.backlog.take().map_or(0, |backlog| backlog.messages() as u64)
    }
}

/// What a message takes: an empty one is not free.
fn weight(message: &Message) -> usize {
    message.len() + size_of::<Event>()
}

impl Backlog {
    pub(crate) fn new(limit: usize, byte_limit: usize) -> Self {
        Self { events: VecDeque::new(), messages: 0, bytes: 0, limit, byte_limit }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether one more would be too many.
    pub(crate) fn is_full(&self) -> bool {
        self.messages >= self.limit || self.bytes >= self.byte_limit
    }

    /// Events that are no messages.
    pub(crate) fn others(&self) -> usize {
        self.events.len() - self.messages
    }

    /// Takes a message in; returns how many were dropped for it. `Event::Lagged` stands exactly where they are missing.
    pub(crate) fn push_message(&mut self, message: Message, at_limit: AtLimit) -> Result<u64, Overrun> {
        let fits = |backlog: &Self| !backlog.is_full();
        match at_limit {
            AtLimit::Overrun if !fits(self) => return Err(Overrun),
            AtLimit::DropNewest if !fits(self) => {
                self.lagged_at(self.events.len());
                return Ok(1);
            }
            _ => {}
        }
        let mut dropped = 0;
        while at_limit == AtLimit::DropOldest && self.messages > 0 && !fits(self) {
            self.drop_oldest();
            dropped += 1;
        }
        self.bytes += weight(&message);
        self.messages += 1;
        self.events.push_back(Event::Message(message));
        // With room for none, the newest is the oldest.
        if at_limit == AtLimit::DropOldest && self.messages > self.limit {
            self.drop_oldest();
            dropped += 1;
        }
        Ok(dropped)
    }

    fn drop_oldest(&mut self) {
        let oldest = self.events.iter().position(|event| matches!(event, Event::Message(_)));
        if let Some(Some(Event::Message(message))) = oldest.map(|oldest| self.events.remove(oldest)) {
            self.messages -= 1;
            self.bytes -= weight(&message);
            self.lagged_at(oldest.unwrap_or_default());
        }
    }

    /// One message was lost between the events before `index` and those from it on. Sums that become neighbours are one.
    fn lagged_at(&mut self, index: usize) {
        let before = index.checked_sub(1).and_then(|before| self.events.get_mut(before));
        match before {
            Some(Event::Lagged { dropped } | Event::Collapsed { dropped, .. }) => *dropped += 1,
            _ => {
                if let Some(Event::Lagged { dropped } | Event::Collapsed { dropped, .. }) = self.events.get_mut(index) {
                    *dropped += 1;
                } else {
                    self.events.insert(index, Event::Lagged { dropped: 1 });
                }
                return;
            }
        }
        let both = [index - 1, index].map(|at| self.events.get(at).map(std::mem::discriminant));
        if both[0] == both[1] {
            let after = self.events.remove(index);
            match (self.events.get_mut(index - 1), after) {
                (Some(Event::Lagged { dropped }), Some(Event::Lagged { dropped: more })) => *dropped += more,
                (
                    Some(Event::Collapsed { events, dropped, handed_back }),
                    Some(Event::Collapsed { events: e, dropped: d, handed_back: h }),
                ) => {
                    *events += e;
                    *dropped += d;
                    handed_back.extend(*h);
                }
                (_, Some(after)) => self.events.insert(index, after),
                (_, None) => {}
            }
        }
    }

    pub(crate) fn push_event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut Event> {
        self.events.back_mut()
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Message(message) = &event {
            self.messages -= 1;
            self.bytes -= weight(message);
        }
        Some(event)
    }

    /// Takes out the first message that is wanted; the others stay in order. Returns how many messages are before it, and the
    /// message.
    pub(crate) fn take_message(&mut self, wanted: &mut dyn FnMut(&Message) -> bool) -> Option<(usize, Message)> {
        let is_wanted = |event: &Event| matches!(event, Event::Message(message) if wanted(message));
        let index = self.events.iter().position(is_wanted)?;
        let before = self.events.iter().take(index).filter(|event| matches!(event, Event::Message(_))).count();
        let Some(Event::Message(message)) = self.events.remove(index) else { return None };
        self.messages -= 1;
        self.bytes -= weight(&message);
        Some((before, message))
    }
}
