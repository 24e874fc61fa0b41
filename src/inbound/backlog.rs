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
    /// Messages it holds before one is too many.
    limit: usize,
}

impl Backlog {
    pub(crate) fn new(limit: usize) -> Self {
        Self { events: VecDeque::new(), messages: 0, limit }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Events that are no messages.
    pub(crate) fn others(&self) -> usize {
        self.events.len() - self.messages
    }

    /// Takes a message in; returns how many were dropped for it. `Event::Lagged` stands exactly where they are missing.
    pub(crate) fn push_message(&mut self, message: Message, at_limit: AtLimit) -> Result<u64, Overrun> {
        let fits = self.messages < self.limit;
        match at_limit {
            AtLimit::Overrun if !fits => return Err(Overrun),
            AtLimit::DropNewest if !fits => {
                self.lagged_at(self.events.len());
                return Ok(1);
            }
            _ => {
                self.events.push_back(Event::Message(message));
                self.messages += 1;
            }
        }
        if fits || at_limit == AtLimit::Keep {
            return Ok(0);
        }
        let oldest = self.events.iter().position(|event| matches!(event, Event::Message(_)));
        if let Some(oldest) = oldest {
            self.events.remove(oldest);
            self.messages -= 1;
            self.lagged_at(oldest);
        }
        Ok(1)
    }

    /// One message was lost between the events before `index` and those from it on.
    fn lagged_at(&mut self, index: usize) {
        let before = index.checked_sub(1).and_then(|before| self.events.get_mut(before));
        if let Some(Event::Lagged { dropped }) = before {
            *dropped += 1;
        } else {
            self.events.insert(index, Event::Lagged { dropped: 1 });
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
        self.messages -= usize::from(matches!(event, Event::Message(_)));
        Some(event)
    }

    /// Takes out the first message that is wanted; the others stay in order.
    pub(crate) fn take_message(&mut self, wanted: &mut dyn FnMut(&Message) -> bool) -> Option<Message> {
        let is_wanted = |event: &Event| matches!(event, Event::Message(message) if wanted(message));
        let index = self.events.iter().position(is_wanted)?;
        let Some(Event::Message(message)) = self.events.remove(index) else { return None };
        self.messages -= 1;
        Some(message)
    }
}
