//! A desk whose clients Prometheus watches, and everything that its alerts are for, one after the other.
//!
//! `cargo run --release -- --listen 127.0.0.1:9108` serves the metrics at `/metrics` and goes through the faults; at the end it
//! prints its own ledger as `name{client}=value` lines, which the counters must add up to.

mod exporter;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ClientConfig, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, Overflow, ReadyState,
    StaleAction, Supervisor,
};

/// How long each fault lasts: a few scrapes.
const LASTS: Duration = Duration::from_secs(6);

/// What the desk itself has seen.
#[derive(Default)]
struct Ledger {
    received: AtomicU64,
    panics: AtomicU64,
}

/// What the strategy is to do wrong next.
#[derive(Default)]
struct Faults {
    panic: AtomicBool,
    stall: AtomicBool,
}

struct Strategy {
    ledger: Arc<Ledger>,
    faults: Arc<Faults>,
}

impl Handler for Strategy {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.ledger.received.fetch_add(1, Ordering::Relaxed);
        if self.faults.panic.swap(false, Ordering::Relaxed) {
            self.ledger.panics.fetch_add(1, Ordering::Relaxed);
            panic!("the strategy has a bug");
        }
        if self.faults.stall.swap(false, Ordering::Relaxed) {
            std::thread::sleep(LASTS);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--listen"), Some(address)) => address,
        (None, _) => "127.0.0.1:9108".to_owned(),
        _ => return Err("usage: ws-supervisor-monitoring [--listen ADDRESS]".into()),
    };
    // First of all: what is published without a recorder is gone.
    let exporter = exporter::install()?;
    let supervisor = Arc::new(Supervisor::builder().intensity(2, Duration::from_secs(60)).start()?);
    exporter::serve(&listen, exporter, supervisor.clone())?;
    println!("metrics at http://{listen}/metrics");

    // A venue that ticks every 20 ms and answers; a strategy on the client's thread, a reader with a channel.
    let ticks = Script::echo().every(Duration::from_millis(20), |_| vec![Message::text("tick")]);
    let (venue, other) = (Server::start(ticks.clone())?, Server::start(ticks.clone())?);
    let (ledger, faults) = (Arc::new(Ledger::default()), Arc::new(Faults::default()));
    let make = {
        let (ledger, faults) = (ledger.clone(), faults.clone());
        move || Strategy { ledger: ledger.clone(), faults: faults.clone() }
    };
    let strategy = supervisor.spawn_client(client(&venue, "strategy")?.delivery(Delivery::inline(make)))?;
    let feed = client(&other, "feed")?.event_capacity(64).overflow(Overflow::Backpressure);
    let feed = feed.stale_after(Duration::from_secs(2)).stale_action(StaleAction::Tell);
    let feed = supervisor.spawn_client(feed)?;
    let reader = Reader::start(feed.clone());
    let mut sent = 0;
    open(&strategy)?;
    open(&feed)?;

    step("quiet", || Ok(()))?;
    step("a feed that says nothing, on a line that is alive", || {
        other.set_script(Script::silent());
        other.cut();
        Ok(())
    })?;
    other.set_script(ticks.clone());
    feed.reconnect();
    open(&feed)?;
    step("a handler that does not return", || {
        faults.stall.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    step("a reader that stops reading", || {
        reader.pause();
        Ok(())
    })?;
    reader.resume();
    step("orders on a line that breaks before they have arrived", || {
        // The server reads nothing any more, so that the kernels in between fill up; then the line is reset.
        other.deafen(true);
        let order = "order ".repeat(4096);
        while feed.stats().queued < 8 {
            sent += u64::from(feed.send(order.as_str()).is_ok());
        }
        other.reset();
        Ok(())
    })?;
    open(&feed)?;
    step("a strategy that panics until it is given up on", || {
        let parked = || strategy.ready_state() == ReadyState::Parked;
        until("parked", || {
            faults.panic.store(true, Ordering::Relaxed);
            parked()
        })
    })?;
    faults.panic.store(false, Ordering::Relaxed);
    supervisor.resume_client(strategy.id())?;
    open(&strategy)?;
    step("quiet again", || Ok(()))?;

    supervisor.stop_client(strategy.id())?;
    supervisor.stop_client(feed.id())?;
    let read = reader.end();
    for (name, client, value) in [
        ("ws_messages_received_total", "strategy", ledger.received.load(Ordering::Relaxed)),
        ("ws_messages_received_total", "feed", read),
        ("ws_messages_accepted_total", "feed", sent),
        ("ws_restarts_total{panicked}", "strategy", ledger.panics.load(Ordering::Relaxed) - 1),
        ("ws_parks_total{intensity_exceeded}", "strategy", 1),
    ] {
        println!("ledger {name} {client} {value}");
    }
    let stats = feed.stats();
    println!("ledger sum feed {}", stats.accepted - stats.sent - stats.unsent);
    println!("done");
    // Until whoever watches has seen the alerts clear.
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

fn client(server: &Server, name: &str) -> Result<ClientConfig, Box<dyn Error>> {
    let config =
        ClientConfig::new(server.url())?.name(name).heartbeat(Heartbeat::ping_pong(Duration::from_millis(500)));
    Ok(config.backoff(Duration::from_millis(100), Duration::from_secs(1)).close_timeout(Duration::from_secs(2)))
}

fn step(what: &str, act: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    println!("step {what}");
    act()?;
    std::thread::sleep(LASTS);
    Ok(())
}

fn open(client: &Client) -> Result<(), Box<dyn Error>> {
    until("open", || client.ready_state() == ReadyState::Open)
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        if Instant::now() > deadline {
            return Err(format!("never came true: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Reads a client's events, and counts its messages, but not while it is paused.
struct Reader {
    paused: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Reader {
    fn start(client: Client) -> Self {
        let paused = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let paused = paused.clone();
            move || {
                let mut read = 0;
                for event in client.events() {
                    read += u64::from(matches!(event, Event::Message(_)));
                    while paused.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                read
            }
        });
        Self { paused, thread }
    }

    fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }

    fn end(self) -> u64 {
        self.thread.join().unwrap_or_default()
    }
}
