//! Is the line alive, and does everybody get a turn: heartbeats beside slow handlers, slow lines, floods and pauses.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, frame, ms, next, raw, takes, to};
use crossbeam_channel::{Sender, bounded};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Venue};
use ws_supervisor::*;

/// Takes so long for each message.
struct Slow(Duration);

impl Handler for Slow {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        takes(self.0);
    }
}

#[test]
fn a_slow_handler_is_no_lost_heartbeat_while_the_signs_of_life_wait_unread() {
    for heartbeat in [Heartbeat::server_ping(ms(300)), Heartbeat::ping_pong(ms(300)).max_missed(1)] {
        let server = Server::start(Script::silent().ping_every(ms(20))).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let delivery = Delivery::inline(|| Slow(ms(700)));
        let client = supervisor.spawn_client(config(&server).heartbeat(heartbeat.clone()).delivery(delivery)).unwrap();
        client.wait_until_open(LONG).unwrap();
        takes(ms(350));
        server.push("busy");
        eventually("busy", || client.stats().received == 1);
        takes(ms(1_000));
        assert_eq!((client.epoch(), client.stats().restarts), (1, 0), "{heartbeat:?}");
    }
}

/// In the middle of a large message no pong can come, and yet bytes do all the time.
#[test]
fn a_large_message_on_a_slow_line_is_no_lost_heartbeat() {
    let of_ours = Heartbeat::message(ms(150), "ping", |message| message.as_text() == Some("pong"));
    for heartbeat in [Heartbeat::ping_pong(ms(150)), of_ours, Heartbeat::server_ping(ms(300))] {
        let feed = raw(|mut stream, _, answer| {
            stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
            std::thread::spawn(move || {
                let mut big = vec![0x81, 127];
                big.extend(500_000u64.to_be_bytes());
                big.resize(big.len() + 500_000, b'a');
                for part in big.chunks(10_000) {
                    takes(ms(20));
                    if stream.write_all(part).is_err() {
                        return;
                    }
                }
                takes(LONG);
            });
        });
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(to(feed).heartbeat(heartbeat.clone())).unwrap();
        let length = next(&client, |event| match event {
            Event::Message(message) => Some(Ok(message.len())),
            Event::Disconnected { reason, .. } => Some(Err(reason)),
            _ => None,
        });
        assert_eq!(length, Ok(500_000), "{heartbeat:?}");
    }
}

#[test]
fn a_queue_that_is_full_now_and_then_silences_no_heartbeat() {
    let server = Server::start(Script::silent().every(ms(2), |_| vec!["tick".into(); 8])).unwrap();
    let client = Client::connect(config(&server).event_capacity(4).heartbeat(Heartbeat::ping_pong(ms(30)))).unwrap();
    let begun = Instant::now();
    let mut pauses = 0;
    while begun.elapsed() < ms(900) {
        pauses += u32::from(client.stats().paused_for.is_some());
        takes(ms(6));
        client.events().try_iter().take(4).for_each(drop);
    }
    let pings = server.records()[0].pings;
    assert!(pauses > 5 && pings >= 10, "{pings} pings in 900 ms, one every 30; {pauses} pauses seen");
    assert_eq!(client.epoch(), 1);
}

#[test]
fn a_message_that_never_ends_captures_nobody() {
    for unit in [&[0x00, 0x00][..], &[0x00, 0x01, b'a']] {
        let endless = unit.repeat(1 << 20);
        let feed = raw(move |mut stream, _, answer| {
            stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
            let endless = endless.clone();
            std::thread::spawn(move || {
                let _ = stream.write_all(&[0x01, 0x00]);
                while stream.write_all(&endless).is_ok() {}
            });
        });
        let supervisor = Supervisor::start().unwrap();
        let config = to(feed).heartbeat(Heartbeat::disabled()).max_message_size(usize::MAX >> 1).close_timeout(LONG);
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        takes(ms(200));
        for n in 0..20 {
            client.send_confirmed(format!("cancel {n}"), LONG).unwrap();
        }
        let turn = client.stats().longest_turn;
        let closer = client.clone();
        let (closed, has_closed) = bounded(1);
        std::thread::spawn(move || closed.send(closer.close()).unwrap());
        eventually("a stop is heard", || client.ready_state() != ReadyState::Open);
        // The server never closes; its socket is shut when the time is up, or when this ends.
        drop((has_closed, turn));
        supervisor.shutdown(ms(50));
    }
}

#[test]
fn a_server_that_is_slow_to_answer_the_dial_is_no_stalled_handler() {
    let server = Server::scripted(|n| match n {
        0 => Script::silent(),
        _ => Script::silent().delay_upgrade(ms(400)),
    })
    .unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).stall_threshold(ms(150)).delivery(Delivery::inline(|| Slow(Duration::ZERO)));
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.cut();
    eventually("again", || client.epoch() == 2);
    let alerts = supervisor.events();
    let stalled = alerts.try_iter().filter(|event| matches!(event, SupervisorEvent::Stalled { .. })).count();
    assert_eq!((stalled, client.stats().stalls), (0, 0), "{:?}", client.stats().longest_turn);
}

#[test]
fn a_callers_send_waits_for_one_call_of_a_slow_handler_not_for_a_batch() {
    struct Counting(Arc<AtomicUsize>, Sender<()>);
    impl Handler for Counting {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
                self.1.send(()).unwrap();
            }
            takes(ms(5));
        }
    }
    let server = Server::start(Script::silent()).unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    let (busy, began) = bounded(1);
    let counts = handled.clone();
    let delivery = Delivery::inline(move || Counting(counts.clone(), busy.clone()));
    let client = Client::connect(config(&server).delivery(delivery)).unwrap();
    server.push_raw(&frame(1, b"tick").repeat(600));
    began.recv_timeout(LONG).unwrap();
    let before = handled.load(Ordering::SeqCst);
    client.send_confirmed("cancel everything", LONG).unwrap();
    let meanwhile = handled.load(Ordering::SeqCst) - before;
    assert!(meanwhile <= 3, "{meanwhile} messages were handled first");
}

/// Under each strategy: the socket is read though a timer is due whenever its handler returns.
#[test]
fn a_timer_that_is_always_due_does_not_keep_the_socket_from_being_read() {
    struct Restless(Arc<AtomicUsize>);
    impl Handler for Restless {
        fn on_open(&mut self, context: &mut Context<'_>) {
            context.schedule(context.now(), 1);
        }
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn on_timer(&mut self, context: &mut Context<'_>, _: u64) {
            takes(ms(2));
            context.schedule(context.now(), 1);
        }
    }
    for idle in [IdleStrategy::Park, IdleStrategy::BusySpin, IdleStrategy::Backoff { spins: 9, yields: 9 }] {
        let server = Server::start(Script::silent().every(ms(1), |_| vec!["tick".into()])).unwrap();
        let ticks = Arc::new(AtomicUsize::new(0));
        let counts = ticks.clone();
        let delivery = Delivery::inline(move || Restless(counts.clone()));
        let _client = Client::connect(config(&server).idle_strategy(idle).delivery(delivery)).unwrap();
        eventually("ticks", || ticks.load(Ordering::Relaxed) > 100);
    }
}

/// One channel a request; slow to say so, if told to.
struct OneByOne(Option<RateLimit>, Duration);

impl Venue for OneByOne {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::disabled()
    }
    fn rate_limits(&self) -> Vec<RateLimit> {
        self.0.iter().cloned().collect()
    }
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        takes(self.1);
        channels.chunks(1).map(|some| Batch::new(Request::new("subscribe", some), some)).collect()
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        channels.chunks(1).map(|some| Batch::new(Request::new("unsubscribe", some), some)).collect()
    }
}

fn acknowledges() -> Script {
    common::rpc(|_, params| Some(Ok(params.clone())))
}

#[test]
fn asking_for_many_channels_gives_way_to_reading() {
    let server = Server::start(acknowledges().every(ms(1), |_| vec!["tick".into()])).unwrap();
    let limit = RateLimit::bucket(1, 100, ms(1_000)).unwrap();
    let config = config(&server).venue(OneByOne(Some(limit), Duration::ZERO)).request_timeout(ms(1_500));
    let client = Client::connect(config.event_capacity(1 << 16)).unwrap();
    let names: Vec<String> = (0..4_000).map(|n| format!("ticker.BTC-{n}-C.100ms")).collect();
    let before = client.stats().received;
    let result = client.subscribe(&names);
    assert!(matches!(&result, Err(SubscribeError::Timeout { pending, .. }) if pending.len() > 3_000), "{result:?}");
    let (ticks, active) = (client.stats().received - before, client.subscriptions().active.len());
    assert!(ticks > 300 && active > 40, "{ticks} ticks, {active} channels");
}

fn slowly(time: Duration) -> Result<(), SessionError> {
    takes(time);
    Ok(())
}

#[test]
fn whatever_holds_up_a_turn_is_told_by_its_name() {
    let server = Server::start(acknowledges()).unwrap();
    let stalls = |config: ClientConfig| {
        let supervisor = Supervisor::start().unwrap();
        let alerts = supervisor.events();
        let client = supervisor.spawn_client(config.stall_threshold(ms(50))).unwrap();
        server.wait_until(LONG, |records| !records.is_empty());
        client.wait_until_open(LONG).unwrap();
        server.push("tick");
        let doing = alerts.iter().find_map(|event| match event {
            SupervisorEvent::Stalled { doing, .. } => Some(doing),
            _ => None,
        });
        eventually("counted", || client.stats().stalls > 0);
        assert!(client.stats().longest_turn > ms(50));
        doing.unwrap()
    };
    let slow = ms(200);
    assert_eq!(stalls(config(&server).delivery(Delivery::inline(move || Slow(slow)))), Doing::Handler);
    assert_eq!(stalls(config(&server).prepare(move |_| slowly(slow))), Doing::Prepare);
    assert_eq!(stalls(config(&server).on_open(move |_| slowly(slow))), Doing::OnOpen);
    assert_eq!(stalls(config(&server).venue(OneByOne(None, slow)).subscribe(["a"])), Doing::Upkeep);
}

#[test]
fn callbacks_that_overrun_their_time_open_nothing_and_are_named() {
    let server = Server::echo().unwrap();
    let short = || config(&server).connect_timeout(ms(100));
    let told = |config| Client::connect(config).unwrap_err().to_string();
    let prepare = told(short().prepare(|_| slowly(ms(250))));
    assert!(prepare.contains("timed out in `prepare`"), "{prepare}");
    let on_open = told(short().on_open(|_| slowly(ms(250))));
    assert!(on_open.contains("on_open"), "{on_open}");
}

/// Each answer would be kept for a peer that takes none.
#[test]
fn a_server_that_asks_for_answers_and_reads_none_costs_no_memory() {
    let feed = raw(|mut stream, _, answer| {
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        std::thread::spawn(move || {
            let block = frame(1, b"ping").repeat(10_000);
            (0..50).for_each(|_| drop(stream.write_all(&block)));
            takes(LONG);
        });
    });
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    let answers = Heartbeat::answer(LONG, |message| {
        (message.as_text() == Some("ping")).then(|| Message::text("pong".repeat(30)))
    });
    let client = Client::connect(to(feed).heartbeat(answers)).unwrap();
    eventually("all", || client.stats().received == 500_000);
    assert_eq!(client.stats().heartbeats, 500_000, "each is counted");
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes more");
}

#[test]
fn the_venues_pings_in_messages_are_answered_while_the_session_is_opened() {
    let script = common::rpc(|_, params| Some(Ok(params.clone())));
    let server = Server::start(script.greet(|_| vec!["Ping".into()])).unwrap();
    let limit = RateLimit::bucket(1, 1, ms(300)).unwrap();
    let pong = Heartbeat::answer(LONG, |message| (message.as_text() == Some("Ping")).then(|| "\"Pong\"".into()));
    let config = config(&server).venue(OneByOne(Some(limit), Duration::ZERO)).subscribe(["a", "b", "c"]);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config.heartbeat(pong)).unwrap();
    server.wait_for_message(|message| message.as_text() == Some("\"Pong\""));
    assert_ne!(client.ready_state(), ReadyState::Open, "before it is open");
}
