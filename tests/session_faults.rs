//! What else can go wrong with a session, all at once or in the wrong order, and what is still promised then.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, json_of, ms, next, next_open, rpc};
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Renewal, Venue};
use ws_supervisor::{
    Client, Context, Delivery, DisconnectReason, Event, Handler, Heartbeat, IdleStrategy, Message, PendingResponse,
    RateLimit, ReadyState, Request, RequestError, SendError, Session, SessionError, SubscribeError, Supervisor,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A plain dialect; may renew something after a time, may forget to ask.
#[derive(Default)]
struct Plain {
    renews: Option<Duration>,
    forgets: bool,
}

impl Venue for Plain {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::disabled()
    }
    fn authenticate(&self, _: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
        Ok(self.renews.map(|after| Renewal::new(after, Request::new("renew", ()))))
    }
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        match self.forgets {
            true => vec![],
            false => vec![Batch::new(Request::new("subscribe", channels), channels)],
        }
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        vec![Batch::new(Request::new("unsubscribe", channels), channels)]
    }
}

/// Sends twenty requests, then does not return before their time has run out.
struct Busy {
    told: Sender<bool>,
    others: Receiver<PendingResponse>,
}

impl Handler for Busy {
    fn on_message(&mut self, context: &mut Context<'_>, _: Message) {
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
fn a_request_that_a_limit_held_up_is_never_called_unsent_when_it_was_sent() {
    let server = Server::start(Script::silent()).unwrap();
    let slow = Arc::new(AtomicBool::new(false));
    let once = slow.clone();
    // A caller's thread that is held up in the middle of its first try, for longer than the request's time.
    let limit = RateLimit::bucket(1, 1, ms(200)).unwrap().cost(move |_| {
        if once.swap(false, Ordering::Relaxed) {
            std::thread::park_timeout(ms(50));
        }
        1
    });
    let client = Client::connect(config(&server).rate_limit(limit).idle_strategy(IdleStrategy::BusySpin)).unwrap();
    client.send(r#"{"method":"first"}"#).unwrap();
    slow.store(true, Ordering::Relaxed);
    let outcome = client.call::<Value>(Request::new("buy", ()).timeout(ms(10)).wait_for_limit(LONG));
    let came = || server.records()[0].received.iter().any(|message| json_of(message)["method"] == "buy");
    match outcome {
        Err(RequestError::OutcomeUnknown { .. }) => eventually("it came", came),
        Err(RequestError::NotSent { .. }) => {
            client.send_when_allowed(r#"{"method":"last"}"#, LONG).unwrap();
            server.wait_for_message(|message| json_of(message)["method"] == "last");
            assert!(!came());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_leaves_together_with_what_waited_for_a_connection() {
    const LIMIT: usize = 20;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = times.clone();
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::window(LIMIT as u32, Duration::from_secs(1)).unwrap();
    let config = config(&server).rate_limit(limit).queue_while_disconnected(100).heartbeat(Heartbeat::disabled());
    let client = supervisor.spawn_client(config).unwrap();
    (0..30).for_each(|n| client.send(n.to_string()).unwrap());
    server.set_script(Script::reply(move |_, _| {
        seen.lock().push(Instant::now());
        vec![]
    }));
    client.wait_until_open(LONG).unwrap();
    assert!(matches!(client.send("now"), Err(SendError::RateLimited { .. })));
    let mut sent = 30;
    while sent < 45 {
        sent += usize::from(client.send_when_allowed("now", LONG).is_ok());
    }
    eventually("all out", || times.lock().len() == sent);
    let times = times.lock();
    for (index, from) in times.iter().enumerate() {
        let within = times[index..].iter().take_while(|at| **at < *from + Duration::from_secs(1)).count();
        assert!(within <= LIMIT, "{within}");
    }
}

#[test]
fn what_can_never_pass_is_not_queued_either() {
    let server = Server::start(Script::hold_upgrade()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::bucket(10, 1, HOUR).unwrap().cost(|message| message.len() as u32);
    let client = supervisor.spawn_client(config(&server).rate_limit(limit).queue_while_disconnected(9)).unwrap();
    assert!(matches!(client.send("more than ten"), Err(SendError::TooCostly { cost: 13, .. })));
    client.send("ten bytes!").unwrap();
}

#[test]
fn a_message_that_one_limit_holds_costs_the_others_once() {
    let refused = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let account = RateLimit::bucket(1000, 1, HOUR).unwrap();
    let own = RateLimit::bucket(1, 1, HOUR).unwrap();
    let held = config(&refused).rate_limit(account.clone()).rate_limit(own).queue_while_disconnected(100);
    let client = supervisor.spawn_client(held).unwrap();
    (0..2).for_each(|n| client.send(n.to_string()).unwrap());
    refused.set_script(Script::silent().every(ms(1), |_| vec!["tick".into()]));
    let mut ticks = 0;
    next(&client, |event| {
        ticks += usize::from(matches!(event, Event::Message(_)));
        (ticks > 100).then_some(())
    });
    let server = Server::start(Script::silent()).unwrap();
    let other = Client::connect(config(&server).rate_limit(account)).unwrap();
    let left = (0..).take_while(|_| other.send("x").is_ok()).count();
    assert_eq!(left, 998, "one was written, one is held");
}

#[test]
fn a_close_lets_out_what_the_limit_allows_and_hands_back_the_rest() {
    for (refill, written) in [(ms(20), 5), (HOUR, 1)] {
        let server = Server::start(Script::refuse(503)).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let limit = RateLimit::bucket(1, 1, refill).unwrap();
        let config = config(&server).rate_limit(limit).queue_while_disconnected(9).close_timeout(LONG);
        let client = supervisor.spawn_client(config).unwrap();
        (0..5).for_each(|n| client.send(n.to_string()).unwrap());
        server.set_script(Script::silent());
        client.wait_until_open(LONG).unwrap();
        let begun = Instant::now();
        client.close().unwrap();
        assert!(begun.elapsed() < LONG / 2);
        let last = server.accepts() - 1;
        assert!(server.wait_until(LONG, |records| records[last].close_code == Some(1000)), "in good order");
        assert_eq!(server.records()[last].received.len(), written);
        let unsent = next(&client, |event| match event {
            Event::Closed { unsent, .. } => Some(unsent),
            _ => None,
        });
        assert_eq!(unsent.len(), 5 - written);
    }
}

#[test]
fn a_renewal_waits_for_no_limit_and_for_no_slow_consumer() {
    let answers = rpc(|_, _| Some(Ok(json!({})))).every(ms(1), |_| vec!["tick".into()]);
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::bucket(1, 1, HOUR).unwrap();
    let venue = Plain { renews: Some(ms(50)), ..Plain::default() };
    let config = config(&server).venue(venue).rate_limit(limit).queue_while_disconnected(9).event_capacity(8);
    let client = supervisor.spawn_client(config.request_timeout(ms(100))).unwrap();
    (0..5).for_each(|n| client.send(json!({"method": n}).to_string()).unwrap());
    server.set_script(answers);
    client.wait_until_open(LONG).unwrap();
    server.wait_for_message(|message| json_of(message)["method"] == "renew");
    // Nobody reads, so the answer waits; it is not counted as missing.
    let begun = Instant::now();
    eventually("ten times its time has gone by", || begun.elapsed() > ms(1000));
    let mut ticks = 0;
    next(&client, |event| {
        assert!(!matches!(event, Event::Disconnected { .. }), "{event:?}");
        ticks += usize::from(matches!(event, Event::Message(_)));
        (ticks > 100).then_some(())
    });
    assert_eq!(client.epoch(), 1);
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
    assert!(error.to_string().ends_with("no answer to `x` within 50ms"), "{error}");
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
        fn on_message(&mut self, context: &mut Context<'_>, _: Message) {
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
