//! Rate limits together with queues, sessions, renewals and closing: what waits, what counts, and what never happens.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, Plain, config, eventually, json_of, ms, next, next_open, rpc};
use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, Context, Delivery, Event, Handler, Heartbeat, IdleStrategy, Message, MessageRef, Overflow, RateLimit,
    Request, RequestError, SendError, SessionError, Supervisor,
};

const HOUR: Duration = Duration::from_secs(3600);

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
fn a_message_that_one_limit_holds_costs_the_others_nothing() {
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
    assert_eq!(left, 999, "one was written, one is held and has paid nothing");
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
fn acknowledgements_are_seen_while_later_batches_wait_and_messages_are_dropped() {
    for overflow in [Overflow::DropOldest, Overflow::DropNewest] {
        let server = Server::start(Script::reply(|_, message| {
            let request = json_of(message);
            let ticks = (0..10).map(|_| Message::from("tick"));
            let answer = json!({"id": request["id"], "result": request["params"]});
            ticks.chain([answer.to_string().into()]).collect()
        }))
        .unwrap();
        let limit = RateLimit::bucket(1, 1, ms(100)).unwrap();
        let config = config(&server).venue(Plain { one_by_one: true, ..Plain::default() }).subscribe(["a", "b", "c"]);
        let client = Client::connect(config.event_capacity(4).overflow(overflow).rate_limit(limit)).unwrap();
        assert_eq!(client.subscriptions().active.len(), 3, "{overflow:?}");
    }
}

#[test]
fn a_batch_that_costs_too_much_is_restored_in_parts() {
    let server = Server::start(rpc(|_, names| Some(Ok(names.clone())))).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let names = |message: &Message| json_of(message)["params"].as_array().map_or(1, |names| names.len() as u32);
    let limit = RateLimit::bucket(4, 100, ms(100)).unwrap().cost(names);
    let client = supervisor.spawn_client(config(&server).venue(Plain::default()).rate_limit(limit)).unwrap();
    client.subscribe(["a", "b", "c", "d", "e", "f", "g", "h"]).unwrap();
    next_open(&client);
    server.cut();
    let restored = next(&client, |event| match event {
        Event::Open { restored, .. } => Some(restored.len()),
        Event::ConnectFailed { error, .. } => panic!("{error}"),
        _ => None,
    });
    assert_eq!(restored, 8);
}

#[test]
fn a_queue_that_is_let_out_holds_nothing_up_for_longer() {
    struct Early(Sender<bool>);
    impl Handler for Early {
        fn on_open(&mut self, context: &mut Context<'_>) {
            self.0.send(context.send("hello").is_ok()).unwrap();
        }
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    }
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    // There is room for all of it: it is out before the handler is told.
    let roomy = RateLimit::bucket(100, 1, HOUR).unwrap();
    let (told, heard) = unbounded();
    let handled = config(&server).rate_limit(roomy).queue_while_disconnected(9);
    let handled = supervisor.spawn_client(handled.delivery(Delivery::inline(move || Early(told.clone())))).unwrap();
    // And a limit that counts something else does not count here.
    let rare = RateLimit::bucket(1, 1, HOUR).unwrap().cost(|message| u32::from(message.as_text() == Some("rare")));
    let slow = RateLimit::bucket(1, 1, ms(20)).unwrap();
    let limited = config(&server).venue(Plain::default()).rate_limit(slow).rate_limit(rare).queue_while_disconnected(9);
    let client = supervisor.spawn_client(limited).unwrap();
    (0..5).for_each(|n| client.send(json!({"method": n}).to_string()).unwrap());
    (0..5).for_each(|n| handled.send(json!({"method": n}).to_string()).unwrap());
    server.set_script(rpc(|_, names| Some(Ok(names.clone()))));
    assert_eq!(heard.recv_timeout(LONG), Ok(true));
    client.wait_until_open(LONG).unwrap();
    client.subscribe(["a"]).unwrap();
}

#[test]
fn what_the_client_itself_refuses_costs_nothing_and_renewals_count() {
    let server = Server::start(rpc(|method, _| (method != "slow").then(|| Ok(json!({}))))).unwrap();
    let limited = |tokens| config(&server).rate_limit(RateLimit::bucket(tokens, 1, HOUR).unwrap());
    let client = Client::connect(limited(2)).unwrap();
    let _pending = client.start_request(Request::new("slow", ()).id("one")).unwrap();
    assert!(matches!(client.start_request(Request::new("slow", ()).id("one")), Err(RequestError::DuplicateId(_))));
    client.send(r#"{"method":"slow"}"#).unwrap();
    let venue = Plain { renews: Some(ms(1)), ..Plain::default() };
    let client = Client::connect(limited(2).venue(venue)).unwrap();
    server.wait_for_message(|message| json_of(message)["method"] == "renew");
    client.send(r#"{"method":"slow"}"#).unwrap();
    assert!(client.send(r#"{"method":"slow"}"#).is_err());
}

/// The limit lets one of them out an hour; the cancel has a token of its own, and the caller waits for nobody.
#[test]
fn what_tokens_are_reserved_for_passes_a_queue_that_the_limit_holds_up() {
    let server = Server::start(Script::silent()).unwrap();
    let (go, gone) = unbounded();
    let is_cancel = |message: &Message| message.as_text().is_some_and(|text| text.starts_with("cancel"));
    let limit = RateLimit::bucket(3, 1, HOUR).unwrap().reserve(1, is_cancel);
    let supervisor = Supervisor::start().unwrap();
    let queued = config(&server).rate_limit(limit).queue_while_disconnected(100).heartbeat(Heartbeat::disabled());
    // It opens when all of them wait.
    let queued = queued.on_open(move |_| gone.recv_timeout(LONG).map_err(SessionError::retryable));
    let client = supervisor.spawn_client(queued).unwrap();
    (0..20).for_each(|n| client.send(format!("order {n}")).unwrap());
    go.send(()).unwrap();
    client.wait_until_open(LONG).unwrap();
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 2));
    assert!(matches!(client.send("order 20"), Err(SendError::RateLimited { .. })), "nothing else overtakes them");
    client.send("cancel all").unwrap();
    server.wait_for_message(|message| message.as_text() == Some("cancel all"));
    supervisor.shutdown(LONG);
    assert_eq!((client.stats().unsent, client.stats().sent - client.stats().uncertain), (18, 3));
}
