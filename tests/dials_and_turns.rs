//! Which address is dialled, what a dial may say, and what a turn of the loop may take.
#![allow(missing_docs)]

mod common;
use common::{LONG, config, eventually, frame, ms, raw, takes, to};
use std::any::Any;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

#[test]
fn the_third_address_is_tried_when_the_first_two_do_not_serve() {
    let a = Server::start(Script::refuse(500)).unwrap();
    let b = Server::start(Script::refuse(500)).unwrap();
    let c = Server::echo().unwrap();
    let addresses = vec![a.address(), b.address(), c.address()];
    let config = ClientConfig::new("ws://venue.example/")
        .unwrap()
        .backoff(ms(5), ms(20))
        .max_retries(u32::MAX)
        .resolver(move |_, _| Ok(addresses.clone()));
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    let opened = client.wait_until_open(Duration::from_secs(4));
    panic_unless(opened.is_ok(), format!("a {} b {} c {}", a.accepts(), b.accepts(), c.accepts()));
}
fn panic_unless(ok: bool, text: String) {
    assert!(ok, "{text}");
}

#[test]
fn an_address_that_upgrades_and_then_never_opens_a_session_is_left_for_the_second() {
    let mute = Server::start(Script::silent()).unwrap();
    let good = Server::start(Script::silent().greet(|_| vec!["hello".into()])).unwrap();
    let addresses = vec![mute.address(), good.address()];
    let config = ClientConfig::new("ws://venue.example/")
        .unwrap()
        .backoff(ms(5), ms(20))
        .max_retries(u32::MAX)
        .connect_timeout(ms(200))
        .on_open(|s| s.recv_until(|m| m.as_text() == Some("hello")).map(drop))
        .resolver(move |_, _| Ok(addresses.clone()));
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    let opened = client.wait_until_open(Duration::from_secs(4));
    panic_unless(opened.is_ok(), format!("mute {} good {}", mute.accepts(), good.accepts()));
}

#[test]
fn pings_that_came_while_on_open_worked_are_life() {
    let server = Server::start(
        Script::silent()
            .ping_every(ms(50))
            .greet(|_| vec!["one".into()])
            .every(ms(100), |_| vec![Message::from("tick 2")]),
    )
    .unwrap();
    let config = config(&server)
        .heartbeat(Heartbeat::server_ping(ms(600)))
        .connect_timeout(Duration::from_secs(10))
        .on_open(|s| {
            s.recv_until(|m| m.as_text() == Some("one"))?;
            takes(ms(1200)); // signs, asks a REST endpoint
            s.recv_until(|m| m.as_text().is_some_and(|t| t.starts_with("tick"))).map(drop)?;
            s.recv_until(|m| m.as_text().is_some_and(|t| t.starts_with("tick 2"))).map(drop)
        });
    let client = Client::connect(config);
    client.map_err(|e| panic!("{e}")).unwrap();
}

#[test]
fn pings_that_came_while_reconcile_or_on_open_worked_without_ticks() {
    let server = Server::start(Script::silent().ping_every(ms(50)).greet(|_| vec!["one".into()])).unwrap();
    let s2 = Arc::new(server);
    let s3 = s2.clone();
    let config = config(&s2)
        .heartbeat(Heartbeat::server_ping(ms(600)))
        .connect_timeout(Duration::from_secs(10))
        .on_open(move |s| {
            s.recv_until(|m| m.as_text() == Some("one"))?;
            takes(ms(1200));
            let s3 = s3.clone();
            std::thread::spawn(move || {
                takes(ms(300));
                s3.push("two");
            });
            s.recv_until(|m| m.as_text() == Some("two")).map(drop)
        });
    Client::connect(config).map_err(|e| panic!("{e}")).unwrap();
}

struct Teller(Arc<std::sync::OnceLock<Client>>, Arc<AtomicUsize>);
impl Handler for Teller {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
    fn on_command(&mut self, _: &mut Context<'_>, _: Box<dyn Any + Send>) {
        takes(ms(1));
        let _ = self.0.get().unwrap().tell(());
    }
}
#[test]
fn a_handler_that_tells_itself_does_not_keep_the_socket_from_being_read() {
    let server = Server::start(Script::silent().every(ms(10), |_| vec![Message::from("t")])).unwrap();
    let (cell, seen) = (Arc::new(std::sync::OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let (c, s) = (cell.clone(), seen.clone());
    let supervisor = Supervisor::builder().shutdown_grace(ms(500)).start().unwrap();
    let client = supervisor
        .spawn_client(config(&server).delivery(Delivery::inline(move || Teller(c.clone(), s.clone()))))
        .unwrap();
    client.wait_until_open(LONG).unwrap();
    let _ = cell.set(client.clone());
    takes(ms(100));
    client.tell(()).unwrap();
    takes(ms(100));
    let before = seen.load(Ordering::Relaxed);
    takes(ms(2000));
    let after = seen.load(Ordering::Relaxed);
    let stopped = supervisor.stop_client(client.id());
    assert!(after > before + 20, "{before} -> {after}; stop: {stopped:?}");
}

#[test]
fn forty_interim_answers_are_passed_over() {
    let server = raw(|mut stream, _, answer| {
        for _ in 0..40 {
            stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").unwrap();
        }
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        std::mem::forget(stream);
    });
    Client::connect(to(server)).unwrap();
}

/// The handler's timers, told values and messages: a turn that is not bounded never meets `stop` either.
#[test]
fn a_stop_ends_a_turn_of_timers_in_time() {
    struct Timers;
    impl Handler for Timers {
        fn on_open(&mut self, context: &mut Context<'_>) {
            for n in 0..3000 {
                context.schedule(Instant::now() + ms(100), n);
            }
        }
        fn on_timer(&mut self, _: &mut Context<'_>, _: u64) {
            std::thread::sleep(ms(1));
        }
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    }
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::builder().shutdown_grace(ms(500)).start().unwrap();
    let client =
        supervisor.spawn_client(config(&server).close_timeout(ms(800)).delivery(Delivery::inline(|| Timers))).unwrap();
    client.wait_until_open(LONG).unwrap();
    takes(ms(300));
    assert_eq!(supervisor.stop_client(client.id()), Ok(()));
}
#[test]
fn words_of_the_server_in_errors_stay_on_their_line() {
    let server = Server::start(Script::reply(|_, m| {
        let id = m.as_text().unwrap().split("\"id\":").nth(1).unwrap().split([',', '}']).next().unwrap().to_owned();
        vec![Message::text(format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":1,"message":"no\nERROR forged line","data":"x\ny"}}}}"#
        ))]
    }))
    .unwrap();
    let Err(error) = Client::connect(config(&server).on_open(|s| s.request::<serde_json::Value>("auth", ()).map(drop)))
    else {
        panic!()
    };
    assert!(!error.to_string().contains('\n'), "{error}");
}

/// The server always has more to say, and wants to hear something too.
#[test]
fn our_heartbeats_go_out_while_on_open_is_flooded() {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    let server = raw(move |mut stream, _, answer| {
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        let (mut reader, count) = (stream.try_clone().unwrap(), count.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut bytes) {
                count.fetch_add(read, Ordering::Relaxed);
            }
        });
        let many = frame(1, b"tick").repeat(2000);
        while stream.write_all(&many).is_ok() {}
    });
    let heartbeat = Heartbeat::message(ms(20), "ping", |_| false).max_missed(10_000);
    // A client's frame of four bytes takes ten.
    let some = move || heard.load(Ordering::Relaxed) >= 50;
    let config = to(server).overflow(Overflow::DropOldest).heartbeat(heartbeat).connect_timeout(LONG);
    Client::connect(config.on_open(move |session| session.recv_until(|_| some()).map(drop))).unwrap();
}

/// Takes its time for whatever it hears, and asks a thousand questions when it is told to.
struct Ponders {
    heard: Arc<AtomicUsize>,
}

impl Ponders {
    fn delivery() -> (Arc<AtomicUsize>, Delivery) {
        let heard = Arc::new(AtomicUsize::new(0));
        let counts = heard.clone();
        (heard, Delivery::inline(move || Ponders { heard: counts.clone() }))
    }

    fn ponders(&self) {
        takes(ms(2));
        self.heard.fetch_add(1, Ordering::Relaxed);
    }
}

impl Handler for Ponders {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if message.as_text() == Some("ask") {
            return (0..1_000).for_each(|_| drop(context.request(Request::new("order", ()).timeout(ms(50))).unwrap()));
        }
        self.ponders();
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Response(_) = event {
            self.ponders();
        }
    }
}

#[test]
fn a_cancel_does_not_wait_until_a_slow_handler_was_told_of_a_thousand_timeouts() {
    let server = Server::start(Script::silent().greet(|_| vec!["ask".into()])).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (heard, delivery) = Ponders::delivery();
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    eventually("the first is told", || heard.load(Ordering::Relaxed) > 0);
    client.send("cancel").unwrap();
    server.wait_for_message(|message| message.as_text() == Some("cancel"));
    let so_far = heard.load(Ordering::Relaxed);
    assert!(so_far < 900, "{so_far}");
    server.push("a message");
    eventually("all is told", || heard.load(Ordering::Relaxed) == 1_001);
}

#[test]
fn a_stop_is_in_time_however_much_a_slow_handler_has_yet_to_hear() {
    const MANY: usize = 5_000;
    let greeting = || (0..MANY).map(|n| n.to_string().into()).collect::<Vec<Message>>();
    // Read while the session is opened, and delivered then; or read when the line has broken.
    for held in [true, false] {
        let server = Server::start(Script::silent().greet(move |_| greeting())).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let (heard, delivery) = Ponders::delivery();
        let slow = config(&server).heartbeat(Heartbeat::disabled()).close_timeout(Duration::from_secs(2));
        let slow = slow.delivery(delivery).on_open(move |session| {
            if held {
                session.recv_until(|message| message.as_text() == Some("4999"))?;
            }
            Ok(())
        });
        let client = supervisor.spawn_client(slow).unwrap();
        eventually("it hears", || heard.load(Ordering::Relaxed) > 0);
        if !held {
            assert!(server.wait_until(LONG, |records| records[0].served == MANY as u64));
            server.cut();
        }
        assert_eq!(supervisor.stop_client(client.id()), Ok(()), "held: {held}");
        let (heard, stats) = (heard.load(Ordering::Relaxed), client.stats());
        assert!(heard < MANY);
        assert!(!held || heard as u64 + stats.dropped + 1 == MANY as u64, "{heard} heard, {stats:?}");
    }
}
