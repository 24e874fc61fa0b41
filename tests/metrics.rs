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
use ws_supervisor::{ClientConfig, Heartbeat, Supervisor, metrics as published};

/// All that came, by name and labels.
#[derive(Default)]
struct Book(Mutex<BTreeMap<String, Arc<Cell>>>);

#[derive(Default)]
struct Cell {
    count: AtomicU64,
    value: Mutex<f64>,
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
        Counter::from_arc(self.0.cell(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.0.cell(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.0.cell(key))
    }
}

#[test]
fn what_is_published_adds_up_to_what_the_clients_counted() {
    let book = Arc::new(Book::default());
    metrics::set_global_recorder(Shared(book.clone())).expect("the only one");
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
    eventually("published by itself", || book.count(&of("ws_messages_received_total")) >= 100);
    assert_eq!(book.value(&of("ws_open")), Some(1.0));
    assert!(book.value(&of("ws_message_age_seconds")).is_some_and(|age| age >= 0.0));
    assert_eq!(book.value("ws_supervisor_clients{state=open}"), Some(1.0));

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
    for (name, sum) in sums {
        assert_eq!(book.count(&of(name)), sum, "{name}");
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
