//! Messages that cross the client's channel together, and the usual ones that a handler is shown one after the other.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use common::{LONG, config, eventually, frame, next, next_open, rpc};
use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// Frames of a server, one after the other in one write: texts, and for every fifth number bytes.
fn packed(numbers: std::ops::Range<u32>) -> Vec<u8> {
    numbers.flat_map(|n| frame(if n % 5 == 0 { 2 } else { 1 }, n.to_string().as_bytes())).collect()
}

fn number(message: MessageRef<'_>) -> u32 {
    let number = std::str::from_utf8(message.as_bytes()).unwrap().parse().unwrap();
    assert_eq!(message.is_binary(), number % 5 == 0);
    number
}

fn batching(server: &Server) -> ClientConfig {
    config(server).delivery(Delivery::batches())
}

#[test]
fn what_came_together_crosses_together_in_order_and_a_lone_message_too() {
    let server = Server::echo().unwrap();
    let client = Client::connect(batching(&server)).unwrap();
    server.push_raw(&packed(0..3000));
    let (mut come, mut batches) = (0, 0);
    while come < 3000 {
        match client.events().recv_timeout(LONG).unwrap() {
            Event::Open { epoch, .. } => assert_eq!((epoch, come), (1, 0)),
            Event::Messages(messages) => {
                assert!((1..=256).contains(&messages.len()));
                let at = messages.iter().next().unwrap().received_at();
                for message in messages.iter() {
                    assert_eq!((number(message), message.received_at()), (come, at));
                    come += 1;
                }
                batches += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(batches < 1000, "{batches}");
    assert_eq!(client.stats().received, 3000);
    client.send("alone").unwrap();
    let alone = next(&client, |event| match event {
        Event::Messages(messages) => Some(Vec::from(messages)),
        _ => None,
    });
    assert_eq!(alone, [Message::text("alone")]);
    client.close().unwrap();
    assert!(matches!(client.events().iter().last(), Some(Event::Closed { .. })));
}

#[test]
fn every_message_of_a_batch_counts_for_the_capacity() {
    let server = Server::echo().unwrap();
    let client = Client::connect(batching(&server).overflow(Overflow::DropNewest).event_capacity(10)).unwrap();
    next_open(&client);
    server.push_raw(&packed(0..1000));
    eventually("all is read", || client.stats().received == 1000);
    client.close().unwrap();
    let (mut come, mut lost) = (0, 0);
    for event in client.events() {
        match event {
            Event::Messages(messages) => come += messages.len() as u64,
            Event::Lagged { dropped, .. } => lost += dropped,
            _ => {}
        }
    }
    assert_eq!((come, lost, client.stats().dropped), (10, 990, 990));
}

#[test]
fn a_reader_of_batches_that_stops_holds_the_server_up_and_loses_nothing() {
    let server = Server::echo().unwrap();
    let client = Client::connect(batching(&server).event_capacity(64)).unwrap();
    next_open(&client);
    server.push_raw(&packed(0..5000));
    eventually("reading pauses", || client.stats().paused_for.is_some());
    assert!(client.stats().received <= 64);
    let mut come = 0;
    while come < 5000 {
        if let Event::Messages(messages) = client.events().recv_timeout(LONG).unwrap() {
            messages.iter().for_each(|message| {
                assert_eq!(number(message), come);
                come += 1;
            });
        }
    }
}

#[test]
fn an_answer_among_many_goes_to_who_asked() {
    let server = Server::start(rpc(|_, _| Some(Ok("filled".into())))).unwrap();
    let client = Arc::new(Client::connect(batching(&server)).unwrap());
    let others = std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            for _ in 0..200 {
                assert_eq!(client.request::<String>("buy", ()).unwrap(), "filled");
            }
        });
        (0..100).for_each(|n| assert_eq!(server.push_raw(&packed(n * 10..n * 10 + 10)), 1));
        asks.join().unwrap();
        let (mut come, events) = (0, client.events());
        while come < 1000 {
            if let Event::Messages(messages) = events.recv_timeout(LONG).unwrap() {
                messages.iter().for_each(|message| {
                    assert_eq!(number(message), come);
                    come += 1;
                });
            }
        }
        events.try_iter().filter(|event| matches!(event, Event::Messages(_))).count()
    });
    assert_eq!(others, 0);
}

/// Texts behind which one is no UTF-8.
fn spoiled() -> Vec<u8> {
    [packed(0..40), frame(1, &[0xff]), packed(40..50)].concat()
}

fn is_for_the_text(reason: &DisconnectReason) -> bool {
    matches!(reason, DisconnectReason::Protocol(_))
}

#[test]
fn what_came_before_a_text_that_is_none_is_delivered_and_nothing_behind_it() {
    let server = Server::echo().unwrap();
    let client = Client::connect(batching(&server)).unwrap();
    server.push_raw(&spoiled());
    let mut come = 0;
    for event in client.events() {
        match event {
            Event::Messages(messages) => come += messages.len(),
            Event::Disconnected { reason, .. } => {
                assert!(is_for_the_text(&reason), "{reason:?}");
                break;
            }
            _ => {}
        }
    }
    assert_eq!(come, 40);
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(Vec<u32>, Option<DisconnectReason>)>>);

impl Handler for Seen {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        assert_eq!(message.epoch(), Some(1));
        self.0.lock().0.push(number(message));
        context.send("seen").unwrap();
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Disconnected { reason, .. } = event {
            self.0.lock().1 = Some(reason);
        }
    }
}

#[test]
fn a_handler_hears_the_same_and_what_it_sends_leaves_at_once() {
    let server = Server::start(Script::reply(|_, _| vec![])).unwrap();
    let seen = Seen::default();
    let delivery = Delivery::inline({
        let seen = seen.clone();
        move || seen.clone()
    });
    let _client = Client::connect(config(&server).delivery(delivery)).unwrap();
    server.push_raw(&spoiled());
    eventually("the end", || seen.0.lock().1.is_some());
    let (numbers, reason) = &*seen.0.lock();
    assert_eq!(*numbers, (0..40).collect::<Vec<_>>());
    assert!(reason.as_ref().is_some_and(is_for_the_text), "{reason:?}");
    eventually("all that it sent has come", || server.records()[0].received.len() == 40);
}
