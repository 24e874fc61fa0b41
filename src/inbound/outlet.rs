//! Where a client's events leave: its own channel or a shared one; what waits there for room, and what is not read yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::backlog::Backlog;
use crate::event::{ClientEvent, Event};
use crate::handed_back::HandedBack;
use crate::messages::Messages;
use crate::state::Tag;

/// Where a queue ends: the client's own channel, or one shared by many.
#[derive(Clone, Debug)]
pub(crate) enum Outlet {
    Own {
        sender: Sender<Event>,
        given: u64,
        /// Messages cross as [`Event::Messages`], a lone one too.
        in_batches: bool,
    },
    /// `given` counts what all its clients have put into it.
    Shared { sender: Sender<ClientEvent>, given: Arc<AtomicU64>, tag: Tag },
}

/// Puts an event where it can be read, if there still is such a place.
pub(super) fn put(outlet: &mut Option<Outlet>, event: Event) -> Result<u64, Deserted> {
    match outlet {
        Some(outlet) => outlet.push(event),
        None => Err(Deserted(event)),
    }
}

/// There is nobody any more who could read.
#[derive(Debug)]
pub(super) struct Deserted(pub(super) Event);

impl Outlet {
    /// The channels are unbounded, the bound is ours. Returns the event's number in the channel, counted from 1.
    fn push(&mut self, event: Event) -> Result<u64, Deserted> {
        match self {
            Self::Own { sender, given, in_batches } => {
                *given += 1;
                let event = match event {
                    Event::Message(message) if *in_batches => Event::Messages(Messages::of(&[message])),
                    event => event,
                };
                sender.send(event).map_err(|error| Deserted(error.0))?;
                Ok(*given)
            }
            Self::Shared { sender, given, tag } => {
                let event = ClientEvent { client: tag.id, name: tag.name.clone(), event };
                sender.send(event).map_err(|error| Deserted(error.0.event))?;
                // Clients that push at the same instant may be told each other's number, which is as good.
                Ok(given.fetch_add(1, Ordering::Relaxed) + 1)
            }
        }
    }

    pub(super) fn takes_batches(&self) -> bool {
        matches!(self, Self::Own { in_batches: true, .. })
    }

    /// How many events of the channel have been read.
    pub(super) fn taken(&self) -> u64 {
        match self {
            Self::Own { sender, given, .. } => given - sender.len() as u64,
            Self::Shared { sender, given, .. } => given.load(Ordering::Relaxed).saturating_sub(sender.len() as u64),
        }
    }
}

/// The tail end of a queue. From outside it can be emptied and closed, should the worker not come back.
#[derive(Debug)]
pub(crate) struct Tail {
    /// `None` once the client has ended: nothing comes after the last word.
    pub(super) outlet: Option<Outlet>,
    /// What waits for room in the outlet.
    pub(super) backlog: Backlog,
}

impl Tail {
    /// Gives out what waits, room or not, then `last`, and closes. Returns what nobody could be told of.
    pub(crate) fn conclude(&mut self, last: impl Iterator<Item = Event>) -> HandedBack {
        let mut untold = HandedBack::default();
        let waits = std::iter::from_fn(|| self.backlog.pop());
        for event in waits.chain(last) {
            if let Err(Deserted(event)) = put(&mut self.outlet, event) {
                untold.extend(event.into_handed_back());
            }
        }
        self.outlet = None;
        untold
    }
}

/// The worker's, but for the end of a client whose thread is left behind.
pub(crate) type SharedTail = Arc<Mutex<Tail>>;

/// What was handed over and is not read yet, by its numbers in the channel. A flood on a channel that is shared is so
/// counted against the client that floods, and not against a quiet one. Of a batch each message counts.
#[derive(Debug, Default)]
pub(super) struct Unread {
    given: VecDeque<Given>,
    pub(super) events: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Given {
    number: u64,
    events: usize,
    bytes: usize,
}

impl Unread {
    pub(super) fn push(&mut self, number: u64, events: usize, bytes: usize) {
        self.given.push_back(Given { number, events, bytes });
        self.events += events;
        self.bytes += bytes;
    }

    pub(super) fn read_up_to(&mut self, number: u64) {
        while let Some(first) = self.given.front().filter(|first| first.number <= number) {
            self.events -= first.events;
            self.bytes -= first.bytes;
            self.given.pop_front();
        }
    }
}

/// How much may wait unread before the overflow policy applies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}
