//! From handshake to open: what is prepared, what `on_open` may do, who waits for it, and what a failure in it brings.
//!
//! Over 400 lines: one way from handshake to open, step by step.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, json_of, methods, ms, next, next_open, next_text, rpc, wait_for_state};
use crossbeam_channel::{bounded, unbounded};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{DeribitServer, Script, Server};
use ws_supervisor::venue::deribit::Deribit;
use ws_supervisor::{
    Client, ClientConfig, ConnectError, Context, Delivery, DisconnectReason, Event, Handler, Heartbeat, Message,
    MessageRef, Overflow, ParkReason, ReadyState, Request, RequestError, SendError, SessionError, StartError,
    Supervisor, Unsettled, WaitError,
};

fn next_failure(client: &Client) -> (ConnectError, Option<Duration>) {
    next(client, |event| match event {
        Event::ConnectFailed { error, retry_in, .. } => Some((error, retry_in)),
        _ => None,
    })
}

fn session_error(error: ConnectError) -> SessionError {
    match error {
        ConnectError::Session(error) => *error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_attempt_is_prepared_afresh() {
    let server = Server::scripted(|n| if n < 2 { Script::refuse(503) } else { Script::echo() }).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).header("X-Token", "stale").header("X-Desk", "options").prepare(|dial| {
        let (url, attempt) = (dial.base_url(), dial.attempt());
        dial.url(format!("{url}feed?attempt={attempt}"))?;
        dial.header("x-token", format!("fresh {attempt}"))?;
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.cut();
    eventually("open again", || client.epoch() == 2);
    let told: Vec<_> = server.records().into_iter().map(|record| (record.target, record.headers)).collect();
    for (n, (target, headers)) in told.iter().enumerate() {
        // The count goes on: the first open connection was not stable.
        assert_eq!(*target, format!("/feed?attempt={}", n + 1));
        let values: Vec<_> = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-token")).collect();
        assert_eq!(values.len(), 1);
        assert_eq!(values[0].1, format!("fresh {}", n + 1));
        assert!(headers.iter().any(|(name, value)| name == "X-Desk" && value == "options"));
    }
}

#[test]
fn what_prepare_says_is_retried_or_parks_and_its_panic_is_the_workers() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let config = config(&server).prepare(move |dial| match counted.fetch_add(1, Ordering::Relaxed) {
        0 => Err(SessionError::retryable("the token service is down")),
        1 => panic!("a panic that a test asked for"),
        _ => dial.url("https://not.a.websocket").map_err(SessionError::from),
    });
    let client = supervisor.spawn_client(config).unwrap();
    let (error, retry_in) = next_failure(&client);
    assert_eq!(error.to_string(), "the session could not be opened: the token service is down");
    assert!(retry_in.is_some());
    next(&client, |event| matches!(event, Event::Restarted { .. }).then_some(()));
    match client.wait_until_open(LONG) {
        Err(WaitError::Parked(ParkReason::Refused(error))) => assert!(error.to_string().contains("option `url`")),
        other => panic!("{other:?}"),
    }
    assert_eq!((calls.load(Ordering::Relaxed), server.accepts()), (3, 0));
}

#[test]
fn what_comes_while_the_session_is_opened_is_delivered_after_it_in_order() {
    for inline in [false, true] {
        let server = Server::start(
            Script::reply(|_, message| match json_of(message)["method"].as_str() {
                Some("login") => vec![
                    "tick 2".into(),
                    json!({"id": json_of(message)["id"], "result": "welcome"}).to_string().into(),
                    "tick 3".into(),
                    "marker".into(),
                    "tick 4".into(),
                ],
                _ => vec![],
            })
            .greet(|_| vec!["greeting".into(), "tick 1".into()]),
        )
        .unwrap();
        let (told, heard) = unbounded();
        let on_open = move |session: &mut ws_supervisor::Session<'_>| {
            let welcome: String = session.request("login", ())?;
            assert_eq!((welcome.as_str(), session.epoch()), ("welcome", 1));
            // One that came before the answer, and one that comes after it.
            session.recv_until(|message| message.as_text() == Some("greeting"))?;
            session.recv_until(|message| message.as_text() == Some("marker"))?;
            Ok(())
        };
        struct Teller(crossbeam_channel::Sender<String>);
        impl Handler for Teller {
            fn on_open(&mut self, _: &mut Context<'_>) {
                self.0.send("open".into()).unwrap();
            }
            fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
                self.0.send(message.as_text().unwrap().into()).unwrap();
            }
        }
        let mut config = config(&server).on_open(on_open);
        if inline {
            config = config.delivery(Delivery::inline(move || Teller(told.clone())));
        }
        let client = Client::connect(config).unwrap();
        let expected = ["open", "tick 1", "tick 2", "tick 3", "tick 4"];
        let all: Vec<String> = match inline {
            true => heard.iter().take(5).collect(),
            false => {
                assert_eq!(next_open(&client), 1);
                std::iter::once("open".to_owned()).chain((0..4).map(|_| next_text(&client))).collect()
            }
        };
        assert_eq!(all, expected);
        eventually("counted", || client.stats().received == 7);
    }
}

#[test]
fn an_error_of_on_open_ends_the_attempt_and_tells_all() {
    let server = Server::start(rpc(|_, _| Some(Err(42)))).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).on_open(|session| session.request::<()>("login", ()));
    // A refusal by the server may be a passing one.
    let client = supervisor.spawn_client(config.clone().name("patient")).unwrap();
    for _ in 0..3 {
        let (error, retry_in) = next_failure(&client);
        assert_eq!(error.to_string(), "the session could not be opened: `login` was refused by the server: 42 refused");
        assert_eq!(session_error(error).rpc().unwrap().code, 42);
        assert!(retry_in.is_some());
    }
    assert_eq!((client.epoch(), client.send("x").is_err()), (0, true));
    client.close().unwrap();
    // Unless it is said that it is not.
    let fatal = config.on_open(|session| session.request::<()>("login", ()).map_err(SessionError::into_fatal));
    let before = server.accepts();
    let client = supervisor.spawn_client(fatal.clone().name("proud")).unwrap();
    assert!(matches!(client.wait_until_open(LONG), Err(WaitError::Parked(ParkReason::Refused(_)))));
    assert_eq!(server.accepts(), before + 1);
    assert!(server.wait_until(LONG, |records| records[before].ended && records[before].close_code == Some(1001)));
    match Client::connect(fatal) {
        Err(StartError::Connect(error)) => assert!(!error.is_retryable()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_of_on_open_is_the_workers() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let first = AtomicBool::new(true);
    let config = config(&server).on_open(move |_| {
        assert!(!first.swap(false, Ordering::Relaxed), "a panic that a test asked for");
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    let reason = next(&client, |event| match event {
        Event::Restarted { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.to_string().contains("a panic that a test asked for"), "{reason}");
    assert_eq!(next_open(&client), 1);
    assert_eq!(server.accepts(), 2);
}

#[test]
fn a_panic_leaves_nothing_of_its_session_to_the_next() {
    let server = DeribitServer::start().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let calls = AtomicUsize::new(0);
    let venue = Deribit::new().client_signature("id", "secret");
    let channel = "user.orders.BTC-PERPETUAL.raw";
    let config = ClientConfig::new(server.url()).unwrap().venue(venue).subscribe([channel]).backoff(ms(5), ms(20));
    // The second connection is signed in and has its channels when it comes to grief.
    let config = config.reconcile(move |_, _| {
        assert!(calls.fetch_add(1, Ordering::Relaxed) > 0, "a panic that a test asked for");
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    next_open(&client);
    server.server().cut();
    let restored = next(&client, |event| match event {
        Event::Open { restored, epoch: 2, .. } => Some(restored),
        _ => None,
    });
    assert_eq!(restored, [channel.into()]);
    let last = server.server().accepts() - 1;
    assert_eq!((last, client.stats().restarts), (2, 1));
    assert_eq!(methods(server.server(), last), ["public/set_heartbeat", "public/auth", "private/subscribe"]);
    assert!(server.server().wait_until(LONG, |records| records[1].ended), "its socket is closed");
}

#[test]
fn heartbeats_are_answered_while_the_session_is_opened() {
    let test = r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#;
    let answered = |message: &Message| message.as_text().is_some_and(|text| text.contains("public/test"));
    let server = Server::start(
        Script::reply(move |_, message| if answered(message) { vec!["at last".into()] } else { vec![] })
            .greet(move |_| vec![test.into()])
            .ping_every(ms(5)),
    )
    .unwrap();
    let config = config(&server).heartbeat(Heartbeat::deribit(Duration::from_secs(10))).on_open(|session| {
        session.recv_until(|message| message.as_text() == Some("at last"))?;
        Ok(())
    });
    let client = Client::connect(config).unwrap();
    assert!(server.wait_until(LONG, |records| records[0].pongs > 0));
    assert!(client.heartbeat_health().last_received.is_some());
    // Our own pings go on too, and a line that answers none is lost.
    let mute = Server::start(Script::silent().then_mute()).unwrap();
    let heartbeat = Heartbeat::ping_pong(ms(20));
    let config = common::config(&mute).heartbeat(heartbeat).on_open(|session| {
        session.recv_until(|_| false)?;
        Ok(())
    });
    match Client::connect(config) {
        Err(StartError::Connect(error)) => {
            let lost = SessionError::Disconnected(DisconnectReason::HeartbeatLost { missed: 2 });
            assert_eq!(session_error(error), lost);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn callers_wait_for_the_session_and_nothing_of_theirs_is_sent_before() {
    let server = Server::start(rpc(|method, _| (method == "go").then_some(Ok(Value::Null)))).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (entered, is_in) = bounded(1);
    let config = config(&server).queue_while_disconnected(10).on_open(move |session| {
        session.send(r#"{"method":"login"}"#)?;
        let _ = entered.send(());
        session.recv_until(|message| message.as_text() == Some("go on"))?;
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    client.send(r#"{"method":"queued before"}"#).unwrap();
    is_in.recv_timeout(LONG).unwrap();
    assert_eq!(client.ready_state(), ReadyState::Connecting);
    client.send(r#"{"method":"queued meanwhile"}"#).unwrap();
    match client.request::<()>("never queued", ()) {
        Err(RequestError::Refused(SendError::NotOpen { .. })) => {}
        other => panic!("{other:?}"),
    }
    // As much time as it takes the server to say something.
    server.push("something");
    assert!(server.wait_until(LONG, |records| records[0].served == 1 && !records[0].received.is_empty()));
    assert_eq!(methods(&server, 0), ["login"]);
    server.push("go on");
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 3));
    assert_eq!(methods(&server, 0), ["login", "queued before", "queued meanwhile"]);
}

#[test]
fn a_session_that_does_not_come_to_be_ends_with_its_time_or_its_connection_or_the_client() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).connect_timeout(ms(50)).on_open(|session| session.request::<()>("login", ()));
    let client = supervisor.spawn_client(config.clone().name("impatient")).unwrap();
    let (error, retry_in) = next_failure(&client);
    assert_eq!(error.to_string(), "the session could not be opened: no answer to `login` in `on_open` within 50ms");
    assert!(retry_in.is_some());
    client.close().unwrap();

    let server = Server::start(Script::silent()).unwrap();
    let patient = common::config(&server).connect_timeout(LONG);
    let patient = patient.on_open(|session| session.request::<()>("login", ()));
    let client = supervisor.spawn_client(patient.name("cut")).unwrap();
    assert!(server.wait_until(LONG, |records| records.first().is_some_and(|record| record.received.len() == 1)));
    server.close_all(1012, "restart");
    let (error, _) = next_failure(&client);
    assert!(matches!(session_error(error), SessionError::Disconnected(DisconnectReason::ClosedByServer(Some(_)))));
    client.close().unwrap();

    let stops: [fn(&Client, &Supervisor); 3] = [
        |client, _| drop(client.close()),
        |client, supervisor| drop(supervisor.stop_client(client.id())),
        |_, supervisor| drop(supervisor.shutdown(LONG)),
    ];
    for (n, stop) in stops.into_iter().enumerate() {
        let server = Server::start(Script::silent()).unwrap();
        let config = common::config(&server).close_timeout(LONG).connect_timeout(LONG);
        let config = config.on_open(|session| session.request::<()>("login", ()));
        let client = supervisor.spawn_client(config.name(format!("stopped {n}"))).unwrap();
        assert!(server.wait_until(LONG, |records| records.first().is_some_and(|record| record.received.len() == 1)));
        let begun = Instant::now();
        stop(&client, &supervisor);
        wait_for_state(&client, ReadyState::Closed);
        assert!(begun.elapsed() < LONG / 2);
        assert!(server.wait_until(LONG, |records| records[0].ended));
    }
}

#[test]
fn an_on_open_that_ignores_its_errors_is_left_behind_like_any_handler() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let release = Arc::new(AtomicBool::new(false));
    let released = release.clone();
    let (entered, is_in) = unbounded();
    let config = config(&server).close_timeout(ms(50)).name("stubborn").on_open(move |session| {
        let _ = entered.send(());
        while !released.load(Ordering::Relaxed) {
            let _ = session.recv_until(|_| true);
            std::thread::park_timeout(ms(1));
        }
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    is_in.recv_timeout(LONG).unwrap();
    assert!(client.close().is_err());
    release.store(true, Ordering::Relaxed);
}

#[test]
fn more_than_can_be_kept_is_an_error_or_counted_by_the_policy() {
    let flood = || (0..50).map(|n| Message::from(n.to_string())).chain(["ready".into()]).collect::<Vec<_>>();
    let server = Server::start(Script::silent().greet(move |_| flood())).unwrap();
    let config = config(&server).event_capacity(20).on_open(|session| {
        session.recv_until(|message| message.as_text() == Some("ready"))?;
        Ok(())
    });
    match Client::connect(config.clone().event_bytes(2_000)) {
        Err(StartError::Connect(error)) => assert_eq!(session_error(error), SessionError::TooManyMessages(2_000)),
        other => panic!("{other:?}"),
    }
    for overflow in [Overflow::DropOldest, Overflow::DropNewest] {
        let client = Client::connect(config.clone().overflow(overflow)).unwrap();
        // What is missing is told where it is missing.
        let (mut number, mut dropped) = (0, 0);
        let mut seen = vec![];
        while number < 50 {
            next(&client, |event| match event {
                Event::Message(message) => {
                    assert_eq!(message.as_text(), Some(&*number.to_string()));
                    seen.push(number);
                    number += 1;
                    Some(())
                }
                Event::Lagged { dropped: more, .. } => {
                    (number, dropped) = (number + more, dropped + more);
                    Some(())
                }
                _ => None,
            });
        }
        assert!(dropped >= 30 && client.stats().dropped == dropped, "{dropped}");
        let kept = if overflow == Overflow::DropOldest { 49 } else { 0 };
        assert!(seen.contains(&kept), "{overflow:?}: {seen:?}");
    }
}

#[test]
fn reconcile_holds_traffic_off_until_what_was_left_open_is_settled() {
    let server = Server::start(rpc(|method, _| (method == "get_open_orders").then_some(Ok(json!(["7"]))))).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let told: Arc<Mutex<Vec<Unsettled>>> = Arc::default();
    let (seen, calls) = (told.clone(), AtomicUsize::new(0));
    let (entered, is_in) = bounded(1);
    let (release, held) = bounded(1);
    let config = config(&server).request_timeout(ms(300)).reconcile(move |session, unsettled| {
        if calls.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(SessionError::retryable("not yet"));
        }
        let orders: Vec<String> = session.request("get_open_orders", ())?;
        assert_eq!(orders, ["7"]);
        seen.lock().push(unsettled.clone());
        let _ = entered.send(());
        let _ = held.recv();
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    let timed_out = client.start_request(Request::new("private/cancel", ()).timeout(ms(10))).unwrap();
    assert!(timed_out.wait::<()>().is_err());
    let buy = client.start_request(Request::new("private/buy", [5]).timeout(LONG)).unwrap();
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 2));
    server.deafen(true);
    let big = "x".repeat(1 << 20);
    let accepted = (0..64).take_while(|_| client.send(&*big).is_ok()).count();
    eventually("some left", || client.stats().sent > 2);
    server.cut();
    assert!(matches!(buy.wait::<()>(), Err(RequestError::OutcomeUnknown { .. })));
    is_in.recv_timeout(LONG).unwrap();
    assert!(matches!(client.send("stale"), Err(SendError::NotOpen { .. })), "held off");
    release.send(()).unwrap();
    client.wait_until_open(LONG).unwrap();
    client.send_confirmed("fresh", LONG).unwrap();
    let first = told.lock().remove(0);
    let unknown: Vec<_> = first.unknown.iter().map(|request| &*request.method).collect();
    assert_eq!(unknown, ["private/cancel", "private/buy"]);
    assert_eq!(json_of(&first.unknown[1].message)["params"], json!([5]));
    assert_eq!(first.unsent.len() as u64, client.stats().unsent);
    assert!(!first.unsent.is_empty() && first.unsent.len() < accepted);
    let failed = next_failure(&client).0;
    assert!(failed.to_string().ends_with("not yet"));
    let last = server.accepts() - 1;
    assert!(server.wait_until(LONG, |records| records[last].received.len() == 2));
    assert_eq!(server.records()[last].received[1], Message::from("fresh"), "after the reconciling");
    // The next time there is nothing left.
    server.cut();
    is_in.recv_timeout(LONG).unwrap();
    release.send(()).unwrap();
    client.wait_until_open(LONG).unwrap();
    let second = told.lock().remove(0);
    assert!(second.unsent.is_empty() && second.unknown.is_empty());
}

#[test]
fn a_connection_that_is_old_enough_is_replaced_when_nothing_is_pending() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).max_age(ms(50))).unwrap();
    let reason = next(&client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, DisconnectReason::MaxAge);
    assert_eq!(next_open(&client), 2);
    assert!(server.wait_until(LONG, |records| records[0].close_code == Some(1000)));
    assert_eq!(client.stats().restarts, 0);
    // An answer that is on its way is waited for.
    let waiting: Arc<AtomicBool> = Arc::default();
    let answers = waiting.clone();
    let server = Server::start(Script::reply(move |_, message| {
        if !answers.load(Ordering::Relaxed) {
            return vec![];
        }
        vec![json!({"id": json_of(message)["params"][0], "result": 1}).to_string().into()]
    }))
    .unwrap();
    let client = supervisor.spawn_client(config(&server).name("patient").max_age(ms(50))).unwrap();
    next_open(&client);
    let pending = client.start_request(Request::new("slow", ()).id(5)).unwrap();
    assert!(pending.receiver().recv_timeout(ms(200)).is_err());
    assert_eq!(client.epoch(), 1, "old enough, but it waits");
    waiting.store(true, Ordering::Relaxed);
    client.send(r#"{"method":"answer","params":[5]}"#).unwrap();
    assert_eq!(pending.wait::<u32>().unwrap(), 1);
    assert_eq!(next_open(&client), 2);
}

/// A process that was restarted does not know its open orders, and the venue does.
#[test]
fn reconcile_runs_on_the_first_connection_too_if_asked_for() {
    let server = Server::start(rpc(|_, _| Some(Ok(json!(7))))).unwrap();
    for (from_start, connections) in [(true, vec![1, 2]), (false, vec![2])] {
        let (epochs, seen) = unbounded();
        let reconcile = move |session: &mut ws_supervisor::Session<'_>, unsettled: &Unsettled| {
            let orders: u64 = session.request("private/get_open_orders", ())?;
            let known = unsettled.unsent.len() + unsettled.uncertain.len() + unsettled.unknown.len();
            epochs.send((session.epoch(), orders, known)).map_err(SessionError::fatal)
        };
        let config = match from_start {
            true => config(&server).reconcile_from_start(reconcile),
            false => config(&server).reconcile(reconcile),
        };
        let client = Client::connect(config).unwrap();
        client.reconnect();
        eventually("open again", || client.epoch() == 2);
        client.close().unwrap();
        let expected: Vec<_> = connections.into_iter().map(|epoch| (epoch, 7, 0)).collect();
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), expected, "from the start: {from_start}");
    }
}
