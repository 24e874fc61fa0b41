//! The venue Deribit against the embedded one, and the embedded one against what the real one was recorded to say.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use common::{LONG, eventually, ms, next, next_open};
use serde_json::{Value, json};
use ws_supervisor::testing::DeribitServer;
use ws_supervisor::venue::deribit::{self, Deribit, Order, TimeInForce};
use ws_supervisor::{
    Client, ClientConfig, ConnectError, DisconnectReason, Event, Message, ParkReason, Request, RequestError,
    Supervisor, WaitError,
};

const ORDERS: &str = "user.orders.BTC-PERPETUAL.raw";
const BOOK: &str = "book.BTC-PERPETUAL.raw";

fn venue() -> Deribit {
    Deribit::new().client_signature("id", "secret").cancel_on_disconnect(true)
}

fn config(server: &DeribitServer, venue: Deribit) -> ClientConfig {
    let config = ClientConfig::new(server.url()).unwrap().venue(venue).backoff(ms(5), ms(20)).max_retries(u32::MAX);
    match server.ca_pem() {
        pem if pem.is_empty() => config,
        pem => config.root_certificate(pem).tls(common::tls()),
    }
}

fn value(message: &Message) -> Value {
    serde_json::from_str(message.as_text().unwrap()).unwrap()
}

/// The next notification of a channel.
fn notified(client: &Client, channel: &str) -> Value {
    next(client, |event| match event {
        Event::Message(message) => {
            let message = value(&message);
            (message["params"]["channel"] == channel).then(|| message["params"]["data"].clone())
        }
        _ => None,
    })
}

/// What every connection was sent, in order: the methods.
fn methods(server: &DeribitServer, index: usize) -> Vec<String> {
    let records = server.server().records();
    let method = |message: &Message| value(message)["method"].as_str().unwrap_or_default().to_owned();
    records[index].received.iter().map(method).collect()
}

#[test]
fn a_session_is_opened_in_order_and_again_after_every_cut() {
    for tls in [false, true] {
        let builder = DeribitServer::builder();
        let server = if tls { builder.tls() } else { builder }.start().unwrap();
        let supervisor = Supervisor::start().unwrap();
        let config = config(&server, venue()).subscribe([ORDERS, BOOK]);
        let client = supervisor.spawn_client(config).unwrap();
        for connection in 0..3_usize {
            let (restored, refused) = next(&client, |event| match event {
                Event::Open { restored, refused, .. } => Some((restored, refused)),
                _ => None,
            });
            assert_eq!(restored.iter().map(|name| &**name).collect::<Vec<_>>(), [BOOK, ORDERS]);
            assert!(refused.is_empty());
            let expected = [
                "public/set_heartbeat",
                "public/auth",
                "private/enable_cancel_on_disconnect",
                "public/subscribe",
                "private/subscribe",
            ];
            assert_eq!(methods(&server, connection), expected, "tls {tls}, connection {connection}");
            server.server().cut();
        }
        assert_eq!(server.violations(), Vec::<String>::new());
    }
}

#[test]
fn orders_live_their_lives() {
    let server = DeribitServer::start().unwrap();
    let client = Client::connect(config(&server, venue()).subscribe([ORDERS])).unwrap();
    let low = Order::limit("BTC-PERPETUAL", 10.0, 1_000.0).label("low").post_only(true);
    let placed: Value = client.call(deribit::buy(&low)).unwrap();
    let id = placed["order"]["order_id"].as_str().unwrap().to_owned();
    assert_eq!((&placed["order"]["order_state"], &placed["order"]["label"]), (&json!("open"), &json!("low")));
    assert_eq!(notified(&client, ORDERS)["order_id"], json!(id));
    let edited: Value = client.call(deribit::edit(&id, 20.0, 1_100.5)).unwrap();
    assert_eq!((&edited["order"]["amount"], &edited["order"]["price"]), (&json!(20.0), &json!(1_100.5)));
    let open: Vec<Value> = client.call(deribit::get_open_orders()).unwrap();
    assert_eq!(open.len(), 1);
    let state: Value = client.call(deribit::get_order_state(&id)).unwrap();
    assert_eq!(state["order_state"], "open");
    let cancelled: Value = client.call(deribit::cancel(&id)).unwrap();
    assert_eq!(cancelled["order_state"], "cancelled");
    match client.call::<Value>(deribit::cancel(&id)) {
        Err(RequestError::Rpc(error)) => assert_eq!((error.code, &*error.message), (11_044, "not_open_order")),
        other => panic!("{other:?}"),
    }
    let sold: Value = client.call(deribit::sell(&Order::market("BTC-PERPETUAL", 30.0))).unwrap();
    assert_eq!((&sold["order"]["order_state"], sold["trades"].as_array().unwrap().len()), (&json!("filled"), 1));
    let kill = Order::limit("BTC-PERPETUAL", 10.0, 1.0).time_in_force(TimeInForce::ImmediateOrCancel);
    let killed: Value = client.call(deribit::buy(&kill)).unwrap();
    assert_eq!(killed["order"]["order_state"], "cancelled");
    let positions: Vec<Value> = client.call(deribit::get_positions("BTC")).unwrap();
    assert_eq!(positions[0]["size"], json!(-30.0));
    for label in ["a", "a", "b"] {
        let _: Value = client.call(deribit::buy(&Order::limit("ETH-PERPETUAL", 1.0, 5.0).label(label))).unwrap();
    }
    assert_eq!(client.call::<u32>(deribit::cancel_by_label("a")).unwrap(), 2);
    assert_eq!(client.call::<u32>(deribit::cancel_all()).unwrap(), 1);
    let summary: Value = client.call(deribit::get_account_summary("BTC")).unwrap();
    assert_eq!(summary["limits"]["matching_engine"]["burst"], json!(20.0));
    let ticker: Value = client.call(deribit::ticker("BTC-PERPETUAL")).unwrap();
    assert!(ticker["best_bid_price"].as_f64().unwrap() < ticker["best_ask_price"].as_f64().unwrap());
    let book: Value = client.call(deribit::get_order_book("BTC-PERPETUAL", 3)).unwrap();
    assert_eq!(book["bids"].as_array().unwrap().len(), 3);
    let options: Vec<Value> = client.call(deribit::get_instruments("BTC", Some("option"))).unwrap();
    assert_eq!(options[0]["instrument_name"], "BTC-27DEC30-100000-C");
    assert_eq!(server.violations(), Vec::<String>::new());
}

#[test]
fn a_wrong_secret_parks_and_nothing_private_follows() {
    for venue in [Deribit::new().client_credentials("id", "wrong"), Deribit::new().client_signature("id", "wrong")] {
        let server = DeribitServer::start().unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server, venue).subscribe([ORDERS])).unwrap();
        match client.wait_until_open(LONG) {
            Err(WaitError::Parked(ParkReason::Refused(error @ ConnectError::Session(_)))) => {
                let told = error.to_string();
                assert!(told.contains("13004 invalid_credentials") && !told.contains("wrong"), "{told}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(server.server().accepts(), 1);
        assert_eq!(methods(&server, 0), ["public/set_heartbeat", "public/auth"]);
        assert_eq!(server.violations(), Vec::<String>::new());
    }
}

#[test]
fn what_the_venue_refuses_is_named_channel_by_channel() {
    let server = DeribitServer::start().unwrap();
    // Not signed in: no raw channel, and nothing private.
    let public = "trades.ETH-PERPETUAL.100ms";
    let config = config(&server, Deribit::new()).subscribe([BOOK, "book.NOTHING.100ms", public]);
    let client = Client::connect(config).unwrap();
    let (restored, refused) = next(&client, |event| match event {
        Event::Open { restored, refused, .. } => Some((restored, refused)),
        _ => None,
    });
    assert_eq!(restored, [public.into()]);
    let told: BTreeMap<_, _> = refused.iter().map(|refusal| (&*refusal.channel, refusal.error.code)).collect();
    assert_eq!(told, BTreeMap::from([(BOOK, 13_778), ("book.NOTHING.100ms", 0)]));
    let error = client.subscribe(["ticker.NOTHING.100ms", "ticker.BTC-PERPETUAL.100ms"]).unwrap_err();
    assert_eq!(error.to_string(), "refused by the server: ticker.NOTHING.100ms (not acknowledged by the server)");
    assert_eq!(notified(&client, "ticker.BTC-PERPETUAL.100ms")["instrument_name"], "BTC-PERPETUAL");
    client.unsubscribe([public]).unwrap();
    let status = client.subscriptions();
    assert_eq!(status.active, ["ticker.BTC-PERPETUAL.100ms".into()]);
    assert_eq!(server.subscriptions()[0].1, BTreeSet::from(["ticker.BTC-PERPETUAL.100ms".to_owned()]));
}

#[test]
fn a_mute_line_is_noticed_by_both_sides_and_its_orders_are_cancelled() {
    // The venue's seconds are short: it tests every 200 ms.
    let server = DeribitServer::builder().heartbeat_second(ms(20)).start().unwrap();
    let client = Client::connect(config(&server, venue().heartbeat_interval(Duration::from_secs(10)))).unwrap();
    eventually("a few tests answered", || methods(&server, 0).iter().filter(|name| *name == "public/test").count() > 2);
    assert_eq!(server.violations(), Vec::<String>::new());
    drop(client);
    // A client that does not answer.
    let rude = ClientConfig::new(server.url()).unwrap().on_open(|session| {
        let _: Value = session.request("public/set_heartbeat", json!({"interval": 10}))?;
        Ok(())
    });
    let rude = Client::connect(rude.backoff(LONG, LONG)).unwrap();
    let reason = next(&rude, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason.to_string(), "closed by the server: 1008 test_request was not answered");
    assert!(server.violations().iter().any(|what| what.contains("test_request not answered")));
}

#[test]
fn orders_of_a_lost_connection_are_cancelled_and_its_token_is_dead() {
    let server = DeribitServer::start().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server, venue()).subscribe([ORDERS])).unwrap();
    next_open(&client);
    let auth = json!({"grant_type": "client_credentials", "client_id": "id", "client_secret": "secret"});
    let token: Value = client.request("public/auth", auth).unwrap();
    let with_token = json!({"access_token": token["access_token"]});
    let _: Value = client.request("private/get_positions", with_token.clone()).unwrap();
    let _: Value = client.call(deribit::buy(&Order::limit("BTC-PERPETUAL", 10.0, 1_000.0))).unwrap();
    assert_eq!(server.open_orders(), 1);
    server.server().cut();
    assert!(server.wait_until(LONG, |server| server.open_orders() == 0));
    assert_eq!(server.orders()[0]["order_state"], "cancelled");
    assert_eq!(next_open(&client), 2);
    assert_eq!(server.violations(), Vec::<String>::new());
    let stranger = Client::connect(ClientConfig::new(server.url()).unwrap()).unwrap();
    match stranger.request::<Value>("private/get_positions", with_token) {
        Err(RequestError::Rpc(error)) => assert_eq!(error.code, 13_009),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.violations().len(), 1, "this was one");
}

#[test]
fn tokens_are_renewed_before_they_expire() {
    let server = DeribitServer::builder().token_lifetime(Duration::from_secs(1)).start().unwrap();
    let client = Client::connect(config(&server, venue())).unwrap();
    let renewals = || methods(&server, 0).iter().filter(|name| *name == "public/auth").count();
    eventually("three times", || renewals() >= 4);
    let _: Value = client.call(deribit::get_open_orders()).unwrap();
    assert_eq!((client.epoch(), server.violations()), (1, vec![]));
}

#[test]
fn a_renewal_that_fails_brings_a_fresh_connection() {
    let server = DeribitServer::builder().token_lifetime(Duration::from_secs(1)).start().unwrap();
    struct Broken(Deribit);
    use std::sync::Arc;
    use ws_supervisor::venue::{Batch, Renewal, Venue};
    use ws_supervisor::{Session, SessionError};
    impl Venue for Broken {
        fn authenticate(&self, session: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
            self.0.authenticate(session)?;
            let wrong = json!({"grant_type": "refresh_token", "refresh_token": "lost"});
            Ok(Some(Renewal::new(ms(20), Request::new("public/auth", wrong))))
        }
        fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
            self.0.subscribe(channels)
        }
        fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
            self.0.unsubscribe(channels)
        }
    }
    let config = ClientConfig::new(server.url()).unwrap().venue(Broken(venue())).backoff(ms(5), ms(20));
    let client = Client::connect(config).unwrap();
    let reason = next(&client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(&reason, DisconnectReason::RenewalFailed(why) if why.contains("-32602")), "{reason}");
    next(&client, |event| matches!(event, Event::Open { epoch: 2, .. }).then_some(()));
}

#[test]
fn credits_that_run_out_end_the_session_unless_the_client_counts_them() {
    let build = || DeribitServer::builder().credits(5_000, 2_000).matching_engine(2, 1).start().unwrap();
    let careless = build();
    let client = Client::connect(ClientConfig::new(careless.url()).unwrap()).unwrap();
    let pending: Vec<_> = (0..20).filter_map(|_| client.start_request(Request::new("public/test", ())).ok()).collect();
    let mut outcomes = pending.into_iter().map(|pending| pending.receiver().recv().unwrap().outcome);
    assert!(outcomes.any(|outcome| matches!(outcome, Err(RequestError::Rpc(error)) if error.code == 10_028)));
    assert!(!careless.violations().is_empty());

    // The venue's own limits are twenty times these, so the test asks for its own.
    let careful = build();
    let second = Duration::from_secs(1);
    let limit = ws_supervisor::RateLimit::bucket(3_500, 2_000, second).unwrap().cost(|_| 500);
    let config = ClientConfig::new(careful.url()).unwrap().rate_limit(limit);
    let client = Client::connect(config).unwrap();
    for _ in 0..20 {
        let request = Request::new("public/test", ()).wait_for_limit(LONG);
        let _: Value = client.call(request).unwrap();
    }
    assert_eq!(careful.violations(), Vec::<String>::new());
}

/// A broken chain is for whoever keeps a book: here, that it can be seen.
#[test]
fn books_are_chained_until_the_chain_is_broken() {
    let server = DeribitServer::start().unwrap();
    let client = Client::connect(config(&server, venue()).subscribe([BOOK])).unwrap();
    let snapshot = notified(&client, BOOK);
    assert_eq!(snapshot["type"], "snapshot");
    let mut last = snapshot["change_id"].as_u64().unwrap();
    server.step(200);
    server.break_chain("BTC-PERPETUAL");
    let mut seen = 0;
    loop {
        let change = notified(&client, BOOK);
        assert_eq!(change["type"], "change");
        if change["prev_change_id"].as_u64().unwrap() != last {
            break;
        }
        last = change["change_id"].as_u64().unwrap();
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

/// The names and kinds of all fields, lists by their first entry.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Array(items) => items.iter().take(1).map(shape).collect(),
        // A field that may be unknown is null now and then.
        Value::Null | Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
        Value::Bool(_) => json!("bool"),
    }
}

#[test]
fn messages_have_the_fields_of_recorded_ones() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/deribit.jsonl");
    let Ok(recorded) = std::fs::read_to_string(&path) else {
        eprintln!("no recording at {}: nothing to compare with", path.display());
        return;
    };
    let line = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let recorded: Vec<(bool, Value)> = recorded
        .lines()
        .map(line)
        .map(|entry| (entry["dir"] == "in", serde_json::from_str(entry["data"].as_str().unwrap()).unwrap()))
        .collect();
    let kind = |message: &Value| {
        let data = &message["params"]["data"];
        let channel = message["params"]["channel"].as_str().unwrap_or_default().split('.').next().unwrap().to_owned();
        (message["method"].is_string(), channel, data["type"].as_str().unwrap_or_default().to_owned())
    };
    // Of each kind the first whose lists are not empty.
    let full = |message: &Value| {
        let data = &message["params"]["data"];
        let filled = |name: &str| data[name].as_array().is_none_or(|list| !list.is_empty());
        filled("bids") && (filled("asks") || data["type"] == "change")
    };
    let mut expected = BTreeMap::new();
    for (_, message) in recorded.iter().filter(|(incoming, message)| *incoming && full(message)) {
        expected.entry(kind(message)).or_insert_with(|| shape(message));
    }
    assert!(expected.len() >= 4, "{:?}", expected.keys());

    let server = DeribitServer::start().unwrap();
    let option = "BTC-27DEC30-100000-C";
    let names = ["book", "trades", "ticker"].map(|kind| format!("{kind}.{option}.raw"));
    let client = Client::connect(config(&server, venue()).subscribe(&names)).unwrap();
    let mut missing = expected.clone();
    // Nobody waits for the answer to this one: it comes as it is.
    let ask = json!({"jsonrpc": "2.0", "id": 0, "method": "public/subscribe", "params": {"channels": names}});
    client.send(ask.to_string()).unwrap();
    assert!(server.server().wait_until(LONG, |records| records[0].received.len() == 5));
    server.step(200);
    while !missing.is_empty() {
        let message = next(&client, |event| match event {
            Event::Message(message) => Some(value(&message)),
            _ => None,
        });
        if full(&message) {
            if let Some(expected) = missing.remove(&kind(&message)) {
                assert_eq!(shape(&message), expected, "{message}");
            }
        }
    }
    let sent = recorded.iter().find(|(incoming, _)| !incoming).map(|(_, message)| message).unwrap();
    let ours = server.server().records()[0].received.iter().map(value).find(|m| m["method"] == sent["method"]).unwrap();
    assert_eq!(shape(&ours), shape(sent));
}
