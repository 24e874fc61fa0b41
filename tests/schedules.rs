//! Random schedules of everything that a session must live through: sends, requests, subscriptions, unsubscriptions,
//! cuts, restarts, mute and slow servers, refused sign-ins, from two threads at once. Whatever the schedule:
//! no message goes out on a later connection than its own; every request is answered exactly once or fails exactly
//! once, truthfully; at rest the server has what the caller wants; signing in comes before everything private, and
//! nothing private after a sign-in that failed.
//!
//! `SCHEDULES` says how many (500 by default, 10,000 in the gate), `SEED` where to begin.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{LONG, config, eventually, json_of, ms};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Renewal, Venue};
use ws_supervisor::{
    Event, Heartbeat, Message, PendingResponse, RateLimit, ReadyState, Request, RequestError, Session, SessionError,
    Supervisor,
};

/// What the server knows of one connection.
#[derive(Default)]
struct Connection {
    signed_in: bool,
    sign_in_failed: bool,
    epoch: Option<u64>,
    channels: BTreeSet<String>,
}

#[derive(Default)]
struct World {
    connections: Mutex<HashMap<usize, Connection>>,
    /// Number and connection of every message and request, in order.
    received: Mutex<Vec<(u64, usize)>>,
    violations: Mutex<Vec<String>>,
    refuse_sign_in: AtomicBool,
    /// Milliseconds before each answer.
    slow: AtomicU64,
}

impl World {
    fn hear(&self, peer: usize, message: &Message) -> Vec<Message> {
        let slow = self.slow.load(Ordering::Relaxed);
        if slow > 0 {
            std::thread::park_timeout(ms(slow));
        }
        let request = json_of(message);
        let method = request["method"].as_str().unwrap_or_default();
        let mut connections = self.connections.lock();
        let connection = connections.entry(peer).or_default();
        let private = method.starts_with("private/");
        if private && (!connection.signed_in || connection.sign_in_failed) {
            self.violations.lock().push(format!("connection {peer}: {method} without signing in"));
        }
        let params = &request["params"];
        let names = || params.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let result = match method {
            "auth" if self.refuse_sign_in.load(Ordering::Relaxed) => {
                connection.sign_in_failed = true;
                let refused = json!({"id": request["id"], "error": {"code": 13_004, "message": "invalid_credentials"}});
                return vec![refused.to_string().into()];
            }
            "auth" => {
                connection.signed_in = true;
                connection.epoch = params[0].as_u64();
                json!("ok")
            }
            "renew" => json!("ok"),
            "private/subscribe" => {
                connection.channels.extend(names().filter(|name| name != "bad"));
                names().filter(|name| name != "bad").collect()
            }
            "private/unsubscribe" => {
                names().for_each(|name| {
                    connection.channels.remove(&name);
                });
                params.clone()
            }
            _ => {
                self.received.lock().push((params[0].as_u64().unwrap(), peer));
                params.clone()
            }
        };
        match request["id"].is_null() {
            true => vec![],
            // A tick before the answer, for a channel that may not be wanted any more: data adds nothing.
            false => vec![
                r#"{"method":"subscription","params":{"channel":"c1"}}"#.into(),
                json!({"id": request["id"], "result": result}).to_string().into(),
            ],
        }
    }
}

struct Dialect {
    renews: Option<Duration>,
}

impl Dialect {
    fn renewal(&self) -> Option<Renewal> {
        Some(Renewal::new(self.renews?, Request::new("renew", ())))
    }
}

impl Venue for Dialect {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::ping_pong(ms(20)).max_missed(3)
    }
    fn authenticate(&self, session: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
        let epoch = session.epoch();
        session.request::<Value>("auth", [epoch])?;
        Ok(self.renewal())
    }
    fn renewed(&self, _: &Value) -> Result<Option<Renewal>, SessionError> {
        Ok(self.renewal())
    }
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        channels.chunks(2).map(|some| Batch::new(Request::new("private/subscribe", some), some)).collect()
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        channels.chunks(3).map(|some| Batch::new(Request::new("private/unsubscribe", some), some)).collect()
    }
}

const CHANNELS: [&str; 5] = ["c1", "c2", "c3", "c4", "bad"];

/// What one thread did.
#[derive(Default)]
struct Deeds {
    /// Numbers that `send` accepted, with the connections that each may have been accepted for.
    sent: Vec<(u64, RangeInclusive<u64>)>,
    asked: Vec<(u64, PendingResponse)>,
}

fn one_schedule(seed: u64) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let world = Arc::new(World::default());
    let hears = world.clone();
    let server = Server::start(Script::reply(move |peer, message| hears.hear(peer.index, message))).unwrap();
    let supervisor = Supervisor::builder().intensity(usize::MAX, Duration::from_secs(60)).start().unwrap();
    let renews = (dice.u8(0..4) == 0).then(|| ms(dice.u64(5..40)));
    let mut config = config(&server)
        .venue(Dialect { renews })
        .subscribe(CHANNELS[..dice.usize(0..3)].iter())
        .backoff(ms(1), ms(4))
        .connect_timeout(ms(100))
        .request_timeout(ms(dice.u64(5..60)))
        .event_capacity(100_000);
    if dice.u8(0..4) == 0 {
        config = config.max_age(ms(dice.u64(10..60)));
    }
    if dice.u8(0..4) == 0 {
        config = config.rate_limit(RateLimit::bucket(20, 20, ms(dice.u64(5..40))).unwrap());
    }
    if dice.u8(0..4) == 0 {
        config = config.reconcile(|session, _| session.request::<Value>("auth", [session.epoch()]).map(drop));
    }
    let client = supervisor.spawn_client(config).unwrap();
    // The wanted set as the two threads leave it: each has channels of its own, and tells the truth about refusals.
    let (numbers, wanted) =
        (AtomicU64::new(1), Mutex::new(client.subscriptions().wanted.into_iter().collect::<BTreeSet<_>>()));
    let deeds: Vec<Deeds> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let mut dice = dice.fork();
                let (server, supervisor, client, world) = (&server, &supervisor, &client, &world);
                let (numbers, wanted) = (&numbers, &wanted);
                scope.spawn(move || {
                    let mut deeds = Deeds::default();
                    for _ in 0..dice.usize(4..24) {
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        let channel = CHANNELS[dice.usize(0..2) * 2 + thread];
                        match dice.u8(0..32) {
                            0..=7 => {
                                let before = client.epoch();
                                let text = json!({"method": "private/send", "params": [number]}).to_string();
                                if client.send(text).is_ok() {
                                    deeds.sent.push((number, before..=client.epoch()));
                                }
                            }
                            8..=15 => {
                                if let Ok(pending) = client.start_request(Request::new("private/ask", [number])) {
                                    deeds.asked.push((number, pending));
                                }
                            }
                            16..=18 => {
                                wanted.lock().insert(channel.into());
                                let _ = client.subscribe([channel]);
                            }
                            19..=20 => {
                                wanted.lock().remove(channel);
                                let _ = client.unsubscribe([channel]);
                            }
                            21 => {
                                let refused = client.subscribe(["bad"]);
                                // What is refused is not wanted any more; what is not decided yet still is.
                                if refused.is_err() {
                                    let _ = client.unsubscribe(["bad"]);
                                }
                            }
                            22 => drop(server.cut()),
                            23 => drop(server.reset()),
                            24 => drop(supervisor.restart_client(client.id())),
                            25 => drop(server.mute()),
                            26 => world.slow.store(dice.u64(0..4), Ordering::Relaxed),
                            27 => world.refuse_sign_in.store(dice.bool(), Ordering::Relaxed),
                            _ => {
                                let _ = client.wait_until_open(ms(dice.u64(1..8)));
                            }
                        }
                    }
                    deeds
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    // To rest: what was broken is whole again, and who is mute is cut.
    world.slow.store(0, Ordering::Relaxed);
    world.refuse_sign_in.store(false, Ordering::Relaxed);
    let mut wanted = wanted.into_inner();
    let had_bad = wanted.remove("bad");
    assert!(!had_bad);
    server.cut();
    let expected: BTreeSet<String> = wanted.iter().map(|name| name.to_string()).collect();
    eventually("the server has what is wanted", || {
        let connections = world.connections.lock();
        // Attempts that came to nothing told the same epoch.
        let last = connections.iter().max_by_key(|(peer, _)| **peer).map(|(_, connection)| connection);
        client.ready_state() == ReadyState::Open
            && last.is_some_and(|last| last.epoch == Some(client.epoch()) && last.channels == expected)
    });
    eventually("and the client knows", || {
        client.subscriptions().active.iter().cloned().collect::<BTreeSet<_>>() == wanted
    });
    let known: BTreeSet<_> = client.subscriptions().wanted.into_iter().filter(|name| &**name != "bad").collect();
    assert_eq!(known, wanted, "the caller's intent, and nothing else");

    // Each request ends exactly once.
    let mut outcomes = HashMap::new();
    let mut sent = HashMap::new();
    for Deeds { sent: some, asked } in deeds {
        sent.extend(some);
        for (number, pending) in asked {
            let response = pending.receiver().recv_timeout(LONG).expect("a response");
            assert!(pending.receiver().try_recv().is_err(), "one response");
            outcomes.insert(number, response.outcome);
        }
    }
    eventually("nothing is pending", || client.stats().pending_requests == 0);
    assert!(supervisor.shutdown(LONG).left_behind.is_empty());
    let mut unsent = BTreeSet::new();
    for event in client.events() {
        let (Event::Disconnected { unsent: back, .. } | Event::Closed { unsent: back, .. }) = event else { continue };
        for message in back {
            assert!(unsent.insert(json_of(&message)["params"][0].as_u64().unwrap()), "handed back twice");
        }
    }
    // The server reads to the end what the kernel had for it, and writes in the same books.
    assert!(server.wait_until(LONG, |records| records.iter().all(|record| record.ended)));
    let received = world.received.lock().clone();
    let mut on: HashMap<u64, usize> = HashMap::new();
    for (number, peer) in &received {
        assert!(on.insert(*number, *peer).is_none(), "{number} came twice");
    }
    let connections = world.connections.lock();
    for (number, epochs) in sent {
        if let Some(peer) = on.get(&number) {
            assert!(!unsent.contains(&number), "{number} came, and was handed back");
            let epoch = connections[peer].epoch.expect("nothing private before signing in");
            assert!(epochs.contains(&epoch), "{number} was accepted for {epochs:?} and came on {epoch}");
        }
    }
    for (number, outcome) in outcomes {
        let came = on.contains_key(&number);
        match outcome {
            Ok(result) => {
                assert!(came, "{number} was answered");
                assert_eq!(result.decode::<Vec<u64>>().unwrap(), [number], "by its own answer");
            }
            Err(RequestError::NotSent { .. }) => assert!(!came, "{number} came, and was called not sent"),
            // The server may have it or not: that is what it says.
            Err(RequestError::OutcomeUnknown { .. }) => {}
            Err(other) => panic!("{number}: {other}"),
        }
    }
    assert_eq!(*world.violations.lock(), Vec::<String>::new());
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_the_schedule_the_promises_of_a_session_hold() {
    let first = setting("SEED").unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let schedules = setting("SCHEDULES").unwrap_or(500);
    // Most of a schedule is waiting, so many go on at once.
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + schedules {
                        return;
                    }
                    let _told = Told(seed);
                    one_schedule(seed);
                }
            });
        }
    });
    println!("{schedules} schedules from {first}");
}

/// Says which schedule failed.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("SEED={}", self.0);
        }
    }
}
