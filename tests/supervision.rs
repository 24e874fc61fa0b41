//! Each line of the supervision strategy, from the outside: what ends, what is restarted, what is parked, and that
//! nobody else notices.
//!
//! Over 400 lines: the cases of OTP that carry over, one after the other.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{LONG, config, eventually, ms, next, next_open, next_text, wait_for_state};
use ws_supervisor::testing::{self, Script, Server};
use ws_supervisor::{
    Client, ClientConfig, ClientPhase, Context, Delivery, DisconnectReason, Event, ExitReason, Handler, Heartbeat,
    IntensityScope, Message, MessageRef, ParkReason, ReadyState, Restart, RestartCounting, SendError, StartError,
    StopError, Supervisor, SupervisorEvent, SupervisorExit,
};

/// Panics on the worker's thread when told to; counts how often it was built.
struct Fragile;

impl Handler for Fragile {
    fn on_message(&mut self, _context: &mut Context<'_>, message: MessageRef<'_>) {
        if message.as_text() == Some("panic") {
            panic!("told to");
        }
    }
}

fn fragile(server: &Server) -> ws_supervisor::ClientConfig {
    config(server).delivery(Delivery::inline(|| Fragile))
}

fn wait_epoch(client: &Client, epoch: u64) {
    eventually(&format!("epoch {epoch}"), || client.epoch() >= epoch && client.ready_state() == ReadyState::Open);
}

#[test]
fn a_normal_close_is_not_restarted() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    assert_eq!(next_open(&client), 1);
    client.close().unwrap();
    assert_eq!(client.ready_state(), ReadyState::Closed);
    let reason = next(&client, |event| match event {
        Event::Closed { reason, unsent, .. } => {
            assert!(unsent.is_empty());
            Some(reason)
        }
        _ => None,
    });
    assert_eq!(reason, ExitReason::Closed);
    assert!(client.events().recv().is_err(), "nothing comes after it");
    assert!(supervisor.list_clients().is_empty());
    assert!(server.wait_until(LONG, |records| records[0].close_code == Some(1000)));
    assert_eq!(server.accepts(), 1);
    assert!(matches!(client.send("late").unwrap_err(), SendError::NotOpen { state: ReadyState::Closed, .. }));
}

#[test]
fn a_permanent_client_is_restarted_after_a_close_and_a_temporary_one_never() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let permanent = supervisor.spawn_client(config(&server).name("p").restart(Restart::Permanent)).unwrap();
    wait_epoch(&permanent, 1);
    permanent.close().unwrap();
    wait_epoch(&permanent, 2);
    supervisor.stop_client(permanent.id()).unwrap();
    assert_eq!(permanent.ready_state(), ReadyState::Closed);

    let temporary = supervisor.spawn_client(fragile(&server).name("t").restart(Restart::Temporary)).unwrap();
    wait_epoch(&temporary, 1);
    server.push("panic");
    wait_for_state(&temporary, ReadyState::Closed);
    eventually("gone from the list", || supervisor.list_clients().is_empty());
    assert_eq!(server.accepts(), 3);
}

#[test]
fn a_panic_is_restarted_and_its_message_is_read() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let alerts = supervisor.events();
    let client = supervisor.spawn_client(fragile(&server).name("fragile")).unwrap();
    wait_epoch(&client, 1);
    server.push("panic");
    match alerts.recv_timeout(LONG).unwrap() {
        SupervisorEvent::Restarted { name, reason, restarts, .. } => {
            assert_eq!((&*name, restarts), ("fragile", 1));
            assert_eq!(reason, ExitReason::Panicked("told to".into()));
        }
        other => panic!("{other:?}"),
    }
    wait_epoch(&client, 2);
    client.send("after the crash").unwrap();
    server.wait_for_message(|message| message.as_text() == Some("after the crash"));
    assert_eq!(client.stats().restarts, 1);
}

#[test]
fn what_a_handler_throws_may_throw_again_and_harms_nobody_else() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::panic_any(Bomb);
        }
    }
    struct Bomber;
    impl Handler for Bomber {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            std::panic::panic_any(Bomb);
        }
    }
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let bomber = supervisor.spawn_client(config(&server).delivery(Delivery::inline(|| Bomber))).unwrap();
    for epoch in 1..=3 {
        wait_epoch(&bomber, epoch);
        bomber.send("go").unwrap();
    }
    wait_epoch(&bomber, 4);
    assert_eq!(bomber.stats().restarts, 3);
    let told = supervisor.events().try_iter().all(|event| matches!(event, SupervisorEvent::Restarted { .. }));
    assert!(told, "the supervisor's own thread did not panic");
}

#[test]
fn a_handle_and_its_clones_survive_a_crash() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let handle = supervisor.spawn_client(fragile(&server)).unwrap();
    let clone = handle.clone();
    wait_epoch(&handle, 1);
    for crash in 2..5 {
        server.push("panic");
        wait_epoch(&handle, crash);
    }
    handle.send("one").unwrap();
    std::thread::spawn(move || clone.send("two").unwrap()).join().unwrap();
    server.wait_for_message(|message| message.as_text() == Some("one"));
    server.wait_for_message(|message| message.as_text() == Some("two"));
}

#[test]
fn a_panic_before_the_connection_is_restarted_too() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let built = Arc::new(AtomicUsize::new(0));
    let count = built.clone();
    let factory = move || match count.fetch_add(1, Ordering::SeqCst) {
        0 => panic!("the factory is broken"),
        _ => Fragile,
    };
    let client = supervisor.spawn_client(config(&server).delivery(Delivery::inline(factory))).unwrap();
    wait_epoch(&client, 1);
    assert_eq!(built.load(Ordering::SeqCst), 2, "a handler is built for each run");
}

#[test]
fn by_otps_own_counting_exhausted_retries_are_restarted_and_then_parked() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let otp = Supervisor::builder().intensity(2, Duration::from_secs(60)).restart_counting(RestartCounting::All);
    let supervisor = otp.start().unwrap();
    let client = supervisor.spawn_client(config(&server).max_retries(3).backoff(ms(1), ms(1))).unwrap();
    let mut restarted = 0;
    let reason = next(&client, |event| match event {
        Event::Restarted { reason: ExitReason::RetriesExhausted { .. }, .. } => {
            restarted += 1;
            None
        }
        Event::Parked { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(reason, ParkReason::IntensityExceeded { last: ExitReason::RetriesExhausted { .. }, .. }));
    assert_eq!(restarted, 2);
    // Three runs of one attempt and three retries: exactly one layer dials.
    assert_eq!(server.accepts(), 12);
    assert_eq!(client.stats().failed_attempts, 12);
}

/// An outage that is longer than all retries, with the shortest backoff: weather is not a crash.
#[test]
fn an_outage_parks_nobody_whatever_the_backoff() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::builder().intensity(2, Duration::from_secs(60)).start().unwrap();
    let client = supervisor.spawn_client(config(&server).max_retries(1).backoff(ms(1), ms(1))).unwrap();
    eventually("ten restarts", || client.stats().restarts >= 10);
    server.set_script(Script::silent());
    client.wait_until_open(LONG).unwrap();
    let accepts = server.accepts() as u64;
    assert_eq!(client.stats().failed_attempts + 1, accepts, "exactly one layer dials");
}

#[test]
fn a_lost_heartbeat_is_restarted_on_a_fresh_connection() {
    let server = Server::scripted(|n| if n == 0 { Script::silent().then_mute() } else { Script::echo() }).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).heartbeat(Heartbeat::ping_pong(ms(20)))).unwrap();
    let mut seen = vec![];
    next(&client, |event| {
        match event {
            Event::Disconnected { epoch: 1, reason: DisconnectReason::HeartbeatLost { missed: 2 }, .. } => {
                seen.push("lost")
            }
            Event::Restarted { reason: ExitReason::HeartbeatLost { missed: 2 }, .. } => seen.push("restarted"),
            Event::Open { epoch: 2, .. } => return Some(()),
            _ => {}
        }
        None
    });
    assert_eq!(seen, ["lost", "restarted"]);
    eventually("a pong on the new connection", || {
        let health = client.heartbeat_health();
        health.last_received.is_some() && health.last_round_trip.is_some() && health.consecutive_failures == 0
    });
    assert_eq!(client.stats().restarts, 1);
}

#[test]
fn the_eleventh_restart_parks_that_client_alone() {
    let (bad, good) = (Server::start(Script::silent().greet(|_| vec!["panic".into()])), Server::echo());
    let (bad, good) = (bad.unwrap(), good.unwrap());
    let supervisor = Supervisor::start().unwrap();
    let alerts = supervisor.events();
    let bystander = supervisor.spawn_client(config(&good).name("good")).unwrap();
    bystander.wait_until_open(LONG).unwrap();
    let client = supervisor.spawn_client(fragile(&bad).name("bad")).unwrap();
    let mut restarts = 0;
    loop {
        match alerts.recv_timeout(LONG).unwrap() {
            SupervisorEvent::Restarted { .. } => restarts += 1,
            SupervisorEvent::Parked { name, reason, .. } => {
                assert_eq!(&*name, "bad");
                assert!(matches!(reason, ParkReason::IntensityExceeded { .. }));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(restarts, 10);
    assert_eq!(bad.accepts(), 11);
    assert_eq!(client.ready_state(), ReadyState::Parked);
    assert!(matches!(client.wait_until_open(LONG), Err(ws_supervisor::WaitError::Parked(_))));
    assert!(matches!(client.send("x").unwrap_err(), SendError::NotOpen { state: ReadyState::Parked, .. }));
    let listed = supervisor.list_clients();
    assert_eq!((listed[0].phase, listed[1].phase), (ClientPhase::Running, ClientPhase::Parked));
    assert_eq!(supervisor.count_clients().parked, 1);

    // The other never lost its connection.
    bystander.send("still here").unwrap();
    assert_eq!(next_text(&bystander), "still here");
    assert_eq!((good.accepts(), bystander.epoch()), (1, 1));

    // Someone mends the venue and resumes the client.
    bad.set_script(Script::echo());
    supervisor.resume_client(client.id()).unwrap();
    client.wait_until_open(LONG).unwrap();
    client.send("back").unwrap();
    bad.wait_for_message(|message| message.as_text() == Some("back"));
    assert_eq!(supervisor.resume_client(client.id()), Err(StopError::NotParked));
}

#[test]
fn with_otps_scope_one_restart_too_many_ends_all() {
    let (bad, good) = (Server::start(Script::silent().greet(|_| vec!["panic".into()])), Server::echo());
    let (bad, good) = (bad.unwrap(), good.unwrap());
    let supervisor = Supervisor::builder()
        .intensity(3, Duration::from_secs(60))
        .intensity_scope(IntensityScope::Supervisor)
        .start()
        .unwrap();
    let bystander = supervisor.spawn_client(config(&good).name("good")).unwrap();
    bystander.wait_until_open(LONG).unwrap();
    let client = supervisor.spawn_client(fragile(&bad).name("bad")).unwrap();
    match supervisor.join() {
        SupervisorExit::IntensityExceeded { client, last, .. } => {
            assert_eq!(&*client, "bad");
            assert_eq!(last, ExitReason::Panicked("told to".into()));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((client.ready_state(), bystander.ready_state()), (ReadyState::Closed, ReadyState::Closed));
    assert!(good.wait_until(LONG, |records| records[0].close_code == Some(1000)));
    assert_eq!(bad.accepts(), 4);
    assert_eq!(supervisor.spawn_client(config(&good)).unwrap_err(), StartError::ShutDown);
}

#[test]
fn a_refusal_that_no_retry_mends_parks_at_once_and_can_be_resumed() {
    let server = Server::start(Script::refuse(401)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    let reason = next(&client, |event| match event {
        Event::Parked { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(reason, ParkReason::Refused(_)), "{reason}");
    assert_eq!((server.accepts(), client.stats().restarts), (1, 0));
    eventually("listed as parked", || supervisor.list_clients()[0].phase == ClientPhase::Parked);
    server.set_script(Script::echo());
    supervisor.restart_client(client.id()).unwrap();
    assert_eq!(next_open(&client), 1);
    client.close().unwrap();
}

#[test]
fn restart_client_gives_a_fresh_connection_and_is_not_counted() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::builder().intensity(0, Duration::from_secs(60)).start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    for epoch in 1..=5 {
        assert_eq!(next_open(&client), epoch);
        supervisor.restart_client(client.id()).unwrap();
    }
    assert_eq!(next_open(&client), 6);
    assert_eq!(client.stats().restarts, 0);
    assert!(server.wait_until(LONG, |records| records[..5].iter().all(|record| record.close_code == Some(1000))));
}

#[test]
fn the_list_tells_the_truth_while_a_client_restarts() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let built = Arc::new(AtomicUsize::new(0));
    let count = built.clone();
    // The second handler is not built before the test says so: the worker is between two connections.
    let factory = move || {
        if count.fetch_add(1, Ordering::SeqCst) == 1 {
            let _ = held.recv();
        }
        Fragile
    };
    let config = config(&server).name("held").delivery(Delivery::inline(factory));
    let client = supervisor.spawn_client(config).unwrap();
    wait_epoch(&client, 1);
    let info = &supervisor.list_clients()[0];
    assert_eq!((info.phase, info.ready_state, info.epoch), (ClientPhase::Running, ReadyState::Open, 1));
    server.push("panic");
    eventually("the second run", || built.load(Ordering::SeqCst) == 2);
    eventually("restarts 1", || supervisor.list_clients()[0].restarts == 1);
    let info = &supervisor.list_clients()[0];
    assert_eq!((&*info.name, info.ready_state, info.epoch), ("held", ReadyState::Connecting, 1));
    assert_eq!(supervisor.count_clients().open, 0);
    release.send(()).unwrap();
    wait_epoch(&client, 2);
    assert_eq!(supervisor.list_clients()[0].restarts, 1);
}

#[test]
fn the_guardian_replaces_a_panicked_supervisor_which_adopts_its_clients() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let alerts = supervisor.events();
    let untouched = supervisor.spawn_client(config(&server).name("untouched")).unwrap();
    let crashing = supervisor.spawn_client(fragile(&server).name("crashing")).unwrap();
    untouched.wait_until_open(LONG).unwrap();
    wait_epoch(&crashing, 1);
    for _ in 0..3 {
        testing::panic_supervisor(&supervisor);
        assert!(matches!(alerts.recv_timeout(LONG).unwrap(), SupervisorEvent::Recovered { .. }));
    }
    server.push("panic");
    wait_epoch(&crashing, 2);
    untouched.send("untouched").unwrap();
    server.wait_for_message(|message| message.as_text() == Some("untouched"));
    assert_eq!((untouched.epoch(), server.accepts()), (1, 3));
    assert!(supervisor.shutdown(LONG).left_behind.is_empty());
}

#[test]
fn names_are_unique_and_clients_are_limited() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::builder().max_clients(2).start().unwrap();
    let first = supervisor.spawn_client(config(&server).name("a")).unwrap();
    let refused = supervisor.spawn_client(config(&server).name("a")).unwrap_err();
    assert_eq!(refused, StartError::DuplicateName("a".into()));
    supervisor.spawn_client(config(&server)).unwrap();
    assert_eq!(supervisor.spawn_client(config(&server)).unwrap_err(), StartError::MaxClients(2));
    supervisor.stop_client(first.id()).unwrap();
    assert_eq!(supervisor.stop_client(first.id()), Err(StopError::NotFound));
    let again = supervisor.spawn_client(config(&server).name("a")).unwrap();
    assert_eq!(supervisor.client("a").unwrap().id(), again.id());
    assert!(supervisor.client("b").is_none());
}

#[test]
fn an_unsupervised_client_reconnects_closes_and_reports_a_failed_start() {
    let server = Server::scripted(|n| if n == 0 { Script::echo().then_mute() } else { Script::echo() }).unwrap();
    let client = Client::connect(config(&server).heartbeat(Heartbeat::ping_pong(ms(20)))).unwrap();
    next(&client, |event| match event {
        Event::Disconnected { reason: DisconnectReason::HeartbeatLost { .. }, .. } => Some(()),
        _ => None,
    });
    assert_eq!(next_open(&client), 2);
    client.send("echo").unwrap();
    assert_eq!(next_text(&client), "echo");
    client.close().unwrap();

    let dropped = Client::connect(config(&server)).unwrap();
    drop(dropped);
    assert!(server.wait_until(LONG, |records| records.iter().all(|record| record.ended)));

    server.set_script(Script::refuse(503));
    match Client::connect(config(&server)) {
        Err(StartError::Connect(error)) => assert!(error.to_string().contains("503"), "{error}"),
        other => panic!("{other:?}"),
    }
    let panics = Server::start(Script::silent().greet(|_| vec!["panic".into()])).unwrap();
    // Open for a moment only, and yet it was open.
    let client = Client::connect(fragile(&panics)).unwrap();
    wait_for_state(&client, ReadyState::Closed);
    let broken = config(&server).delivery(Delivery::inline(|| -> Fragile { panic!("no handler") }));
    match Client::connect(broken) {
        Err(StartError::Ended(ExitReason::Panicked(message))) => assert_eq!(&*message, "no handler"),
        other => panic!("{other:?}"),
    }
}

/// What is handed back there is told nowhere else.
#[test]
fn an_order_handed_back_in_a_supervisors_event_outlives_a_thousand_other_events() {
    struct Bug;
    impl Handler for Bug {
        fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
            context.send("an order").unwrap();
            panic!("a bug");
        }
    }
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::builder().intensity(0, LONG).start().unwrap();
    let client = supervisor.spawn_client(config(&server).delivery(Delivery::inline(|| Bug))).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("tick");
    wait_for_state(&client, ReadyState::Parked);
    eventually("the word of it", || supervisor.count_clients().parked == 1);
    for n in 0..1_100 {
        let other = ClientConfig::new("ws://127.0.0.1:9").unwrap().name(n.to_string());
        let other = supervisor.spawn_client(other).unwrap();
        supervisor.stop_client(other.id()).unwrap();
    }
    let alerts = supervisor.events();
    let handed_back = alerts.try_iter().filter_map(|event| event.handed_back().cloned());
    let unsent: Vec<_> = handed_back.flat_map(|handed_back| handed_back.unsent).collect();
    assert_eq!(unsent, [Message::from("an order")]);
}
