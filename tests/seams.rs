//! Where one phase of a connection ends and the next begins: what is promised while it opens and while it closes.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LONG, Plain, config, methods, ms, next_text, rpc, takes, wait_for_state};
use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// A server of one connection, which may say what no rule-abiding one says.
fn raw(serve: impl FnOnce(tungstenite::WebSocket<TcpStream>) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || serve(tungstenite::accept(listener.accept().unwrap().0).unwrap()));
    url
}

/// A text frame, beneath the framing: a server of its own may speak between our close frame and its own.
fn say(server: &mut tungstenite::WebSocket<TcpStream>, text: &str) {
    server.get_mut().write_all(&[&[0x81, text.len() as u8], text.as_bytes()].concat()).unwrap();
}

#[test]
fn a_callback_that_takes_long_loses_no_heartbeat_that_came_meanwhile() {
    let server = Server::start(Script::silent().ping_every(ms(20))).unwrap();
    let config = config(&server).heartbeat(Heartbeat::server_ping(ms(200))).on_open(|session| {
        session.send("hello")?;
        takes(ms(400));
        Ok(())
    });
    Client::connect(config).unwrap();
}

#[test]
fn a_flood_while_channels_are_restored_holds_up_no_deadline() {
    let url = raw(|mut server| {
        let block = [&[0x81_u8, 2][..], b"{}"].concat().repeat(16_384);
        let begun = Instant::now();
        while begun.elapsed() < LONG && server.get_mut().write_all(&block).is_ok() {}
    });
    let config = ClientConfig::new(url).unwrap().venue(Plain::default()).subscribe(["a"]);
    let config = config.overflow(Overflow::DropNewest).event_capacity(64).connect_timeout(ms(300));
    let begun = Instant::now();
    let client = Client::connect(config).unwrap();
    assert!(begun.elapsed() < LONG / 3);
    let pending = common::next(&client, |event| match event {
        Event::Open { pending, .. } => Some(pending),
        _ => None,
    });
    assert_eq!(pending, ["a".into()]);
}

#[test]
fn a_restore_asks_once_however_slow_the_venue_is() {
    let server = Server::start(rpc(|_, _| Some(Ok(serde_json::json!(["a"])))).delay_replies(ms(450))).unwrap();
    let config = config(&server).venue(Plain::default()).subscribe(["a"]).request_timeout(ms(100));
    let client = Client::connect(config).unwrap();
    assert_eq!(client.subscriptions().active.len(), 1);
    assert_eq!(methods(&server, 0), ["subscribe"]);
}

#[test]
fn subscriptions_neither_overtake_the_queue_nor_leave_together_with_it() {
    let arrivals = Arc::new(Mutex::new(vec![]));
    let seen = arrivals.clone();
    let script = Script::reply(move |_, message| {
        seen.lock().push((Instant::now(), message.as_text().unwrap().starts_with('q')));
        vec![]
    });
    let server = Server::start(script).unwrap();
    server.pause();
    let supervisor = Supervisor::start().unwrap();
    // Each of the queued takes the whole bucket.
    let limit = RateLimit::bucket(4, 1, ms(50)).unwrap();
    let limit = limit.cost(|message| if message.as_text().unwrap().starts_with('q') { 4 } else { 1 });
    let venue = Plain { one_by_one: true, ..Plain::default() };
    let config = config(&server).venue(venue).rate_limit(limit).queue_while_disconnected(20);
    let client = supervisor.spawn_client(config.request_timeout(ms(100))).unwrap();
    (0..3).for_each(|n| client.send(format!("q{n}")).unwrap());
    server.resume().unwrap();
    client.wait_until_open(LONG).unwrap();
    let channels: Vec<_> = (0..8).map(|n| n.to_string()).collect();
    assert!(client.subscribe(&channels).is_err(), "nobody answers");
    common::eventually("all have come", || arrivals.lock().len() >= 11);
    let arrivals = arrivals.lock();
    let queued = arrivals.iter().rposition(|(_, queued)| *queued).unwrap();
    assert_eq!(queued, 2, "the queue goes first");
    // Eight tokens come in 400 ms; all at once they would be there in one.
    assert!(arrivals[10].0 - arrivals[2].0 > ms(150), "{:?}", arrivals[10].0 - arrivals[2].0);
}

#[test]
fn an_answer_that_comes_late_in_a_close_still_counts_after_others_ran_out_of_time() {
    let url = raw(|mut server| {
        (0..4).for_each(|_| while !server.read().unwrap().is_text() {});
        takes(ms(900));
        say(&mut server, r#"{"jsonrpc":"2.0","id":4,"result":"filled"}"#);
        takes(ms(100));
    });
    let config = ClientConfig::new(url).unwrap().heartbeat(Heartbeat::ping_pong(ms(100))).close_timeout(LONG);
    let client = Client::connect(config).unwrap();
    let ask = |id: u64, time| client.start_request(Request::new("a", ()).id(id).timeout(time)).unwrap();
    let _others: Vec<_> = [200, 350, 500].iter().zip(1..).map(|(time, id)| ask(id, ms(*time))).collect();
    let order = ask(4, LONG);
    client.close().unwrap();
    let response = order.receiver().try_recv().unwrap();
    assert!(response.outcome.is_ok(), "{response:?}");
}

#[test]
fn a_venues_test_request_in_a_close_costs_no_answer_that_follows_it() {
    let url = raw(|mut server| {
        while !server.read().unwrap().to_text().unwrap_or("").contains("\"buy\"") {}
        while !server.read().unwrap().is_close() {}
        say(&mut server, r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#);
        say(&mut server, r#"{"jsonrpc":"2.0","id":77,"result":"filled"}"#);
    });
    let config = ClientConfig::new(url).unwrap().heartbeat(Heartbeat::deribit(Duration::from_secs(30)));
    let client = Client::connect(config).unwrap();
    let order = client.start_request(Request::new("buy", ()).id(77)).unwrap();
    client.close().unwrap();
    let response = order.receiver().try_recv().unwrap();
    assert!(response.outcome.is_ok(), "{response:?}");
}

/// The handler's end holds the thread up, so that the resume and the close both come before the parking is acted upon.
#[test]
fn a_close_after_a_resume_is_obeyed_though_the_worker_was_just_parking() {
    struct Slow;
    impl Handler for Slow {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            takes(ms(300));
        }
    }
    let server = Server::start(Script::refuse(403)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).delivery(Delivery::inline(|| Slow)).restart(Restart::Permanent);
    let client = supervisor.spawn_client(config).unwrap();
    wait_for_state(&client, ReadyState::Parked);
    server.set_script(Script::echo());
    supervisor.resume_client(client.id()).unwrap();
    client.close().unwrap();
    // A permanent client's close ends a run, and another follows.
    common::eventually("the run was ended", || client.stats().restarts == 1);
}

/// Deribit's heartbeats go on until the very end; what comes after one is a fill perhaps.
#[test]
fn a_heartbeat_that_comes_after_our_close_frame_ends_nothing_and_reaches_nobody() {
    let url = raw(|mut server| {
        while !server.read().unwrap().is_close() {}
        say(&mut server, r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#);
        say(&mut server, "a fill");
        takes(ms(100));
        let _ = server.flush();
    });
    let config = ClientConfig::new(url).unwrap().heartbeat(Heartbeat::deribit(Duration::from_secs(10)));
    let client = Client::connect(config).unwrap();
    client.close().unwrap();
    let text = |event| match event {
        Event::Message(message) => message.as_text().map(str::to_owned),
        _ => None,
    };
    let texts: Vec<_> = client.events().iter().filter_map(text).collect();
    assert_eq!(texts, ["a fill"]);
}

/// The condition is the caller's own code, which may call the server.
#[test]
fn a_condition_that_is_waited_for_may_call_the_server() {
    let server = Server::echo().unwrap();
    let client = Client::connect(config(&server)).unwrap();
    assert!(server.wait_until(LONG, |records| server.push("pushed") == records.len()));
    assert_eq!(next_text(&client), "pushed");
    client.send("wanted").unwrap();
    server.wait_for_message(|message| server.accepts() == 1 && message.as_text() == Some("wanted"));
}
