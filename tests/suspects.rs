//! Whom the end of a connection is blamed on: suspects are tried in turn, the culprit is found, and bad weather blames
//! nobody.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use common::{Plain, config, eventually, json_of, ms, takes};
use serde_json::json;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

fn ok(message: &Message) -> Vec<Message> {
    let request = json_of(message);
    vec![json!({"id": request["id"], "result": request["params"]}).to_string().into()]
}

fn asks_for(message: &Message, name: &str) -> bool {
    json_of(message)["params"].as_array().is_some_and(|channels| channels.iter().any(|channel| channel == name))
}

/// A server that answers by this function, which may end the connections of the server itself.
fn server(answer: impl Fn(&Arc<Server>, usize, &Message) -> Vec<Message> + Send + Sync + 'static) -> Arc<Server> {
    let server = Arc::new(Server::start(Script::silent()).unwrap());
    let weak = Arc::downgrade(&server);
    server.set_script(Script::reply(move |peer, message| {
        weak.upgrade().map_or(vec![], |server| answer(&server, peer.index, message))
    }));
    server
}

fn one_by_one() -> Plain {
    Plain { one_by_one: true, ..Plain::default() }
}

fn has_come_to_rest(client: &Client, active: usize, refused: &[&str]) -> bool {
    let status = client.subscriptions();
    let names: Vec<_> = status.refused.iter().map(|refusal| &*refusal.channel).collect();
    status.active.len() == active && names == refused
}

/// The venue closes once over everything; then one channel is silent, or refused for the moment.
#[test]
fn a_suspect_that_comes_to_nothing_keeps_no_other_from_its_turn() {
    for put_off in [false, true] {
        let server = server(move |server, connection, message| match connection {
            0 => {
                server.close_all(1011, "internal error");
                vec![]
            }
            _ if !asks_for(message, "a") => ok(message),
            _ if put_off => {
                let error = json!({"code": 11_051, "message": "temporarily unavailable"});
                vec![json!({"id": json_of(message)["id"], "error": error}).to_string().into()]
            }
            _ => vec![],
        });
        let wants = config(&server).venue(one_by_one()).connect_timeout(ms(300)).request_timeout(ms(200));
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(wants.subscribe(["a", "b", "c"])).unwrap();
        eventually("the other two", || client.subscriptions().active.len() == 2);
    }
}

#[test]
fn a_caller_who_always_wants_something_new_keeps_no_suspect_from_its_trial() {
    let server = server(|server, connection, message| {
        if connection == 0 && asks_for(message, "a") {
            server.close_all(1011, "internal error");
            return vec![];
        }
        ok(message)
    });
    let wants = config(&server).venue(one_by_one()).connect_timeout(ms(300)).subscribe(["z"]);
    let client = Client::connect(wants).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.subscribe(["a"]));
        for n in 0.. {
            if waits.is_finished() {
                return assert_eq!(waits.join().unwrap(), Ok(()));
            }
            let _ = client.subscribe([format!("x{n}")]);
            takes(ms(200));
        }
    });
}

/// The server closes a moment after the acknowledgement, and that is read when it is no longer fresh.
#[test]
fn a_close_that_is_read_late_is_blamed_all_the_same() {
    struct Slow;
    impl Handler for Slow {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            takes(ms(700));
        }
    }
    let server = server(|server, _, message| {
        if !asks_for(message, "bad") {
            return ok(message);
        }
        let closes = server.clone();
        std::thread::spawn(move || {
            takes(ms(20));
            closes.close_all(1008, "no such channel")
        });
        [ok(message), vec!["tick".into()]].concat()
    });
    let wants = config(&server).venue(one_by_one()).connect_timeout(ms(1000)).subscribe(["a", "bad"]);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(wants.delivery(Delivery::inline(|| Slow))).unwrap();
    eventually("it is found", || has_come_to_rest(&client, 1, &["bad"]));
}

#[test]
fn a_channel_that_is_acknowledged_and_then_cuts_the_line_is_found() {
    let server = server(|server, _, message| {
        if asks_for(message, "bad") {
            let cuts = server.clone();
            std::thread::spawn(move || {
                takes(ms(20));
                cuts.cut()
            });
        }
        ok(message)
    });
    let wants = config(&server).venue(one_by_one()).connect_timeout(ms(1000)).subscribe(["a", "bad"]);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(wants).unwrap();
    eventually("it is found", || has_come_to_rest(&client, 1, &["bad"]));
}

/// It is being asked for at each of the cuts.
#[test]
fn a_network_that_cuts_again_and_again_sets_no_slow_channel_aside() {
    let server = server(|server, connection, message| {
        if !asks_for(message, "slow") || connection >= 6 {
            return ok(message);
        }
        let cuts = server.clone();
        std::thread::spawn(move || {
            takes(ms(800));
            cuts.cut()
        });
        vec![]
    });
    let wants = config(&server).venue(one_by_one()).connect_timeout(ms(100)).subscribe(["a", "slow"]);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(wants).unwrap();
    eventually("both are there", || has_come_to_rest(&client, 2, &[]));
    assert!(server.accepts() >= 6);
}
