//! What was read in one go and crosses the channel in one go: a reader that waits is woken once for all of it.

use super::outlet::Outlet;
use crate::event::Event;
use crate::message::MessageRef;
use crate::messages::Batch;

/// As many messages as are taken apart in some ten microseconds.
const MOST: usize = 256;

pub(super) struct Burst {
    events: Vec<Event>,
    /// Where messages cross in batches: those behind `events`.
    batch: Option<Batch>,
}

impl Burst {
    pub(super) fn to(outlet: &Outlet) -> Self {
        Self { events: Vec::new(), batch: outlet.takes_batches().then(Batch::default) }
    }

    pub(super) fn makes_batches(&self) -> bool {
        self.batch.is_some()
    }

    pub(super) fn push(&mut self, event: Event) {
        match event {
            Event::Message(message) if self.makes_batches() => self.push_view(message.view()),
            event => {
                self.end_batch();
                self.events.push(event);
            }
        }
    }

    /// A message that goes into a batch. Those of one batch came together.
    #[inline]
    pub(super) fn push_view(&mut self, message: MessageRef<'_>) {
        if self.batch.as_ref().is_some_and(|batch| !batch.is_of(&message)) {
            self.end_batch();
        }
        if let Some(batch) = &mut self.batch {
            batch.push(message);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is time to hand it over.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= MOST
    }

    /// All of it, in order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.end_batch();
        self.events.drain(..)
    }

    fn len(&self) -> usize {
        self.events.len() + self.batch.as_ref().map_or(0, Batch::len)
    }

    fn end_batch(&mut self) {
        if let Some(batch) = self.batch.as_mut().filter(|batch| batch.len() > 0) {
            self.events.push(Event::Messages(batch.take()));
        }
    }
}
