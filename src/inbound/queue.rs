//! The event queue of one client: a crossbeam channel that the caller reads, and a backlog behind it where the overflow
//! policy can drop, sum up and keep the order.

use std::sync::Arc;

use parking_lot::Mutex;

use super::backlog::{Backlog, Overrun};
use super::outlet::{Capacity, Deserted, Outlet, SharedTail, Tail, Unread, put};
use crate::event::Event;
use crate::handed_back::HandedBack;
use crate::lifecycle::End;
use crate::message::Message;
use crate::overflow::{AtLimit, Overflow, Stage};
use crate::policy::requests::MAX_PENDING;
use crate::state::Tag;

/// Lifecycle events that wait behind a full queue before they are summed up.
const LIFECYCLE_LIMIT: usize = 1024;

/// Messages that cross the channel in one go: as many as are taken apart in some ten microseconds.
const BURST: usize = 256;

#[derive(Debug)]
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
    /// Read in one go and about to cross the channel in one go: a consumer that waits is woken once for all of them.
    burst: Vec<Event>,
    handed_over: u64,
    /// So many messages handed back are kept when events are summed up.
    handed_back_limit: usize,
    warned: bool,
    deserted: bool,
    /// What nobody could be told of, and how many messages of the server's nobody could be given.
    orphans: HandedBack,
    lost: u64,
}

fn bytes_of(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.len(),
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
            burst: Vec::new(),
            handed_over: 0,
            handed_back_limit,
            warned: false,
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
        self.room = self.capacity.events.saturating_sub(self.unread.events.len());
        self.byte_room = self.capacity.bytes.saturating_sub(self.unread.bytes);
        if self.room > self.capacity.events / 2 {
            self.warned = false;
        }
        self.room > 0 && self.byte_room > 0
    }

    fn give(&mut self, event: Event) {
        self.room = self.room.saturating_sub(1);
        self.byte_room = self.byte_room.saturating_sub(bytes_of(&event));
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

    /// Whether nobody is left who could read: the receiver of a shared channel was dropped.
    pub(crate) fn is_deserted(&self) -> bool {
        self.deserted
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
        for event in self.burst.drain(..) {
            let bytes = bytes_of(&event);
            match put(&mut tail.outlet, event) {
                Ok(number) => self.unread.push(number, bytes),
                Err(Deserted(event)) => {
                    self.deserted |= tail.outlet.is_some();
                    self.lost += u64::from(matches!(event, Event::Message(_)));
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
            at_limit => at_limit,
        };
        let result = backlog.push_message(message, at_limit);
        self.waits = !backlog.is_empty();
        result
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
            log::error!(client:% = self.tag.name; "client `{}`: nobody reads its events; from now on they are summed up", self.tag.name);
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
            let (name, overflow) = (&self.tag.name, self.overflow);
            let (events, bytes) = (self.unread.events.len(), self.unread.bytes);
            log::warn!(client:% = name; "client `{name}`: its event queue is full ({events} unread, {bytes} bytes): {overflow:?}");
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
mod tests {
    use super::*;
    use crate::state::ClientId;
    use crossbeam_channel::Receiver;
    #[cfg(feature = "property-tests")]
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    fn queue(overflow: Overflow, capacity: usize) -> (Queue, Receiver<Event>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let tag = Tag { id: ClientId(1), name: "t".into(), venue: "v".into() };
        let outlet = Outlet::Own { sender, given: 0 };
        let capacity = Capacity { events: capacity, bytes: 1 << 20 };
        (Queue::new(outlet, tag, overflow, capacity, 4), receiver)
    }

    fn opened(epoch: u64) -> Event {
        Event::Open { epoch, restored: vec![], refused: vec![], pending: vec![] }
    }

    fn finish(queue: &mut Queue) {
        queue.hand_over_all();
        queue.tail.lock().outlet = None;
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
            let (unsent, uncertain) = (vec![number(epoch)], vec![]);
            queue.push_event(Event::Disconnected { epoch, reason, unsent, uncertain });
        }
        assert!(queue.tail.lock().backlog.others() <= LIFECYCLE_LIMIT + 1);
        finish(&mut queue);
        let all: Vec<_> = events.iter().collect();
        let Some(Event::Collapsed { events, handed_back, .. }) = all.last() else { panic!() };
        let HandedBack { unsent, dropped, .. } = &**handed_back;
        assert_eq!(all.len() as u64 - 1 + events, 5000);
        assert_eq!(unsent.len(), 4);
        assert_eq!(all.len() as u64 - 1 + unsent.len() as u64 + dropped, 5000);
        assert_eq!(unsent.last(), Some(&number(4999)));
    }

    /// Sums of events and of dropped messages that alternate: each round must not leave one more of them.
    #[test]
    fn what_nobody_reads_is_bounded_though_messages_come_in_between() {
        for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
            let (mut queue, events) = queue(overflow, 2);
            let (mut sent, mut dropped) = (0, 0);
            for epoch in 0..12_000 {
                queue.push_event(opened(epoch));
                dropped += queue.push_message(number(epoch), Stage::Open).unwrap();
                sent += 1;
            }
            assert!(
                queue.tail.lock().backlog.others() <= LIFECYCLE_LIMIT + 2,
                "{overflow:?}: {}",
                queue.tail.lock().backlog.others()
            );
            finish(&mut queue);
            let (mut seen, mut lost, mut told) = (0, 0, 0);
            for event in events.iter() {
                match event {
                    Event::Message(_) => seen += 1,
                    Event::Lagged { dropped } => lost += dropped,
                    Event::Collapsed { events, dropped, .. } => (told, lost) = (told + events, lost + dropped),
                    _ => told += 1,
                }
            }
            assert_eq!((seen + lost, lost, told), (sent, dropped, 12_000), "{overflow:?}");
        }
    }

    #[test]
    fn a_flood_of_one_client_takes_no_room_from_another_on_the_same_channel() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let given = Arc::new(AtomicU64::new(0));
        let mut queues: Vec<_> = (1..3)
            .map(|id| {
                let tag = Tag { id: ClientId(id), name: "t".into(), venue: "v".into() };
                let outlet = Outlet::Shared { sender: sender.clone(), given: given.clone(), tag: tag.clone() };
                let capacity = Capacity { events: 4, bytes: 100 };
                Queue::new(outlet, tag, Overflow::DropNewest, capacity, 4)
            })
            .collect();
        let dropped: u64 = (0..100).map(|n| queues[0].push_message(number(n), Stage::Open).unwrap()).sum();
        assert_eq!(dropped, 96);
        queues[0].flush();
        assert_eq!((0..4).map(|n| queues[1].push_message(number(n), Stage::Open).unwrap()).sum::<u64>(), 0);
        queues[1].flush();
        assert_eq!(receiver.try_iter().count(), 8);
        assert_eq!(queues[1].push_message(number(5), Stage::Open), Ok(0));
        queues[1].flush();
        receiver.recv().unwrap();
        // In bytes too: one of any length, then no more.
        assert_eq!(queues[1].push_message(Message::binary(vec![0; 500]), Stage::Open), Ok(0));
        assert_eq!(queues[1].push_message(number(6), Stage::Open), Ok(1));
        drop(receiver);
        queues[1].push_event(opened(1));
        assert!(queues[1].hand_over_all_is_deserted());
    }

    impl Queue {
        fn hand_over_all_is_deserted(&mut self) -> bool {
            self.hand_over_all();
            self.is_deserted()
        }
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
                prop_assert!(events.len() + queue.tail.lock().backlog.messages() <= capacity.max(2));
            }
            finish(&mut queue);
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
