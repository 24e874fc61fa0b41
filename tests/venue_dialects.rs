//! Venues speak dialects: of refusals for the moment, of acknowledgements without ids, of heartbeats.
#![allow(missing_docs)]
mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, Plain, config, eventually, json_of, ms, next, next_text};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Classified, HeartbeatDialect, Venue};
use ws_supervisor::{
    Answer, Client, Correlation, DisconnectReason, Event, Heartbeat, Message, MessageRef, Request, StaleAction,
    Supervisor,
};

/// A server that refuses the first of so many requests in these words, and acknowledges the others.
fn refuses(first: usize, words: &'static str) -> Server {
    let asked = AtomicUsize::new(0);
    let answer = move |message: &Message| {
        let request = json_of(message);
        match asked.fetch_add(1, Ordering::SeqCst) < first {
            true => json!({"id": request["id"], "error": {"code": 30006, "message": words}}),
            false => json!({"id": request["id"], "result": request["params"]}),
        }
    };
    Server::start(Script::reply(move |_, message| vec![answer(message).to_string().into()])).unwrap()
}

#[test]
fn a_refusal_for_too_many_requests_is_for_the_moment_and_one_for_too_many_channels_is_not() {
    let channels = ["a", "b", "c"];
    for words in [
        "too many requests",
        "request too many",
        "Exceeded msg rate",
        "Requests too frequent",
        "Too many visits!",
        "rate limited",
        "Rate limit exceeded.",
        "MSG_RATE_EXCEEDED",
        "service busy, try again later",
    ] {
        let server = refuses(1, words);
        let client = Client::connect(config(&server).venue(Plain::default()).subscribe(channels)).unwrap();
        eventually(words, || client.subscriptions().active.len() == channels.len());
    }
    for words in ["too many channels", "Maximum number of subscriptions exceeded", "unknown channel"] {
        let server = refuses(usize::MAX, words);
        let client = Client::connect(config(&server).venue(Plain::default()).subscribe(channels)).unwrap();
        let refused = next(&client, |event| match event {
            Event::Open { refused, .. } => Some(refused.len()),
            _ => None,
        });
        assert_eq!((refused, client.subscriptions().active.len()), (channels.len(), 0), "{words}");
    }
}

/// As Coinbase: each request is acknowledged by the list of all channels, without an id.
struct WithoutIds;

impl Venue for WithoutIds {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::disabled()
    }

    fn correlation(&self) -> Correlation {
        let write = |_: &_, method: &str, params: Option<&str>| {
            Message::text(format!(r#"{{"type":"{method}","channels":{}}}"#, params.unwrap_or("[]")))
        };
        Correlation::new(write, |message| {
            let value: Value = serde_json::from_str(message.as_text()?).ok()?;
            let is_list = value["type"] == "subscriptions";
            is_list.then(|| Answer::result("subscriptions".into(), value["channels"].to_string()))
        })
    }

    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        let batch = |some| Batch::new(Request::new("subscribe", some).id("subscriptions"), some);
        channels.chunks(2).map(batch).collect()
    }

    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        vec![Batch::new(Request::new("unsubscribe", channels).id("subscriptions"), channels)]
    }
}

/// Twenty batches, one after the other under one id: a second of pause for each would take twenty.
#[test]
fn batches_under_one_id_follow_each_other_without_a_pause() {
    let all = Mutex::new(BTreeSet::<String>::new());
    let server = Server::start(Script::reply(move |_, message| {
        let request = json_of(message);
        let mut all = all.lock();
        all.extend(request["channels"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        vec![json!({"type": "subscriptions", "channels": *all}).to_string().into()]
    }))
    .unwrap();
    let channels: Vec<_> = (0..40).map(|n| format!("c{n}")).collect();
    let began = Instant::now();
    let client = Client::connect(config(&server).venue(WithoutIds).subscribe(&channels)).unwrap();
    eventually("each is acknowledged", || client.subscriptions().active.len() == 40);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(server.records()[0].received.len(), 20);
}

/// Bitfinex numbers its heartbeats, and a gap in the numbers is a lost message.
#[test]
fn the_messages_of_a_heartbeat_are_delivered_on_request_and_are_still_no_data() {
    let count = AtomicUsize::new(0);
    let beat = move |_: &_| vec![format!(r#"["hb",{}]"#, count.fetch_add(1, Ordering::SeqCst)).into()];
    let server = Server::start(Script::silent().every(ms(20), beat)).unwrap();
    let is_beat = |message: MessageRef<'_>| message.as_text().is_some_and(|text| text.contains("hb"));
    let heartbeat = Heartbeat::expect(LONG, is_beat).deliver_messages();
    let config = config(&server).heartbeat(heartbeat).stale_after(ms(300)).stale_action(StaleAction::Tell);
    let client = Client::connect(config).unwrap();
    let (mut beats, mut is_stale) = (0, false);
    next(&client, |event| {
        match event {
            Event::Message(message) if message.as_text() == Some(&format!(r#"["hb",{beats}]"#)) => beats += 1,
            Event::Message(other) => panic!("{other:?} after {beats}"),
            Event::Stale { .. } => is_stale = true,
            _ => {}
        }
        (beats > 5 && is_stale).then_some(())
    });
    assert!(client.heartbeat_health().last_received.is_some());
}

/// Asks to be pinged once, answers each ping, and loses the line when no ping comes.
struct PingMe;

impl HeartbeatDialect for PingMe {
    fn begin(&self, _: Duration) -> Option<Message> {
        Some("ping me".into())
    }

    fn classify(&self, message: MessageRef<'_>) -> Classified {
        match message.as_text() {
            Some("ping") => Classified::Alive { reply: Some("pong".into()) },
            Some("agreed") => Classified::Response { refused: None },
            _ => Classified::NotHeartbeat,
        }
    }
}

#[test]
fn a_venue_of_ones_own_has_the_heartbeat_that_deribits_is_made_of() {
    let pings = Arc::new(AtomicUsize::new(0));
    let sent = pings.clone();
    let script = Script::reply(move |_, message| match message.as_text() {
        Some("ping me") => vec!["agreed".into(), "data".into(), "ping".into()],
        Some("pong") if sent.fetch_add(1, Ordering::SeqCst) < 5 => vec!["ping".into()],
        _ => vec![],
    });
    let server = Server::start(script).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let heartbeat = Heartbeat::dialect(ms(200), PingMe);
    let client = supervisor.spawn_client(config(&server).heartbeat(heartbeat)).unwrap();
    assert_eq!(next_text(&client), "data", "the heartbeat's own messages are not delivered");
    eventually("each ping is answered", || pings.load(Ordering::SeqCst) == 6);
    let reason = next(&client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(reason, DisconnectReason::HeartbeatLost { .. }), "{reason}");
}
