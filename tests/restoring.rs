//! Channels over reconnects and at venues of all tempers: paced, silent, refused for the moment, answered in parts, closed
//! over; and requests that say what time it is.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{LONG, config, eventually, json_of, methods, ms, next, rpc, text};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::deribit::Deribit;
use ws_supervisor::venue::{Batch, Renewal, Venue};
use ws_supervisor::*;

/// JSON-RPC; all channels in one request, or one in each.
#[derive(Clone, Default)]
struct Plain {
    limit: Option<RateLimit>,
    one_by_one: bool,
    named: bool,
    timeout: Option<Duration>,
}

impl Venue for Plain {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::disabled()
    }
    fn rate_limits(&self) -> Vec<RateLimit> {
        self.limit.iter().cloned().collect()
    }
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        let request = |some: &[Arc<str>]| {
            let mut request = Request::new("subscribe", some);
            if self.named {
                request = request.id(&*some[0]);
            }
            match self.timeout {
                Some(time) => request.timeout(time),
                None => request,
            }
        };
        let size = if self.one_by_one { 1 } else { channels.len() };
        channels.chunks(size).map(|some| Batch::new(request(some), some)).collect()
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        channels.chunks(1).map(|some| Batch::new(Request::new("unsubscribe", some), some)).collect()
    }
}

fn echo(message: &Message) -> Vec<Message> {
    let request = json_of(message);
    vec![json!({"jsonrpc": "2.0", "id": request["id"], "result": request["params"]}).to_string().into()]
}

fn has_all() -> Script {
    rpc(|_, params| Some(Ok(params.clone())))
}

fn milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn opened(client: &Client) -> (usize, Vec<String>, Vec<RefusedChannel>) {
    next(client, |event| match event {
        Event::Open { restored, pending, refused, .. } => {
            Some((restored.len(), pending.iter().map(|name| name.to_string()).collect(), refused))
        }
        _ => None,
    })
}

#[test]
fn one_silent_channel_keeps_no_other_from_its_data() {
    let script = Script::reply(|_, message| if json_of(message)["params"][0] == "c" { vec![] } else { echo(message) });
    let server = Server::start(script.every(ms(5), |_| vec!["tick".into()])).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let venue = Plain { one_by_one: true, ..Plain::default() };
    let config = config(&server).venue(venue).connect_timeout(ms(200)).subscribe(["a", "b", "c"]);
    let client = supervisor.spawn_client(config).unwrap();
    assert_eq!(opened(&client), (2, vec!["c".into()], vec![]));
    next(&client, |event| matches!(event, Event::Message(_)).then_some(()));
    assert_eq!(server.accepts(), 1);
}

#[test]
fn subscriptions_that_a_limit_paces_may_take_longer_than_the_attempt() {
    let server = Server::start(has_all()).unwrap();
    let limit = RateLimit::bucket(1, 1, ms(20)).unwrap();
    let venue = Plain { limit: Some(limit), one_by_one: true, ..Plain::default() };
    let names: Vec<String> = (0..60).map(|n| format!("ticker.S{n}")).collect();
    let config = config(&server).venue(venue).connect_timeout(ms(300)).subscribe(&names);
    let client = Client::connect(config.reconcile(|_, _| Ok(()))).unwrap();
    assert_eq!(opened(&client), (60, vec![], vec![]));
    assert_eq!(server.accepts(), 1);
}

#[test]
fn a_refusal_for_the_moment_is_not_for_ever_and_not_answered_by_a_storm() {
    let busy_until = Arc::new(Mutex::new(None::<Instant>));
    let server = Server::start(Script::reply(move |_, message| {
        let until = *busy_until.lock().get_or_insert_with(|| Instant::now() + ms(700));
        match Instant::now() < until {
            true => {
                let error = json!({"code": 10_028, "message": "too_many_requests"});
                vec![json!({"id": json_of(message)["id"], "error": error}).to_string().into()]
            }
            false => echo(message),
        }
    }))
    .unwrap();
    let names: Vec<String> = (0..64).map(|n| format!("c{n}")).collect();
    let client = Client::connect(config(&server).venue(Plain::default()).subscribe(&names)).unwrap();
    assert_eq!(opened(&client), (64, vec![], vec![]));
    let asked = server.records()[0].received.len();
    assert!((2..10).contains(&asked), "asked {asked} times");
}

#[test]
fn a_channel_that_the_server_closes_the_line_over_is_set_aside_and_named() {
    let server = Arc::new(Server::start(Script::silent()).unwrap());
    let closing = Arc::downgrade(&server);
    server.set_script(
        Script::reply(move |_, message| {
            if json_of(message)["params"].as_array().is_some_and(|names| names.iter().any(|name| name == "bad")) {
                closing.upgrade().unwrap().close_all(1008, "too many subscriptions");
                return vec![];
            }
            echo(message)
        })
        .every(ms(5), |_| vec!["tick".into()]),
    );
    let supervisor = Supervisor::start().unwrap();
    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let config = config(&server).venue(Plain::default()).subscribe(&names).request_timeout(LONG);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    let told = client.subscribe(["bad"]).unwrap_err();
    assert!(matches!(&told, SubscribeError::Refused(refused) if refused[0].error.to_string().contains("set aside")));
    eventually("open with the others", || {
        client.ready_state() == ReadyState::Open && client.subscriptions().active.len() == 10
    });
    let ticks = client.stats().received;
    eventually("data", || client.stats().received > ticks + 10);
    assert!(server.accepts() <= 4, "{}", server.accepts());
}

#[test]
fn an_answer_in_parts_is_put_together() {
    let server = Server::start(Script::reply(|_, message| {
        let request = json_of(message);
        let part = |channel: &Value| json!({"id": request["id"], "result": [channel]}).to_string().into();
        request["params"].as_array().unwrap().iter().map(part).collect()
    }))
    .unwrap();
    let client = Client::connect(config(&server).venue(Plain::default()).subscribe(["a", "b", "c"])).unwrap();
    assert_eq!(opened(&client), (3, vec![], vec![]));
}

#[test]
fn a_name_that_the_dialect_panics_at_costs_that_name_only() {
    struct Strict;
    impl Venue for Strict {
        fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
            assert!(channels.iter().all(|name| name.starts_with('c')), "no such channel");
            Plain::default().subscribe(channels)
        }
        fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
            Plain::default().unsubscribe(channels)
        }
    }
    let server = Server::start(has_all()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).venue(Strict).subscribe(["c1", "c2", "bad", "c3"]);
    let client = supervisor.spawn_client(config).unwrap();
    let (restored, pending, refused) = opened(&client);
    assert_eq!((restored, pending.len(), &*refused[0].channel), (3, 0, "bad"));
    assert!(refused[0].error.to_string().contains("panicked"), "{refused:?}");
    assert_eq!(client.stats().restarts, 0);
}

#[test]
fn a_book_is_asked_for_anew_from_a_handler_and_from_a_handle() {
    struct Book;
    impl Handler for Book {
        fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
            match message.as_text() {
                Some("gap") => context.resubscribe(["book"]).unwrap(),
                _ => {
                    context.unsubscribe(["book"]).unwrap();
                    context.subscribe(["book"]).unwrap();
                }
            }
        }
    }
    let server = Server::start(has_all()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).venue(Plain::default()).subscribe(["book", "other"]);
    let client = supervisor.spawn_client(config.delivery(Delivery::inline(|| Book))).unwrap();
    client.wait_until_open(LONG).unwrap();
    let mut expected = vec!["subscribe"];
    for how in ["gap", "by hand", "handle"] {
        match how {
            "handle" => client.resubscribe(["book"]).unwrap(),
            word => {
                server.push(word);
            }
        }
        expected.extend(["unsubscribe", "subscribe"]);
        assert!(server.wait_until(LONG, |records| records[0].received.len() == expected.len()), "{how}");
        eventually("settled", || client.subscriptions().active.len() == 2);
    }
    assert_eq!(methods(&server, 0), expected);
}

#[test]
fn a_batchs_own_id_and_timeout_are_honoured_on_an_open_connection_too() {
    let server = Server::start(has_all()).unwrap();
    let venue = Plain { named: true, one_by_one: true, ..Plain::default() };
    let client = Client::connect(config(&server).venue(venue).subscribe(["a"])).unwrap();
    client.subscribe(["b"]).unwrap();
    let ids: Vec<_> = server.records()[0].received.iter().map(|message| json_of(message)["id"].clone()).collect();
    assert_eq!(ids, ["a", "b"]);

    let silent = Server::start(Script::silent()).unwrap();
    let venue = Plain { timeout: Some(ms(30)), ..Plain::default() };
    let client = Client::connect(config(&silent).venue(venue).request_timeout(LONG)).unwrap();
    std::thread::spawn(move || client.subscribe(["a"]));
    assert!(silent.wait_until(LONG, |records| records[0].received.len() > 4), "asked again and again");
}

#[test]
fn a_renewal_is_made_when_it_is_sent() {
    struct Renews(Arc<AtomicU64>);
    impl Renews {
        fn renewal(&self) -> Option<Renewal> {
            let made = self.0.clone();
            Some(Renewal::new(ms(60), move || Request::new("logon", [made.fetch_add(1, Ordering::SeqCst)])))
        }
    }
    impl Venue for Renews {
        fn authenticate(&self, _: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
            Ok(self.renewal())
        }
        fn renewed(&self, _: &Value) -> Result<Option<Renewal>, SessionError> {
            Ok(self.renewal())
        }
        fn subscribe(&self, _: &[Arc<str>]) -> Vec<Batch> {
            vec![]
        }
        fn unsubscribe(&self, _: &[Arc<str>]) -> Vec<Batch> {
            vec![]
        }
    }
    let server = Server::start(has_all()).unwrap();
    let made = Arc::new(AtomicU64::new(0));
    let _client = Client::connect(config(&server).venue(Renews(made.clone()))).unwrap();
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 3));
    let numbers: Vec<_> =
        server.records()[0].received.iter().map(|message| json_of(message)["params"][0].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2]);
}

#[test]
fn a_request_is_written_once_when_it_is_let_out_and_not_when_it_is_refused() {
    let server = Server::start(Script::silent()).unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let counts = written.clone();
    let stamped = Correlation::new(
        move |_, _, _| {
            counts.fetch_add(1, Ordering::Relaxed);
            Message::text(milliseconds().to_string())
        },
        |_| None,
    );
    let limit = RateLimit::bucket(1, 1, ms(400)).unwrap();
    let client = Client::connect(config(&server).correlation(stamped).rate_limit(limit)).unwrap();
    client.post(Request::new("order", ())).unwrap();
    for _ in 0..5 {
        let refused = client.start_request(Request::new("order", ())).unwrap_err();
        assert!(matches!(refused, RequestError::Refused(SendError::RateLimited { .. })), "{refused}");
    }
    let begun = milliseconds();
    client.post(Request::new("order", ()).wait_for_limit(LONG)).unwrap();
    assert_eq!(written.load(Ordering::Relaxed), 2);
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 2));
    let stamp: u64 = text(&server.records()[0].received[1]).parse().unwrap();
    assert!(stamp >= begun + 100, "stamped {} ms after it began to wait", stamp - begun);
}

#[test]
fn an_id_of_ones_own_may_be_used_again_after_its_time_ran_out() {
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    for _ in 0..2 {
        let button = Request::new("private/cancel_all", ()).timeout(ms(50)).id("panic-button");
        assert!(matches!(client.call::<Value>(button), Err(RequestError::OutcomeUnknown { .. })));
    }
    let numbered = Request::new("a", ()).id(u64::MAX / 2).timeout(ms(20));
    assert!(client.call::<Value>(numbered).is_err());
    let next_id = client.post(Request::new("a", ())).unwrap();
    assert!(matches!(next_id, RequestId::Number(n) if n < 1 << 53), "{next_id}: a venue that reads doubles echoes it");
}

#[test]
fn a_venues_limit_on_a_connection_begins_anew_with_the_next() {
    let server = Server::start(has_all()).unwrap();
    let limit = RateLimit::bucket(1, 1, Duration::from_secs(3_600)).unwrap().per_connection();
    let venue = Plain { limit: Some(limit), ..Plain::default() };
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).venue(venue).subscribe(["a"])).unwrap();
    for epoch in 1..4 {
        eventually("restored", || client.epoch() == epoch && client.subscriptions().active.len() == 1);
        server.cut();
    }
}

#[test]
fn clients_of_one_named_session_do_not_void_each_others_tokens() {
    let server =
        ws_supervisor::testing::DeribitServer::builder().token_lifetime(Duration::from_secs(1)).start().unwrap();
    let venue = Deribit::new().client_credentials("id", "secret").session("desk");
    let supervisor = Supervisor::start().unwrap();
    let spawn = |name| {
        let config = ClientConfig::new(server.url()).unwrap().name(name).venue(venue.clone());
        supervisor.spawn_client(config.backoff(ms(5), ms(20))).unwrap()
    };
    let (data, orders) = (spawn("data"), spawn("orders"));
    common::takes(ms(3_500));
    assert_eq!((data.epoch(), orders.epoch()), (1, 1), "connections in some token lifetimes");
}

#[test]
fn orders_can_not_use_up_what_a_cancel_needs() {
    use ws_supervisor::venue::deribit::{Order, buy, cancel_all};
    let server = ws_supervisor::testing::DeribitServer::start().unwrap();
    let venue = Deribit::new().client_signature("id", "secret");
    let client = Client::connect(ClientConfig::new(server.url()).unwrap().venue(venue)).unwrap();
    let order = || buy(&Order::limit("BTC-PERPETUAL", 10.0, 1_000.0));
    let orders = std::iter::repeat_with(|| client.post(order())).take_while(Result::is_ok).count();
    assert!((10..20).contains(&orders), "{orders}");
    let cancelled: u64 = client.call(cancel_all()).unwrap();
    assert!(cancelled > 0);
    assert_eq!(server.violations(), Vec::<String>::new());
}

/// Rounds at full speed against the venue's own limit; `ROUNDS` says how many, 60 by default.
#[test]
fn the_margin_on_the_venues_limit_is_never_used_up() {
    use ws_supervisor::venue::deribit::{Order, buy};
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(60_usize);
    let (next, side_by_side) = (AtomicUsize::new(0), 30);
    std::thread::scope(|scope| {
        for _ in 0..side_by_side {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < rounds {
                    let server = ws_supervisor::testing::DeribitServer::start().unwrap();
                    let venue = Deribit::new().client_signature("id", "secret");
                    let config = ClientConfig::new(server.url()).unwrap().venue(venue);
                    let client = Client::connect(config.overflow(Overflow::DropOldest)).unwrap();
                    for _ in 0..26 {
                        let order = buy(&Order::limit("BTC-PERPETUAL", 10.0, 1_000.0));
                        client.post(order.wait_for_limit(LONG)).unwrap();
                    }
                    eventually("answered", || client.stats().pending_requests == 0);
                    assert_eq!((server.violations(), client.epoch()), (vec![], 1));
                }
            });
        }
    });
}

#[test]
fn a_venue_that_lets_pass_one_at_a_time_finds_no_two_too_close() {
    let server = ws_supervisor::testing::DeribitServer::builder().matching_engine(1, 5).start().unwrap();
    let venue = Deribit::new().client_signature("id", "secret").matching_engine_limit(1, 5).unwrap();
    let client = Client::connect(ClientConfig::new(server.url()).unwrap().venue(venue)).unwrap();
    for _ in 0..8 {
        let cancel = ws_supervisor::venue::deribit::cancel_all();
        client.call::<u64>(cancel.wait_for_limit(LONG)).unwrap();
    }
    assert_eq!(server.violations(), Vec::<String>::new());
}
