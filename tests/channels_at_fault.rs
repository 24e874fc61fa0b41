//! A channel that is silent, refused, put off or fatal costs no other.
#![allow(missing_docs)]

mod common;
use common::{LONG, config, json_of, methods, ms, takes};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use ws_supervisor::testing::{DeribitServer, Script, Server};
use ws_supervisor::venue::deribit::Deribit;
use ws_supervisor::venue::{Batch, Venue};
use ws_supervisor::*;

#[derive(Clone, Copy)]
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
fn has(m: &Message, name: &str) -> bool {
    json_of(m)["params"].as_array().is_some_and(|p| p.iter().any(|x| x == name))
}
fn err(m: &Message, code: i64, text: &str) -> Vec<Message> {
    vec![json!({"id": json_of(m)["id"], "error": {"code": code, "message": text}}).to_string().into()]
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
fn active(c: &Client) -> usize {
    c.subscriptions().active.len()
}

// A silent channel within a batch takes the others of that batch with it.
#[test]
fn silent_channel_in_a_batch_costs_that_only() {
    let server = Server::start(Script::reply(|_, m| if has(m, "c") { vec![] } else { ok(m) })).unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup
        .spawn_client(
            config(&server)
                .venue(P(100))
                .connect_timeout(ms(300))
                .request_timeout(ms(100))
                .subscribe(["a", "b", "c", "d"]),
        )
        .unwrap();
    let good = until(ms(8000), || active(&c) == 3);
    assert!(good, "after 8 s active {:?}, asked {}", c.subscriptions().active, server.records()[0].received.len());
}

// Temporary refusal of one channel in a batch
#[test]
fn temporarily_refused_channel_in_a_batch_costs_that_only() {
    let server =
        Server::start(Script::reply(
            |_, m| if has(m, "c") { err(m, 11_051, "temporarily unavailable: c") } else { ok(m) },
        ))
        .unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup
        .spawn_client(config(&server).venue(P(100)).connect_timeout(ms(300)).subscribe(["a", "b", "c", "d"]))
        .unwrap();
    let good = until(ms(10_000), || active(&c) == 3);
    assert!(good, "after 10 s active {:?}, asked {}", c.subscriptions().active, server.records()[0].received.len());
}

/// A channel that the venue has put off again and again by now, beside one that is fine.
fn one_is_put_off(then: impl FnOnce(&Client) -> Result<(), SubscribeError>) {
    let server =
        Server::start(Script::reply(
            |_, m| if has(m, "c") { err(m, 11_051, "temporarily unavailable: c") } else { ok(m) },
        ))
        .unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup
        .spawn_client(
            config(&server).venue(P(1)).connect_timeout(ms(300)).request_timeout(ms(3000)).subscribe(["a", "c"]),
        )
        .unwrap();
    c.wait_until_open(LONG).unwrap();
    let put_off = |received: &[Message]| received.iter().filter(|m| has(m, "c")).count();
    assert!(server.wait_until(LONG, |records| put_off(&records[0].received) >= 4));
    let t = Instant::now();
    let r = then(&c);
    assert!(r.is_ok() && t.elapsed() < ms(1000), "{r:?} after {:?}", t.elapsed());
}
#[test]
fn temporarily_refused_channel_keeps_no_other_subscribe_waiting() {
    one_is_put_off(|client| client.subscribe(["x"]));
}
#[test]
fn temporarily_refused_channel_keeps_no_unsubscribe_waiting() {
    one_is_put_off(|client| client.unsubscribe(["a"]));
}

fn closing(bad: &'static str, n: usize, size: usize) -> (Arc<Server>, Supervisor, Client) {
    let server = Arc::new(Server::start(Script::silent()).unwrap());
    let w = Arc::downgrade(&server);
    let dead = Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    server.set_script(Script::reply(move |peer, m| {
        if dead.lock().unwrap().contains(&peer.index) {
            return vec![];
        }
        if has(m, bad) {
            dead.lock().unwrap().insert(peer.index);
            w.upgrade().unwrap().close_all(1008, "no such channel");
            return vec![];
        }
        ok(m)
    }));
    let sup = Supervisor::start().unwrap();
    let names: Vec<String> = (0..n).map(|i| format!("c{i:02}")).collect();
    let c = sup.spawn_client(config(&server).venue(P(size)).connect_timeout(ms(1000)).subscribe(&names)).unwrap();
    (server, sup, c)
}
// Channel that closes the line, with others asked together with it
#[test]
fn closing_channel_in_one_batch_costs_that_only() {
    let (server, _s, c) = closing("c03", 16, 100);
    let good = until(ms(10_000), || active(&c) == 15 && c.ready_state() == ReadyState::Open);
    let st = c.subscriptions();
    assert!(good, "{} accepts; active {:?} refused {:?}", server.accepts(), st.active, st.refused);
}
#[test]
fn closing_channel_one_by_one_costs_that_only() {
    let (server, _s, c) = closing("c03", 16, 1);
    let good = until(ms(10_000), || active(&c) == 15 && c.ready_state() == ReadyState::Open);
    let st = c.subscriptions();
    assert!(
        good,
        "{} accepts; active {:?} refused {:?}",
        server.accepts(),
        st.active,
        st.refused.iter().map(|r| &r.channel).collect::<Vec<_>>()
    );
}
/// How a server ends the line over a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    /// It acknowledges, and closes a moment later.
    Acknowledged,
    /// Without a close frame.
    Cut,
}
#[test]
fn a_channel_over_which_the_line_ends_later_or_without_a_word_costs_that_only() {
    for over in [Over::Acknowledged, Over::Cut] {
        for size in [1, 100] {
            let server = Arc::new(Server::start(Script::silent()).unwrap());
            let weak = Arc::downgrade(&server);
            server.set_script(Script::reply(move |_, m| match over {
                _ if !has(m, "bad") => ok(m),
                Over::Cut => {
                    weak.upgrade().unwrap().cut();
                    vec![]
                }
                Over::Acknowledged => {
                    let weak = weak.clone();
                    std::thread::spawn(move || {
                        takes(ms(20));
                        weak.upgrade().map(|server| server.close_all(1008, "no such channel"));
                    });
                    ok(m)
                }
            }));
            let sup = Supervisor::start().unwrap();
            let wants = config(&server).venue(P(size)).connect_timeout(ms(1000)).subscribe(["a", "b", "bad", "c"]);
            let client = sup.spawn_client(wants).unwrap();
            let found = until(LONG, || {
                let status = client.subscriptions();
                let refused = status.refused.iter().map(|refusal| &*refusal.channel).collect::<Vec<_>>();
                status.active.len() == 3 && refused == ["bad"] && client.ready_state() == ReadyState::Open
            });
            assert!(found, "{over:?} {size}: {} connections, {:?}", server.accepts(), client.subscriptions());
            assert!(server.accepts() <= 12, "{over:?} {size}: {}", server.accepts());
        }
    }
}

// Resubscribe whose unsubscribe is refused is told as done
#[test]
fn resubscribe_refused_is_not_told_as_done() {
    let server =
        Server::start(Script::reply(
            |_, m| if json_of(m)["method"] == "unsubscribe" { err(m, 7, "not now") } else { ok(m) },
        ))
        .unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup.spawn_client(config(&server).venue(P(1)).subscribe(["book"])).unwrap();
    c.wait_until_open(LONG).unwrap();
    let r = c.resubscribe(["book"]);
    assert!(r.is_err(), "{r:?} though the server was asked {:?}", methods(&server, 0));
}
// Answers in parts that come slowly
#[test]
fn slow_parts_are_put_together() {
    let server = Arc::new(Server::start(Script::silent()).unwrap());
    let w = Arc::downgrade(&server);
    server.set_script(Script::reply(move |p, m| {
        let r = json_of(m);
        if r["method"] != "subscribe" {
            return ok(m);
        }
        let (w, i) = (w.clone(), p.index);
        std::thread::spawn(move || {
            for ch in r["params"].as_array().unwrap() {
                if let Some(s) = w.upgrade() {
                    s.push_to(i, json!({"id": r["id"], "result": [ch]}).to_string());
                }
                std::thread::sleep(ms(400));
            }
        });
        vec![]
    }));
    let sup = Supervisor::start().unwrap();
    let c = sup.spawn_client(config(&server).venue(P(100)).request_timeout(LONG).subscribe(["a", "b", "c"])).unwrap();
    c.wait_until_open(LONG).unwrap();
    std::thread::sleep(ms(2500));
    let st = c.subscriptions();
    assert!(st.active.len() == 3, "{st:?} (asked {})", server.records()[0].received.len());
}
// A token that is over at once
#[test]
fn a_token_that_expires_at_once_makes_no_storm() {
    let n = Arc::new(AtomicUsize::new(0));
    let k = n.clone();
    let server = Server::start(Script::reply(move |_, m| {
        let r = json_of(m);
        let res = match r["method"].as_str().unwrap() {
            "public/auth" => {
                k.fetch_add(1, Ordering::SeqCst);
                json!({"expires_in": 0, "refresh_token": "x", "access_token": "y"})
            }
            _ => json!("ok"),
        };
        vec![json!({"id": r["id"], "result": res}).to_string().into()]
    }))
    .unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup.spawn_client(config(&server).venue(Deribit::new().client_credentials("id", "secret"))).unwrap();
    c.wait_until_open(LONG).unwrap();
    std::thread::sleep(ms(2000));
    let n = n.load(Ordering::SeqCst);
    assert!(n < 20, "{n} sign-ins in 2 s");
}
// Many clients of one account, heartbeats while common credits are used at full speed
#[test]
fn heartbeats_of_many_clones_never_exceed_the_credits() {
    let server = DeribitServer::builder().heartbeat_second(ms(100)).start().unwrap();
    let venue = Deribit::new().client_signature("id", "secret").heartbeat_interval(Duration::from_secs(10));
    let sup = Supervisor::start().unwrap();
    let cs: Vec<_> = (0..12)
        .map(|i| {
            sup.spawn_client(
                ClientConfig::new(server.url()).unwrap().name(format!("n{i}")).backoff(LONG, LONG).venue(venue.clone()),
            )
            .unwrap()
        })
        .collect();
    for c in &cs {
        c.wait_until_open(LONG).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(12);
    while Instant::now() < end && server.violations().is_empty() {
        let _ = cs[0].post(Request::new("public/get_time", ()));
        std::thread::sleep(ms(1));
    }
    assert_eq!(server.violations(), Vec::<String>::new());
}
// Too many channels for a connection
#[test]
fn a_venue_that_closes_at_its_channel_limit_converges() {
    let server = Arc::new(Server::start(Script::silent()).unwrap());
    let w = Arc::downgrade(&server);
    let counts = Arc::new(std::sync::Mutex::new(std::collections::HashMap::<usize, usize>::new()));
    server.set_script(Script::reply(move |p, m| {
        let mut g = counts.lock().unwrap();
        let e = g.entry(p.index).or_default();
        if *e > 20 {
            return vec![];
        }
        *e += json_of(m)["params"].as_array().unwrap().len();
        if *e > 20 {
            w.upgrade().unwrap().close_all(1008, "too many streams");
            return vec![];
        }
        ok(m)
    }));
    let sup = Supervisor::start().unwrap();
    let names: Vec<String> = (0..25).map(|i| format!("c{i:02}")).collect();
    let c = sup.spawn_client(config(&server).venue(P(8)).connect_timeout(ms(500)).subscribe(&names)).unwrap();
    let good = until(2 * LONG, || {
        active(&c) == 20 && c.ready_state() == ReadyState::Open && c.subscriptions().refused.len() == 5
    });
    let st = c.subscriptions();
    assert!(good, "{} accepts; active {} refused {}", server.accepts(), st.active.len(), st.refused.len());
}
// While waiting for a limit, the client's end is noticed
#[test]
fn a_request_that_waits_for_a_limit_hears_of_the_end() {
    let server = Server::start(Script::silent()).unwrap();
    let limit = RateLimit::bucket(1, 1, Duration::from_secs(8)).unwrap();
    let sup = Supervisor::start().unwrap();
    let c = sup.spawn_client(config(&server).rate_limit(limit)).unwrap();
    c.wait_until_open(LONG).unwrap();
    c.post(Request::new("a", ())).unwrap();
    let d = c.clone();
    let t = std::thread::spawn(move || {
        let t = Instant::now();
        (d.post(Request::new("b", ()).wait_for_limit(LONG)).map(|_| ()), t.elapsed())
    });
    std::thread::sleep(ms(200));
    let _ = c.close();
    let (r, e) = t.join().unwrap();
    assert!(e < ms(3000), "{r:?} after {e:?}");
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

#[test]
fn an_error_for_one_part_of_an_answer_costs_that_channel_and_no_part_reaches_a_reader() {
    let server = Server::start(Script::reply(|_, m| {
        let request = json_of(m);
        let part = |channel: &serde_json::Value| match channel == "b" {
            true => json!({"id": request["id"], "error": {"code": 1, "message": "no such pair"}}),
            false => json!({"id": request["id"], "result": [channel]}),
        };
        request["params"].as_array().unwrap().iter().map(|channel| part(channel).to_string().into()).collect()
    }))
    .unwrap();
    let client = Client::connect(config(&server).venue(P(100)).subscribe(["a", "b", "c", "d"])).unwrap();
    assert!(until(LONG, || active(&client) == 3 && client.subscriptions().refused.len() == 1));
    client.close().unwrap();
    let events: Vec<_> = client.events().iter().collect();
    assert!(!events.iter().any(|event| matches!(event, Event::Message(_))), "{events:?}");
}

/// A token is not refused because the venue is busy.
#[test]
fn a_renewal_refused_for_the_moment_is_asked_for_again_on_the_same_connection() {
    let renewals = Arc::new(AtomicUsize::new(0));
    let counts = renewals.clone();
    let server = Server::start(Script::reply(move |_, m| match json_of(m)["method"] == "renew" {
        true if counts.fetch_add(1, Ordering::SeqCst) == 0 => err(m, 429, "too many requests"),
        _ => ok(m),
    }))
    .unwrap();
    let venue = common::Plain { renews: Some(ms(50)), ..Default::default() };
    let client = Client::connect(config(&server).venue(venue)).unwrap();
    assert!(until(LONG, || renewals.load(Ordering::SeqCst) == 2));
    client.close().unwrap();
    assert_eq!((client.epoch(), server.accepts()), (1, 1));
}
