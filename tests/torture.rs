//! Random schedules of everything that can happen at once: cuts, crashes, refusals, restarts, stops, resumes, panics of
//! the supervisor. Whatever the schedule, each client's story is told in order and in full, and everything ends.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{LONG, config, ms};
use ws_supervisor::testing::{self, Script, Server};
use ws_supervisor::{Client, ClientConfig, Event, Heartbeat, Supervisor};

/// Crashes the worker of a client with a channel: the matcher runs on the worker's thread.
fn crashing(server: &Server, name: &str) -> ClientConfig {
    let heartbeat = Heartbeat::message(Duration::from_secs(3600), "alive?", |message| {
        assert!(message.as_text() != Some("panic"), "told to");
        false
    });
    config(server).name(name).heartbeat(heartbeat).backoff(ms(1), ms(4)).event_capacity(100_000)
}

/// Reads a client's events to the end and checks that they tell a possible story.
fn check_story(client: &Client) -> (u64, u64) {
    let (mut open, mut last, mut unsent, mut ended) = (false, 0, 0, false);
    let mut parked = false;
    let mut told = vec![];
    for event in client.events().iter() {
        told.push(format!("{event:?}"));
        let story = || told[told.len().saturating_sub(12)..].join("\n");
        assert!(!ended, "after the end: {}", story());
        match event {
            Event::Open { epoch, .. } => {
                assert!(!open && epoch == last + 1, "{}", story());
                (open, last, parked) = (true, epoch, false);
            }
            Event::Message(_) => assert!(open, "{}", story()),
            Event::Disconnected { epoch, unsent: back, .. } => {
                assert!(open && epoch == last, "{}", story());
                open = false;
                unsent += back.len() as u64;
            }
            Event::ConnectFailed { .. } => {
                assert!(!open, "{}", story());
                parked = false;
            }
            Event::Restarted { .. } => {
                // One that is parked may have been resumed, and asked to restart before it got any further.
                assert!(!open, "{}", story());
                parked = false;
            }
            Event::Parked { unsent: back, .. } => {
                assert!(!open && !parked, "{}", story());
                parked = true;
                unsent += back.len() as u64;
            }
            Event::Closed { unsent: back, .. } => {
                unsent += back.len() as u64;
                ended = true;
            }
            other => panic!("{other:?}: {}", story()),
        }
    }
    assert!(ended, "no end: {:?}", told.last());
    assert_eq!(last, client.epoch());
    (last, unsent)
}

fn one_schedule(seed: u64) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let server = Server::start(Script::echo()).unwrap();
    let supervisor = Supervisor::builder().intensity(dice.usize(0..6), Duration::from_secs(60)).start().unwrap();
    let clients: Vec<Client> =
        (0..3).map(|n| supervisor.spawn_client(crashing(&server, &format!("c{n}"))).unwrap()).collect();
    let accepted: Vec<AtomicU64> = (0..3).map(|_| AtomicU64::new(0)).collect();
    // Two threads at once, so that orders meet.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut dice = dice.fork();
            let (server, supervisor, clients, accepted) = (&server, &supervisor, &clients, &accepted);
            scope.spawn(move || {
                for _ in 0..dice.usize(20..120) {
                    let index = dice.usize(0..clients.len());
                    let client = &clients[index];
                    match dice.u8(0..32) {
                        0 => drop(server.cut()),
                        1 => drop(server.reset()),
                        2 => {
                            server.close_all(1001, "");
                        }
                        3..=4 => {
                            server.push("panic");
                        }
                        5 => server.set_script(Script::refuse([401, 503][dice.usize(0..2)])),
                        6..=9 => server.set_script(Script::echo()),
                        10..=11 => drop(supervisor.restart_client(client.id())),
                        12..=13 => drop(supervisor.resume_client(client.id())),
                        14 => testing::panic_supervisor(supervisor),
                        15 if dice.bool() => drop(supervisor.stop_client(client.id())),
                        15 => drop(client.close()),
                        16 | 18..=22 => {
                            let _ = client.wait_until_open(ms(dice.u64(1..6)));
                        }
                        17 => drop(supervisor.list_clients()),
                        _ => {
                            let sent = client.send("x").is_ok();
                            accepted[index].fetch_add(u64::from(sent), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let report = supervisor.shutdown(LONG);
    assert!(report.left_behind.is_empty(), "{report:?}");
    for (client, accepted) in clients.iter().zip(accepted) {
        let (epoch, unsent) = check_story(client);
        let stats = client.stats();
        assert_eq!(stats.epoch, epoch);
        assert_eq!(stats.unsent, unsent, "what is counted as handed back is handed back");
        assert_eq!(accepted.into_inner(), stats.sent + unsent, "each ends in exactly one way: {stats:?}");
    }
}

#[test]
fn every_schedule_tells_a_possible_story_and_ends() {
    // A panic that is part of the schedule needs no backtrace.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_none_or(|name| !name.starts_with(['c', 'w'])) {
            usual(info);
        }
    }));
    let first = fastrand::u64(..);
    for seed in first..first + 400 {
        println!("seed {seed}");
        one_schedule(seed);
    }
}
