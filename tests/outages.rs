//! A venue that closes on everything is blamed on no channel.
#![allow(missing_docs)]

mod common;
use common::{LONG, config, json_of, ms};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Venue};
use ws_supervisor::*;

struct P(usize);
impl Venue for P {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::disabled()
    }
    fn subscribe(&self, c: &[Arc<str>]) -> Vec<Batch> {
        c.chunks(self.0).map(|s| Batch::new(Request::new("subscribe", s), s)).collect()
    }
    fn unsubscribe(&self, c: &[Arc<str>]) -> Vec<Batch> {
        c.chunks(self.0).map(|s| Batch::new(Request::new("unsubscribe", s), s)).collect()
    }
}
fn ok(m: &Message) -> Vec<Message> {
    let r = json_of(m);
    vec![json!({"id": r["id"], "result": r["params"]}).to_string().into()]
}
fn until(t: Duration, mut f: impl FnMut() -> bool) -> bool {
    let d = Instant::now() + t;
    while !f() {
        if Instant::now() > d {
            return false;
        }
        std::thread::sleep(ms(2));
    }
    true
}
fn outage(code: u16, reason: &'static str) {
    let server = Arc::new(Server::start(Script::silent()).unwrap());
    let w = Arc::downgrade(&server);
    let t0 = Instant::now();
    server.set_script(Script::reply(move |_, m| {
        if t0.elapsed() < ms(1500) {
            w.upgrade().unwrap().close_all(code, reason);
            return vec![];
        }
        ok(m)
    }));
    let sup = Supervisor::start().unwrap();
    let c = sup.spawn_client(config(&server).venue(P(100)).connect_timeout(ms(500)).subscribe(["a", "b"])).unwrap();
    let good = until(ms(8000), || c.subscriptions().active.len() == 2);
    assert!(good, "{code}: {} accepts, {} {:?}", server.accepts(), c.ready_state(), c.subscriptions());
}

#[test]
fn a_silent_unsubscribe_does_not_flip_for_ever() {
    let server =
        Server::start(Script::reply(|_, m| if json_of(m)["method"] == "unsubscribe" { vec![] } else { ok(m) }))
            .unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup.spawn_client(config(&server).venue(P(1)).request_timeout(ms(100)).subscribe(["book"])).unwrap();
    c.wait_until_open(LONG).unwrap();
    let r = c.resubscribe(["book"]);
    std::thread::sleep(ms(1500));
    let a = server.records()[0].received.len();
    std::thread::sleep(ms(1500));
    let b = server.records()[0].received.len();
    assert!(b - a < 3, "{r:?}; asked {} times in 1.5 s, long after", b - a);
}

#[test]
fn a_venue_that_closes_on_everything_for_a_while_sets_no_channel_aside() {
    for (code, reason) in [(1011, "internal error"), (1000, "bye"), (1008, "try later")] {
        outage(code, reason);
    }
}
