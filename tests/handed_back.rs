//! The account of what was accepted: written, handed back or perhaps lost, each once, and somebody is told.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, ms, next, received, takes, text, wait_for_state};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// Sends an order and then panics, when it is told to; hands on what it hears.
struct Fragile {
    entered: Sender<()>,
    go: Receiver<()>,
    heard: Sender<Event>,
}

impl Handler for Fragile {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if message.as_text() == Some("boom") {
            context.send("of the handler").unwrap();
            context.request(Request::new("of the handler", ())).unwrap();
            self.entered.send(()).unwrap();
            self.go.recv().unwrap();
            panic!("told to");
        }
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        self.heard.send(event).unwrap();
    }
}

struct Desk {
    entered: Receiver<()>,
    go: Sender<()>,
    heard: Receiver<Event>,
    delivery: Delivery,
}

fn fragile() -> Desk {
    let ((entered, was_entered), (go, gone), (heard, hears)) = (unbounded(), unbounded(), unbounded());
    let delivery =
        Delivery::inline(move || Fragile { entered: entered.clone(), go: gone.clone(), heard: heard.clone() });
    Desk { entered: was_entered, go, heard: hears, delivery }
}

fn adds_up(stats: Stats) {
    assert_eq!(stats.accepted, stats.sent + stats.unsent, "{stats:?}");
}

#[test]
fn the_next_handler_is_told_first_of_what_a_panic_left() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let desk = fragile();
    let client = supervisor.spawn_client(config(&server).delivery(desk.delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("boom");
    desk.entered.recv_timeout(LONG).unwrap();
    client.send("of the caller").unwrap();
    desk.go.send(()).unwrap();
    let heard: Vec<_> = (0..3).map(|_| desk.heard.recv_timeout(LONG).unwrap()).collect();
    let [Event::Response(response), Event::Disconnected { reason, unsent, .. }, Event::Restarted { .. }] = &heard[..]
    else {
        panic!("{heard:?}")
    };
    assert!(matches!(response.outcome, Err(RequestError::NotSent { .. })), "{response:?}");
    assert!(matches!(reason, DisconnectReason::Panicked { .. }));
    assert_eq!(unsent.iter().map(text).collect::<Vec<_>>(), ["of the handler", "of the caller"]);
    client.close().unwrap();
    assert_eq!(received(&server), Vec::<String>::new());
    adds_up(client.stats());
}

#[test]
fn a_handler_that_panics_while_it_is_told_leaves_the_rest_to_the_next() {
    struct Once(Arc<AtomicBool>, Sender<Vec<String>>, Receiver<()>, Sender<()>);
    impl Handler for Once {
        fn on_open(&mut self, context: &mut Context<'_>) {
            if context.epoch() == Some(1) {
                context.request(Request::new("buy", ())).unwrap();
            }
        }
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            self.3.send(()).unwrap();
            self.2.recv().unwrap();
        }
        fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
            match event {
                Event::Response(_) if !self.0.swap(true, Ordering::SeqCst) => panic!("on a failed request"),
                Event::Disconnected { unsent, .. } => self.1.send(unsent.iter().map(text).collect()).unwrap(),
                _ => {}
            }
        }
    }
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (once, (told, tells), (go, gone), (entered, was_entered)) =
        (Arc::new(AtomicBool::new(false)), unbounded(), bounded(1), bounded(1));
    let delivery = Delivery::inline(move || Once(once.clone(), told.clone(), gone.clone(), entered.clone()));
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    assert!(server.wait_until(LONG, |records| records.first().is_some_and(|first| first.received.len() == 1)));
    server.push("stay");
    was_entered.recv_timeout(LONG).unwrap();
    server.reset();
    assert!(server.wait_until(LONG, |records| records[0].ended));
    client.send("order").unwrap();
    go.send(()).unwrap();
    assert_eq!(tells.recv_timeout(LONG).unwrap(), ["order"]);
}

#[test]
fn when_no_handler_is_left_the_supervisors_event_hands_it_back() {
    let supervisor = Supervisor::builder().intensity(0, Duration::from_secs(60)).start().unwrap();
    let server = Server::start(Script::silent()).unwrap();
    let desk = fragile();
    let queued = config(&server).delivery(desk.delivery).queue_while_disconnected(10);
    let client = supervisor.spawn_client(queued).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("boom");
    desk.entered.recv_timeout(LONG).unwrap();
    client.send("of the caller").unwrap();
    let asked = client.post(Request::new("of the caller", ())).unwrap();
    desk.go.send(()).unwrap();
    wait_for_state(&client, ReadyState::Parked);
    let handed_back = supervisor.events().iter().find_map(|event| match event {
        SupervisorEvent::Parked { handed_back, .. } => Some(handed_back),
        _ => None,
    });
    let handed_back = handed_back.unwrap();
    assert_eq!(handed_back.unsent.iter().map(text).collect::<Vec<_>>(), ["of the handler", "of the caller"]);
    assert_eq!(handed_back.responses.len(), 2);
    assert!(handed_back.responses.iter().any(|response| response.id == asked));
    adds_up(client.stats());
}

#[test]
fn without_a_supervisor_the_handle_hands_back_what_a_panic_left() {
    let server = Server::start(Script::silent()).unwrap();
    let desk = fragile();
    let client = Client::connect(config(&server).delivery(desk.delivery)).unwrap();
    server.push("boom");
    desk.entered.recv_timeout(LONG).unwrap();
    client.send("of the caller").unwrap();
    assert!(client.take_handed_back().is_empty(), "it has not ended");
    desk.go.send(()).unwrap();
    wait_for_state(&client, ReadyState::Closed);
    let handed_back = client.take_handed_back();
    assert_eq!(handed_back.unsent.iter().map(text).collect::<Vec<_>>(), ["of the handler", "of the caller"]);
    assert_eq!(handed_back.responses.len(), 1);
    assert!(client.take_handed_back().is_empty(), "told once");
    adds_up(client.stats());
}

#[test]
fn messages_that_waited_for_a_connection_come_back_when_an_inline_client_is_stopped() {
    let supervisor = Supervisor::start().unwrap();
    let desk = fragile();
    let nowhere = ClientConfig::new("ws://127.0.0.1:9").unwrap().queue_while_disconnected(10);
    let client = supervisor.spawn_client(nowhere.delivery(desk.delivery)).unwrap();
    (0..5).for_each(|n| client.send(n.to_string()).unwrap());
    supervisor.stop_client(client.id()).unwrap();
    let unsent = desk.heard.iter().find_map(|event| match event {
        Event::Closed { unsent, .. } => Some(unsent),
        _ => None,
    });
    assert_eq!(unsent.unwrap().len(), 5);
    adds_up(client.stats());
}

/// What has ended stays ended, though its thread comes back; what that had in its hands is told.
#[test]
fn a_client_that_was_left_behind_stays_closed_and_its_thread_hands_back_what_it_had() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let ((entered, was_entered), (go, gone)) = (bounded(1), bounded::<()>(1));
    let held = config(&server).queue_while_disconnected(4).close_timeout(ms(50)).on_open(move |_| {
        entered.send(()).unwrap();
        gone.recv().unwrap();
        Ok(())
    });
    let client = supervisor.spawn_client(held).unwrap();
    client.send("taken").unwrap();
    was_entered.recv_timeout(LONG).unwrap();
    assert!(matches!(supervisor.stop_client(client.id()), Err(StopError::LeftBehind(_))));
    let alerts = supervisor.events();
    assert!(client.send("too late").is_err(), "while the thread is stuck");
    go.send(()).unwrap();
    assert!(alerts.iter().any(|event| matches!(event, SupervisorEvent::CameBack { .. })));
    assert!(client.send("too late").is_err() && client.ready_state() == ReadyState::Closed);
    let events: Vec<_> = client.events().iter().collect();
    assert!(matches!(&events[..], [.., Event::Closed { .. }]), "nothing comes after it: {events:?}");
    let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
    assert_eq!(closed, 1);
    adds_up(client.stats());
}

#[test]
fn what_the_peer_never_acknowledged_is_uncertain_and_reconcile_is_told() {
    for tls in [false, true] {
        let script = Script::silent().then_deaf();
        let server = if tls { Server::start_tls(script) } else { Server::start(script) }.unwrap();
        let supervisor = Supervisor::start().unwrap();
        let (told, tells) = unbounded();
        let deaf = config(&server).heartbeat(Heartbeat::disabled()).reconcile(move |_, unsettled| {
            told.send((unsettled.unsent.len(), unsettled.uncertain.len())).unwrap();
            Ok(())
        });
        let client = supervisor.spawn_client(deaf).unwrap();
        client.wait_until_open(LONG).unwrap();
        // More than the two kernels take.
        let pad = "x".repeat(1_000);
        let (mut accepted, mut sent, mut still) = (0, 0, 0);
        eventually("full, and so for a while", || {
            while client.send(format!("{accepted}:{pad}")).is_ok() {
                accepted += 1;
            }
            let now = client.stats().sent;
            still = if now > 0 && now == sent { still + 1 } else { 0 };
            sent = now;
            still > 50 && sent + 1_000 < accepted
        });
        server.reset();
        let (unsent, uncertain) = next(&client, |event| match event {
            Event::Disconnected { unsent, uncertain, .. } => Some((unsent, uncertain)),
            _ => None,
        });
        let stats = client.stats();
        adds_up(stats);
        assert_eq!(stats.accepted, accepted);
        assert_eq!((unsent.len() as u64, uncertain.len() as u64), (stats.unsent, stats.uncertain));
        assert!(!uncertain.is_empty() && (stats.sent - stats.uncertain) > 0, "tls {tls}: {stats:?}");
        let number = |message: &Message| text(message).split(':').next().unwrap().parse::<u64>().unwrap();
        let numbers: Vec<_> = uncertain.iter().chain(&unsent).map(number).collect();
        assert_eq!(
            numbers,
            (stats.sent - stats.uncertain..accepted).collect::<Vec<_>>(),
            "the latest, in order, each once"
        );
        assert_eq!(tells.recv_timeout(LONG).unwrap(), (unsent.len(), uncertain.len()));
    }
}

#[test]
fn what_was_answered_is_not_uncertain() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    client.wait_until_open(LONG).unwrap();
    for n in 0..50 {
        client.send(n.to_string()).unwrap();
        assert_eq!(common::next_text(&client), n.to_string());
    }
    server.reset();
    let handed_back = next(&client, |event| match event {
        Event::Disconnected { unsent, uncertain, .. } => Some((unsent.len(), uncertain.len())),
        _ => None,
    });
    assert_eq!(handed_back, (0, 0));
}

#[test]
fn close_returns_in_its_time_whatever_the_handlers_drop_does() {
    struct Slow(Receiver<()>);
    impl Handler for Slow {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    let (go, gone) = bounded::<()>(0);
    let server = Server::echo().unwrap();
    let config = config(&server).close_timeout(ms(100)).delivery(Delivery::inline(move || Slow(gone.clone())));
    let client = Client::connect(config).unwrap();
    let begun = Instant::now();
    assert!(matches!(client.close(), Err(StopError::LeftBehind(_))));
    assert!(begun.elapsed() < LONG / 2);
    drop(go);
}

#[test]
fn a_stop_under_backpressure_delivers_what_was_read_and_tells_of_the_rest() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).event_capacity(16)).unwrap();
    client.wait_until_open(LONG).unwrap();
    for n in 0..5_000 {
        server.push(format!("{n:0100}"));
    }
    assert!(server.wait_until(LONG, |records| records[0].served == 5_000));
    client.close().unwrap();
    let (mut seen, mut dropped) = (0, 0);
    for event in client.events() {
        match event {
            Event::Message(message) => {
                assert_eq!(text(&message), format!("{:0100}", seen + dropped));
                seen += 1;
            }
            Event::Lagged { dropped: more, .. } => dropped += more,
            _ => {}
        }
    }
    assert_eq!((seen + dropped, dropped), (5_000, client.stats().dropped));
    assert_eq!(dropped, 0, "it fits");
}

#[test]
fn what_waits_is_bounded_in_bytes_both_ways() {
    let megabyte = "x".repeat(1 << 20);
    let deaf = Server::start(Script::silent().then_deaf()).unwrap();
    let quiet = config(&deaf).heartbeat(Heartbeat::disabled()).send_bytes(4 << 20);
    let client = Client::connect(quiet).unwrap();
    let mut accepted = 0;
    eventually("full", || {
        while client.send(megabyte.as_str()).is_ok() {
            accepted += 1;
        }
        client.stats().sent + 4 <= accepted
    });
    let waiting = client.stats().accepted - client.stats().sent;
    assert!(waiting <= 4, "{waiting} MiB wait");

    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server).event_bytes(3 << 20)).unwrap();
    for _ in 0..40 {
        server.push(megabyte.as_str());
    }
    eventually("paused", || client.stats().paused_for.is_some());
    takes(ms(100));
    assert!(client.stats().received <= 4, "{} MiB were read", client.stats().received);
    let all = client.events().iter().filter(|event| matches!(event, Event::Message(_))).take(40).count();
    assert_eq!(all, 40, "and none is lost");
}

#[test]
fn a_request_that_nobody_waits_for_gives_up_its_place_and_is_still_told_of() {
    let server = Server::start(
        Script::reply(|_, message| {
            let id = common::json_of(message)["id"].clone();
            vec![serde_json::json!({"id": id, "result": 1}).to_string().into()]
        })
        .delay_replies(ms(50)),
    )
    .unwrap();
    let client = Client::connect(config(&server)).unwrap();
    let pending = client.start_request(Request::new("buy", ())).unwrap();
    let id = pending.id().clone();
    drop(pending);
    assert_eq!(client.stats().pending_requests, 0);
    let late = next(&client, |event| match event {
        Event::LateResponse(response) => Some(response.id),
        _ => None,
    });
    assert_eq!(late, id);
}
