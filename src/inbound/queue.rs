//! The event queue of one client: a crossbeam channel that the caller reads, and a backlog behind it that only the
//! worker touches, where the overflow policy can drop, sum up and keep the order.

use crossbeam_channel::Sender;

use super::backlog::{Backlog, Overrun};
use crate::event::{ClientEvent, Event};
use crate::lifecycle::End;
use crate::message::Message;
use crate::overflow::{Overflow, Stage};
use crate::state::Tag;

/// Lifecycle events that wait behind a full queue before they are summed up.
const LIFECYCLE_LIMIT: usize = 1024;

/// Messages that cross the channel in one go: as many as are taken apart in some ten microseconds.
const BURST: usize = 64;

/// Where a queue ends: the client's own channel, or one shared by many.
#[derive(Clone, Debug)]
pub(crate) enum Outlet {
    Own(Sender<Event>),
    Shared(Sender<ClientEvent>, Tag),
}

impl Outlet {
    /// The channels are unbounded, the bound is ours: a channel without a reader any more takes everything.
    pub(crate) fn push(&self, event: Event) {
        match self {
            Self::Own(sender) => drop(sender.send(event)),
            Self::Shared(sender, tag) => {
                drop(sender.send(ClientEvent { client: tag.id, name: tag.name.clone(), event }));
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Own(sender) => sender.len(),
            Self::Shared(sender, _) => sender.len(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    /// `None` once the client has ended.
    outlet: Option<Outlet>,
    tag: Tag,
    overflow: Overflow,
    /// Events in the channel before it counts as full.
    channel_limit: usize,
    /// How many more events the channel takes for sure; looked up again when used up.
    room: usize,
    /// A shared channel has other writers: its room must be looked up each time.
    room_is_ours: bool,
    /// Read in one go and about to cross the channel in one go: a consumer that waits is woken once for all of them.
    burst: Vec<Event>,
    handed_over: u64,
    backlog: Backlog,
    unsent_limit: usize,
    warned: bool,
}

impl Queue {
    pub(crate) fn new(outlet: Outlet, tag: Tag, overflow: Overflow, capacity: usize, unsent_limit: usize) -> Self {
        let backlog_limit = if overflow == Overflow::DropOldest { (capacity / 2).max(1) } else { 0 };
        let room_is_ours = matches!(outlet, Outlet::Own(_));
        Self {
            outlet: Some(outlet),
            tag,
            overflow,
            channel_limit: capacity.saturating_sub(backlog_limit).max(1),
            room: 0,
            room_is_ours,
            burst: Vec::new(),
            handed_over: 0,
            backlog: Backlog::new(backlog_limit),
            unsent_limit,
            warned: false,
        }
    }

    fn has_room(&mut self) -> bool {
        if self.room == 0 || !self.room_is_ours {
            let used = self.outlet.as_ref().map_or(0, Outlet::len) + self.burst.len();
            self.room = self.channel_limit.saturating_sub(used);
            if self.room > self.channel_limit / 2 {
                self.warned = false;
            }
        }
        self.room > 0
    }

    fn give(&mut self, event: Event) {
        self.room = self.room.saturating_sub(1);
        self.handed_over += 1;
        self.burst.push(event);
        if self.burst.len() >= BURST {
            self.flush();
        }
    }

    /// How many events were handed over so far: while this stands still, the consumer does.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over
    }

    /// Lets the consumer see what was handed over. Called when all that was read in one go is taken apart.
    pub(crate) fn flush(&mut self) {
        match &self.outlet {
            Some(outlet) => self.burst.drain(..).for_each(|event| outlet.push(event)),
            None => self.burst.clear(),
        }
    }

    /// Whether another message can be taken from the socket. Only `Backpressure` ever says no.
    pub(crate) fn has_room_to_read(&mut self) -> bool {
        self.overflow != Overflow::Backpressure || (self.refill() && self.has_room()) || {
            self.flush();
            self.warn();
            false
        }
    }

    /// Moves what waits into the channel as far as there is room; true when nothing waits any more.
    pub(crate) fn hand_over(&mut self) -> bool {
        self.flush();
        self.refill()
    }

    fn refill(&mut self) -> bool {
        if self.backlog.is_empty() {
            return true;
        }
        while !self.backlog.is_empty() && self.has_room() {
            if let Some(event) = self.backlog.pop() {
                self.give(event);
            }
        }
        self.flush();
        self.backlog.is_empty()
    }

    /// A message; returns how many messages were dropped for it.
    pub(crate) fn push_message(&mut self, message: Message, stage: Stage) -> Result<u64, Overrun> {
        if self.refill() && self.has_room() {
            self.give(Event::Message(message));
            return Ok(0);
        }
        self.warn();
        self.backlog.push_message(message, self.overflow.at_limit(stage))
    }

    /// Any other event: kept whatever the policy.
    pub(crate) fn push_event(&mut self, event: Event) {
        if self.refill() && self.has_room() {
            self.give(event);
            return self.flush();
        }
        self.flush();
        self.warn();
        if self.backlog.others() < LIFECYCLE_LIMIT {
            self.backlog.push_event(event);
        } else {
            self.collapse(event);
        }
    }

    fn collapse(&mut self, event: Event) {
        let handed_back = match event {
            Event::Disconnected { unsent, .. } | Event::Parked { unsent, .. } | Event::Closed { unsent, .. } => unsent,
            _ => Vec::new(),
        };
        if !matches!(self.backlog.last_mut(), Some(Event::Collapsed { .. })) {
            log::error!("client `{}`: nobody reads its events; from now on they are summed up", self.tag.name);
            self.backlog.push_event(Event::Collapsed { events: 0, unsent: Vec::new(), unsent_dropped: 0 });
        }
        if let Some(Event::Collapsed { events, unsent, unsent_dropped }) = self.backlog.last_mut() {
            *events += 1;
            unsent.extend(handed_back);
            let excess = unsent.len().saturating_sub(self.unsent_limit);
            unsent.drain(..excess);
            *unsent_dropped += excess as u64;
        }
    }

    fn warn(&mut self) {
        if !self.warned {
            self.warned = true;
            let (name, overflow) = (&self.tag.name, self.overflow);
            log::warn!("client `{name}`: its event queue is full ({} unread): {overflow:?}", self.channel_limit);
        }
    }

    /// No worker will hand over for a while: everything that waits is handed over, room or not. The backlog is bounded, so
    /// the channel stays so too.
    fn hand_over_all(&mut self) {
        while let Some(event) = self.backlog.pop() {
            self.give(event);
        }
        self.flush();
        self.room = 0;
    }

    /// The client has ended, or is given up on: its last event, and nothing is left to wait for.
    pub(crate) fn conclude(&mut self, end: &End, unsent: Vec<Message>) {
        self.push_event(end.event(unsent));
        match end {
            End::Closed(_) => self.finish(),
            End::Parked(_) => self.hand_over_all(),
        }
    }

    /// The client has ended: hands over all that waits, and lets the reader see the end of the channel.
    fn finish(&mut self) {
        self.hand_over_all();
        self.outlet = None;
    }
}

#[cfg(test)]
#[cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]
mod tests {
    use super::*;
    use crate::state::ClientId;
    use crossbeam_channel::Receiver;
    #[cfg(feature = "property-tests")]
    use proptest::prelude::*;

    fn queue(overflow: Overflow, capacity: usize) -> (Queue, Receiver<Event>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let tag = Tag { id: ClientId(1), name: "t".into() };
        (Queue::new(Outlet::Own(sender), tag, overflow, capacity, 4), receiver)
    }

    fn opened(epoch: u64) -> Event {
        Event::Open { epoch, restored: vec![], refused: vec![] }
    }

    fn number(n: u64) -> Message {
        Message::text(n.to_string())
    }

    fn read(event: &Event) -> Option<u64> {
        match event {
            Event::Message(message) => message.as_text()?.parse().ok(),
            _ => None,
        }
    }

    #[test]
    fn backpressure_says_when_to_stop_and_when_to_go_on() {
        let (mut queue, events) = queue(Overflow::Backpressure, 2);
        for n in 0..2 {
            assert!(queue.has_room_to_read());
            queue.push_message(number(n), Stage::Open).unwrap();
        }
        assert!(!queue.has_room_to_read());
        queue.push_event(opened(1));
        assert!(!queue.has_room_to_read());
        events.recv().unwrap();
        assert!(!queue.has_room_to_read(), "the open event goes first");
        events.recv().unwrap();
        assert!(queue.has_room_to_read());
        assert!(matches!(events.recv().unwrap(), Event::Open { epoch: 1, .. }));
    }

    #[test]
    fn disconnect_overruns() {
        let (mut queue, _events) = queue(Overflow::Disconnect, 1);
        assert_eq!(queue.push_message(number(0), Stage::Open), Ok(0));
        assert_eq!(queue.push_message(number(1), Stage::Open), Err(Overrun));
    }

    #[test]
    fn what_nobody_reads_is_bounded_and_summed_up() {
        let (mut queue, events) = queue(Overflow::Backpressure, 1);
        for epoch in 0..5000 {
            let reason = crate::state::DisconnectReason::Overflow;
            queue.push_event(Event::Disconnected { epoch, reason, unsent: vec![number(epoch)] });
        }
        assert!(queue.backlog.others() <= LIFECYCLE_LIMIT + 1);
        queue.finish();
        let all: Vec<_> = events.iter().collect();
        let Some(Event::Collapsed { events, unsent, unsent_dropped }) = all.last() else { panic!() };
        assert_eq!(all.len() as u64 - 1 + events, 5000);
        assert_eq!(unsent.len(), 4);
        assert_eq!(all.len() as u64 - 1 + unsent.len() as u64 + unsent_dropped, 5000);
        assert_eq!(unsent.last(), Some(&number(4999)));
    }

    #[cfg(feature = "property-tests")]
    proptest! {
        /// Under every dropping policy and any pace of the reader: order is kept, every lifecycle event arrives, every
        /// message arrives or is counted exactly where it is missing, and memory stays bounded.
        #[test]
        fn nothing_is_lost_uncounted(
            oldest in any::<bool>(), capacity in 1usize..12, steps in proptest::collection::vec(0u8..10, 1..400),
        ) {
            let overflow = if oldest { Overflow::DropOldest } else { Overflow::DropNewest };
            let (mut queue, events) = queue(overflow, capacity);
            let (mut sent, mut opened, mut dropped) = (0, 0, 0);
            let mut seen = vec![];
            for step in steps {
                match step {
                    0..=4 => { dropped += queue.push_message(number(sent), Stage::Open).unwrap(); sent += 1; }
                    5 => { opened += 1; queue.push_event(super::tests::opened(opened)); }
                    6 => { queue.hand_over(); }
                    _ => seen.extend(events.try_recv()),
                }
                prop_assert!(events.len() + queue.backlog.messages() <= capacity.max(2));
            }
            queue.finish();
            seen.extend(events.iter());
            let (mut next, mut epoch, mut lagged) = (0, 0, 0);
            for event in &seen {
                match event {
                    Event::Message(_) => { prop_assert_eq!(read(event), Some(next)); next += 1; }
                    Event::Open { epoch: e, .. } => { epoch += 1; prop_assert_eq!(*e, epoch); }
                    Event::Lagged { dropped } => { next += dropped; lagged += dropped; }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert_eq!((next, epoch, lagged), (sent, opened, dropped));
        }
    }
}
