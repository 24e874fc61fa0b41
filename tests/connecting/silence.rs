//! Feeds that fall silent on a line that is alive.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Venue};
use ws_supervisor::*;

use crate::common::{LONG, config, eventually, ms, next, next_open};

const SILENCE: Duration = Duration::from_millis(300);

/// One tick, and then only pings and answers to ours.
fn mute_feed() -> Server {
    Server::start(Script::silent().greet(|_| vec!["tick".into()]).ping_every(ms(20))).unwrap()
}

fn watched(server: &Server) -> ClientConfig {
    config(server).heartbeat(Heartbeat::ping_pong(ms(50))).stale_after(SILENCE)
}

struct Deaf;

impl Handler for Deaf {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
}

#[test]
fn a_mute_feed_with_pongs_is_noticed_on_a_channel_and_by_a_handler() {
    for inline in [false, true] {
        let server = mute_feed();
        let delivery = if inline { Delivery::inline(|| Deaf) } else { Delivery::channel() };
        let supervisor = Supervisor::start().unwrap();
        let begun = Instant::now();
        let client = supervisor.spawn_client(watched(&server).delivery(delivery)).unwrap();
        eventually("connections follow one another", || server.accepts() >= 3);
        assert!(begun.elapsed() >= 2 * SILENCE, "{:?}", begun.elapsed());
        if !inline {
            let reason = next(&client, |event| match event {
                Event::Disconnected { reason, .. } => Some(reason),
                _ => None,
            });
            let DisconnectReason::Stale { channel: None, silent_for, .. } = reason else { panic!("{reason}") };
            assert!(silent_for >= SILENCE, "{silent_for:?}");
        }
        // In good order: the server is told that we go.
        eventually("a close frame", || server.records()[0].close_code == Some(1000));
    }
}

#[test]
fn where_it_is_only_told_the_connection_stays() {
    let server = mute_feed();
    let client = Client::connect(watched(&server).stale_action(StaleAction::Tell)).unwrap();
    let told = |client: &Client| {
        next(client, |event| match event {
            Event::Stale { channel: None, silent_for, .. } => Some(silent_for),
            _ => None,
        })
    };
    assert!(told(&client) >= SILENCE);
    server.push("tick");
    assert!(told(&client) >= SILENCE, "again, after another silence");
    assert_eq!((client.epoch(), server.accepts()), (1, 1));
}

#[test]
fn a_feed_that_is_slow_but_flows_is_never_stale_nor_one_that_its_reader_holds_up() {
    let slow = Server::start(Script::silent().every(ms(100), |_| vec!["tick".into()])).unwrap();
    let client = Client::connect(watched(&slow).stale_after(ms(2_000)).overflow(Overflow::DropNewest)).unwrap();
    let flood = Server::start(Script::silent().every(ms(1), |_| vec!["x".repeat(10_000).into()])).unwrap();
    let held_up = Client::connect(watched(&flood).event_capacity(2)).unwrap();
    eventually("its reading is paused", || held_up.stats().paused_for.is_some_and(|time| time > 4 * SILENCE));
    eventually("many ticks", || client.stats().received > 40);
    assert_eq!((client.epoch(), held_up.epoch()), (1, 1));
    // What lay behind is read, and counts from then on.
    for _ in 0..2_000 {
        held_up.events().recv_timeout(LONG).unwrap();
    }
    assert_eq!(held_up.epoch(), 1);
}

#[test]
fn outside_of_its_hours_a_market_may_be_silent() {
    let server = mute_feed();
    let open = Arc::new(AtomicBool::new(false));
    let hours = open.clone();
    let config = watched(&server).stale_while(move || hours.load(Ordering::Relaxed));
    let client = Client::connect(config).unwrap();
    let begun = Instant::now();
    eventually("some time", || begun.elapsed() > 4 * SILENCE);
    assert_eq!(client.epoch(), 1);
    open.store(true, Ordering::Relaxed);
    eventually("it is noticed", || client.epoch() > 1);
}

/// Channels are the first word of a message.
struct Words;

impl Venue for Words {
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        vec![Batch::new(Request::new("subscribe", channels), channels)]
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        vec![Batch::new(Request::new("unsubscribe", channels), channels)]
    }
    fn names_channels(&self) -> bool {
        true
    }
    fn channel_of<'m>(&self, message: MessageRef<'m>) -> Option<Cow<'m, str>> {
        message.as_text()?.split_whitespace().next().map(Into::into)
    }
}

#[test]
fn one_channel_that_falls_silent_among_others_is_named() {
    let script = crate::common::rpc(|_, params| Some(Ok(params.clone()))).every(ms(20), |_| vec!["busy 1".into()]);
    let server = Server::start(script).unwrap();
    let config = config(&server).venue(Words).subscribe(["busy", "mute"]).stale_action(StaleAction::Tell);
    let client = Client::connect(config.stale_channel_after(ms(1_500))).unwrap();
    assert_eq!(next_open(&client), 1);
    let named = next(&client, |event| match event {
        Event::Stale { channel: Some(channel), .. } => Some(channel),
        _ => None,
    });
    assert_eq!(&*named, "mute");
}

#[test]
fn several_heartbeats_run_at_once_and_the_first_to_lose_patience_ends_it() {
    // The venue answers our pings, and says nothing by itself.
    let server = Server::start(Script::silent()).unwrap();
    let beats = |message: MessageRef<'_>| message == "beat";
    let both = Heartbeat::ping_pong(ms(20)).and(Heartbeat::expect(SILENCE, beats));
    let client = Client::connect(config(&server).heartbeat(both.clone())).unwrap();
    let lost = |client: &Client| {
        next(client, |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        })
    };
    assert_eq!(lost(&client), DisconnectReason::HeartbeatLost { missed: 1 });
    let lively = Server::start(Script::silent().every(ms(50), |_| vec!["beat".into()])).unwrap();
    let client = Client::connect(config(&lively).heartbeat(both)).unwrap();
    eventually("both are heard", || client.stats().heartbeats > 20);
    assert_eq!((client.epoch(), client.heartbeat_health().kind), (1, HeartbeatKind::PingPong));
}

#[test]
fn a_heartbeats_payload_is_made_anew_each_time() {
    let server =
        Server::start(Script::reply(|_, message| vec![message.as_text().unwrap().replace("ping", "pong").into()]))
            .unwrap();
    let heartbeat = Heartbeat::message_with(
        ms(10),
        |n| Message::text(format!("ping {n}")),
        |message| message.as_text().is_some_and(|text| text.starts_with("pong")),
    );
    let client = Client::connect(config(&server).heartbeat(heartbeat)).unwrap();
    eventually("three of them", || client.stats().heartbeats >= 3);
    let received = server.records()[0].received.clone();
    for (n, message) in (1..4).zip(received) {
        assert_eq!(message.as_text().unwrap(), format!("ping {n}"));
    }
}

#[test]
fn a_large_message_on_a_slow_line_is_no_silence() {
    // A frame of 60,000 bytes, a thousandth of it at a time.
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(watched(&server).heartbeat(Heartbeat::disabled())).unwrap();
    let mut frame = vec![0x82, 126, 0xea, 0x60];
    frame.resize(4 + 60_000, b'x');
    for part in frame.chunks(2_000) {
        server.push_raw(part);
        crate::common::takes(SILENCE / 6);
    }
    eventually("it has come", || client.stats().received == 1);
    assert_eq!(client.epoch(), 1);
}

#[test]
fn two_heartbeats_may_wait_for_the_same_message() {
    let server = Server::start(Script::silent().every(ms(30), |_| vec!["beat".into()])).unwrap();
    let expects = || Heartbeat::expect(2 * SILENCE, |message: MessageRef<'_>| message == "beat");
    let client = Client::connect(config(&server).heartbeat(expects().and(expects()))).unwrap();
    eventually("many are heard", || client.stats().heartbeats > 60);
    assert_eq!(client.epoch(), 1);
}
