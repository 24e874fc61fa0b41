//! Every message that was received is delivered or counted, however its connection ends.

#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{LONG, config, eventually, frame, ms, raw, takes, text, to};
use crossbeam_channel::{Receiver, Sender, unbounded};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Context, Delivery, DisconnectReason, Event, Handler, Heartbeat, Message, MessageRef, ReadyState, Request,
    SessionError, Supervisor,
};

struct Slow(Arc<AtomicU64>);

impl Handler for Slow {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        takes(ms(10));
    }
}

#[test]
fn messages_that_a_slow_handler_did_not_receive_before_a_stop_are_counted() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let delivered = Arc::new(AtomicU64::new(0));
    let handler = delivered.clone();
    let slow = config(&server).close_timeout(ms(500)).delivery(Delivery::inline(move || Slow(handler.clone())));
    let client = supervisor.spawn_client(slow).unwrap();
    client.wait_until_open(LONG).unwrap();
    (0..300).for_each(|n| _ = server.push(n.to_string()));
    assert!(server.wait_until(LONG, |records| records[0].served >= 300));
    eventually("all has arrived", || client.stats().bytes_received > 0 && delivered.load(Ordering::Relaxed) > 1);
    let _ = supervisor.stop_client(client.id());
    eventually("the thread has ended", || client.ready_state() == ReadyState::Closed);
    eventually("all are accounted for", || delivered.load(Ordering::Relaxed) + client.stats().dropped == 300);
}

/// Blocks at its first message, and passes on the others.
struct Blocks(Receiver<()>, Sender<String>);

impl Handler for Blocks {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        let text = message.as_text().unwrap().to_owned();
        let blocks = text == "block";
        self.1.send(text).unwrap();
        if blocks {
            let _ = self.0.recv_timeout(LONG);
        }
    }
}

#[test]
fn a_heartbeat_that_is_delivered_is_so_though_its_answer_can_not_be_written() {
    for _ in 0..5 {
        let (reset, was_reset) = unbounded();
        let address = raw(move |mut stream, n, answer| {
            stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
            if n > 0 {
                std::mem::forget(stream);
                return;
            }
            stream.write_all(&frame(1, b"block")).unwrap();
            (1..=5).for_each(|n| stream.write_all(&frame(1, format!("ping{n}").as_bytes())).unwrap());
            // The end of a socket that lingers for no time is a reset.
            takes(ms(50));
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
            reset.send(()).unwrap();
        });
        let supervisor = Supervisor::start().unwrap();
        let ((go, wait), (deliver, delivered)) = (unbounded(), unbounded());
        let beat = Heartbeat::answer(Duration::from_secs(20), |message| {
            message.as_text()?.strip_prefix("ping").map(|n| Message::text(format!("pong{n}")))
        });
        let handler = Delivery::inline(move || Blocks(wait.clone(), deliver.clone()));
        let client = supervisor
            .spawn_client(to(address).close_timeout(ms(100)).heartbeat(beat.deliver_messages()).delivery(handler))
            .unwrap();
        assert_eq!(delivered.recv_timeout(LONG).unwrap(), "block");
        was_reset.recv_timeout(LONG).unwrap();
        go.send(()).unwrap();
        eventually("the next connection", || client.epoch() == 2);
        let others: Vec<String> = delivered.try_iter().collect();
        // A reset may destroy what the kernel had; what was received is delivered.
        let received = client.stats().received;
        assert_eq!(others.len() as u64 + 1, received, "{others:?}");
        supervisor.shutdown(ms(100));
    }
}

struct Panics(Sender<Event>);

impl Handler for Panics {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        assert!(message != "panic", "as it was asked to");
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        let _ = self.0.send(event);
    }
}

#[test]
fn a_panic_after_a_broken_message_counts_no_message_that_was_delivered() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (deliver, delivered) = unbounded();
    let handler = Delivery::inline(move || Panics(deliver.clone()));
    let client = supervisor.spawn_client(config(&server).delivery(handler)).unwrap();
    client.wait_until_open(LONG).unwrap();
    let _pending = client.start_request(Request::new("x", [1])).unwrap();
    server.wait_for_message(|_| true);
    server.push_raw(&frame(1, &[0xff, 0xfe]));
    eventually("the second connection", || client.epoch() == 2 && client.ready_state() == ReadyState::Open);
    server.push("panic");
    eventually("the third connection", || client.epoch() == 3 && client.ready_state() == ReadyState::Open);
    let dropped = delivered.try_iter().find_map(|event| match event {
        Event::Disconnected { reason: DisconnectReason::Panicked { dropped, .. }, .. } => Some(dropped),
        _ => None,
    });
    assert_eq!((dropped, client.stats().dropped), (Some(0), 0));
}

#[test]
fn the_message_that_was_one_too_many_to_be_held_is_counted() {
    let greeting: Vec<_> = (0..100).map(|n| Message::text(format!("{n:01000}"))).collect();
    let server = Server::start(Script::silent().greet(move |_| greeting.clone())).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let held = config(&server).event_bytes(20_000).max_retries(u32::MAX).backoff(ms(5), ms(10)).on_open(|session| {
        let end = session.recv_until(|message| text(message) == "never").map(drop);
        assert!(matches!(end, Err(SessionError::TooManyMessages(_))), "{end:?}");
        end
    });
    let client = supervisor.spawn_client(held).unwrap();
    eventually("attempts", || client.stats().failed_attempts >= 2);
    supervisor.stop_client(client.id()).unwrap();
    let stats = client.stats();
    assert_eq!(stats.received, stats.dropped, "{stats:?}");
}

#[test]
fn a_message_at_which_the_code_that_opens_a_session_panics_is_counted() {
    let greeting = |peer: &ws_supervisor::testing::Peer| match peer.index {
        0 => vec!["one".into(), "two".into(), "three".into()],
        _ => vec!["open".into()],
    };
    let server = Server::start(Script::silent().greet(greeting)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let panics = config(&server).on_open(|session| {
        let wanted = |message: &Message| match message.as_text() {
            Some("two") => panic!("told to"),
            text => text == Some("open"),
        };
        session.recv_until(wanted).map(drop)
    });
    let client = supervisor.spawn_client(panics).unwrap();
    client.wait_until_open(LONG).unwrap();
    assert!(server.records()[0].served >= 2);
    let events = client.events();
    let delivered = events.try_iter().filter(|event| matches!(event, Event::Message(_))).count() as u64;
    assert_eq!((delivered, client.stats().dropped), (0, server.records()[0].served), "those that were kept, too");
}
