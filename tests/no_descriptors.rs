//! Descriptors: none to be had, and all given back. Alone in its process, since it takes them from all of it.
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

mod common;

use std::sync::{Arc, OnceLock};

use common::{LONG, eventually, next};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use ws_supervisor::testing::Server;
use ws_supervisor::*;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

struct Holds(#[expect(dead_code, reason = "only held")] Arc<OnceLock<Client>>);

impl Handler for Holds {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
}

/// One test, because it counts what the whole process has.
#[test]
fn out_of_descriptors_is_told_in_the_systems_words_and_a_closed_client_keeps_none() {
    let server = Server::echo().unwrap();
    let warm = Client::connect(ClientConfig::new(server.url()).unwrap()).unwrap();
    warm.close().unwrap();
    drop(warm);
    assert!(server.wait_until(LONG, |records| records[0].ended));
    // The server lets go of a connection's descriptors after it has told of its end.
    let settled = || {
        (0..50)
            .map(|_| {
                std::thread::yield_now();
                descriptors()
            })
            .min()
            .unwrap()
    };
    let before = settled();
    let client = Client::connect(ClientConfig::new(server.url()).unwrap()).unwrap();
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: old.maximum }).unwrap();
    server.cut();
    let error = next(&client, |event| match event {
        Event::ConnectFailed { error, .. } => Some(error),
        _ => None,
    });
    setrlimit(Resource::Nofile, old).unwrap();
    assert!(error.to_string().contains("open files"), "{error}");
    client.close().unwrap();

    // A factory that holds its own client, as one that wants to close it does.
    let (slot, supervisor) = (Arc::new(OnceLock::new()), Supervisor::start().unwrap());
    let held = slot.clone();
    let config = ClientConfig::new(server.url()).unwrap().delivery(Delivery::inline(move || Holds(held.clone())));
    let own = supervisor.spawn_client(config).unwrap();
    slot.set(own.clone()).unwrap();
    own.wait_until_open(LONG).unwrap();
    supervisor.shutdown(LONG);
    eventually("let go of", || Arc::strong_count(&slot) == 1);
    eventually("all descriptors are back, though handles live", || descriptors() <= before);
    drop((client, own));
}
