//! Whatever a worker does when idle, it keeps the same promises; and it runs where it is told to.

mod common;

use common::{LONG, config, eventually, ms, next_open, next_text, wait_for_state};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{Client, Heartbeat, IdleStrategy, ReadyState, StartError, Supervisor};

const BACKOFF: IdleStrategy = IdleStrategy::Backoff { spins: 50, yields: 50 };

#[test]
fn every_idle_strategy_sends_receives_pings_recovers_and_stops() {
    for idle in [IdleStrategy::Park, IdleStrategy::BusySpin, BACKOFF] {
        for tls in [false, true] {
            let script = Script::echo();
            let server = if tls { Server::start_tls(script).unwrap() } else { Server::start(script).unwrap() };
            let supervisor = Supervisor::start().unwrap();
            let config = config(&server).idle_strategy(idle).heartbeat(Heartbeat::ping_pong(ms(100)));
            let client = supervisor.spawn_client(config).unwrap();
            for epoch in 1..=3 {
                assert_eq!(next_open(&client), epoch, "{idle:?}");
                for n in 0..50 {
                    client.send(n.to_string()).unwrap();
                    assert_eq!(next_text(&client), n.to_string());
                }
                if epoch < 3 {
                    server.cut();
                }
            }
            eventually("a pong", || client.stats().heartbeats > 0);
            assert!(supervisor.shutdown(LONG).left_behind.is_empty());
        }
    }
}

#[test]
fn a_spinning_worker_notices_a_mute_server_and_a_full_queue() {
    let server = Server::scripted(|n| match n {
        0 => Script::silent().then_mute(),
        _ => Script::silent().greet(|_| vec!["tick".into(); 1000]),
    })
    .unwrap();
    let supervisor = Supervisor::start().unwrap();
    let heartbeat = Heartbeat::ping_pong(ms(100));
    let config = config(&server).idle_strategy(IdleStrategy::BusySpin).heartbeat(heartbeat).event_capacity(10);
    let client = supervisor.spawn_client(config).unwrap();
    eventually("restarted", || client.stats().restarts == 1);
    wait_for_state(&client, ReadyState::Open);
    eventually("full", || client.events().len() >= 10);
    assert!(server.wait_until(LONG, |records| records[1].pings >= 5), "it pings while nobody reads");
    assert_eq!(next_open(&client), 1);
    assert_eq!(next_open(&client), 2);
    for _ in 0..1000 {
        assert_eq!(next_text(&client), "tick");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_pinned_client_runs_on_its_core_after_a_restart_too() {
    let server = Server::echo().unwrap();
    let core = core_affinity::get_core_ids().unwrap().last().unwrap().id;
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).name("pinned").low_latency(core)).unwrap();
    for epoch in 1..=2 {
        assert_eq!(next_open(&client), epoch);
        assert_eq!(common::thread_status("pinned", "Cpus_allowed_list"), Some(core.to_string()));
        supervisor.restart_client(client.id()).unwrap();
    }
}

#[test]
fn a_core_that_is_not_there_is_an_error_at_the_start() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    for core in [1023, 1024, usize::MAX] {
        for started in [
            supervisor.spawn_client(config(&server).pin_to(core)).map(drop),
            Client::connect(config(&server).pin_to(core)).map(drop),
        ] {
            match started {
                Err(StartError::Os(message)) => assert!(message.contains("pin_to"), "{message}"),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((supervisor.count_clients().total, server.accepts()), (0, 0));
}
