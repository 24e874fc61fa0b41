//! What `reconcile` sends is in the account too, however it or its connection ends.

#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::sync::Arc;

use common::{LONG, config, eventually, ms, raw, received, text, to};
use parking_lot::Mutex;
use serde_json::Value;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{Client, Heartbeat, Message, ReadyState, Request, SessionError, Supervisor};

/// The texts of these messages, but for long ones.
fn short(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.len() < 100).map(text).collect()
}

#[test]
fn an_order_that_a_failed_reconcile_sent_again_is_not_unsent_in_the_next() {
    for panics in [false, true] {
        let server = Server::start(Script::silent()).unwrap();
        let given = Arc::new(Mutex::new(vec![]));
        let noted = given.clone();
        let large = config(&server).send_capacity(1000).send_bytes(1 << 30).max_message_size(8 << 20);
        let config = large.reconcile(move |session, unsettled| {
            let round = {
                let mut noted = noted.lock();
                noted.push((short(&unsettled.unsent), short(&unsettled.uncertain)));
                noted.len()
            };
            for order in unsettled.unsent.iter().filter(|message| message.len() < 100) {
                session.send(order.clone())?;
            }
            assert!(round > 2 || !panics, "between the first step and the second");
            if round > 2 { Ok(()) } else { Err(SessionError::retryable("the second step failed")) }
        });
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        server.deafen(true);
        (0..4).for_each(|_| client.send(Message::binary(vec![0; 8 << 20])).unwrap());
        client.send("order A").unwrap();
        server.reset();
        eventually("it is settled", || given.lock().len() >= 3 && client.ready_state() == ReadyState::Open);
        let given = given.lock();
        assert_eq!(given[0].0, ["order A"], "{given:?}");
        for later in &given[1..] {
            assert!(later.0.is_empty() && later.1 == ["order A"], "{given:?}");
        }
        assert!(received(&server).iter().filter(|text| *text == "order A").count() <= 1);
    }
}

#[test]
fn a_request_of_reconcile_without_an_answer_is_unknown_in_the_next() {
    let script = Script::reply(|_, message| {
        let request: Value = serde_json::from_str(&text(message)).unwrap();
        let answer = serde_json::json!({ "id": request["id"], "result": 1 });
        if request["method"] == "place" { vec![] } else { vec![Message::text(answer.to_string())] }
    });
    let server = Server::start(script).unwrap();
    let given = Arc::new(Mutex::new(vec![]));
    let noted = given.clone();
    let config = config(&server).reconcile(move |session, unsettled| {
        noted.lock().push(unsettled.unknown.iter().map(|one| one.method.to_string()).collect::<Vec<_>>());
        let _: Value = session.request("open_orders", ())?;
        let round = noted.lock().len();
        if round <= 2 {
            let placed = session.call::<Value>(Request::new("place", [round]).timeout(ms(50)));
            // The first round goes on without the answer; the second fails.
            if round == 2 {
                placed?;
            }
        }
        Ok(())
    });
    let client = Client::connect(config).unwrap();
    server.cut();
    eventually("the first round", || given.lock().len() == 1 && client.ready_state() == ReadyState::Open);
    server.cut();
    eventually("the third round", || given.lock().len() >= 3 && client.ready_state() == ReadyState::Open);
    let given = given.lock();
    assert_eq!(given[..3], [vec![], vec!["place".to_owned()], vec!["place".to_owned(), "place".to_owned()]]);
}

#[test]
fn messages_of_reconcile_that_had_no_room_are_uncertain_in_the_next() {
    let address = raw(|mut stream, n, answer| {
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        // The first connection ends; the second is not read from; the third is there for good.
        if n > 0 {
            std::mem::forget(stream);
        }
    });
    let given = Arc::new(Mutex::new(vec![]));
    let noted = given.clone();
    let large = to(address).max_message_size(16 << 20).heartbeat(Heartbeat::disabled()).connect_timeout(ms(500));
    let config = large.reconcile(move |session, unsettled| {
        let round = {
            let mut noted = noted.lock();
            noted.push((unsettled.uncertain.len(), short(&unsettled.uncertain)));
            noted.len()
        };
        if round == 1 {
            session.send(Message::binary(vec![0; 12 << 20]))?;
            session.send("order A")?;
        }
        Ok(())
    });
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    eventually("the next round", || given.lock().len() >= 2 && client.ready_state() == ReadyState::Open);
    assert_eq!(given.lock()[..2], [(0, vec![]), (2, vec!["order A".to_owned()])]);
}
