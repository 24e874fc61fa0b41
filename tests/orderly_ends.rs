//! The orderly end of a connection, with a slow handler, a slow reader or a slow server: a close, a stop, a rotation.
#![allow(missing_docs)]

mod common;

use std::any::Any;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{LONG, config, eventually, frame, ms, raw, takes, to};
use crossbeam_channel::{Receiver, Sender, unbounded};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// What takes its time in a handler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Calls {
    Told,
    Outcomes,
    Timers,
    Messages,
}

/// Takes its time for each call, of which there are many; closes its client in one of them, if it is to.
struct Slow {
    calls: Calls,
    each: Duration,
    closes: bool,
    heard: Arc<AtomicUsize>,
}

impl Slow {
    fn hears(&self, context: &mut Context<'_>) {
        if self.heard.fetch_add(1, Ordering::Relaxed) == 0 && self.closes {
            context.close();
        }
        takes(self.each);
    }
}

impl Handler for Slow {
    fn on_open(&mut self, context: &mut Context<'_>) {
        let soon = context.now() + ms(50);
        for n in 0..200 {
            match self.calls {
                Calls::Outcomes => drop(context.request(Request::new("order", ()).timeout(ms(50))).unwrap()),
                Calls::Timers => context.schedule(soon, n),
                Calls::Told | Calls::Messages => {}
            }
        }
    }
    fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
        self.hears(context);
    }
    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        if let Event::Response(_) = event {
            self.hears(context);
        }
    }
    fn on_command(&mut self, context: &mut Context<'_>, _: Box<dyn Any + Send>) {
        self.hears(context);
    }
    fn on_timer(&mut self, context: &mut Context<'_>, _: u64) {
        self.hears(context);
    }
}

/// A client whose handler is in the middle of what it has to hear.
fn slow(calls: Calls, closes: bool, close_timeout: Duration) -> (Server, Supervisor, Client, Arc<AtomicUsize>) {
    let messages = move |_: &testing::Peer| match calls {
        Calls::Messages => (0..200).map(|n| Message::from(n.to_string())).collect(),
        _ => vec![],
    };
    let server = Server::start(Script::silent().greet(messages)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let heard = Arc::new(AtomicUsize::new(0));
    let counts = heard.clone();
    let delivery = Delivery::inline(move || Slow { calls, each: ms(100), closes, heard: counts.clone() });
    let client = supervisor.spawn_client(config(&server).close_timeout(close_timeout).delivery(delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    if calls == Calls::Told {
        (0..200).for_each(|n| client.tell(n).unwrap());
    }
    eventually("it hears something", || heard.load(Ordering::Relaxed) > 0);
    (server, supervisor, client, heard)
}

#[test]
fn a_stop_is_in_time_whatever_a_slow_handler_has_yet_to_hear() {
    for calls in [Calls::Told, Calls::Outcomes, Calls::Timers, Calls::Messages] {
        let (_server, supervisor, client, heard) = slow(calls, false, Duration::from_secs(2));
        assert_eq!(supervisor.stop_client(client.id()), Ok(()), "{calls:?}");
        assert!(heard.load(Ordering::Relaxed) < 200);
    }
}

#[test]
fn a_handler_that_closes_its_client_has_not_to_hear_all_of_it_first() {
    let (_server, _supervisor, client, heard) = slow(Calls::Outcomes, true, Duration::from_secs(1));
    eventually("closed", || client.ready_state() == ReadyState::Closed);
    assert!(heard.load(Ordering::Relaxed) < 100, "{heard:?}");
}

/// Of two stops the more urgent is obeyed.
#[test]
fn a_second_stop_does_not_make_the_first_late() {
    let (_server, supervisor, client, _) = slow(Calls::Outcomes, false, Duration::from_secs(2));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| supervisor.stop_client(client.id()));
        eventually("the first is there", || client.ready_state() != ReadyState::Open || client.tell(()).is_err());
        takes(ms(500));
        let report = supervisor.shutdown(LONG);
        assert_eq!((first.join().unwrap(), report.left_behind), (Ok(()), vec![]));
    });
}

/// Hands on what it hears.
struct Hears(Sender<String>);

impl Handler for Hears {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        self.0.send(common::text(&message.to_message())).unwrap();
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        match event {
            Event::SubscriptionRefused(_) => self.0.send("refused".into()).unwrap(),
            Event::Disconnected { .. } => self.0.send("ended".into()).unwrap(),
            _ => {}
        }
    }
    fn on_command(&mut self, _: &mut Context<'_>, _: Box<dyn Any + Send>) {
        self.0.send("told".into()).unwrap();
    }
}

fn hears() -> (Delivery, Receiver<String>) {
    let (sender, receiver) = unbounded();
    (Delivery::inline(move || Hears(sender.clone())), receiver)
}

/// A server that reads a close frame, says one thing more, and never answers it.
fn never_answers() -> std::net::SocketAddr {
    raw(|mut stream, _, answer| {
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        std::thread::spawn(move || {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&frame(1, b"fill"));
            takes(LONG);
        });
    })
}

#[test]
fn to_wait_for_a_close_frame_is_no_stall_of_a_handler_and_keeps_nothing_from_it() {
    for rotates in [false, true] {
        let (delivery, heard) = hears();
        let patient = to(never_answers()).heartbeat(Heartbeat::disabled()).stall_threshold(ms(300));
        let mut patient = patient.close_timeout(Duration::from_secs(1)).delivery(delivery);
        if rotates {
            patient = patient.max_age(ms(200));
        }
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(patient).unwrap();
        client.wait_until_open(LONG).unwrap();
        if !rotates {
            client.reconnect();
        }
        assert_eq!(heard.recv_timeout(LONG).unwrap(), "fill");
        client.tell(()).unwrap();
        assert_eq!(heard.recv_timeout(LONG).unwrap(), "told", "before the end of the wait");
        assert_eq!(heard.recv_timeout(LONG).unwrap(), "ended");
        let stats = client.stats();
        assert!(stats.stalls == 0 && stats.longest_turn < ms(300), "rotates {rotates}: {stats:?}");
    }
}

/// What the kernel has when we end a connection is heard, however far behind the reader or the handler is.
#[test]
fn a_rotation_loses_nothing_of_what_has_come() {
    const MANY: usize = 1_000;
    for reads in [true, false] {
        for rotates in [true, false] {
            let greeting = |peer: &testing::Peer| match peer.index {
                0 => (0..MANY).map(|n| Message::from(format!("{n:0100}"))).collect(),
                _ => vec![],
            };
            let server = Server::start(Script::silent().greet(greeting)).unwrap();
            let mut ends = config(&server).close_timeout(ms(200)).event_bytes(4 << 10).heartbeat(Heartbeat::disabled());
            if rotates {
                ends = ends.max_age(ms(100));
            }
            let heard = Arc::new(AtomicUsize::new(0));
            if !reads {
                let counts = heard.clone();
                let slow = move || Slow { calls: Calls::Messages, each: ms(1), closes: false, heard: counts.clone() };
                ends = ends.delivery(Delivery::inline(slow));
            }
            let client = Client::connect(ends).unwrap();
            assert!(server.wait_until(LONG, |records| records[0].served == MANY as u64));
            if !rotates {
                client.reconnect();
            }
            eventually("the next connection", || client.epoch() == 2);
            let events = client.events();
            let of_the_first = events.iter().take_while(|event| reads && !matches!(event, Event::Disconnected { .. }));
            let read = of_the_first.filter(|event| matches!(event, Event::Message(_))).count();
            let all = (read + heard.load(Ordering::Relaxed), client.stats().dropped);
            assert_eq!(all, (MANY, 0), "reads {reads}, rotates {rotates}");
        }
    }
}

/// Many refusals in one answer are told a few at a time; what came behind them waits for that.
#[test]
fn refusals_are_told_before_the_message_behind_them_though_the_connection_is_ended() {
    use std::sync::OnceLock;
    struct Together;
    impl venue::Venue for Together {
        fn heartbeat(&self) -> Heartbeat {
            Heartbeat::disabled()
        }
        fn subscribe(&self, channels: &[Arc<str>]) -> Vec<venue::Batch> {
            vec![venue::Batch::new(Request::new("subscribe", channels), channels)]
        }
        fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<venue::Batch> {
            vec![venue::Batch::new(Request::new("unsubscribe", channels), channels)]
        }
    }
    let handle: Arc<OnceLock<Client>> = Arc::default();
    let ends = handle.clone();
    let server = Server::start(Script::reply(move |peer, message| {
        if peer.index > 0 {
            return vec![];
        }
        ends.get().inspect(|client| client.reconnect());
        let id = common::json_of(message)["id"].clone();
        vec![serde_json::json!({"id": id, "result": []}).to_string().into(), "behind".into()]
    }))
    .unwrap();
    let (delivery, heard) = hears();
    let client = Client::connect(config(&server).venue(Together).delivery(delivery)).unwrap();
    assert!(handle.set(client.clone()).is_ok());
    let channels: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    std::thread::spawn(move || client.subscribe(channels));
    let all: Vec<_> = std::iter::from_fn(|| heard.recv_timeout(LONG).ok()).take_while(|word| word != "ended").collect();
    let behind = all.iter().position(|word| word == "behind").unwrap_or(all.len());
    assert!(all[behind..].iter().all(|word| word != "refused"), "{all:?}");
}

#[test]
fn a_long_telling_during_which_nothing_is_read_is_one_turn() {
    let (_server, _supervisor, client, heard) = slow(Calls::Outcomes, false, Duration::from_secs(1));
    eventually("some of it", || heard.load(Ordering::Relaxed) > 20);
    client.close().unwrap();
    assert!(client.stats().longest_turn > Duration::from_secs(1), "{:?}", client.stats().longest_turn);
}

/// A close frame ends what a server answers: requests under way are answered before it is sent.
#[test]
fn requests_under_way_are_answered_before_an_orderly_end() {
    type End = fn(&Supervisor, &Client);
    let ends: [(&str, End); 5] = [
        ("stop", |supervisor, client| supervisor.stop_client(client.id()).unwrap()),
        ("close", |_, client| client.close().unwrap()),
        ("park", |supervisor, client| supervisor.park_client(client.id()).unwrap()),
        ("restart", |supervisor, client| supervisor.restart_client(client.id()).unwrap()),
        ("reconnect", |_, client| client.reconnect()),
    ];
    for (name, end) in ends {
        let server = Server::start(Script::silent()).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server).close_timeout(LONG)).unwrap();
        client.wait_until_open(LONG).unwrap();
        std::thread::scope(|scope| {
            let orders: Vec<_> = (0..3).map(|_| client.start_request(Request::new("buy", ())).unwrap()).collect();
            let asked = |at: usize| server.records()[0].received.get(at).map(common::json_of);
            eventually("asked", || asked(2).is_some());
            let ended = scope.spawn(|| end(&supervisor, &client));
            eventually("closing", || client.ready_state() == ReadyState::Closing);
            for (at, order) in orders.into_iter().enumerate() {
                assert_eq!(server.records()[0].close_code, None, "{name}: no close frame before the response");
                let id = &asked(at).unwrap()["id"];
                server.push_to(0, serde_json::json!({"id": id, "result": at}).to_string());
                assert_eq!(order.wait::<usize>().unwrap(), at, "{name}");
            }
            ended.join().unwrap();
        });
        assert!(server.wait_until(LONG, |records| records[0].close_code == Some(1000)), "{name}");
    }
}

#[test]
fn a_server_that_answers_no_request_does_not_keep_a_stop_from_its_time() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).close_timeout(Duration::from_secs(1))).unwrap();
    client.wait_until_open(LONG).unwrap();
    let order = client.start_request(Request::new("buy", ())).unwrap();
    eventually("asked", || !server.records()[0].received.is_empty());
    assert_eq!(supervisor.stop_client(client.id()), Ok(()));
    let error = order.wait::<u32>().unwrap_err();
    assert!(matches!(error, RequestError::OutcomeUnknown { cause: Unanswered::Disconnected, .. }), "{error}");
    assert_eq!(server.records()[0].close_code, Some(1000), "closed with a handshake");
}
