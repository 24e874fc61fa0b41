//! What one connection brought, in the order in which it came, to its last word: whoever is behind, whatever broke first.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{LONG, closing, config, eventually, frame, json_of, ms, next, next_open, raw, text, to};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::json;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// Busy at "go" until it is let go on, then sends an order; hands on what it hears.
struct Busy {
    heard: Sender<String>,
    entered: Sender<()>,
    go: Receiver<()>,
}

impl Handler for Busy {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if message.as_text() == Some("go") {
            self.entered.send(()).unwrap();
            self.go.recv().unwrap();
            let _ = context.send("order");
        }
        self.heard.send(text(&message.to_message())).unwrap();
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Disconnected { reason, .. } = event {
            self.heard.send(reason.to_string()).unwrap();
        }
    }
}

#[test]
fn a_ping_among_the_last_words_hides_none_of_them() {
    for tls in [false, true] {
        let script = Script::silent().greet(|peer| if peer.index == 0 { vec!["go".into()] } else { vec![] });
        let server = if tls { Server::start_tls(script) } else { Server::start(script) }.unwrap();
        let ((heard, hears), (entered, was_entered), (go, gone)) = (unbounded(), bounded(1), bounded(1));
        let delivery =
            Delivery::inline(move || Busy { heard: heard.clone(), entered: entered.clone(), go: gone.clone() });
        let supervisor = Supervisor::start().unwrap();
        let _client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
        was_entered.recv_timeout(LONG).unwrap();
        // While the handler is busy the server says its last words and is gone.
        server.push_raw(&[frame(1, b"fill 1"), frame(9, b""), frame(1, b"fill 2"), closing(1001, "bye")].concat());
        common::takes(ms(50));
        server.reset();
        assert!(server.wait_until(LONG, |records| records[0].ended));
        go.send(()).unwrap();
        let all: Vec<_> = (0..4).map(|_| hears.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(all, ["go", "fill 1", "fill 2", "closed by the server: 1001 bye"], "tls {tls}");
    }
}

/// All that is behind a full queue, until the end of the connection.
fn read_to_the_end(client: &Client) -> (usize, DisconnectReason) {
    let mut number = 0;
    let reason = next(client, |event| match event {
        Event::Message(message) => {
            assert_eq!(text(&message), number.to_string());
            number += 1;
            None
        }
        Event::Disconnected { reason, .. } => Some(reason),
        Event::Lagged { .. } => panic!("nothing may be lost"),
        _ => None,
    });
    (number, reason)
}

#[test]
fn the_end_of_a_line_is_noticed_while_its_reader_is_behind_and_loses_nothing() {
    for (tls, reset) in [(false, false), (false, true), (true, false)] {
        let server = if tls { Server::start_tls(Script::silent()) } else { Server::start(Script::silent()) }.unwrap();
        let client = Client::connect(config(&server).event_capacity(4).heartbeat(Heartbeat::disabled())).unwrap();
        assert_eq!(next_open(&client), 1);
        // In one piece, so that the client's kernel has all of it before the end: what it lacks, a reset takes back.
        let all: Vec<u8> = (0..2_000).flat_map(|n: usize| frame(0x81, n.to_string().as_bytes())).collect();
        assert_eq!(server.push_raw(&all), 1);
        eventually("paused", || client.stats().paused_for.is_some());
        if reset {
            server.reset()
        } else {
            server.cut()
        };
        // Without one event being read.
        eventually("the next connection", || client.epoch() == 2);
        assert_eq!(read_to_the_end(&client).0, 2_000, "tls {tls}, reset {reset}");
    }
}

#[test]
fn a_close_behind_a_full_queue_keeps_its_code_though_a_ping_finds_the_line_gone() {
    let feed = raw(|mut stream, n, answer| {
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        if n == 0 {
            (0..1000).for_each(|i| stream.write_all(&frame(1, format!("{i}").as_bytes())).unwrap());
            stream.write_all(&closing(1001, "bye")).unwrap();
        } else {
            std::mem::forget(stream);
        }
    });
    let supervisor = Supervisor::start().unwrap();
    let heartbeat = Heartbeat::ping_pong(ms(10)).max_missed(u32::MAX);
    let client = supervisor.spawn_client(to(feed).event_capacity(64).heartbeat(heartbeat)).unwrap();
    eventually("the next connection", || client.epoch() == 2);
    let (messages, reason) = read_to_the_end(&client);
    assert_eq!((messages, reason.to_string()), (1_000, "closed by the server: 1001 bye".into()));
    assert_eq!(client.stats().dropped, 0);
}

/// A reader that stands still keeps the memory of one connection's last words, not of each that comes after it.
#[test]
fn a_second_end_waits_for_a_reader_that_has_not_caught_up_with_the_first() {
    let server = Server::start(Script::silent().greet(|_| (0..200).map(|n| n.to_string().into()).collect())).unwrap();
    let client = Client::connect(config(&server).event_capacity(4)).unwrap();
    assert!(server.wait_until(LONG, |records| records[0].served == 200));
    eventually("paused", || client.stats().paused_for.is_some());
    server.cut();
    eventually("the next connection", || client.epoch() == 2);
    assert!(server.wait_until(LONG, |records| records[1].served == 200));
    eventually("paused again", || client.stats().paused_for.is_some());
    server.cut();
    common::takes(ms(200));
    assert_eq!((client.epoch(), server.accepts()), (2, 2));
    for _ in 0..2 {
        assert_eq!(read_to_the_end(&client).0, 200);
    }
    eventually("the third", || client.epoch() == 3);
}

fn fills_around_an_answer() -> Server {
    Server::start(Script::reply(|_, message| {
        let id = json_of(message)["id"].clone();
        vec!["before".into(), json!({"id": id, "result": 1}).to_string().into(), "after".into()]
    }))
    .unwrap()
}

fn word(event: &Event) -> Option<String> {
    match event {
        Event::Message(message) => Some(text(message)),
        Event::Response(response) => Some(format!("answer {}", response.id)),
        _ => None,
    }
}

#[test]
fn answers_come_among_the_messages_in_the_order_of_the_wire() {
    const ROUNDS: u64 = 300;
    let server = fills_around_an_answer();
    let (shared, shared_events) = Delivery::shared();
    struct Inline(Sender<Event>);
    impl Handler for Inline {
        fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
            self.0.send(Event::Message(message.to_message())).unwrap();
        }
        fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
            self.0.send(event).unwrap();
        }
    }
    let (heard, hears) = unbounded();
    let own = Client::connect(config(&server)).unwrap();
    let of_many = Client::connect(config(&server).delivery(shared)).unwrap();
    let inline = Client::connect(config(&server).delivery(Delivery::inline(move || Inline(heard.clone())))).unwrap();
    let own_events = own.events();
    let next_own = move || own_events.recv_timeout(LONG).unwrap();
    let next_shared = move || shared_events.recv_timeout(LONG).unwrap().event;
    let next_inline = move || hears.recv_timeout(LONG).unwrap();
    let ways: [(Client, Box<dyn Fn() -> Event>); 3] =
        [(own, Box::new(next_own)), (of_many, Box::new(next_shared)), (inline, Box::new(next_inline))];
    for (client, next) in ways {
        let ids: Vec<_> = (0..ROUNDS).map(|_| client.post(Request::new("cancel", ())).unwrap()).collect();
        let mut words = std::iter::repeat_with(next).filter_map(|event| word(&event));
        for id in ids {
            let seen: Vec<_> = words.by_ref().take(3).collect();
            assert_eq!(seen, ["before".to_owned(), format!("answer {id}"), "after".into()]);
        }
    }
}

#[test]
fn a_blocked_request_returns_when_what_came_before_its_answer_is_in_the_queue() {
    let server = fills_around_an_answer();
    let client = Client::connect(config(&server)).unwrap();
    assert_eq!(next_open(&client), 1);
    for _ in 0..300 {
        client.request::<u32>("cancel", ()).unwrap();
        let first = client.events().try_recv().unwrap();
        assert_eq!(word(&first).as_deref(), Some("before"));
        assert_eq!(common::next_text(&client), "after");
    }
}

#[test]
fn a_posted_request_ends_once_when_the_line_does_before_the_end_is_told() {
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    let asked: Vec<_> = (0..10).map(|_| client.post(Request::new("buy", ())).unwrap()).collect();
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 10));
    server.cut();
    let mut told = vec![];
    next(&client, |event| match event {
        Event::Response(response) => {
            assert!(matches!(response.outcome, Err(RequestError::OutcomeUnknown { .. })));
            told.push(response.id);
            None
        }
        Event::Disconnected { uncertain, .. } => {
            assert!(uncertain.is_empty(), "its response is its account");
            Some(())
        }
        _ => None,
    });
    told.sort_by_key(ToString::to_string);
    let mut asked = asked;
    asked.sort_by_key(ToString::to_string);
    assert_eq!(told, asked);
}

#[test]
fn a_client_whose_reader_is_gone_is_parked_and_somebody_is_told() {
    let server = Server::start(Script::silent().every(ms(1), |_| vec!["tick".into()])).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let alerts = supervisor.events();
    let (delivery, events) = Delivery::shared();
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    let recorder = std::thread::spawn(move || {
        events.iter().nth(100);
        panic!("disk full");
    });
    assert!(recorder.join().is_err());
    let reason = alerts.iter().find_map(|event| match event {
        SupervisorEvent::Parked { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, Some(ParkReason::Deserted));
    assert!(client.send("blind").is_err());
}

#[test]
fn a_flooding_client_takes_nothing_from_a_quiet_one_on_a_shared_channel() {
    let flood = Server::start(Script::silent().every(ms(1), |_| vec!["f".into(); 200])).unwrap();
    let quiet = Server::start(Script::silent().every(ms(5), |_| vec!["q".into()])).unwrap();
    for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
        let supervisor = Supervisor::start().unwrap();
        let (delivery, events) = Delivery::shared();
        let spawn = |server| {
            let config = config(server).overflow(overflow).event_capacity(256).delivery(delivery.clone());
            supervisor.spawn_client(config).unwrap()
        };
        let (flooding, still) = (spawn(&flood), spawn(&quiet));
        let mut heard = 0;
        while heard < 40 || flooding.stats().dropped == 0 {
            let event = events.recv_timeout(LONG).unwrap();
            heard += usize::from(event.client == still.id() && matches!(event.event, Event::Message(_)));
            // Slower than the flood.
            std::thread::park_timeout(Duration::from_micros(20));
        }
        assert_eq!(still.stats().dropped, 0, "{overflow:?}");
    }
}

#[test]
fn what_comes_while_the_session_is_opened_is_kept_beyond_the_capacity_and_delivered_in_order() {
    let flood = || (0..20_000).map(|n| Message::from(n.to_string())).chain(["ready".into()]).collect::<Vec<_>>();
    let server = Server::start(Script::silent().greet(move |_| flood())).unwrap();
    struct Inline(Sender<Message>);
    impl Handler for Inline {
        fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
            self.0.send(message.to_message()).unwrap();
        }
    }
    let opening = config(&server)
        .event_capacity(64)
        .on_open(|session| session.recv_until(|message| message.as_text() == Some("ready")).map(drop));
    let (heard, hears) = unbounded();
    let own = Client::connect(opening.clone()).unwrap();
    let _inline = Client::connect(opening.delivery(Delivery::inline(move || Inline(heard.clone())))).unwrap();
    for n in 0..20_000 {
        assert_eq!(common::next_text(&own), n.to_string());
        assert_eq!(text(&hears.recv_timeout(LONG).unwrap()), n.to_string());
    }
}

#[test]
fn a_reader_is_told_when_reading_was_held_up_and_the_supervisor_while_it_is() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).event_capacity(4).stall_threshold(ms(50));
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    for n in 0..64 {
        server.push(n.to_string());
    }
    let alert = supervisor.events().iter().find_map(|event| match event {
        SupervisorEvent::ReaderBehind { lasts, .. } => Some(lasts),
        _ => None,
    });
    assert!(alert.unwrap() > ms(50) && client.stats().paused_for.is_some());
    let begun = Instant::now();
    common::takes(ms(150));
    let mut paused = false;
    let after = next(&client, |event| match event {
        Event::ReadingPaused => {
            paused = true;
            None
        }
        Event::ReadingResumed { after, .. } => Some(after),
        _ => None,
    });
    assert!(paused && after >= ms(150) && after < begun.elapsed() + LONG);
    assert!(client.stats().paused >= ms(150));
}

/// A reason that is cut within a character, that is too long; a code that may not be on the wire, with frames behind it or
/// what looks like one before it.
#[test]
fn a_close_frame_is_told_as_the_server_sent_it() {
    let cut = frame(8, b"\x03\xf0token expir\xc3");
    let long = [&[0x88, 126, 0, 202, 15, 161][..], &[b'x'; 200]].concat();
    let behind = [closing(1006, "token expired"), frame(1, &[b'x'; 100]), frame(9, b""), vec![0xff; 200]].concat();
    let before = [frame(2, &[0x88, 2, 0, 1, 0x88, 3, 0, 0, 0]), closing(1006, "token expired")].concat();
    for (bytes, told) in [(cut, "1008 token expir"), (long, "4001 xxx"), (behind, "1006 token"), (before, "1006 token")]
    {
        let server = Server::start(Script::silent().then_raw(bytes)).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server)).unwrap();
        let reason = common::next(&client, |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        });
        assert!(matches!(&reason, DisconnectReason::ClosedByServer(Some(_))), "{reason}");
        assert!(reason.to_string().contains(told), "{told}: {reason}");
    }
}
