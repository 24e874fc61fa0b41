//! What is published to the `metrics` facade adds up to what the client counted, whoever asks and whenever.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::eventually;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{ClientConfig, Heartbeat, Supervisor, SupervisorEvent, metrics as published};

/// All that came, by name and labels.
#[derive(Default)]
struct Book(Mutex<BTreeMap<String, Arc<Cell>>>);

#[derive(Default)]
struct Cell {
    count: AtomicU64,
    value: Mutex<f64>,
}

/// What the recorder does when it is told of these, beside counting.
static TRICKS: Mutex<Vec<Trick>> = Mutex::new(Vec::new());

/// A name, and what is done at it.
type Trick = (&'static str, fn());

fn trick(name: &str) {
    let found = TRICKS.lock().iter().find(|(of, _)| name.starts_with(of)).map(|(_, trick)| *trick);
    found.iter().for_each(|trick| trick());
}

impl CounterFn for Cell {
    fn increment(&self, by: u64) {
        self.count.fetch_add(by, Ordering::Relaxed);
    }
    fn absolute(&self, value: u64) {
        self.count.fetch_max(value, Ordering::Relaxed);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, by: f64) {
        *self.value.lock() += by;
    }
    fn decrement(&self, by: f64) {
        *self.value.lock() -= by;
    }
    fn set(&self, value: f64) {
        *self.value.lock() = value;
    }
}

impl HistogramFn for Cell {
    fn record(&self, value: f64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.value.lock() = value;
    }
}

impl Book {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let mut labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort();
        self.0.lock().entry(format!("{}{{{}}}", key.name(), labels.join(","))).or_default().clone()
    }

    fn count(&self, key: &str) -> u64 {
        self.0.lock().get(key).map_or(0, |cell| cell.count.load(Ordering::Relaxed))
    }

    fn value(&self, key: &str) -> Option<f64> {
        self.0.lock().get(key).map(|cell| *cell.value.lock())
    }
}

struct Shared(Arc<Book>);

impl Recorder for Shared {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        trick(key.name());
        Counter::from_arc(self.0.cell(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        trick(key.name());
        Gauge::from_arc(self.0.cell(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.0.cell(key))
    }
}

/// The one recorder of the process: its tests take turns.
static TURNS: Mutex<Option<Arc<Book>>> = Mutex::new(None);

fn book() -> (parking_lot::MutexGuard<'static, Option<Arc<Book>>>, Arc<Book>) {
    let mut turn = TURNS.lock();
    let book = turn.get_or_insert_with(|| {
        let book = Arc::new(Book::default());
        metrics::set_global_recorder(Shared(book.clone())).expect("the only one");
        book
    });
    let book = book.clone();
    TRICKS.lock().clear();
    (turn, book)
}

static ASKED: std::sync::OnceLock<Supervisor> = std::sync::OnceLock::new();

#[test]
fn a_recorder_that_asks_the_supervisor_back_or_is_slow_holds_up_nobody() {
    let (_turn, _) = book();
    let supervisor = ASKED.get_or_init(|| Supervisor::start().unwrap());
    let server = Server::echo().unwrap();
    let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap().name("asked")).unwrap();
    client.wait_until_open(Duration::from_secs(30)).unwrap();
    TRICKS.lock().push(("ws_messages_received_total", || {
        let _ = ASKED.get().map(|supervisor| (supervisor.count_clients(), supervisor.list_clients()));
    }));
    TRICKS.lock().push(("ws_restarts_total", || std::thread::sleep(Duration::from_millis(300))));
    for round in 2..5 {
        supervisor.restart_client(client.id()).unwrap();
        eventually("a new connection", || client.epoch() == round);
        assert_eq!(supervisor.count_clients().total, 1);
    }
    supervisor.stop_client(client.id()).unwrap();
    assert_eq!(supervisor.count_clients().total, 0);
}

/// Held while the recorder blocks.
static BLOCKS: Mutex<()> = Mutex::new(());

#[test]
fn a_recorder_that_blocks_delays_no_stop() {
    let (_turn, _) = book();
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::builder().metrics_interval(Duration::from_millis(10)).start().unwrap();
    let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap().name("stops")).unwrap();
    client.wait_until_open(Duration::from_secs(30)).unwrap();
    let events = supervisor.events();
    let blocked = BLOCKS.lock();
    static HAS_BLOCKED: AtomicU64 = AtomicU64::new(0);
    TRICKS.lock().push(("ws_supervisor_clients", || {
        HAS_BLOCKED.fetch_add(1, Ordering::SeqCst);
        drop(BLOCKS.lock());
    }));
    eventually("the recorder blocks", || HAS_BLOCKED.load(Ordering::SeqCst) > 0);
    supervisor.stop_client(client.id()).unwrap();
    assert!(!events.try_iter().any(|event| matches!(event, SupervisorEvent::LeftBehind { .. })));
    drop(blocked);
    TRICKS.lock().clear();
}

#[test]
fn a_recorder_that_panics_costs_no_message_its_account() {
    let (_turn, _) = book();
    let supervisor = Supervisor::start().unwrap();
    let server = Server::start(Script::silent()).unwrap();
    let config = ClientConfig::new(server.url()).unwrap().name("panics").heartbeat(Heartbeat::disabled());
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(Duration::from_secs(30)).unwrap();
    // Its panics are part of the test; another's is told.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match info.payload().downcast_ref::<&str>() {
        Some(&"the exporter has a bug") => {}
        _ => usual(info),
    }));
    for name in ["ws_disconnects_total", "ws_connections_total", "ws_messages_sent_total", "ws_connect_failures_total"]
    {
        TRICKS.lock().push((name, || panic!("the exporter has a bug")));
    }
    server.deafen(true);
    let order = "order".repeat(10_000);
    // More than the kernels in between may still take before the line is reset.
    while client.stats().queued < 400 {
        let _ = client.send(order.as_str());
    }
    server.reset();
    eventually("another connection", || client.epoch() == 2);
    let back = client.events().iter().find_map(|event| match event {
        ws_supervisor::Event::Disconnected { unsent, uncertain, .. } => Some((unsent.len(), uncertain.len())),
        ws_supervisor::Event::Restarted { .. } => panic!("the worker ended for that"),
        _ => None,
    });
    let (unsent, uncertain) = back.unwrap();
    let stats = client.stats();
    assert!(unsent >= 20 && stats.restarts == 0);
    assert_eq!(stats.accepted, (stats.sent - stats.uncertain) + unsent as u64 + uncertain as u64);
    TRICKS.lock().clear();
    let _ = std::panic::take_hook();
}

#[test]
fn bytes_are_counted_to_the_last_of_a_connection_and_requests_that_nobody_waits_for_as_such() {
    let (_turn, _) = book();
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = ClientConfig::new(server.url()).unwrap().heartbeat(Heartbeat::disabled()).event_capacity(10_000);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(Duration::from_secs(30)).unwrap();
    for _ in 0..1000 {
        client.send("x".repeat(1000)).unwrap();
    }
    client.close().unwrap();
    let stats = client.stats();
    assert_eq!(stats.received, 1000);
    assert!(stats.bytes_received > 1000 * 1004 && stats.bytes_received < 1000 * 1004 + 1000, "{stats:?}");
    assert!(stats.bytes_sent > 1000 * 1008 && stats.bytes_sent < 1000 * 1008 + 1000, "{stats:?}");

    let answers = Script::reply(|_, message| {
        let request: serde_json::Value = serde_json::from_str(message.as_text().unwrap()).unwrap();
        vec![format!(r#"{{"jsonrpc":"2.0","id":{},"result":1}}"#, request["id"]).into()]
    });
    let server = Server::start(answers.delay_replies(Duration::from_millis(2))).unwrap();
    let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap()).unwrap();
    client.wait_until_open(Duration::from_secs(30)).unwrap();
    for _ in 0..50 {
        drop(client.start_request(ws_supervisor::Request::new("m", ())).unwrap());
    }
    let _: u64 = client.request("m", ()).unwrap();
    let requests = client.stats().requests;
    assert_eq!((requests.answered + requests.abandoned, requests.late, requests.timed_out), (51, 0, 0), "{requests:?}");
    assert!(requests.abandoned > 0);
}

#[test]
fn what_is_published_adds_up_to_what_the_clients_counted() {
    let (_turn, book) = book();
    let server = Server::scripted(|connection| match connection {
        1 => Script::refuse(503),
        _ => Script::echo(),
    })
    .unwrap();
    let supervisor = Supervisor::builder().metrics_interval(Duration::from_millis(20)).start().unwrap();
    let config = ClientConfig::new(server.url()).unwrap().name("a");
    let config = config.heartbeat(Heartbeat::ping_pong(Duration::from_millis(30)));
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(Duration::from_secs(30)).unwrap();
    for _ in 0..100 {
        client.send("x".repeat(100)).unwrap();
    }
    eventually("all echoed", || client.stats().received == 100);
    server.cut();
    eventually("open again after a refusal", || client.epoch() == 2);
    let refused = client.send_confirmed("once more", Duration::from_secs(30));
    refused.unwrap();
    eventually("a pong", || client.stats().ping_round_trip.count > 0);

    let of = |name: &str| format!("{name}{{client=a,venue=127.0.0.1}}");
    let by = |name: &str, label: &str| format!("{name}{{client=a,{label},venue=127.0.0.1}}");
    eventually("published by the supervisor", || book.count(&of("ws_messages_received_total")) >= 101);
    eventually("published as open", || {
        book.value(&of("ws_open")) == Some(1.0) && book.value("ws_supervisor_clients{state=open}") == Some(1.0)
    });
    assert!(book.value(&of("ws_message_age_seconds")).is_some_and(|age| age >= 0.0));

    // The rest is published as the client closes, so that the sums are right to the last message.
    supervisor.stop_client(client.id()).unwrap();
    let stats = client.stats();
    assert_eq!(stats.accepted, 101);
    let sums = [
        ("ws_messages_received_total", stats.received),
        ("ws_messages_accepted_total", stats.accepted),
        ("ws_messages_sent_total", stats.sent),
        ("ws_messages_unsent_total", stats.unsent),
        ("ws_messages_uncertain_total", stats.uncertain),
        ("ws_received_bytes_total", stats.bytes_received),
        ("ws_sent_bytes_total", stats.bytes_sent),
        ("ws_heartbeats_total", stats.heartbeats),
        ("ws_ping_round_trip_seconds", stats.ping_round_trip.count),
        ("ws_connections_total", stats.epoch),
    ];
    // A stop does not wait for the recorder.
    for (name, sum) in sums {
        common::eventually(name, || book.count(&of(name)) == sum);
    }
    assert!(stats.bytes_sent > 101 * 100 && stats.bytes_received > 100 * 100);
    assert_eq!(book.count(&by("ws_connect_failures_total", "reason=refused")), 1);
    assert_eq!(book.count(&by("ws_disconnects_total", "reason=transport")), 1);
    for stage in ["tcp", "handshake", "session"] {
        assert_eq!(book.count(&by("ws_dial_seconds", &format!("stage={stage}"))), 2, "{stage}");
    }
    assert_eq!(book.value(&of("ws_open")), Some(0.0));

    // Whoever takes the name next goes on from there.
    let config = ClientConfig::new(server.url()).unwrap().name("a").heartbeat(Heartbeat::disabled());
    let next = supervisor.spawn_client(config).unwrap();
    next.wait_until_open(Duration::from_secs(30)).unwrap();
    next.send("one").unwrap();
    eventually("its echo", || next.stats().received == 1);
    supervisor.publish_metrics();
    assert_eq!(book.count(&of("ws_messages_received_total")), stats.received + 1);

    // Nothing is published under a name that the documentation does not have.
    let names: Vec<_> = published::NAMES.iter().map(|(name, _, _)| *name).collect();
    for key in book.0.lock().keys() {
        let name = key.split('{').next().unwrap();
        assert!(names.contains(&name), "{key}");
    }
}
