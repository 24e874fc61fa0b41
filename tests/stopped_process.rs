//! A process that the system stops for a while. Its clients run in a child, which is this same program.
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

mod common;

use std::process::{Child, Command};
use std::time::Duration;

use common::{LONG, ms, takes};
use rustix::process::{Pid, Signal, kill_process};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// After this, or twice this, a line is dead.
const SILENCE: Duration = Duration::from_secs(1);
const URL: &str = "STOPPED_PROCESS_URL";
const KIND: &str = "STOPPED_PROCESS_KIND";

/// What the child does, until its server is gone. Without an address it is nothing.
#[test]
fn child() {
    let Ok(url) = std::env::var(URL) else { return };
    let kind = std::env::var(KIND).unwrap();
    let beat = match kind.as_str() {
        kind if kind.contains("server") => Heartbeat::server_ping(SILENCE),
        kind if kind.contains("hourly") => Heartbeat::ping_pong(Duration::from_secs(3600)),
        _ => Heartbeat::ping_pong(SILENCE),
    };
    let idle = if kind.contains("spin") { IdleStrategy::BusySpin } else { IdleStrategy::Park };
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(ClientConfig::new(url).unwrap().heartbeat(beat).idle_strategy(idle)).unwrap();
    let _ = client.events().iter().find(|event| matches!(event, Event::Disconnected { .. }));
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Its pings are late and so are the server's, but all of them lie in the kernel when it goes on.
#[test]
fn a_process_that_was_stopped_loses_no_heartbeat_by_it() {
    std::thread::scope(|scope| {
        for kind in ["parks, pings", "parks, hears the server", "spins, pings", "spins, hears the server"] {
            scope.spawn(|| stop_and_go_on(kind));
        }
    });
}

fn stop_and_go_on(kind: &str) {
    let server = Server::start(Script::silent().ping_every(ms(50))).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let child = Ended(command.args(["child", "--exact"]).env(URL, server.url()).env(KIND, kind).spawn().unwrap());
    let pid = Pid::from_child(&child.0);
    let more_pongs = || {
        let before = server.records().first().map_or(0, |record| record.pongs);
        let more = server.wait_until(LONG, |records| match records {
            [] => false,
            [first] => first.ended || first.pongs > before + 10,
            _ => true,
        });
        assert!(more && server.accepts() == 1 && !server.records()[0].ended, "{kind}: the connection was lost");
    };
    more_pongs();
    for _ in 0..2 {
        kill_process(pid, Signal::STOP).unwrap();
        takes(SILENCE * 5 / 2);
        kill_process(pid, Signal::CONT).unwrap();
        more_pongs();
    }
}

/// By itself it would ask in an hour.
#[test]
fn a_line_is_tried_as_soon_as_the_process_goes_on() {
    for kind in ["hourly, parks", "hourly, spins"] {
        let server = Server::start(Script::silent()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = Ended(command.args(["child", "--exact"]).env(URL, server.url()).env(KIND, kind).spawn().unwrap());
        assert!(server.wait_until(LONG, |records| records.first().is_some_and(|first| first.opened)), "{kind}");
        // Its supervisor has looked at it by then.
        takes(SILENCE);
        let pid = Pid::from_child(&child.0);
        kill_process(pid, Signal::STOP).unwrap();
        takes(Duration::from_secs(6));
        assert_eq!(server.records()[0].pings, 0, "{kind}");
        kill_process(pid, Signal::CONT).unwrap();
        assert!(server.wait_until(LONG, |records| records[0].pings > 0), "{kind}");
    }
}
