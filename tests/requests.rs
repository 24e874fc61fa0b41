//! Every request is answered exactly once or fails exactly once, and what is said of it is true.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, json_of, ms, next, next_open, next_text, rpc};
use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Answer, Client, Context, Correlation, Delivery, Event, Handler, Heartbeat, Message, MessageRef, Request,
    RequestError, Response, SendError, Supervisor, Unanswered,
};

fn connect(server: &Server) -> Client {
    let client = Client::connect(config(server)).unwrap();
    next_open(&client);
    client
}

fn cause(outcome: Result<impl std::fmt::Debug, RequestError>) -> (&'static str, Unanswered) {
    match outcome {
        Err(RequestError::NotSent { cause, .. }) => ("not sent", cause),
        Err(RequestError::OutcomeUnknown { cause, .. }) => ("unknown", cause),
        other => panic!("{other:?}"),
    }
}

fn late(client: &Client) -> Response {
    next(client, |event| match event {
        Event::LateResponse(response) => Some(*response),
        _ => None,
    })
}

#[test]
fn answers_find_their_requests_in_whatever_order_they_come() {
    let waiting = Mutex::new(vec![]);
    let server = Server::start(Script::reply(move |_, message| {
        let mut waiting = waiting.lock();
        waiting.push(json_of(message));
        if waiting.len() < 5 {
            return vec![];
        }
        let answer = |request: Value| json!({"id": request["id"], "result": request["params"]}).to_string().into();
        waiting.drain(..).rev().map(answer).collect()
    }))
    .unwrap();
    let client = connect(&server);
    let pending: Vec<_> = (0..5).map(|n| client.start_request(Request::new("echo", [n])).unwrap()).collect();
    for (n, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.wait::<[usize; 1]>().unwrap(), [n]);
    }
    assert_eq!(client.stats().received, 5);
}

#[test]
fn eight_threads_share_a_client_and_each_gets_its_own_answers() {
    let server = Server::start(rpc(|_, params| Some(Ok(params.clone())))).unwrap();
    let client = connect(&server);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..10 {
                    let ask = |n| client.start_request(Request::new("echo", [thread, round, n])).unwrap();
                    let pending: Vec<_> = (0..20).map(ask).collect();
                    for (n, pending) in pending.into_iter().enumerate() {
                        assert_eq!(pending.wait::<[u64; 3]>().unwrap(), [thread, round, n as u64]);
                    }
                }
            });
        }
    });
    let ids: std::collections::HashSet<_> =
        server.records()[0].received.iter().map(|m| json_of(m)["id"].as_u64()).collect();
    assert_eq!(ids.len(), 1600, "no id twice");
}

#[test]
fn what_answers_nobody_reaches_the_caller_untouched() {
    let strays = [
        r#"{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"0x1","result":1}}"#,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}"#,
        r#"{"jsonrpc":"2.0","id":424242,"result":true}"#,
        r#"{"jsonrpc":"2.0","id":"one","result":true}"#,
        r#"[{"jsonrpc":"2.0","id":1,"result":true}]"#,
        "{\"id\":1,",
    ];
    let server = Server::start(Script::reply(move |_, message| {
        // A notification that the answer explains, and everything else that is none, comes before the answer.
        let mut replies: Vec<Message> = strays.iter().map(|stray| Message::from(*stray)).collect();
        replies.push(json!({"id": json_of(message)["id"], "result": "0x1"}).to_string().into());
        replies
    }))
    .unwrap();
    let client = connect(&server);
    assert_eq!(client.request::<String>("eth_subscribe", ["newHeads"]).unwrap(), "0x1");
    for stray in strays {
        assert_eq!(next_text(&client), stray);
    }
}

#[test]
fn errors_results_and_what_does_not_fit_are_told_apart() {
    let server = Server::start(rpc(|method, params| match method {
        "ok" => Some(Ok(json!({"order_id": "7"}))),
        "null" => Some(Ok(Value::Null)),
        _ => Some(Err(params[0].as_i64().unwrap())),
    }))
    .unwrap();
    let client = connect(&server);
    match client.request::<Value>("no", [-32_602]) {
        Err(RequestError::Rpc(error)) => assert_eq!((error.code, &*error.message), (-32_602, "refused")),
        other => panic!("{other:?}"),
    }
    match client.request::<u64>("ok", ()) {
        Err(error @ RequestError::Undecodable { .. }) => {
            assert!(error.to_string().starts_with("carried out, but"), "{error}");
            let RequestError::Undecodable { result, .. } = error else { unreachable!() };
            assert_eq!(result.as_bytes(), br#"{"order_id":"7"}"#, "the order's id is not lost");
        }
        other => panic!("{other:?}"),
    }
    client.request::<()>("null", ()).unwrap();
    let unwritable = std::collections::BTreeMap::from([(vec![1], 1)]);
    assert!(matches!(client.request::<()>("x", unwritable), Err(RequestError::Params(_))));
    assert_eq!(server.records()[0].received.len(), 3);
}

#[test]
fn a_duplicate_id_is_refused_and_the_first_is_not_disturbed() {
    let server = Server::start(Script::silent()).unwrap();
    let client = connect(&server);
    let first = client.start_request(Request::new("a", ()).id("mine")).unwrap();
    let second = client.start_request(Request::new("b", ()).id("mine"));
    assert!(matches!(second, Err(RequestError::DuplicateId(id)) if id == "mine".into()));
    server.wait_for_message(|message| message.as_text().is_some_and(|text| text.contains("mine")));
    server.push(r#"{"id":"mine","result":1}"#);
    assert_eq!(first.wait::<u32>().unwrap(), 1);
    let again = client.start_request(Request::new("c", ()).id("mine")).unwrap();
    server.push(r#"{"id":"mine","result":2}"#);
    assert_eq!(again.wait::<u32>().unwrap(), 2);
}

#[test]
fn a_deadline_holds_while_the_worker_sleeps_and_the_late_answer_is_an_event() {
    let server = Server::start(Script::silent()).unwrap();
    let client = Client::connect(config(&server).heartbeat(Heartbeat::disabled())).unwrap();
    let early = client.start_request(Request::new("slow", ()).timeout(LONG)).unwrap();
    let pending = client.start_request(Request::new("private/buy", ()).id(77).timeout(ms(20))).unwrap();
    // By select, so that only the worker can see to it.
    let response = pending.receiver().recv_timeout(LONG).unwrap();
    assert_eq!(cause(response.outcome), ("unknown", Unanswered::TimedOut));
    server.push(r#"{"jsonrpc":"2.0","id":77,"result":{"order_id":"1"}}"#);
    let late = late(&client);
    assert_eq!((late.id.clone(), &*late.method), (77.into(), "private/buy"));
    assert_eq!(late.decode::<Value>().unwrap()["order_id"], "1");
    assert_eq!(client.stats().pending_requests, 1);
    drop(early);
    let answer = json!({"id": 1, "result": "for nobody"});
    server.push(answer.to_string());
    assert_eq!(self::late(&client).decode::<String>().unwrap(), "for nobody", "its PendingResponse was dropped");
}

#[test]
fn a_handler_that_does_not_return_holds_up_no_callers_deadline() {
    struct Stuck(Sender<()>, crossbeam_channel::Receiver<()>);
    impl Handler for Stuck {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            let _ = self.0.send(());
            let _ = self.1.recv();
        }
    }
    let server = Server::start(Script::silent()).unwrap();
    let (entered, is_in) = unbounded();
    let (release, held) = unbounded();
    let delivery = Delivery::inline(move || Stuck(entered.clone(), held.clone()));
    let client = Client::connect(config(&server).delivery(delivery)).unwrap();
    server.push("hold");
    is_in.recv_timeout(LONG).unwrap();
    let pending = client.start_request(Request::new("a", ()).timeout(ms(20))).unwrap();
    assert_eq!(cause(pending.wait::<()>()), ("not sent", Unanswered::TimedOut));
    release.send(()).unwrap();
    client.send_confirmed("b", LONG).unwrap();
    assert_eq!(
        server.wait_for_message(|_| true),
        Message::from("b"),
        "what was reported as not sent is not sent later"
    );
}

#[test]
fn a_disconnect_fails_what_is_pending_at_once_and_truthfully() {
    let faults: [fn(&Server) -> usize; 3] = [Server::cut, Server::reset, |server| server.close_all(1001, "")];
    for fault in faults {
        let server = Server::start(Script::silent()).unwrap();
        let client = connect(&server);
        let pending = client.start_request(Request::new("private/buy", ()).id(1)).unwrap();
        assert!(server.wait_until(LONG, |records| records[0].received.len() == 1));
        fault(&server);
        assert_eq!(cause(pending.wait::<()>()), ("unknown", Unanswered::Disconnected));
        // A stale answer on the next connection is nobody's.
        next_open(&client);
        server.push(r#"{"id":1,"result":1}"#);
        assert_eq!(next_text(&client), r#"{"id":1,"result":1}"#);
    }
}

#[test]
fn what_never_left_is_reported_as_not_sent() {
    let server = Server::start(Script::silent().then_deaf()).unwrap();
    let client = connect(&server);
    // The server reads nothing: in the end the kernels are full, and the rest waits.
    let big = "x".repeat(1 << 20);
    let all: Vec<_> = (0..64).map_while(|_| client.start_request(Request::new("big", &big)).ok()).collect();
    eventually("some left", || client.stats().sent > 0);
    server.cut();
    let told: Vec<_> = all.into_iter().map(|pending| cause(pending.wait::<()>())).collect();
    let sent = told.iter().filter(|(what, _)| *what == "unknown").count() as u64;
    assert_eq!(sent, client.stats().sent, "unknown are exactly those that the kernel has");
    assert_eq!(client.stats().unsent, told.len() as u64 - sent);
    assert!(sent < 64 && told[..sent as usize].iter().all(|(what, _)| *what == "unknown"), "in order: {told:?}");
}

#[test]
fn an_answer_that_the_end_of_the_line_follows_at_once_is_an_answer() {
    let server = Server::start(rpc(|_, _| Some(Ok(json!(1))))).unwrap();
    for _ in 0..50 {
        // The last client may be on its way to one more connection before it is stopped.
        let before = server.accepts();
        let client = connect(&server);
        let pending = client.start_request(Request::new("last", ())).unwrap();
        assert!(server.wait_until(LONG, |records| records[before..].iter().any(|record| record.served > 0)));
        // No close handshake.
        server.cut();
        assert_eq!(pending.wait::<u32>().unwrap(), 1);
    }
}

#[test]
fn the_end_of_the_client_is_the_end_of_its_requests() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    for way in 0..4 {
        let heartbeat = Heartbeat::message(LONG, "alive?", |message| {
            assert!(message.as_text() != Some("panic"), "a panic that a test asked for");
            false
        });
        let config = config(&server).heartbeat(heartbeat).close_timeout(ms(200));
        let client = supervisor.spawn_client(config).unwrap();
        next_open(&client);
        let pending = client.start_request(Request::new("private/buy", ())).unwrap();
        let index = server.accepts() - 1;
        assert!(server.wait_until(LONG, |records| records[index].received.len() == 1));
        let begun = Instant::now();
        match way {
            0 => client.close().unwrap(),
            1 => {
                server.push("panic");
            }
            2 => supervisor.restart_client(client.id()).unwrap(),
            _ => {
                supervisor.shutdown(LONG);
            }
        }
        assert_eq!(cause(pending.wait::<()>()), ("unknown", Unanswered::Disconnected), "{way}");
        assert!(begun.elapsed() < LONG);
        let _ = client.close();
        assert!(client.stats().pending_requests == 0);
        match client.request::<()>("x", ()) {
            Err(RequestError::Refused(SendError::NotOpen { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Sends a request for every tick, and one that is never answered.
struct Asker {
    told: Sender<(std::thread::ThreadId, Response)>,
}

impl Handler for Asker {
    fn on_message(&mut self, context: &mut Context<'_>, tick: MessageRef<'_>) {
        let method = tick.as_text().unwrap().to_owned();
        context.request(Request::new(method, [1, 2]).timeout(ms(50))).unwrap();
    }
    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        if let Event::Response(response) = event {
            if &*response.method == "first" {
                context.request(Request::new("second", ())).unwrap();
            }
            self.told.send((std::thread::current().id(), *response)).unwrap();
        }
    }
}

#[test]
fn a_handlers_request_is_answered_as_an_event_on_its_own_thread() {
    let server = Server::start(rpc(|method, _| (!method.contains("silent")).then(|| Ok(json!(method))))).unwrap();
    let (told, heard) = unbounded();
    let delivery = Delivery::inline(move || Asker { told: told.clone() });
    let client =
        Client::connect(config(&server).name("asker").heartbeat(Heartbeat::disabled()).delivery(delivery)).unwrap();
    server.push("first");
    let (thread, first) = heard.recv_timeout(LONG).unwrap();
    assert_ne!(thread, std::thread::current().id());
    assert_eq!(&*first.method, "first");
    assert_eq!(first.decode::<String>().unwrap(), "first");
    let (same, second) = heard.recv_timeout(LONG).unwrap();
    assert_eq!((same, &*second.method), (thread, "second"), "asked from the event");
    server.push("silent");
    let (_, timed_out) = heard.recv_timeout(LONG).unwrap();
    assert_eq!(cause(timed_out.outcome), ("unknown", Unanswered::TimedOut));
    // One of its own thread's that would wait for itself.
    assert!(matches!(client.stats().pending_requests, 0));
    server.push("silent again");
    assert!(server.wait_until(LONG, |records| records[0].received.len() == 4));
    server.cut();
    let (same, lost) = heard.recv_timeout(LONG).unwrap();
    assert_eq!((same, &*lost.method), (thread, "silent again"));
}

#[test]
fn on_its_own_thread_a_client_refuses_to_wait_for_itself() {
    let own: Arc<Mutex<Option<Client>>> = Arc::default();
    struct Selfish(Arc<Mutex<Option<Client>>>, Sender<bool>);
    impl Handler for Selfish {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            let client = self.0.lock().clone().unwrap();
            let refused = client.request::<()>("x", ());
            let _ = self.1.send(matches!(refused, Err(RequestError::Refused(SendError::OwnThread { .. }))));
        }
    }
    let server = Server::start(Script::silent()).unwrap();
    let (told, heard) = unbounded();
    let handler = own.clone();
    let delivery = Delivery::inline(move || Selfish(handler.clone(), told.clone()));
    *own.lock() = Some(Client::connect(config(&server).delivery(delivery)).unwrap());
    server.push("go");
    assert!(heard.recv_timeout(LONG).unwrap());
    own.lock().take();
}

#[test]
fn without_a_pending_request_no_message_is_looked_at() {
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = looks.clone();
    let correlation = Correlation::new(
        |id, method, _| Message::text(format!("{id} {method}")),
        move |message| {
            counted.fetch_add(1, Ordering::Relaxed);
            let (id, rest) = message.as_text()?.split_once(' ')?;
            Some(Answer::result(id.parse::<u64>().ok()?.into(), format!("{rest:?}")))
        },
    );
    let server = Server::start(Script::echo()).unwrap();
    let client = Client::connect(config(&server).correlation(correlation)).unwrap();
    for n in 0..100 {
        client.send(n.to_string()).unwrap();
    }
    for _ in 0..100 {
        next_text(&client);
    }
    assert_eq!(looks.load(Ordering::Relaxed), 0);
    assert_eq!(client.request::<String>("hello", ()).unwrap(), "hello", "an id that is no JSON-RPC");
    assert_eq!(looks.load(Ordering::Relaxed), 1);
    client.send("after").unwrap();
    next_text(&client);
    assert_eq!(looks.load(Ordering::Relaxed), 1);
}

#[test]
fn requests_go_on_while_a_slow_consumer_reads_nothing() {
    let server = Server::start(rpc(|_, _| Some(Ok(json!(1)))).every(ms(1), |_| vec!["tick".into(); 50])).unwrap();
    let overflow = ws_supervisor::Overflow::DropOldest;
    let client = Client::connect(config(&server).overflow(overflow).event_capacity(10)).unwrap();
    eventually("lagging", || client.stats().dropped > 0);
    for _ in 0..20 {
        assert_eq!(client.request::<u32>("x", ()).unwrap(), 1);
    }
    let later = Request::new("x", ()).timeout(Duration::MAX);
    assert_eq!(client.call::<u32>(later).unwrap(), 1);
}

/// For a cut, for the end of their time, and for `reconcile`: the order in which they were made.
#[test]
fn requests_that_end_together_are_reported_in_their_order() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (unknown, reconciled) = crossbeam_channel::unbounded();
    let config = config(&server).reconcile(move |_, unsettled| {
        let _ = unknown.send(unsettled.unknown.iter().map(|one| one.id.clone()).collect::<Vec<_>>());
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    let responses = |count: usize| -> Vec<_> {
        (0..count)
            .map(|_| {
                next(&client, |event| match event {
                    Event::Response(response) => Some(response.id),
                    _ => None,
                })
            })
            .collect()
    };
    let brief = || client.post(Request::new("buy", ()).timeout(ms(100))).unwrap();
    let ids: Vec<_> = (0..20).map(|_| brief()).collect();
    assert_eq!(responses(20), ids, "their time ran out");
    let later: Vec<_> = (0..20).map(|_| client.post(Request::new("buy", ())).unwrap()).collect();
    eventually("written", || server.records()[0].received.len() == 40);
    server.cut();
    assert_eq!(responses(20), later, "the connection was cut");
    let all: Vec<_> = ids.into_iter().chain(later).collect();
    assert_eq!(reconciled.recv_timeout(LONG).unwrap(), all, "those that timed out may still be carried out");
}

#[test]
fn an_answer_under_the_id_in_another_json_type_is_an_answer_and_its_latency_is_measured() {
    for shape in ["ID.0", "\"ID\"", "IDe0"] {
        let server = Server::start(Script::reply(move |_, message| {
            let id = shape.replace("ID", &json_of(message)["id"].to_string());
            vec![format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"done"}}"#).into()]
        }))
        .unwrap();
        let client = connect(&server);
        assert_eq!(client.request::<String>("private/buy", ()).unwrap(), "done", "{shape}");
        let (all, buys) = (client.stats().request_latency, client.request_latencies()["private/buy"]);
        assert!(all.count == 1 && all == buys && all.p999 >= all.p50 && all.max > ms(0), "{all:?}");
    }
}
