//! Stops and shutdowns that meet: each caller learns how the client ended, and the most urgent decides how long it takes.
#![allow(missing_docs)]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, ms, wait_for_state};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ClientConfig, Context, Delivery, Handler, Heartbeat, IntensityScope, MessageRef, ReadyState, StopError,
    Supervisor, SupervisorEvent, SupervisorExit,
};

/// Blocks at `block` until it may go on, and panics at `panic`.
struct Blocking(Sender<()>, Receiver<()>);

impl Handler for Blocking {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        match message.as_text() {
            Some("block") => {
                let _ = self.0.send(());
                let _ = self.1.recv_timeout(LONG);
            }
            Some("panic") => panic!("told to"),
            _ => {}
        }
    }
}

struct Blocked {
    server: Server,
    supervisor: Supervisor,
    client: Client,
    go_on: Sender<()>,
}

fn blocked(close_timeout: Duration) -> Blocked {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let ((blocks, is_blocked), (go_on, may_go_on)) = (crossbeam_channel::unbounded(), crossbeam_channel::unbounded());
    let delivery = Delivery::inline(move || Blocking(blocks.clone(), may_go_on.clone()));
    let config = config(&server).name("stuck").heartbeat(Heartbeat::disabled()).close_timeout(close_timeout);
    let client = supervisor.spawn_client(config.delivery(delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("block");
    is_blocked.recv_timeout(LONG).unwrap();
    Blocked { server, supervisor, client, go_on }
}

#[test]
fn each_of_several_stops_of_a_stuck_client_learns_that_its_thread_was_abandoned() {
    let Blocked { supervisor, client, go_on, server: _server } = blocked(ms(300));
    let abandoned = Err(StopError::LeftBehind("stuck".into()));
    std::thread::scope(|scope| {
        let stops: Vec<_> = (0..3).map(|_| scope.spawn(|| supervisor.stop_client(client.id()))).collect();
        let closes: Vec<_> = (0..3).map(|_| scope.spawn(|| client.clone().close())).collect();
        for result in stops.into_iter().chain(closes).map(|thread| thread.join().unwrap()) {
            assert_eq!(result, abandoned);
        }
    });
    assert_eq!(supervisor.stop_client(client.id()), abandoned, "a later one too");
    go_on.send(()).unwrap();
    let events = supervisor.events();
    while !matches!(events.recv_timeout(LONG).unwrap(), SupervisorEvent::CameBack { .. }) {}
    assert_eq!(supervisor.stop_client(client.id()), Err(StopError::NotFound), "the thread has ended since");
    assert_eq!(supervisor.shutdown(LONG).left_behind.len(), 0);
}

#[test]
fn a_stop_that_a_shutdown_overtakes_learns_that_the_thread_was_abandoned() {
    let Blocked { supervisor, client, go_on, server: _server } = blocked(LONG);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| supervisor.stop_client(client.id()));
        eventually("the stop waits", || supervisor.list_clients()[0].phase == ws_supervisor::ClientPhase::Stopping);
        assert_eq!(supervisor.shutdown(ms(200)).left_behind.len(), 1);
        assert_eq!(stop.join().unwrap(), Err(StopError::LeftBehind("stuck".into())));
    });
    go_on.send(()).unwrap();
}

#[test]
fn the_shorter_of_two_shutdowns_decides() {
    let server = Server::start(Script::silent().then_mute()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).heartbeat(Heartbeat::disabled())).unwrap();
    client.wait_until_open(LONG).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| supervisor.shutdown(Duration::from_secs(120)));
        wait_for_state(&client, ReadyState::Closing);
        supervisor.shutdown(ms(300));
    });
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn the_events_of_a_supervisor_end_with_its_own_end() {
    let server = Server::start(Script::silent()).unwrap();
    let builder = Supervisor::builder().intensity(0, LONG).intensity_scope(IntensityScope::Supervisor);
    let supervisor = builder.start().unwrap();
    let events = supervisor.events();
    let (blocks, go_on) = (crossbeam_channel::unbounded().0, crossbeam_channel::unbounded().1);
    let delivery = Delivery::inline(move || Blocking(blocks.clone(), go_on.clone()));
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("panic");
    supervisor.join();
    let mut last = None;
    let end = loop {
        match events.recv_timeout(LONG) {
            Ok(event) => last = Some(event),
            Err(end) => break end,
        }
    };
    assert_eq!(end, RecvTimeoutError::Disconnected);
    let is_intensity = |exit: &SupervisorExit| matches!(exit, SupervisorExit::IntensityExceeded { .. });
    assert!(matches!(&last, Some(SupervisorEvent::Ended { exit, .. }) if is_intensity(exit)), "{last:?}");
}

/// Its threads would wait for each other for ever.
#[test]
fn the_last_handle_of_a_supervisor_may_be_dropped_by_its_own_threads() {
    struct Holds {
        _supervisor: Arc<Supervisor>,
        _dropped: Sender<()>,
    }
    impl Handler for Holds {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            panic!("told to");
        }
    }
    let server = Server::echo().unwrap();
    let builder = Supervisor::builder().intensity(0, LONG).intensity_scope(IntensityScope::Supervisor);
    let supervisor = Arc::new(builder.shutdown_grace(ms(500)).start().unwrap());
    let events = supervisor.events();
    let (held, (dropped, is_dropped)) = (supervisor.clone(), crossbeam_channel::bounded(0));
    let delivery = Delivery::inline(move || Holds { _supervisor: held.clone(), _dropped: dropped.clone() });
    let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap().delivery(delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    drop(supervisor);
    client.send("panic").unwrap();
    assert_eq!(is_dropped.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected), "the handler and its factory");
    while events.recv_timeout(LONG).is_ok() {}
    wait_for_state(&client, ReadyState::Closed);
}
