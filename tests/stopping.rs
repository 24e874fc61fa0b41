//! Stop works in every state, within its time, and leaves no thread and no descriptor. One process, one test at a
//! time: the counts are the process's.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, ms, never_answers, thread_status, wait_for_state};
use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ClientConfig, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, ReadyState, StopError,
    Supervisor, Tls, TlsBackend,
};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn count(what: &str) -> Option<usize> {
    let directory = Path::new("/proc/self").join(what);
    directory.exists().then(|| directory.read_dir().unwrap().count())
}

/// Runs `scene` and asserts that afterwards there are as many threads and descriptors as before.
fn leaving_nothing_behind(scene: impl FnOnce()) {
    let _alone = ONE_AT_A_TIME.lock();
    // Whatever the runtime opens once, it opens now.
    drop(Supervisor::start().unwrap());
    drop(Server::start_tls(Script::echo()).unwrap());
    let steady = |what: &str| {
        let (mut last, mut same) = (count(what), 0);
        eventually("steady", || {
            let now = count(what);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same > 30
        });
        last
    };
    let (threads, files) = (steady("task"), steady("fd"));
    scene();
    eventually("no thread is left", || count("task") <= threads);
    eventually("no descriptor is left", || count("fd") <= files);
}

const GRACE: Duration = Duration::from_secs(2);

/// Stops a client that is in a certain state, once by stop_client and once by shutdown, and times it.
fn stops_in_time(config: impl Fn() -> ClientConfig, ready: impl Fn(&Client)) {
    for by_shutdown in [false, true] {
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config().close_timeout(GRACE)).unwrap();
        ready(&client);
        let begun = Instant::now();
        if by_shutdown {
            let report = supervisor.shutdown(GRACE);
            assert!(report.left_behind.is_empty(), "{report:?}");
        } else {
            supervisor.stop_client(client.id()).unwrap();
        }
        // The grace, and what a busy machine needs on top.
        assert!(begun.elapsed() < GRACE + Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(client.ready_state(), ReadyState::Closed);
    }
}

#[test]
fn connecting_to_an_address_that_never_answers() {
    leaving_nothing_behind(|| {
        let (_listener, _filled, address) = never_answers();
        let config = || ClientConfig::new(format!("ws://{address}")).unwrap();
        stops_in_time(config, |client| wait_for_state(client, ReadyState::Connecting));
    });
}

#[test]
fn resolving() {
    leaving_nothing_behind(|| {
        let (release, held): (_, Receiver<()>) = bounded(0);
        let (asked, was_asked) = bounded(8);
        let config = || {
            let (held, asked) = (held.clone(), asked.clone());
            ClientConfig::new("ws://venue.example").unwrap().resolver(move |host, port| {
                assert_eq!((host, port), ("venue.example", 80));
                asked.send(()).unwrap();
                let _ = held.recv();
                Ok(vec![])
            })
        };
        stops_in_time(config, |_| was_asked.recv_timeout(LONG).unwrap());
        // The lookups themselves cannot be ended; now they end.
        drop(release);
    });
}

#[test]
fn in_tls() {
    leaving_nothing_behind(|| {
        let server = Server::start_tls(Script::hold_tls()).unwrap();
        let accepted = std::cell::Cell::new(0);
        stops_in_time(
            || config(&server),
            |_| {
                accepted.set(accepted.get() + 1);
                assert!(server.wait_until(LONG, |records| records.len() == accepted.get()));
            },
        );
    });
}

#[test]
fn in_the_upgrade() {
    leaving_nothing_behind(|| {
        let server = Server::start(Script::hold_upgrade()).unwrap();
        let asked = std::cell::Cell::new(0);
        stops_in_time(
            || config(&server),
            |_| {
                asked.set(asked.get() + 1);
                let all =
                    |n: usize| server.wait_until(LONG, |r| r.iter().filter(|r| !r.target.is_empty()).count() == n);
                assert!(all(asked.get()));
            },
        );
    });
}

#[test]
fn open_and_idle_plain_and_tls() {
    leaving_nothing_behind(|| {
        for server in [Server::echo().unwrap(), Server::start_tls(Script::echo()).unwrap()] {
            stops_in_time(|| config(&server), |client| client.wait_until_open(LONG).unwrap());
            assert!(server.wait_until(LONG, |records| records.iter().all(|r| r.close_code == Some(1000))));
        }
    });
}

#[test]
fn open_with_a_server_that_does_not_answer_the_close() {
    leaving_nothing_behind(|| {
        let server = Server::start(Script::silent().then_mute()).unwrap();
        stops_in_time(|| config(&server), |client| client.wait_until_open(LONG).unwrap());
    });
}

#[test]
fn in_backoff() {
    leaving_nothing_behind(|| {
        let server = Server::start(Script::refuse(503)).unwrap();
        let config = || config(&server).backoff(Duration::from_secs(3600), Duration::from_secs(3600));
        stops_in_time(config, |client| wait_for_state(client, ReadyState::Backoff));
    });
}

#[test]
fn with_a_full_event_queue() {
    leaving_nothing_behind(|| {
        let script = Script::silent().greet(|_| vec![Message::text("tick"); 50_000]);
        let server = Server::start(script).unwrap();
        let config = || config(&server).event_capacity(10);
        stops_in_time(config, |client| eventually("full", || client.events().len() >= 10));
    });
}

#[test]
fn with_a_peer_that_takes_nothing_more() {
    leaving_nothing_behind(|| {
        let server = Server::start(Script::silent().then_deaf()).unwrap();
        stops_in_time(
            || config(&server).heartbeat(Heartbeat::disabled()),
            |client| {
                client.wait_until_open(LONG).unwrap();
                client.send("x".repeat(16 << 20)).unwrap();
            },
        );
    });
}

struct Stuck {
    entered: crossbeam_channel::Sender<()>,
    held: Receiver<()>,
}

impl Handler for Stuck {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.entered.send(()).unwrap();
        let _ = self.held.recv();
    }
}

#[test]
fn with_a_handler_that_never_returns_it_is_reported_by_name() {
    leaving_nothing_behind(|| {
        let server = Server::start(Script::silent().greet(|_| vec!["stick".into()])).unwrap();
        let (release, held) = bounded::<()>(0);
        let (entered, was_entered) = bounded(8);
        let config = |name: &str| {
            let (entered, held) = (entered.clone(), held.clone());
            let delivery = Delivery::inline(move || Stuck { entered: entered.clone(), held: held.clone() });
            config(&server).name(name).close_timeout(ms(100)).delivery(delivery)
        };
        let supervisor = Supervisor::start().unwrap();
        let stuck = supervisor.spawn_client(config("stuck")).unwrap();
        was_entered.recv_timeout(LONG).unwrap();
        assert_eq!(supervisor.stop_client(stuck.id()), Err(StopError::LeftBehind("stuck".into())));
        assert!(supervisor.list_clients().is_empty());
        // The venue sees the end of the connection all the same.
        assert!(server.wait_until(LONG, |records| records[0].ended));

        supervisor.spawn_client(config("stuck")).unwrap();
        was_entered.recv_timeout(LONG).unwrap();
        let free = supervisor.spawn_client(common::config(&Server::echo().unwrap()).name("free")).unwrap();
        let report = supervisor.shutdown(ms(300));
        let names: Vec<_> = report.left_behind.iter().map(|name| &**name).collect();
        assert_eq!(names, ["stuck", "stuck"]);
        assert_eq!(free.ready_state(), ReadyState::Closed);
        drop(release);
    });
}

#[test]
fn a_hundred_clients_stop_in_parallel() {
    leaving_nothing_behind(|| {
        // Each of them takes its whole grace, for the server does not answer their close.
        let server = Server::start(Script::silent().then_mute()).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let clients: Vec<_> = (0..100).map(|_| supervisor.spawn_client(config(&server)).unwrap()).collect();
        clients.iter().for_each(|client| client.wait_until_open(LONG).unwrap());
        let begun = Instant::now();
        assert!(supervisor.shutdown(GRACE).left_behind.is_empty());
        assert!(begun.elapsed() < GRACE * 10, "one after the other would take 150 s: {:?}", begun.elapsed());
    });
}

#[test]
fn dropping_the_supervisor_ends_its_clients_and_their_channels() {
    leaving_nothing_behind(|| {
        let server = Server::echo().unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server)).unwrap();
        client.wait_until_open(LONG).unwrap();
        drop(supervisor);
        assert!(matches!(client.events().iter().last(), Some(Event::Closed { .. })));
        client.close().unwrap();
    });
}

#[test]
fn a_handler_may_stop_its_own_client_and_even_its_supervisor() {
    struct Suicidal(std::sync::Arc<std::sync::OnceLock<Supervisor>>);
    impl Handler for Suicidal {
        fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
            let supervisor = self.0.get().unwrap();
            match message.as_text() {
                Some("stop") => supervisor.stop_client(context.id()).unwrap(),
                _ => drop(supervisor.shutdown(LONG)),
            }
        }
    }
    leaving_nothing_behind(|| {
        let server = Server::start(Script::silent()).unwrap();
        let supervisor = std::sync::Arc::new(std::sync::OnceLock::new());
        supervisor.set(Supervisor::start().unwrap()).unwrap();
        for order in ["stop", "shut down"] {
            let shared = supervisor.clone();
            let delivery = Delivery::inline(move || Suicidal(shared.clone()));
            let client = supervisor.get().unwrap().spawn_client(config(&server).delivery(delivery)).unwrap();
            client.wait_until_open(LONG).unwrap();
            server.push(order);
            wait_for_state(&client, ReadyState::Closed);
        }
        supervisor.get().unwrap().join();
    });
}

#[test]
fn a_shutdown_shortens_a_close_that_is_under_way() {
    leaving_nothing_behind(|| {
        let server = Server::start(Script::silent().then_mute()).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let hour = Duration::from_secs(3600);
        let client = supervisor.spawn_client(config(&server).close_timeout(hour)).unwrap();
        client.wait_until_open(LONG).unwrap();
        supervisor.restart_client(client.id()).unwrap();
        wait_for_state(&client, ReadyState::Closing);
        assert!(supervisor.shutdown(GRACE).left_behind.is_empty());
    });
}

/// How often a thread of this process went to sleep, by its name.
fn sleeps(thread: &str) -> Option<u64> {
    thread_status(thread, "voluntary_ctxt_switches")?.parse().ok()
}

/// Idle or held up, a worker sleeps: it does not look around all the time.
#[test]
fn a_worker_does_not_spin_while_it_waits() {
    leaving_nothing_behind(|| {
        let script = Script::silent().greet(|_| vec![Message::text("tick"); 1000]);
        let (flooding, idle) = (Server::start(script).unwrap(), Server::start(Script::silent()).unwrap());
        let down = Server::start(Script::refuse(503)).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let spawn = |server: &Server, name: &str| {
            let config = config(server).name(name).event_capacity(10).heartbeat(Heartbeat::disabled());
            let hour = Duration::from_secs(3600);
            supervisor.spawn_client(config.backoff(hour, hour)).unwrap()
        };
        let paused = spawn(&flooding, "paused");
        spawn(&idle, "idle").wait_until_open(LONG).unwrap();
        wait_for_state(&spawn(&down, "backoff"), ReadyState::Backoff);
        eventually("full", || paused.events().len() >= 10);
        let names = ["paused", "idle", "backoff"];
        let before: Vec<_> = names.iter().map(|name| sleeps(name)).collect();
        // A second by another client's heartbeat.
        let clock = Server::start(Script::silent()).unwrap();
        let ticking = config(&clock).name("clock").heartbeat(Heartbeat::ping_pong(ms(100)));
        let ticking = supervisor.spawn_client(ticking).unwrap();
        eventually("ten pongs", || ticking.stats().heartbeats >= 10);
        for (name, before) in names.iter().zip(before) {
            // Every 5 ms at most, and ten times that for a slow machine.
            let woken = sleeps(name).zip(before).map_or(0, |(after, before)| after - before);
            assert!(woken < 2000, "{name} woke {woken} times in about a second");
        }
    });
}

/// A record that brings no data costs the most time for its length when it changes the keys (RFC 8446 section 4.6.3).
#[test]
fn with_a_server_that_changes_its_keys_without_end() {
    let (address, pem) = common::bare_tls(|mut stream| {
        let (mut key_updates, mut read) = (vec![], [0; 4096]);
        loop {
            key_updates.clear();
            for _ in 0..1_000 {
                stream.conn.refresh_traffic_keys().unwrap();
            }
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut key_updates).unwrap();
            }
            if stream.sock.write_all(&key_updates).is_err() {
                return;
            }
            stream.sock.set_nonblocking(true).unwrap();
            let _ = stream.sock.read(&mut read);
            stream.sock.set_nonblocking(false).unwrap();
        }
    });
    for backend in [TlsBackend::NativeTls, TlsBackend::Rustls] {
        let config = || {
            let tls = Tls::new().backend(backend).root_certificate(pem.as_str());
            ClientConfig::new(format!("wss://{address}/")).unwrap().tls(tls).heartbeat(Heartbeat::disabled())
        };
        stops_in_time(config, |client| {
            client.wait_until_open(LONG).unwrap();
            let before = client.stats().bytes_received;
            eventually("the flood arrives", || client.stats().bytes_received > before + (16 << 10));
        });
    }
}
