//! Commands that meet: of two that were granted the later is carried out, or its caller learns that it is not.

#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{LONG, config, eventually, wait_for_state};
use crossbeam_channel::{Receiver, Sender, unbounded};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ClientPhase, Context, Delivery, Event, Handler, MessageRef, ReadyState, Restart, StopError, Supervisor,
};

#[test]
fn a_restart_that_follows_a_park_is_carried_out_and_so_is_the_reverse() {
    for _ in 0..20 {
        let server = Server::echo().unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server)).unwrap();
        client.wait_until_open(LONG).unwrap();
        assert_eq!(supervisor.park_client(client.id()), Ok(()));
        assert_eq!(supervisor.restart_client(client.id()), Ok(()));
        eventually("it is open again", || client.ready_state() == ReadyState::Open && client.epoch() == 2);
        assert_eq!(supervisor.restart_client(client.id()), Ok(()));
        assert_eq!(supervisor.park_client(client.id()), Ok(()));
        wait_for_state(&client, ReadyState::Parked);
    }
}

#[test]
fn a_permanent_client_that_closes_itself_can_be_parked_and_one_that_is_parked_is_not_closed() {
    for _ in 0..20 {
        let server = Server::echo().unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server).restart(Restart::Permanent)).unwrap();
        client.wait_until_open(LONG).unwrap();
        client.close().unwrap();
        assert_eq!(supervisor.park_client(client.id()), Ok(()));
        eventually("it is parked", || supervisor.list_clients()[0].phase == ClientPhase::Parked);
        let restarts = supervisor.list_clients()[0].restarts;
        client.close().unwrap();
        assert_eq!(supervisor.resume_client(client.id()), Ok(()));
        client.wait_until_open(LONG).unwrap();
        assert_eq!(supervisor.list_clients()[0].restarts, restarts, "its first run goes on");
    }
}

/// Panics at its first message, and takes its time to be dropped.
struct SlowDrop(Receiver<()>, Arc<AtomicBool>);

impl Handler for SlowDrop {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        panic!("as it was asked to");
    }
}

impl Drop for SlowDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.1.store(true, Ordering::SeqCst);
            let _ = self.0.recv_timeout(LONG);
        }
    }
}

#[test]
fn a_park_that_the_restart_intensity_overtakes_parks_no_later_run() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::builder().intensity(0, Duration::from_secs(60)).start().unwrap();
    let ((go, wait), drops) = (unbounded(), Arc::new(AtomicBool::new(false)));
    let is_dropped = drops.clone();
    let slow = Delivery::inline(move || SlowDrop(wait.clone(), is_dropped.clone()));
    let client = supervisor.spawn_client(config(&server).delivery(slow)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("panic");
    eventually("the handler is being dropped", || drops.load(Ordering::SeqCst));
    assert_eq!(supervisor.park_client(client.id()), Ok(()));
    (0..4).for_each(|_| go.send(()).unwrap());
    eventually("it is parked", || supervisor.list_clients()[0].phase == ClientPhase::Parked);
    assert_eq!(supervisor.resume_client(client.id()), Ok(()));
    wait_for_state(&client, ReadyState::Open);
}

/// Blocks where it receives a message, or that its client is parked.
struct Blocks(Sender<()>, Receiver<()>);

impl Blocks {
    fn block(&self) {
        let _ = self.0.send(());
        let _ = self.1.recv_timeout(LONG);
    }
}

impl Handler for Blocks {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.block();
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Parked { .. } = event {
            self.block();
        }
    }
}

/// An open client of that handler, a receiver of each block, and a sender that ends one.
fn blocking(supervisor: &Supervisor, server: &Server) -> (Client, Receiver<()>, Sender<()>) {
    let ((inside, is_inside), (go, wait)) = (unbounded(), unbounded());
    let handler = Delivery::inline(move || Blocks(inside.clone(), wait.clone()));
    let client = supervisor.spawn_client(config(server).delivery(handler)).unwrap();
    client.wait_until_open(LONG).unwrap();
    (client, is_inside, go)
}

#[test]
fn a_client_that_is_being_stopped_takes_no_other_command() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (client, is_inside, go) = blocking(&supervisor, &server);
    server.push("block");
    is_inside.recv_timeout(LONG).unwrap();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| supervisor.stop_client(client.id()));
        eventually("the stop is given", || supervisor.list_clients()[0].phase == ClientPhase::Stopping);
        assert_eq!(supervisor.restart_client(client.id()), Err(StopError::NotFound));
        assert_eq!(supervisor.park_client(client.id()), Err(StopError::NotFound));
        go.send(()).unwrap();
        assert_eq!(stop.join().unwrap(), Ok(()));
    });
}

#[test]
fn commands_are_granted_while_a_handler_receives_that_its_client_is_parked() {
    type Calls = fn(&Supervisor, ws_supervisor::ClientId) -> Vec<Result<(), StopError>>;
    let cases: [(Calls, bool); 4] = [
        (|supervisor, id| vec![supervisor.resume_client(id), supervisor.restart_client(id)], true),
        (|supervisor, id| vec![supervisor.resume_client(id), supervisor.park_client(id)], false),
        (
            |supervisor, id| {
                vec![supervisor.resume_client(id), supervisor.park_client(id), supervisor.resume_client(id)]
            },
            true,
        ),
        (
            |supervisor, id| {
                vec![supervisor.resume_client(id), supervisor.park_client(id), supervisor.restart_client(id)]
            },
            true,
        ),
    ];
    for (n, (calls, opens)) in cases.into_iter().enumerate() {
        let server = Server::start(Script::silent()).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let (client, is_inside, go) = blocking(&supervisor, &server);
        supervisor.park_client(client.id()).unwrap();
        is_inside.recv_timeout(LONG).unwrap();
        let granted = calls(&supervisor, client.id());
        assert!(granted.iter().all(Result::is_ok), "case {n}: {granted:?}");
        (0..4).for_each(|_| go.send(()).unwrap());
        if opens {
            eventually("it is open", || client.ready_state() == ReadyState::Open && client.epoch() == 2);
        } else {
            eventually("it is parked", || supervisor.list_clients()[0].phase == ClientPhase::Parked);
            assert_eq!(client.ready_state(), ReadyState::Parked);
        }
    }
}
