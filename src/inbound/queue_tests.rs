use super::*;
use crate::state::ClientId;
use crossbeam_channel::Receiver;
#[cfg(feature = "property-tests")]
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;

fn queue(overflow: Overflow, capacity: usize) -> (Queue, Receiver<Event>) {
    queue_of(overflow, capacity, false)
}

fn queue_of(overflow: Overflow, capacity: usize, in_batches: bool) -> (Queue, Receiver<Event>) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let tag = Tag { id: ClientId(1), name: "t".into(), venue: "v".into() };
    let outlet = Outlet::Own { sender, given: 0, in_batches };
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
        oldest in any::<bool>(), in_batches in any::<bool>(), capacity in 1usize..12, steps in proptest::collection::vec(0u8..10, 1..400),
    ) {
        let overflow = if oldest { Overflow::DropOldest } else { Overflow::DropNewest };
        let (mut queue, events) = queue_of(overflow, capacity, in_batches);
        let (mut sent, mut opened, mut dropped, mut read) = (0, 0, 0, 0);
        let mut seen = vec![];
        for step in steps {
            match step {
                // As the worker does: one that need not wait goes into its batch from where it lies.
                0..=4 if queue.batches_next() => { queue.push_to_batch(number(sent).view()); sent += 1; }
                0..=4 => { dropped += queue.push_message(number(sent), Stage::Open).unwrap(); sent += 1; }
                5 => { opened += 1; queue.push_event(super::tests::opened(opened)); }
                6 => { queue.hand_over(); }
                _ => seen.extend(events.try_recv().inspect(|event| read += messages_in(event))),
            }
            prop_assert!(sent as usize - dropped as usize - read <= capacity.max(2));
        }
        finish(&mut queue);
        seen.extend(events.iter());
        let (mut next, mut epoch, mut lagged) = (0, 0, 0);
        for event in &seen {
            match event {
                Event::Message(message) => {
                    prop_assert!(!in_batches);
                    prop_assert_eq!(message, &number(next));
                    next += 1;
                }
                Event::Messages(messages) => for message in messages.iter() {
                    prop_assert!(message == number(next));
                    next += 1;
                },
                Event::Open { epoch: e, .. } => { epoch += 1; prop_assert_eq!(*e, epoch); }
                Event::Lagged { dropped } => { next += dropped; lagged += dropped; }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!((next, epoch, lagged), (sent, opened, dropped));
    }
}
