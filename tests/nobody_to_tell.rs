//! What is left to tell when a handler panics or a thread is left behind.
#![allow(missing_docs)]

mod common;
use common::{LONG, Plain, config, eventually, json_of, ms, next_open, takes, text};
use crossbeam_channel::{Sender, bounded, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use ws_supervisor::testing::{Peer, Script, Server};
use ws_supervisor::*;

// a renewal that fails hides what came behind it
#[test]
fn what_came_behind_a_failed_renewal_is_delivered() {
    let server = Server::start(Script::reply(|p, m| {
        let id = json_of(m)["id"].clone();
        if p.index > 0 {
            return vec![];
        }
        vec![
            Message::text(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":1,"message":"no"}}}}"#)),
            "fill 1".into(),
            "fill 2".into(),
        ]
    }))
    .unwrap();
    let supervisor = Supervisor::start().unwrap();
    let venue = Plain { renews: Some(ms(100)), ..Plain::default() };
    let client = supervisor.spawn_client(config(&server).venue(venue)).unwrap();
    next_open(&client);
    // The client's loop is kept from reading until all is there by nothing: they came in one segment or nearly.
    let mut seen = vec![];
    for e in client.events() {
        match e {
            Event::Message(m) => seen.push(text(&m)),
            Event::Disconnected { reason, .. } => {
                seen.push(reason.to_string());
                break;
            }
            _ => {}
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

// a handler's drop that panics undoes what was decided
struct DropBomb;
impl Handler for DropBomb {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        panic!("message");
    }
}
impl Drop for DropBomb {
    fn drop(&mut self) {
        panic!("drop");
    }
}
/// Two panics at once would end the process.
#[test]
fn a_handler_that_panics_and_does_so_again_as_it_is_dropped_costs_one_restart() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).delivery(Delivery::inline(|| DropBomb))).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("boom");
    eventually("the next connection", || client.epoch() == 2);
    assert_eq!((supervisor.stop_client(client.id()), client.stats().restarts), (Ok(()), 1));
}

#[test]
fn a_handler_that_panics_as_it_is_dropped_leaves_a_parked_client_parked() {
    let server = Server::start(Script::refuse(404)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).delivery(Delivery::inline(|| DropBomb))).unwrap();
    takes(ms(1000));
    assert_eq!(server.accepts(), 1, "{:?}", client.ready_state());
}

// a panic in the middle of a batch of answers to a shared deadline for callers' posts too (inline)
struct Fragile {
    heard: Sender<String>,
    n: Arc<AtomicUsize>,
}
impl Handler for Fragile {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    fn on_event(&mut self, _: &mut Context<'_>, e: Event) {
        if let Event::Response(r) = e {
            let _ = self.heard.send(r.id.to_string());
            if self.n.fetch_add(1, Ordering::SeqCst) == 0 {
                panic!("first");
            }
        }
    }
}
#[test]
fn posted_requests_that_time_out_together_are_all_told_though_the_handler_panics() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (heard, hears) = unbounded();
    let n = Arc::new(AtomicUsize::new(0));
    let delivery = Delivery::inline(move || Fragile { heard: heard.clone(), n: n.clone() });
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    let until = Instant::now() + ms(300);
    for _ in 0..10 {
        client.post(Request::new("order", ()).timeout(until - Instant::now())).unwrap();
    }
    eventually("again", || client.epoch() == 2);
    takes(ms(300));
    supervisor.stop_client(client.id()).unwrap();
    assert_eq!(hears.try_iter().count(), 10);
}

/// Its supervisor has ended by then.
#[test]
fn what_a_thread_left_behind_had_in_its_hands_is_told_after_a_shutdown_too() {
    for (shut_down, panics) in [(false, false), (true, false), (false, true), (true, true)] {
        let server = Server::start(Script::silent()).unwrap();
        let ((entered, was_entered), (go, gone)) = (bounded(1), bounded::<()>(1));
        let one = RateLimit::bucket(1, 1, Duration::from_secs(3600)).unwrap();
        let stuck = config(&server).rate_limit(one).queue_while_disconnected(10).close_timeout(ms(100));
        let stuck = stuck.on_open(move |session| {
            entered.send(()).unwrap();
            gone.recv().unwrap();
            assert!(!panics || session.epoch() == 1, "a panic that is meant to be");
            if session.epoch() == 2 { Err(SessionError::retryable("no")) } else { Ok(()) }
        });
        let supervisor = Supervisor::start().unwrap();
        let alerts = supervisor.events();
        let client = supervisor.spawn_client(stuck).unwrap();
        was_entered.recv_timeout(LONG).unwrap();
        (0..5).for_each(|n| client.send(n.to_string()).unwrap());
        go.send(()).unwrap();
        server.wait_for_message(|message| message.as_text() == Some("0"));
        server.cut();
        was_entered.recv_timeout(LONG).unwrap();
        if shut_down {
            assert_eq!(supervisor.shutdown(ms(100)).left_behind.len(), 1);
        } else {
            assert!(supervisor.stop_client(client.id()).is_err());
        }
        go.send(()).unwrap();
        let deadline = Instant::now() + LONG;
        let came_back = std::iter::from_fn(|| alerts.recv_deadline(deadline).ok()).find_map(|event| match event {
            SupervisorEvent::CameBack { handed_back, .. } => Some(handed_back.unsent),
            _ => None,
        });
        let unsent: Vec<_> = came_back.expect("it comes back").iter().map(text).collect();
        assert_eq!(unsent, ["1", "2", "3", "4"], "shut down: {shut_down}, panics: {panics}");
        let stats = client.stats();
        assert_eq!(stats.accepted, stats.sent + stats.unsent, "{stats:?}");
    }
}

#[test]
fn what_waited_behind_a_full_queue_is_read_though_the_thread_is_left_behind() {
    let greeting =
        |peer: &Peer| if peer.index == 0 { (0..100).map(|n| n.to_string().into()).collect() } else { vec![] };
    let server = Server::start(Script::silent().greet(greeting)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let ((entered, was_entered), (go, gone)) = (bounded(1), bounded::<()>(1));
    let stuck = config(&server).event_capacity(10).close_timeout(ms(100)).on_open(move |session| {
        if session.epoch() == 2 {
            entered.send(()).unwrap();
            gone.recv().unwrap();
        }
        Ok(())
    });
    let client = supervisor.spawn_client(stuck).unwrap();
    assert!(server.wait_until(LONG, |records| records.first().is_some_and(|record| record.served == 100)));
    server.cut();
    was_entered.recv_timeout(LONG).unwrap();
    assert!(supervisor.stop_client(client.id()).is_err());
    let events: Vec<_> = client.events().iter().collect();
    go.send(()).unwrap();
    let messages = events.iter().filter(|event| matches!(event, Event::Message(_))).count();
    assert_eq!(messages, 100);
    assert!(matches!(&events[..], [.., Event::Disconnected { .. }, Event::Closed { .. }]), "{events:?}");
}

#[test]
fn of_thousands_of_requests_that_end_unread_each_is_told() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).heartbeat(Heartbeat::disabled())).unwrap();
    client.wait_until_open(LONG).unwrap();
    const ASKED: usize = 6_000;
    for _ in 0..ASKED {
        eventually("accepted", || client.post(Request::new("order", ())).is_ok());
    }
    eventually("written", || client.stats().sent == ASKED as u64);
    server.cut();
    eventually("the next connection", || client.epoch() == 2);
    supervisor.stop_client(client.id()).unwrap();
    let events = client.events();
    let told = events.iter().map(|event| match event {
        Event::Response(_) => 1,
        Event::Collapsed { handed_back, .. } => handed_back.responses.len(),
        _ => 0,
    });
    assert_eq!(told.sum::<usize>(), ASKED);
}
