//! The account of every message: what is handed back as unsent, or told `NotSent`, the server does not have. Proven from
//! the outside: callers send as fast as they can while the connection ends again and again, in each way in which it can
//! end with something in flight; then what came back is compared with what the server received.
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, ms};
use ws_supervisor::testing::{Peer, Script, Server};
use ws_supervisor::*;

/// Enough ends of connections for the fault to show many times over, were it there.
const ROUNDS: Duration = Duration::from_secs(3);

/// So large that the kernel is full most of the time, and something in flight whenever a connection ends.
fn padding() -> String {
    "x".repeat(20_000)
}

fn start(script: Script, tls: bool) -> Server {
    if tls { Server::start_tls(script).unwrap() } else { Server::start(script).unwrap() }
}

fn quick(server: &Server) -> ClientConfig {
    config(server).backoff(ms(1), ms(2)).send_capacity(256)
}

/// What comes before the padding: unlike that of any other message.
fn name(message: &Message) -> String {
    let text = message.as_text().unwrap();
    let from = &text[text.find("order-").unwrap()..];
    from[..from.find('.').unwrap()].to_owned()
}

fn received(server: &Server) -> HashSet<String> {
    server.records().iter().flat_map(|record| record.received.iter().map(name).collect::<Vec<_>>()).collect()
}

/// Two threads that send until they are told to stop.
fn send_all_the_time(client: &Client, stop: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<()>> {
    let sender = |thread: u32| {
        let (client, stop, padding) = (client.clone(), stop.clone(), padding());
        std::thread::spawn(move || {
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if client.send(format!("order-{thread}-{n}.{padding}")).is_err() {
                    std::thread::yield_now();
                }
            }
        })
    };
    (0..2).map(sender).collect()
}

/// Ends connections by `end` every 20 ms while callers send; returns how many ended, and asserts the promise.
fn handed_back_is_not_received(server: &Server, client: &Client, mut end: impl FnMut(&Server)) -> usize {
    client.wait_until_open(LONG).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let senders = send_all_the_time(client, &stop);
    let (events, until) = (client.events(), Instant::now() + ROUNDS);
    let (mut ends, mut back, mut next_end) = (0, vec![], Instant::now());
    let mut take = |event| {
        if let Event::Disconnected { unsent, .. } | Event::Closed { unsent, .. } = event {
            ends += 1;
            back.extend(unsent);
        }
    };
    while Instant::now() < until {
        events.recv_deadline(next_end).into_iter().for_each(&mut take);
        if Instant::now() >= next_end {
            next_end += ms(20);
            end(server);
        }
    }
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    client.close().unwrap();
    events.iter().for_each(take);
    let received = received(server);
    let twice: Vec<_> = back.iter().map(name).filter(|name| received.contains(name)).collect();
    let shown = &twice[..twice.len().min(5)];
    assert!(twice.is_empty(), "of {} handed back the server has {}: {shown:?}", back.len(), twice.len());
    assert!(!back.is_empty() && !received.is_empty(), "{} back, {} received", back.len(), received.len());
    ends
}

/// A continuation of nothing, with a reserved opcode: RFC 6455 section 5.2.
fn break_the_protocol(server: &Server) {
    server.push_raw(&[0x83, 0x00]);
}

fn when_the_server_breaks_the_protocol(tls: bool) {
    let server = start(Script::silent(), tls);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(quick(&server)).unwrap();
    assert!(handed_back_is_not_received(&server, &client, break_the_protocol) > 10);
}

#[test]
fn what_is_handed_back_when_the_server_breaks_the_protocol_it_does_not_have() {
    when_the_server_breaks_the_protocol(false);
}

#[test]
fn what_is_handed_back_when_the_server_breaks_the_protocol_it_does_not_have_over_tls() {
    when_the_server_breaks_the_protocol(true);
}

/// On a line that works nothing is in doubt: the client says goodbye and waits for the server's, as it does for a close.
fn when_a_connection_is_replaced_for_its_age(tls: bool) {
    let chatter = |_: &Peer| (0..300).map(|_| Message::from("t".repeat(400))).collect::<Vec<_>>();
    let server = start(Script::silent().every(ms(1), chatter), tls);
    let supervisor = Supervisor::start().unwrap();
    let config = quick(&server).max_age(ms(15)).overflow(Overflow::DropNewest);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let senders = send_all_the_time(&client, &stop);
    eventually("some rotations", || client.epoch() > 20);
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    client.close().unwrap();
    let stats = client.stats();
    assert_eq!(((stats.sent - stats.uncertain), stats.unsent, stats.uncertain), (stats.accepted, 0, 0));
    eventually("all arrives", || received(&server).len() as u64 == stats.accepted);
}

#[test]
fn when_a_connection_is_replaced_for_its_age_all_that_was_accepted_arrives() {
    when_a_connection_is_replaced_for_its_age(false);
}

#[test]
fn when_a_connection_is_replaced_for_its_age_all_that_was_accepted_arrives_over_tls() {
    when_a_connection_is_replaced_for_its_age(true);
}

#[test]
fn what_is_handed_back_when_pings_closes_and_resets_mix_the_server_does_not_have() {
    for tls in [false, true] {
        let server = start(Script::silent(), tls);
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(quick(&server)).unwrap();
        let mut ways = (0..3).cycle();
        let ends = handed_back_is_not_received(&server, &client, |server| {
            (0..20).for_each(|_| _ = server.ping(b"x"));
            match ways.next() {
                Some(0) => _ = server.close_all(1001, "away"),
                Some(1) => _ = server.cut(),
                _ => break_the_protocol(server),
            }
        });
        assert!(ends > 10);
    }
}

fn not_sent_is_the_truth(tls: bool) {
    let server = start(Script::silent(), tls);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(quick(&server).overflow(Overflow::DropNewest)).unwrap();
    client.wait_until_open(LONG).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let asker = |thread: u32| {
        let (client, stop, padding) = (client.clone(), stop.clone(), padding());
        std::thread::spawn(move || {
            let mut pending = vec![];
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let order = format!("order-{thread}-{n}");
                match client.start_request(Request::new(format!("{order}."), [&padding])) {
                    Ok(response) => pending.push((order, response)),
                    Err(_) => std::thread::yield_now(),
                }
            }
            pending
        })
    };
    let askers: Vec<_> = (0..2).map(asker).collect();
    let until = Instant::now() + ROUNDS;
    while Instant::now() < until {
        std::thread::park_timeout(ms(20));
        break_the_protocol(&server);
    }
    stop.store(true, Ordering::Relaxed);
    let pending: Vec<_> = askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect();
    client.close().unwrap();
    let received = received(&server);
    let (mut not_sent, mut lies) = (0, vec![]);
    for (order, response) in pending {
        let response = response.receiver().recv_timeout(LONG).expect("every request ends once");
        if matches!(response.outcome, Err(RequestError::NotSent { .. })) {
            not_sent += 1;
            lies.extend(received.contains(&order).then_some(order));
        }
    }
    assert!(lies.is_empty(), "of {not_sent} told NotSent the server has {}: {:?}", lies.len(), lies.first());
    assert!(not_sent > 0);
}

#[test]
fn not_sent_is_the_truth_when_the_server_breaks_the_protocol() {
    not_sent_is_the_truth(false);
}

#[test]
fn not_sent_is_the_truth_when_the_server_breaks_the_protocol_over_tls() {
    not_sent_is_the_truth(true);
}
