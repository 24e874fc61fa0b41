//! The wanted set is the caller's: it survives everything, is acknowledged channel by channel, and nothing else changes
//! it. With Binance's dialect, against a server that keeps the venue's rules.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, json_of, methods, ms, next, next_open, next_text};
use crossbeam_channel::unbounded;
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::binance::{self, Binance};
use ws_supervisor::{
    Client, Context, Delivery, Event, Handler, HeartbeatKind, MessageRef, ReadyState, SubscribeError, Supervisor,
};

/// Streams of each connection, and when its messages came.
#[derive(Default)]
struct Streams {
    channels: Vec<BTreeSet<String>>,
    times: Vec<Vec<Instant>>,
}

/// Binance: acknowledges with null, refuses a stream whose name has no `@`, tells its streams.
fn binance(streams: &Arc<Mutex<Streams>>) -> Script {
    let streams = streams.clone();
    Script::reply(move |peer, message| {
        let mut streams = streams.lock();
        while streams.channels.len() <= peer.index {
            streams.channels.push(BTreeSet::new());
            streams.times.push(vec![]);
        }
        streams.times[peer.index].push(Instant::now());
        let own = &mut streams.channels[peer.index];
        let request = json_of(message);
        let names: Vec<String> = serde_json::from_value(request["params"].clone()).unwrap_or_default();
        let answer = match request["method"].as_str().unwrap() {
            "LIST_SUBSCRIPTIONS" => json!({"result": own, "id": request["id"]}),
            _ if names.iter().any(|name| !name.contains('@')) => {
                json!({"error": {"code": 2, "msg": "Invalid request: no such stream"}, "id": request["id"]})
            }
            "SUBSCRIBE" => {
                own.extend(names);
                json!({"result": null, "id": request["id"]})
            }
            _ => {
                own.retain(|name| !names.contains(name));
                json!({"result": null, "id": request["id"]})
            }
        };
        // A tick for a stream that nobody may want any more comes first.
        let tick = json!({"stream": "btcusdt@trade", "data": {"e": "trade", "p": "50000.01"}});
        vec![tick.to_string().into(), answer.to_string().into()]
    })
}

#[test]
fn a_venue_of_its_own_kind_subscribes_restores_and_lists() {
    let streams = Arc::default();
    let server = Server::start(binance(&streams)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).venue(Binance::spot()).subscribe(["btcusdt@trade", "bad", "ethusdt@depth"]);
    let client = supervisor.spawn_client(config).unwrap();
    let (restored, refused) = next(&client, |event| match event {
        Event::Open { restored, refused, .. } => Some((restored, refused)),
        _ => None,
    });
    assert_eq!(restored, ["btcusdt@trade".into(), "ethusdt@depth".into()]);
    assert_eq!(refused[0].to_owned().error.to_string(), "2 Invalid request: no such stream");
    let health = client.heartbeat_health();
    assert_eq!((health.kind, health.interval), (HeartbeatKind::ServerPing, Some(Duration::from_secs(60))));
    server.ping(b"1700000000000");
    assert!(server.wait_until(LONG, |records| records[0].pongs == 1), "answered with its payload, or tungstenite errs");
    let listed: Vec<String> = client.call(binance::list_subscriptions().wait_for_limit(LONG)).unwrap();
    assert_eq!(listed, ["btcusdt@trade", "ethusdt@depth"]);
    let first = json_of(&server.records()[0].received[0]);
    assert_eq!(first["params"], json!(["bad", "btcusdt@trade", "ethusdt@depth"]));
    assert!(first["jsonrpc"].is_null() && first["id"].is_u64());
}

#[test]
fn the_wanted_set_survives_reconnects_and_restarts_and_data_never_adds_to_it() {
    let streams: Arc<Mutex<Streams>> = Arc::default();
    let server = Server::start(binance(&streams)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    // Without limits: this one is about what is asked, not how fast.
    let client = supervisor.spawn_client(config(&server).venue(Unlimited)).unwrap();
    next_open(&client);
    client.subscribe(["btcusdt@trade", "ethusdt@trade", "solusdt@trade"]).unwrap();
    client.unsubscribe(["btcusdt@trade"]).unwrap();
    assert!(next_text(&client).contains("btcusdt@trade"), "a tick of it still came");
    let wanted = ["ethusdt@trade", "solusdt@trade"];
    let same = |index: usize| streams.lock().channels[index].iter().map(String::as_str).eq(wanted);
    assert!(same(0));
    let disturbances: [fn(&Server, &Supervisor, &Client); 2] = [
        |server, _, _| assert_eq!(server.cut(), 1),
        |_, supervisor, client| supervisor.restart_client(client.id()).unwrap(),
    ];
    for (index, disturb) in disturbances.into_iter().enumerate() {
        disturb(&server, &supervisor, &client);
        let restored = next(&client, |event| match event {
            Event::Open { restored, .. } => Some(restored),
            _ => None,
        });
        assert_eq!(restored, wanted.map(Arc::from));
        assert!(same(index + 1), "connection {index}");
        assert_eq!(client.subscriptions().active, restored);
    }
}

/// Binance without its limits.
struct Unlimited;

impl ws_supervisor::venue::Venue for Unlimited {
    fn correlation(&self) -> ws_supervisor::Correlation {
        Binance::spot().correlation()
    }
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<ws_supervisor::venue::Batch> {
        Binance::spot().subscribe(channels)
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<ws_supervisor::venue::Batch> {
        Binance::spot().unsubscribe(channels)
    }
    fn acknowledges(&self, channel: &str, result: &Value) -> bool {
        Binance::spot().acknowledges(channel, result)
    }
}

#[test]
fn what_is_decided_without_a_connection_holds_on_the_next() {
    let streams: Arc<Mutex<Streams>> = Arc::default();
    let server = Server::start(binance(&streams)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).venue(Unlimited).request_timeout(ms(50)).subscribe(["a@x", "b@x"]);
    let client = supervisor.spawn_client(config).unwrap();
    next_open(&client);
    server.set_script(Script::refuse(503));
    server.cut();
    eventually("down", || client.ready_state() != ReadyState::Open);
    client.unsubscribe(["a@x"]).unwrap();
    match client.subscribe(["c@x"]) {
        Err(SubscribeError::Timeout { pending, .. }) => assert_eq!(pending, ["c@x".into()]),
        other => panic!("{other:?}"),
    }
    server.set_script(binance(&streams));
    assert_eq!(next_open(&client), 2);
    let last = server.accepts() - 1;
    assert_eq!(streams.lock().channels[last], BTreeSet::from(["b@x".to_owned(), "c@x".to_owned()]));
    // One who waits for a connection is told when there is none to come.
    server.set_script(Script::refuse(401));
    server.cut();
    eventually("parked", || client.ready_state() == ReadyState::Parked);
    assert_eq!(client.subscribe(["d@x"]), Err(SubscribeError::NotRunning(ReadyState::Parked)));
    server.set_script(binance(&streams));
    supervisor.resume_client(client.id()).unwrap();
    client.wait_until_open(LONG).unwrap();
    assert!(client.subscriptions().active.contains(&"d@x".into()), "what was asked for stands");
    client.close().unwrap();
    assert_eq!(client.subscribe(["e@x"]), Err(SubscribeError::NotRunning(ReadyState::Closed)));
}

/// One silent channel costs the others nothing: after a while the client opens, and says what is pending.
#[test]
fn a_channel_that_is_not_acknowledged_is_pending_on_an_open_connection() {
    let silent = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&silent).venue(Unlimited).subscribe(["a@x"]).connect_timeout(ms(50));
    let client = supervisor.spawn_client(config).unwrap();
    let (restored, pending) = next(&client, |event| match event {
        Event::Open { restored, pending, .. } => Some((restored, pending)),
        _ => None,
    });
    assert_eq!((restored.len(), pending), (0, vec!["a@x".into()]));
}

#[test]
fn a_handler_subscribes_and_is_told_of_refusals() {
    struct Picky(crossbeam_channel::Sender<String>);
    impl Handler for Picky {
        fn on_open(&mut self, context: &mut Context<'_>) {
            context.subscribe(["good@x", "bad"]).unwrap();
        }
        fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
            if context.subscriptions().active.contains(&"good@x".into()) {
                context.unsubscribe(["good@x"]).unwrap();
            }
        }
        fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
            if let Event::SubscriptionRefused(refusal) = event {
                self.0.send(format!("{} {}", refusal.channel, refusal.error.code)).unwrap();
            }
        }
    }
    let streams = Arc::default();
    let server = Server::start(binance(&streams)).unwrap();
    let (told, heard) = unbounded();
    let delivery = Delivery::inline(move || Picky(told.clone()));
    let client = Client::connect(config(&server).venue(Unlimited).delivery(delivery)).unwrap();
    assert_eq!(heard.recv_timeout(LONG).unwrap(), "bad 2");
    eventually("the good one came, and went again", || {
        server.push("tick");
        methods(&server, 0).contains(&"UNSUBSCRIBE".to_owned()) && client.subscriptions().active.is_empty()
    });
    assert!(streams.lock().channels[0].is_empty());
}

#[test]
fn a_connections_limit_is_kept_while_much_is_subscribed_to() {
    let streams: Arc<Mutex<Streams>> = Arc::default();
    let server = Server::start(binance(&streams)).unwrap();
    // 1,200 streams are 12 requests; 10 a second are allowed, and one of these is left to pings and pongs.
    let names: Vec<String> = (0..600).map(|n| format!("s{n}@trade")).collect();
    let client = Client::connect(config(&server).venue(Binance::futures()).subscribe(&names)).unwrap();
    let more: Vec<String> = (600..1200).map(|n| format!("s{n}@trade")).collect();
    client.subscribe(&more).unwrap();
    assert_eq!(streams.lock().channels[0].len(), 1200);
    let streams = streams.lock();
    let times = &streams.times[0];
    assert_eq!(times.len(), 12);
    for (index, from) in times.iter().enumerate() {
        let within = times[index..].iter().take_while(|at| **at < *from + Duration::from_secs(1)).count();
        assert!(within <= 10, "{within} in one second");
    }
}
