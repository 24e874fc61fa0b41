//! What else can go wrong with a session, all at once or in the wrong order, and what is still promised then.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LONG, Plain, config, eventually, json_of, ms, next, next_open, rpc};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, Context, Delivery, DisconnectReason, Event, Handler, Heartbeat, Message, MessageRef, PendingResponse,
    ReadyState, Request, RequestError, Session, SessionError, SubscribeError, Supervisor, Unanswered,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Sends twenty requests, then does not return before their time has run out.
struct Busy {
    told: Sender<bool>,
    others: Receiver<PendingResponse>,
}

impl Handler for Busy {
    fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
        for _ in 0..20 {
            context.request(Request::new("handler's", ()).timeout(ms(200))).unwrap();
        }
        // Not a wait for a condition: the time itself is the matter.
        while context.now().elapsed() < ms(500) {
            std::thread::yield_now();
        }
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Response(response) = event {
            // It waits for somebody else's request, whose time has run out together with its own.
            let other = self.others.try_recv().map(|pending| pending.wait::<()>());
            self.told.send(response.outcome.is_err() && other.is_ok_and(|other| other.is_err())).unwrap();
        }
    }
}

#[test]
fn each_request_is_told_once_whatever_ends_at_the_same_time() {
    let server = Server::start(Script::silent()).unwrap();
    let (told, heard) = unbounded();
    let (give, others) = unbounded();
    let delivery = Delivery::inline(move || Busy { told: told.clone(), others: others.clone() });
    // The renewal's time runs out together with theirs, and takes the connection with it.
    let venue = Plain { renews: Some(ms(1)), ..Plain::default() };
    let config = config(&server).venue(venue).request_timeout(ms(300)).delivery(delivery);
    let client = Client::connect(config).unwrap();
    assert!(server.wait_until(LONG, |records| !records[0].received.is_empty()));
    for _ in 0..20 {
        give.send(client.start_request(Request::new("caller's", ()).timeout(ms(200))).unwrap()).unwrap();
    }
    server.push("go");
    for n in 0..20 {
        assert_eq!(heard.recv_timeout(LONG), Ok(true), "{n}");
    }
    eventually("and the connection is replaced", || client.epoch() > 1);
}

#[test]
fn thousands_of_messages_before_an_acknowledgement_do_not_hold_it_up() {
    let tick = json!({"method": "subscription", "params": {"channel": "a", "data": {"id": 1, "price": 50_000.5}}});
    let server = Server::start(Script::reply(move |_, message| {
        let answer = json!({"id": json_of(message)["id"], "result": ["a"]});
        let ticks = (0..20_000).map(|_| Message::from(tick.to_string()));
        ticks.chain([answer.to_string().into()]).collect()
    }))
    .unwrap();
    let config = config(&server).venue(Plain::default()).subscribe(["a"]).event_capacity(1 << 16);
    let client = Client::connect(config.connect_timeout(LONG)).unwrap();
    assert_eq!(client.subscriptions().active.len(), 1);
}

#[test]
fn a_flood_of_pings_does_not_outlast_the_deadline() {
    let server = Server::start(Script::silent().then_raw([0x89_u8, 0].repeat(4 << 20))).unwrap();
    let config = config(&server).connect_timeout(ms(100)).heartbeat(Heartbeat::disabled());
    let config = config.on_open(|session| session.recv_until(|_| false).map(drop));
    let begun = Instant::now();
    assert!(Client::connect(config).is_err());
    assert!(begun.elapsed() < LONG);
}

#[test]
fn an_order_weighs_more_than_the_error_of_the_code_it_cut_short() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let proud = |session: &mut Session<'_>| session.request::<Value>("login", ()).map(drop);
    let config = config(&server).connect_timeout(LONG);
    let config = config.on_open(move |session| proud(session).map_err(|_| SessionError::fatal("no")));
    let client = supervisor.spawn_client(config).unwrap();
    assert!(server.wait_until(LONG, |records| records.first().is_some_and(|record| record.received.len() == 1)));
    supervisor.restart_client(client.id()).unwrap();
    assert!(server.wait_until(LONG, |records| records.len() == 2), "restarted, not parked");
    assert_ne!(client.ready_state(), ReadyState::Parked);
}

#[test]
fn to_call_oneself_cancelled_is_a_failure_like_any_other() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).backoff(HOUR, HOUR).on_open(|_| Err(SessionError::Cancelled));
    let client = supervisor.spawn_client(config).unwrap();
    let waits = [(); 2].map(|()| {
        next(&client, |event| match event {
            Event::ConnectFailed { retry_in, .. } => retry_in,
            _ => None,
        })
    });
    assert!(waits[0].is_zero() && waits[1] > HOUR / 2, "{waits:?}");
    assert_eq!((server.accepts(), client.stats().failed_attempts), (2, 2));
}

#[test]
fn the_time_that_ran_out_is_told_as_it_was_set() {
    let server = Server::start(Script::silent()).unwrap();
    let config = config(&server).on_open(|session| session.call(Request::new("x", ()).timeout(ms(50))));
    let error = Client::connect(config).unwrap_err();
    assert!(error.to_string().ends_with("no answer to `x` in `on_open` within 50ms"), "{error}");
}

#[test]
fn a_server_that_does_not_let_a_channel_go_is_told_of() {
    let server = Server::start(rpc(|method, names| match method {
        "subscribe" => Some(Ok(names.clone())),
        _ => Some(Err(-32_000)),
    }))
    .unwrap();
    let client = Client::connect(config(&server).venue(Plain::default())).unwrap();
    client.subscribe(["a"]).unwrap();
    match client.unsubscribe(["a"]) {
        Err(SubscribeError::Refused(refused)) => assert_eq!(refused[0].error.code, -32_000),
        other => panic!("{other:?}"),
    }
    let status = client.subscriptions();
    assert!(status.wanted.is_empty() && status.active.len() == 1, "the truth: {status:?}");
    client.subscribe(["a"]).unwrap();
    server.cut();
    eventually("wanted, so restored", || client.epoch() == 2 && client.subscriptions().active.len() == 1);
}

#[test]
fn a_late_acknowledgement_is_one_and_the_workers_own_requests_are_its_own() {
    let server = Server::start(Script::silent()).unwrap();
    let (told, heard) = unbounded();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).venue(Plain::default()).request_timeout(ms(50)).reconcile(move |_, unsettled| {
        let _ = told.send(unsettled.clone());
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    next_open(&client);
    assert!(matches!(client.subscribe(["a"]), Err(SubscribeError::Timeout { .. })));
    let asked = |n: usize| server.wait_until(LONG, |records| records[0].received.len() >= n);
    assert!(asked(2), "asked again");
    let first = json_of(&server.records()[0].received[0])["id"].clone();
    server.push(json!({"id": first, "result": ["a"]}).to_string());
    eventually("acknowledged", || client.subscriptions().active.len() == 1);
    client.unsubscribe(["a"]).unwrap_err();
    server.cut();
    assert!(heard.recv_timeout(LONG).unwrap().unknown.is_empty());
    let events: Vec<_> = client.events().try_iter().collect();
    assert!(!events.iter().any(|event| matches!(event, Event::LateResponse(_))), "{events:?}");
}

#[test]
fn reconcile_is_told_of_every_request_that_nobody_knows_the_outcome_of() {
    let server = Server::start(Script::silent()).unwrap();
    let (told, heard) = unbounded();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).send_capacity(4096).reconcile(move |_, unsettled| {
        let _ = told.send(unsettled.unknown.len());
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    let ask = |_| client.start_request(Request::new("buy", ()).timeout(ms(300))).unwrap();
    let pending: Vec<_> = (0..1500).map(ask).collect();
    let unknown = |pending: PendingResponse| matches!(pending.wait::<()>(), Err(RequestError::OutcomeUnknown { .. }));
    let unknown = pending.into_iter().map(unknown).filter(|unknown| *unknown).count();
    server.cut();
    assert_eq!(heard.recv_timeout(LONG), Ok(unknown));
    assert!(unknown > 0);
}

#[test]
fn endless_patience_is_patience() {
    struct Patient;
    impl Handler for Patient {
        fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
            context.request(Request::new("x", ()).timeout(Duration::MAX)).unwrap();
        }
    }
    let server = Server::start(rpc(|_, params| Some(Ok(params.clone())))).unwrap();
    let config = config(&server).venue(Plain::default()).request_timeout(Duration::MAX);
    let handled = Client::connect(config.clone().delivery(Delivery::inline(|| Patient))).unwrap();
    server.push("go");
    eventually("asked", || handled.stats().sent == 1);
    let client = Client::connect(config.connect_timeout(Duration::MAX)).unwrap();
    client.subscribe(["a"]).unwrap();
    assert_eq!(client.request::<[u8; 1]>("x", [7]).unwrap(), [7]);
}

#[test]
fn a_channel_that_the_dialect_forgets_is_refused_at_once() {
    let server = Server::start(Script::silent()).unwrap();
    let venue = Plain { forgets: true, ..Plain::default() };
    let client = Client::connect(config(&server).venue(venue).request_timeout(HOUR)).unwrap();
    assert!(matches!(client.subscribe(["a"]), Err(SubscribeError::Refused(_))));
    next(&client, |event| matches!(event, Event::SubscriptionRefused(_)).then_some(()));
}

#[test]
fn a_planned_replacement_is_no_failure() {
    let server = Server::start(Script::silent()).unwrap();
    let config = config(&server).backoff(HOUR, HOUR).max_retries(0).max_age(ms(20));
    let client = Client::connect(config).unwrap();
    for epoch in 1..=5 {
        assert_eq!(next_open(&client), epoch, "at once, time and again");
    }
    let reason = next(&client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, DisconnectReason::MaxAge);
}

#[test]
fn no_result_is_printed() {
    let server = Server::start(rpc(|_, _| Some(Ok(json!({"access_token": "hush", "refresh_token": "hush"}))))).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    let response = client.start_request(Request::new("public/auth", ())).unwrap().receiver().recv_timeout(LONG);
    let undecodable = client.request::<u64>("public/auth", ()).unwrap_err();
    let told = format!("{response:?} {undecodable:?} {undecodable}");
    assert!(told.contains("Json(") && !told.contains("hush"), "{told}");
    let config = config(&server).on_open(|session| session.request::<u64>("public/auth", ()).map(drop));
    let told = format!("{0:?} {0}", Client::connect(config).unwrap_err());
    assert!(told.contains("public/auth") && !told.contains("hush"), "{told}");
}

#[test]
fn what_was_kept_for_later_is_delivered_though_the_line_is_broken_by_then() {
    struct Answering(Sender<String>);
    impl Handler for Answering {
        fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
            self.0.send(message.as_text().unwrap().into()).unwrap();
            let _ = context.send("thanks");
        }
    }
    let greeting = ["fill 1", "fill 2", "fill 3", "go"];
    let server = Arc::new(Server::start(Script::silent().greet(move |_| greeting.map(Message::from).into())).unwrap());
    let (told, heard) = unbounded();
    let resets = server.clone();
    let config = config(&server).heartbeat(Heartbeat::disabled()).on_open(move |session| {
        session.recv_until(|message| message.as_text() == Some("go"))?;
        if session.epoch() > 1 {
            return Err(SessionError::fatal("one is enough"));
        }
        resets.reset();
        assert!(resets.wait_until(LONG, |records| records[0].ended));
        Ok(())
    });
    let _client = Client::connect(config.delivery(Delivery::inline(move || Answering(told.clone())))).unwrap();
    for fill in &greeting[..3] {
        assert_eq!(heard.recv_timeout(LONG).as_deref(), Ok(*fill));
    }
}

#[test]
fn one_who_gives_up_gives_up_nobody_elses_request() {
    let server = Server::start(rpc(|method, _| (method == "quick").then(|| Ok(json!(1))))).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    let old = client.start_request(Request::new("quick", ()).id("x")).unwrap();
    old.receiver().recv_timeout(LONG).unwrap().outcome.unwrap();
    let new = client.start_request(Request::new("slow", ()).id("x").timeout(HOUR)).unwrap();
    assert!(old.wait::<u32>().is_err(), "its response was taken");
    assert_eq!(client.stats().pending_requests, 1);
    server.push(r#"{"id":"x","result":2}"#);
    assert_eq!(new.wait::<u32>().unwrap(), 2);
}

#[test]
fn deadlines_hold_while_the_client_closes() {
    let server = Server::start(Script::silent().then_mute()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).close_timeout(ms(2000))).unwrap();
    client.wait_until_open(LONG).unwrap();
    let pending = client.start_request(Request::new("slow", ()).timeout(ms(200))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| client.close());
        match pending.receiver().recv_timeout(LONG).unwrap().outcome {
            Err(RequestError::OutcomeUnknown { cause, .. }) => assert_eq!(cause, Unanswered::TimedOut),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn one_who_waits_is_told_when_another_takes_the_wish_back() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).backoff(HOUR, HOUR).venue(Plain::default()).request_timeout(HOUR);
    let client = supervisor.spawn_client(config).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.subscribe(["a"]));
        eventually("wanted", || !client.subscriptions().wanted.is_empty());
        client.unsubscribe(["a"]).unwrap();
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn a_timeout_names_what_was_refused_meanwhile() {
    let server = Server::start(rpc(|_, names| (names[0] == "bad").then_some(Err(7)))).unwrap();
    let venue = Plain { one_by_one: true, ..Plain::default() };
    let client = Client::connect(config(&server).venue(venue).request_timeout(ms(300))).unwrap();
    match client.subscribe(["bad", "slow"]) {
        Err(SubscribeError::Timeout { pending, refused, .. }) => {
            assert_eq!((pending, refused[0].error.code), (vec!["slow".into()], 7));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.subscriptions().wanted, ["slow".into()]);
}
