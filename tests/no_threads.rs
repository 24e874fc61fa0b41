//! A moment without threads. Alone in its process, since it takes them from all of it.
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

mod common;

use common::{LONG, config, eventually, wait_for_state};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use ws_supervisor::testing::Server;
use ws_supervisor::*;

struct Panics;

impl Handler for Panics {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        assert_ne!(message.as_text(), Some("boom"));
    }
}

#[test]
fn a_moment_without_threads_is_outlived_and_spends_no_restart() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::builder().intensity(1, LONG).start().unwrap();
    // A limit on address space stands in for one on threads: both are EAGAIN for whoever wants a thread.
    let config = config(&server).delivery(Delivery::inline(|| Panics)).stack_size(256 << 20);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let old = getrlimit(Resource::As);
    let tight = Rlimit { current: Some(pages * 4096 - (64 << 20)), maximum: old.maximum };
    setrlimit(Resource::As, tight).unwrap();
    client.send("boom").unwrap();
    eventually("it waits", || supervisor.list_clients()[0].phase == ClientPhase::Restarting);
    common::takes(common::ms(200));
    assert_eq!(supervisor.list_clients()[0].phase, ClientPhase::Restarting);
    setrlimit(Resource::As, old).unwrap();
    wait_for_state(&client, ReadyState::Open);
    assert_eq!(client.stats().restarts, 1);
}
