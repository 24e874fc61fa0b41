//! Every accepted message ends written or handed back, in one way, once, on its own connection.
//!
//! Over 400 lines: one promise, from all its sides.

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::{LONG, config, eventually, ms, next, next_open, next_text};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ConfirmError, Context, Delivery, DisconnectReason, Event, Handler, Heartbeat, MessageRef, ReadyState,
    SendError, Supervisor,
};

fn numbers(server: &Server) -> Vec<(usize, u64)> {
    let records = server.records();
    let all = records.iter().flat_map(|record| record.received.iter().map(|message| (record.index, message)));
    all.filter_map(|(index, message)| Some((index, message.as_text()?.parse().ok()?))).collect()
}

/// The promise itself, over many random cuts: callers on two threads send numbers and note on which connection each
/// was accepted at the earliest; the server cuts, resets and closes at random. In the end every number was received
/// on a connection not older than that, or handed back, never both.
#[test]
fn over_many_random_cuts_each_message_is_written_once_or_handed_back() {
    for tls in [false, true] {
        let server =
            if tls { Server::start_tls(Script::silent()).unwrap() } else { Server::start(Script::silent()).unwrap() };
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server).backoff(ms(1), ms(2))).unwrap();
        client.wait_until_open(LONG).unwrap();
        let done = AtomicBool::new(false);
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut dice = fastrand::Rng::with_seed(seed);
        let (accepted, unsent) = std::thread::scope(|scope| {
            let senders: Vec<_> = (0..2)
                .map(|sender| {
                    let (client, done) = (&client, &done);
                    scope.spawn(move || {
                        let mut accepted = vec![];
                        for n in 0.. {
                            if done.load(Ordering::Relaxed) {
                                break;
                            }
                            let number = n * 2 + sender;
                            let (before, sent) = (client.epoch(), client.send(number.to_string()));
                            match sent {
                                Ok(()) => accepted.push((number, before, client.epoch())),
                                Err(_) => std::thread::yield_now(),
                            }
                        }
                        accepted
                    })
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut unsent = vec![];
                for event in client.events() {
                    match event {
                        Event::Disconnected { unsent: back, .. } => unsent.extend(back),
                        Event::Closed { unsent: back, .. } => {
                            unsent.extend(back);
                            break;
                        }
                        _ => {}
                    }
                }
                unsent
            });
            for cut in 0..60 {
                eventually("open again", || client.epoch() > cut && client.ready_state() == ReadyState::Open);
                let goal = client.stats().sent + dice.u64(0..200);
                eventually("some traffic", || client.stats().sent >= goal || client.epoch() > cut + 1);
                match dice.u8(0..3) {
                    0 => server.cut(),
                    1 => server.reset(),
                    _ => server.close_all(1001, "bye"),
                };
            }
            done.store(true, Ordering::Relaxed);
            let accepted: Vec<_> = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
            client.close().unwrap();
            (accepted, reader.join().unwrap())
        });
        let unsent: Vec<u64> = unsent.iter().map(|message| message.as_text().unwrap().parse().unwrap()).collect();
        let handed_back: HashSet<u64> = unsent.iter().copied().collect();
        assert_eq!(unsent.len(), handed_back.len(), "handed back once");
        let received = numbers(&server);
        let on: HashMap<u64, usize> = received.iter().map(|(index, number)| (*number, *index)).collect();
        assert_eq!(received.len(), on.len(), "received once");
        let stats = client.stats();
        assert_eq!(accepted.len() as u64, stats.sent + stats.unsent, "each ends in exactly one way");
        assert_eq!(stats.unsent, unsent.len() as u64);
        for (number, before, after) in accepted {
            if let Some(index) = on.get(&number) {
                assert!(!handed_back.contains(&number), "{number} was handed back and received");
                // The first connection has index 0 and epoch 1.
                let epoch = *index as u64 + 1;
                assert!((before..=after).contains(&epoch), "{number} accepted in {before}..={after}, on {epoch}");
            }
        }
        assert!(!on.is_empty() && stats.epoch >= 60);
    }
}

#[test]
fn without_a_connection_a_message_is_refused_and_handed_back() {
    let server = Server::start(Script::hold_upgrade()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    match client.send("order").unwrap_err() {
        SendError::NotOpen { message, state, .. } => {
            assert_eq!((message.as_text(), state), (Some("order"), ReadyState::Connecting));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_queued_on_request_goes_first_on_the_next_connection() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).queue_while_disconnected(3)).unwrap();
    for n in 0..3 {
        client.send(n.to_string()).unwrap();
    }
    assert!(matches!(client.send("4"), Err(SendError::Full { .. })));
    server.set_script(Script::echo());
    client.wait_until_open(LONG).unwrap();
    client.send("3").unwrap();
    server.wait_for_message(|message| message.as_text() == Some("3"));
    let order: Vec<_> = numbers(&server).iter().map(|(_, number)| *number).collect();
    assert_eq!(order, [0, 1, 2, 3]);

    // And when there is no next connection, it comes back.
    server.set_script(Script::refuse(403));
    server.cut();
    eventually("not open", || client.ready_state() != ReadyState::Open);
    let queued = client.send("too late").is_ok();
    let unsent = next(&client, |event| match event {
        Event::Parked { unsent, .. } => Some(unsent),
        _ => None,
    });
    assert_eq!(unsent.len(), usize::from(queued));
}

#[test]
fn a_full_queue_refuses_and_the_cut_hands_everything_back() {
    let server = Server::start(Script::silent().then_deaf()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).send_capacity(8).heartbeat(Heartbeat::disabled())).unwrap();
    client.wait_until_open(LONG).unwrap();
    let big = "x".repeat(1 << 20);
    let (mut accepted, mut full_since) = (0, None);
    // The kernel's buffers take some megabytes; then the queue fills, and nothing leaves any more.
    eventually("full", || match client.send(big.as_str()) {
        Ok(()) => {
            accepted += 1;
            false
        }
        Err(SendError::Full { message, .. }) => {
            assert_eq!(message.len(), big.len());
            let sent = client.stats().sent;
            let (of, since) = *full_since.get_or_insert((sent, Instant::now()));
            if of != sent {
                full_since = None;
            }
            of == sent && sent + 8 <= accepted && since.elapsed() > ms(200)
        }
        Err(other) => panic!("{other}"),
    });
    server.reset();
    let unsent = next(&client, |event| match event {
        Event::Disconnected { unsent, .. } => Some(unsent),
        _ => None,
    });
    assert_eq!(unsent.len() as u64 + client.stats().sent, accepted);
    assert!(unsent.len() >= 8 && unsent.iter().all(|message| message.len() == big.len()));
}

#[test]
fn send_confirmed_tells_the_truth() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).heartbeat(Heartbeat::disabled())).unwrap();
    client.wait_until_open(LONG).unwrap();
    client.send_confirmed("a", LONG).unwrap();
    assert_eq!(client.stats().sent, 1);
    server.wait_for_message(|message| message.as_text() == Some("a"));

    server.deafen(true);
    let big = "x".repeat(16 << 20);
    // Larger than the kernel's buffers: it is being written when the time runs out.
    match client.send_confirmed(big.as_str(), ms(200)).unwrap_err() {
        ConfirmError::OutcomeUnknown(message) => assert_eq!(message.len(), big.len()),
        other => panic!("{other}"),
    }
    // Behind it in the queue: taken back before anything of it was written.
    match client.send_confirmed("b", ms(50)).unwrap_err() {
        ConfirmError::NotSent(message) => assert_eq!(message.as_text(), Some("b")),
        other => panic!("{other}"),
    }
    // And one that the disconnect overtakes, with no other connection to come.
    server.set_script(Script::hold_upgrade());
    let waiting = std::thread::spawn({
        let client = client.clone();
        move || client.send_confirmed("c", LONG)
    });
    server.reset();
    match waiting.join().unwrap() {
        Err(ConfirmError::NotSent(message)) => assert_eq!(message.as_text(), Some("c")),
        Err(ConfirmError::Refused(refused)) => assert_eq!(refused.into_message().as_text(), Some("c")),
        other => panic!("{other:?}"),
    }
    let unsent = next(&client, |event| match event {
        Event::Disconnected { unsent, .. } => Some(unsent),
        _ => None,
    });
    assert!(unsent.is_empty(), "what was confirmed has its account already");
    let received: Vec<_> = server.records().iter().flat_map(|record| record.received.clone()).collect();
    assert_eq!(received, ["a"]);
}

#[test]
fn a_message_larger_than_the_limit_is_refused() {
    let server = Server::echo().unwrap();
    let client = Client::connect(config(&server).max_message_size(10)).unwrap();
    assert!(matches!(client.send("01234567890"), Err(SendError::TooLarge { limit: 10, .. })));
    client.send("0123456789").unwrap();
    assert_eq!(next_text(&client), "0123456789");
}

/// The worker sleeps in the kernel with no deadline within a minute: only the caller's wake can make this fast.
#[test]
fn a_send_wakes_a_worker_that_has_nothing_else_to_do() {
    let server = Server::echo().unwrap();
    let client = Client::connect(config(&server).heartbeat(Heartbeat::disabled())).unwrap();
    for n in 0..2000 {
        client.send(n.to_string()).unwrap();
        assert_eq!(next_text(&client), n.to_string());
    }
}

#[test]
fn many_threads_send_through_one_client() {
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server).send_capacity(16)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let client = &client;
            scope.spawn(move || {
                for n in 0..500 {
                    while client.send((thread * 1000 + n).to_string()).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 4000));
    let mut last = HashMap::new();
    for (_, number) in numbers(&server) {
        let before = last.insert(number / 1000, number % 1000);
        assert!(before.is_none_or(|before| before + 1 == number % 1000), "order within a thread");
    }
}

#[test]
fn what_was_accepted_before_a_close_is_written_before_it() {
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    for n in 0..500 {
        client.send(n.to_string()).unwrap();
    }
    client.close().unwrap();
    assert!(server.wait_until(LONG, |records| records[0].close_code == Some(1000)));
    assert_eq!(numbers(&server).len(), 500);
    assert_eq!((client.stats().sent, client.stats().unsent), (500, 0));
}

/// A panic in a handler that has sent: written or handed back, as ever.
#[test]
fn what_a_panicking_handler_sent_is_counted_and_never_written_later() {
    struct Sender;
    impl Handler for Sender {
        fn on_open(&mut self, context: &mut Context<'_>) {
            if context.epoch() == Some(1) {
                context.send("never written").unwrap();
                panic!("after sending");
            }
        }
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    }
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).delivery(Delivery::inline(|| Sender));
    let client = supervisor.spawn_client(config).unwrap();
    eventually("the second connection", || client.epoch() == 2 && client.ready_state() == ReadyState::Open);
    client.send_confirmed("written", LONG).unwrap();
    let stats = client.stats();
    assert_eq!((stats.sent, stats.unsent), (1, 1));
    server.wait_for_message(|message| message.as_text() == Some("written"));
    assert!(server.records()[0].received.is_empty());
}

#[test]
fn the_reason_of_a_disconnect_is_what_the_server_did() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    let lost = |act: &dyn Fn() -> usize| {
        next_open(&client);
        act();
        next(&client, |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        })
    };
    match lost(&|| server.close_all(4001, "logged in elsewhere")) {
        DisconnectReason::ClosedByServer(Some(frame)) => {
            assert_eq!((frame.code, &*frame.reason), (4001, "logged in elsewhere"));
        }
        other => panic!("{other}"),
    }
    assert!(matches!(lost(&|| server.cut()), DisconnectReason::Transport(_)));
    let garbage = [0xff; 16];
    assert!(matches!(lost(&|| server.push_raw(&garbage)), DisconnectReason::Protocol(_)));
}

/// Callers that never let the worker rest must not keep it from reading.
#[test]
fn a_worker_that_is_kept_busy_by_callers_still_reads() {
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = client.send("busy");
                }
            });
        }
        for n in 0..200 {
            let sent = client.stats().sent;
            server.push(n.to_string());
            assert_eq!(next_text(&client), n.to_string());
            assert!(client.stats().sent - sent < 1_000_000, "it was read only after all of that was sent");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Every place of the queue is free again, whatever became of the messages in it.
#[test]
fn the_queue_while_disconnected_can_be_filled_again_and_again() {
    let server = Server::start(Script::refuse(401)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).queue_while_disconnected(4)).unwrap();
    let park = || {
        next(&client, |event| match event {
            Event::Parked { unsent, .. } => Some(unsent.len()),
            _ => None,
        })
    };
    park();
    for _ in 0..3 {
        // Held up in the upgrade, so that there is time to fill the queue; then refused for good.
        server.set_script(Script::refuse(401).delay_upgrade(ms(200)));
        supervisor.resume_client(client.id()).unwrap();
        let queued = (0..9).filter(|n| client.send(n.to_string()).is_ok()).count();
        assert_eq!(queued, 4);
        assert_eq!(park(), 4, "handed back");
    }
    // Taken by a connection that takes nothing, lost with it, and kept for the next.
    server.set_script(Script::silent().then_deaf().delay_upgrade(ms(200)));
    supervisor.resume_client(client.id()).unwrap();
    let big = "x".repeat(8 << 20);
    for _ in 0..4 {
        client.send(big.as_str()).unwrap();
    }
    assert_eq!(next_open(&client), 1);
    server.set_script(Script::silent());
    server.reset();
    assert_eq!(next_open(&client), 2);
    assert!(server.wait_until(LONG, |records| records.last().unwrap().received.len() >= 3));
    eventually("all written", || client.stats().sent == 4);
    assert_eq!(client.stats().unsent, 12);
}

#[test]
fn a_confirmed_send_may_wait_for_the_next_connection() {
    let server = Server::start(Script::silent().then_deaf().delay_upgrade(ms(100))).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).queue_while_disconnected(2)).unwrap();
    let waiting: Vec<_> = [12 << 20, 1]
        .map(|size| {
            let client = client.clone();
            std::thread::spawn(move || client.send_confirmed("x".repeat(size), LONG))
        })
        .into();
    // The first connection takes a part of the large one, if it comes first, and is lost.
    assert_eq!(next_open(&client), 1);
    server.set_script(Script::silent());
    server.reset();
    for waiting in waiting {
        match waiting.join().unwrap() {
            Ok(()) => {}
            // Accepted only after the connection was open, and lost with it.
            Err(ConfirmError::NotSent(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let stats = client.stats();
    assert_eq!(stats.sent + stats.unsent, 2);
}
