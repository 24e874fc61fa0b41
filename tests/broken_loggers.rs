//! A logger or a metrics recorder that panics or blocks: accounts and supervision hold, and no stop waits for it.
#![allow(missing_docs)]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, ms};
use parking_lot::{Mutex, RwLock};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, ReadyState, Supervisor, SupervisorEvent,
    UserCode,
};

/// What the process's logger does; one test at a time.
static CONDUCT: Conduct = Conduct {
    every: AtomicU64::new(0),
    lines: AtomicU64::new(0),
    at_panics: AtomicU64::new(0),
    blocks: RwLock::new(()),
};
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Conduct {
    /// It panics at each of so many lines; 0: never.
    every: AtomicU64,
    lines: AtomicU64,
    /// It panics at so many more of the lines that report a panic.
    at_panics: AtomicU64,
    /// It blocks on the threads of a supervisor while this is locked.
    blocks: RwLock<()>,
}

impl log::Log for Conduct {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().contains("panicked") {
            let one_less = |left: u64| left.checked_sub(1);
            let panics = self.at_panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
            assert!(!panics, "the logger's pipe is gone");
        }
        if std::thread::current().name().is_some_and(|name| name.starts_with("ws-")) {
            drop(self.blocks.read());
        }
        let (line, every) = (self.lines.fetch_add(1, Ordering::Relaxed) + 1, self.every.load(Ordering::Relaxed));
        assert!(every == 0 || line % every != 0, "the logger's pipe is gone");
    }

    fn flush(&self) {}
}

fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        log::set_logger(&CONDUCT).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        // A thousand panics are meant to be.
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            if !["the logger's pipe is gone", "told to"].contains(&text) {
                eprintln!("{panic}");
            }
        }));
    });
}

/// Panics at `panic`, and counts the messages that come back.
struct Fragile(Arc<AtomicUsize>);

impl Handler for Fragile {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        assert!(message.as_text() != Some("panic"), "told to");
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Disconnected { unsent, uncertain, .. } | Event::Closed { unsent, uncertain, .. } = event {
            self.0.fetch_add(unsent.len() + uncertain.len(), Ordering::SeqCst);
        }
    }
}

fn fragile(server: &Server) -> (ws_supervisor::ClientConfig, Arc<AtomicUsize>) {
    let returned = Arc::new(AtomicUsize::new(0));
    let of_handler = returned.clone();
    let delivery = Delivery::inline(move || Fragile(of_handler.clone()));
    (config(server).heartbeat(Heartbeat::disabled()).delivery(delivery), returned)
}

fn is_open_again(client: &Client, epoch: u64) {
    eventually("open again", || client.epoch() > epoch && client.ready_state() == ReadyState::Open);
}

#[test]
fn accounts_and_supervision_hold_whichever_line_the_logger_panics_at() {
    let _turn = ONE_AT_A_TIME.lock();
    install();
    for every in 1..=200 {
        CONDUCT.every.store(every, Ordering::Relaxed);
        CONDUCT.lines.store(0, Ordering::Relaxed);
        // The first connection takes nothing after its handshake, so that messages are left when its worker panics.
        let server =
            Server::scripted(|n| if n == 0 { Script::silent().then_deaf() } else { Script::silent() }).unwrap();
        let supervisor = Supervisor::builder().intensity(1_000, LONG).start().unwrap();
        let alerts = supervisor.events();
        let (config, returned) = fragile(&server);
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        for n in 0..5 {
            client.send(format!("order {n}")).unwrap();
        }
        server.push("panic");
        is_open_again(&client, 1);
        client.send("after").unwrap();
        server.wait_until(LONG, |records| records[1].received.len() == 1);
        assert_eq!(server.records()[1].received, ["after"], "every {every}: an order of connection 1");
        let epoch = client.epoch();
        server.push("panic");
        is_open_again(&client, epoch);
        let (began, report) = (Instant::now(), supervisor.shutdown(Duration::from_secs(10)));
        assert!(report.left_behind.is_empty() && began.elapsed() < Duration::from_secs(9), "every {every}: {report:?}");
        let stats = client.stats();
        assert_eq!(stats.accepted, stats.sent + stats.unsent, "every {every}: {stats:?}");
        assert_eq!(returned.load(Ordering::SeqCst) as u64, stats.unsent + stats.uncertain, "every {every}: {stats:?}");
        let events: Vec<_> = alerts.iter().collect();
        assert!(matches!(events.last(), Some(SupervisorEvent::Ended { .. })), "every {every}: {events:?}");
        let named =
            |event: &SupervisorEvent| matches!(event, SupervisorEvent::UserCodePanicked { code: UserCode::Logger, .. });
        assert!(every > 3 || events.iter().any(named), "every {every}: {events:?}");
    }
    CONDUCT.every.store(0, Ordering::Relaxed);
}

/// The server takes nothing, so that orders wait when the worker panics.
#[test]
fn no_order_is_written_on_a_later_connection_when_the_logger_panics_at_the_report_of_a_panic() {
    let _turn = ONE_AT_A_TIME.lock();
    install();
    for panics in [1, 2] {
        let server =
            Server::scripted(|n| if n == 0 { Script::silent().then_deaf() } else { Script::silent() }).unwrap();
        let supervisor = Supervisor::builder().intensity(1_000, LONG).start().unwrap();
        let (config, returned) = fragile(&server);
        let client = supervisor.spawn_client(config.send_bytes(256 << 20)).unwrap();
        client.wait_until_open(LONG).unwrap();
        let order = "x".repeat(100_000);
        eventually("the kernels are full and twenty orders wait", || {
            let before = client.stats();
            client.send(order.as_str()).unwrap();
            before.queued >= 20 && client.stats().sent == before.sent
        });
        CONDUCT.at_panics.store(panics, Ordering::Relaxed);
        server.push("panic");
        is_open_again(&client, 1);
        client.send("after").unwrap();
        assert!(server.wait_until(LONG, |records| records[1].received.last() == Some(&Message::from("after"))));
        assert_eq!(server.records()[1].received, ["after"], "orders of connection 1 on connection 2");
        let stats = client.stats();
        assert!(stats.unsent >= 20 && stats.accepted == stats.sent + stats.unsent, "{stats:?}");
        assert_eq!(returned.load(Ordering::SeqCst) as u64, stats.unsent + stats.uncertain, "{stats:?}");
        assert_eq!(CONDUCT.at_panics.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_logger_that_blocks_keeps_no_client_from_its_restart_and_no_stop_from_its_end() {
    let _turn = ONE_AT_A_TIME.lock();
    install();
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (config, _) = fragile(&server);
    let one = supervisor.spawn_client(config).unwrap();
    let other = supervisor.spawn_client(common::config(&server)).unwrap();
    one.wait_until_open(LONG).unwrap();
    other.wait_until_open(LONG).unwrap();
    let blocked = CONDUCT.blocks.write();
    server.push("panic");
    is_open_again(&one, 1);
    supervisor.stop_client(other.id()).unwrap();
    assert_eq!(supervisor.count_clients().total, 1);
    server.push("panic");
    is_open_again(&one, 2);
    let began = Instant::now();
    assert!(supervisor.shutdown(ms(500)).left_behind.is_empty());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(blocked);
}
