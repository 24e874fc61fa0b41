//! Over a limit nothing is sent, heartbeats never wait, and an account's clients share what it has.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, json_of, methods, ms, next, next_open, rpc};
use crossbeam_channel::bounded;
use parking_lot::Mutex;
use serde_json::json;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, Context, Correlation, Delivery, Event, Handler, Heartbeat, Message, MessageRef, RateLimit, Request,
    RequestError, RequestId, SendError, Supervisor,
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn over_the_limit_is_an_error_that_says_when_to_come_back() {
    let server = Server::start(rpc(|_, _| Some(Ok(json!(1))))).unwrap();
    let limit = RateLimit::bucket(2, 1, HOUR).unwrap();
    let client = Client::connect(config(&server).rate_limit(limit)).unwrap();
    client.send(r#"{"method":"a"}"#).unwrap();
    client.request::<u32>("b", ()).unwrap();
    match client.send(r#"{"method":"c"}"#).unwrap_err() {
        SendError::RateLimited { message, retry_after, .. } => {
            assert_eq!(message.as_text(), Some(r#"{"method":"c"}"#));
            assert!(retry_after > HOUR / 2 && retry_after <= HOUR, "{retry_after:?}");
        }
        other => panic!("{other}"),
    }
    match client.request::<u32>("d", ()) {
        Err(RequestError::Refused(SendError::RateLimited { .. })) => {}
        other => panic!("{other:?}"),
    }
    // One who would wait is told at once that it would be too long.
    let begun = Instant::now();
    assert!(client.send_when_allowed(r#"{"method":"e"}"#, LONG).is_err());
    assert!(client.call::<u32>(Request::new("f", ()).wait_for_limit(LONG)).is_err());
    assert!(begun.elapsed() < LONG);
    let confirmed = client.send_confirmed(r#"{"method":"g"}"#, LONG).unwrap_err();
    assert!(confirmed.to_string().contains("over the rate limit"), "{confirmed}");
    assert_eq!(client.stats().pending_requests, 0);
    assert_eq!(methods(&server, 0), ["a", "b"]);
}

#[test]
fn what_can_never_pass_is_refused_for_good() {
    let server = Server::start(Script::silent()).unwrap();
    let limit = RateLimit::bucket(10, 10, HOUR).unwrap().cost(|message| message.len() as u32);
    let config = config(&server).rate_limit(limit).queue_while_disconnected(1);
    let client = Client::connect(config.clone()).unwrap();
    match client.send("more than ten").unwrap_err() {
        SendError::TooCostly { cost: 13, capacity: 10, .. } => {}
        other => panic!("{other}"),
    }
    client.send("ten bytes!").unwrap();
    let in_session = config.on_open(|session| session.send("more than ten"));
    let refused = Client::connect(in_session).unwrap_err();
    assert!(refused.to_string().contains("never gives more than 10"), "{refused}");
}

#[test]
fn heartbeats_and_answers_to_tests_never_wait() {
    let test = r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#;
    let server = Server::start(Script::silent().every(ms(5), move |_| vec![test.into()]).ping_every(ms(5))).unwrap();
    let limit = RateLimit::bucket(1, 1, HOUR).unwrap();
    let heartbeat = Heartbeat::deribit(Duration::from_secs(10));
    let client = Client::connect(config(&server).rate_limit(limit).heartbeat(heartbeat)).unwrap();
    // They count, though: what they took is gone.
    assert!(client.send("x").is_err());
    assert!(server.wait_until(LONG, |records| records[0].received.len() > 10 && records[0].pongs > 10));
}

#[test]
fn what_waited_for_a_connection_is_let_out_at_the_limits_pace() {
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = times.clone();
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::bucket(3, 1, ms(30)).unwrap();
    let config = config(&server).rate_limit(limit).queue_while_disconnected(100).heartbeat(Heartbeat::disabled());
    let client = supervisor.spawn_client(config).unwrap();
    (0..10).for_each(|n| client.send(n.to_string()).unwrap());
    server.set_script(Script::reply(move |_, _| {
        seen.lock().push(Instant::now());
        vec![]
    }));
    eventually("all out", || times.lock().len() == 10);
    let times = times.lock();
    // Three at once, then one in 30 ms: seven of them, less what is late on a busy machine.
    assert!(times[9] - times[0] > ms(30) * 5, "{:?}", times[9] - times[0]);
    let all: Vec<_> =
        server.records().pop().unwrap().received.iter().map(|m| m.as_text().unwrap().to_owned()).collect();
    assert_eq!(all, (0..10).map(|n| n.to_string()).collect::<Vec<_>>(), "in order");
}

#[test]
fn a_hundred_clients_of_one_account_never_exceed_its_limit() {
    const LIMIT: u32 = 20;
    const WINDOW: Duration = Duration::from_secs(2);
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = times.clone();
    let server = Server::start(Script::reply(move |_, message| {
        if json_of(message)["method"] != "login" {
            seen.lock().push(Instant::now());
        }
        vec![]
    }))
    .unwrap();
    let supervisor = Supervisor::start().unwrap();
    let account = RateLimit::window(LIMIT, WINDOW).unwrap();
    let clients: Vec<Client> = (0..100)
        .map(|n| {
            let config = config(&server).name(format!("{n}")).many_clients().rate_limit(account.clone());
            supervisor.spawn_client(config).unwrap()
        })
        .collect();
    assert!(clients.iter().all(|client| next_open(client) == 1));
    let end = Instant::now() + WINDOW * 3;
    std::thread::scope(|scope| {
        for some in clients.chunks(25) {
            scope.spawn(move || {
                while Instant::now() < end {
                    for client in some {
                        match client.send(r#"{"method":"x"}"#) {
                            Ok(()) | Err(SendError::RateLimited { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    std::thread::park_timeout(ms(1));
                }
            });
        }
    });
    let sent: u64 = clients.iter().map(|client| client.stats().sent).sum();
    assert!(server.wait_until(LONG, |_| times.lock().len() as u64 == sent));
    let mut times = times.lock().clone();
    times.sort();
    for (index, from) in times.iter().enumerate() {
        let within = times[index..].iter().take_while(|at| **at < *from + WINDOW).count();
        assert!(within <= LIMIT as usize, "{within} in one window");
    }
    // And it is used: three windows' worth, less what the spreading of the burst costs.
    assert!(sent > u64::from(LIMIT) * 2, "{sent}");
}

#[test]
fn a_handler_meets_the_same_limit() {
    struct Eager(crossbeam_channel::Sender<(bool, bool)>);
    impl Handler for Eager {
        fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
            let sent = context.send("a").is_ok();
            let asked = context.request(Request::new("b", ()));
            let limited = matches!(asked, Err(RequestError::Refused(SendError::RateLimited { .. })));
            self.0.send((sent, limited)).unwrap();
        }
    }
    let server = Server::start(Script::silent()).unwrap();
    let (told, heard) = crossbeam_channel::unbounded();
    let limit = RateLimit::bucket(1, 1, HOUR).unwrap();
    let config = config(&server).rate_limit(limit).delivery(Delivery::inline(move || Eager(told.clone())));
    let client = Client::connect(config).unwrap();
    server.push("tick");
    assert_eq!(heard.recv_timeout(LONG), Ok((true, true)));
    assert_eq!(client.stats().pending_requests, 0);
}

#[test]
fn what_comes_back_unsent_gets_its_tokens_back() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::bucket(20, 1, HOUR).unwrap();
    let client = supervisor.spawn_client(config(&server).heartbeat(Heartbeat::disabled()).rate_limit(limit)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.deafen(true);
    // More than the two kernels take.
    (0..20).for_each(|_| client.send(Message::binary(vec![0; 1 << 20])).unwrap());
    assert!(matches!(client.send("one too many"), Err(SendError::RateLimited { .. })));
    server.reset();
    let unsent = next(&client, |event| match event {
        Event::Disconnected { unsent, .. } => Some(unsent.len()),
        _ => None,
    });
    client.wait_until_open(LONG).unwrap();
    let again = (0..20).take_while(|n| client.send(n.to_string()).is_ok()).count();
    assert!(unsent > 0 && again == unsent, "{unsent} came back, {again} may be sent");
}

/// Half of it went over the connection before, which the venue knows nothing of.
#[test]
fn what_is_written_anew_on_the_next_connection_pays_its_limit_there() {
    let script = |connection| if connection == 0 { Script::silent().then_deaf() } else { Script::silent() };
    let server = Server::scripted(script).unwrap();
    server.pause();
    let supervisor = Supervisor::start().unwrap();
    let one = RateLimit::bucket(1, 1, HOUR).unwrap().per_connection();
    let queues = config(&server).rate_limit(one).send_bytes(200 << 20).heartbeat(Heartbeat::disabled());
    let client = supervisor.spawn_client(queues.queue_while_disconnected(10)).unwrap();
    (0..3).for_each(|n| client.send(format!("{n}{}", "x".repeat(14 << 20))).unwrap());
    server.resume().unwrap();
    assert_eq!(next_open(&client), 1);
    assert_eq!(client.stats().sent, 0, "the first is half written at most");
    server.reset();
    assert_eq!(next_open(&client), 2);
    eventually("the first", || client.stats().sent == 1);
    // The others would follow at once.
    client.close().unwrap();
    assert_eq!(client.stats().sent, 1, "the venue allows one a connection");
}

/// It pays before it is written, and the connection may be another by then.
#[test]
fn what_a_request_paid_on_one_connection_is_not_good_for_the_next() {
    let server = Server::start(Script::silent()).unwrap();
    let ((entered, was_entered), (go, gone)) = (bounded(1), bounded::<()>(1));
    let first = AtomicBool::new(true);
    let write = move |_: &RequestId, _: &str, _: Option<&str>| {
        if first.swap(false, Ordering::Relaxed) {
            entered.send(()).unwrap();
            gone.recv().unwrap();
        }
        Message::text("request")
    };
    let one = RateLimit::bucket(1, 1, HOUR).unwrap().per_connection();
    let slow = config(&server).rate_limit(one).correlation(Correlation::new(write, |_| None));
    let client = Client::connect(slow.heartbeat(Heartbeat::disabled())).unwrap();
    std::thread::scope(|scope| {
        let posted = scope.spawn(|| client.post(Request::new("order", ())));
        was_entered.recv_timeout(LONG).unwrap();
        server.cut();
        eventually("the next connection", || client.epoch() == 2);
        client.wait_until_open(LONG).unwrap();
        client.send("the one that it may carry").unwrap();
        go.send(()).unwrap();
        let refused = posted.join().unwrap();
        assert!(matches!(refused, Err(RequestError::Refused(SendError::RateLimited { .. }))), "{refused:?}");
    });
    client.close().unwrap();
    assert!(server.records().iter().all(|record| record.received.len() <= 1));
}
