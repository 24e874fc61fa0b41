//! A small trading desk that keeps its connections alive through everything that can go wrong.
//!
//! `cargo run --release --example trading_desk` starts an embedded exchange (nothing leaves this machine), connects
//! three supervised clients to it, injects one fault after another, and ends with a table of what each client went
//! through. Options: see `--help`.

#[path = "trading_desk/exchange.rs"]
mod exchange;
#[path = "trading_desk/ledger.rs"]
mod ledger;
#[path = "trading_desk/options.rs"]
mod options;
#[path = "trading_desk/real.rs"]
mod real;
#[path = "trading_desk/report.rs"]
mod report;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select, tick};
use serde_json::json;
use ws_supervisor::{
    Client, ClientConfig, ClientEvent, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, ReadyState,
    Supervisor,
};

use exchange::Exchange;
use ledger::Ledger;
use options::Options;
use report::{FaultReport, Report, Screen};

/// How long a fault may take to be recovered from before the desk calls it a failure.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match Options::from_args().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("trading_desk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("off")).init();
    let screen = Screen::new(options.json);
    match &options.url {
        Some(url) => real::run(options, url, &screen),
        None => embedded(options, &screen),
    }
}

fn embedded(options: &Options, screen: &Screen) -> Result<bool, Box<dyn Error>> {
    let recording = options.replay.as_ref().map(|file| exchange::read_recording(file)).transpose()?;
    let recording = recording.map(Arc::new);
    if let (Some(recording), Some(file)) = (&recording, &options.replay) {
        screen.say("desk", format!("the exchange plays {} messages of {}", recording.len(), file.display()));
    }
    let exchange = Exchange::open(recording.clone(), options.flat_out)?;
    let supervisor = Supervisor::start()?;

    // Three clients, three ways to receive: a channel of its own, a handler on the worker's thread, a shared channel.
    let ledgers: Vec<Ledger> = (0..3).map(|_| Ledger::new(recording.clone())).collect();
    let prod = supervisor.spawn_client(desk_client(&exchange.deribit_prod.url(), "deribit-prod")?)?;
    let panic_now = Arc::new(AtomicBool::new(false));
    let test = {
        let (ledger, panic_now, screen) = (ledgers[1].clone(), panic_now.clone(), screen.clone());
        let strategy =
            move || Strategy { ledger: ledger.clone(), panic_now: panic_now.clone(), screen: screen.clone() };
        let config = desk_client(&exchange.deribit_test.url(), "deribit-test")?;
        supervisor.spawn_client(config.delivery(Delivery::inline(strategy)))?
    };
    let (shared, shared_events) = Delivery::shared();
    let binance = {
        let config = desk_client(&exchange.binance.url(), "binance")?;
        let heartbeat = Heartbeat::server_ping(Duration::from_secs(1));
        supervisor.spawn_client(config.heartbeat(heartbeat).delivery(shared))?
    };
    let clients = [prod.clone(), test, binance];

    // The desk: one thread that reads what happens, subscribes at every open, and trades.
    let (stop, stopped) = bounded::<()>(0);
    let trading = Arc::new(AtomicBool::new(true));
    let desk = {
        let desk = Desk {
            prod: prod.clone(),
            shared_events,
            supervisor_events: supervisor.events(),
            ledgers: ledgers.clone(),
            screen: screen.clone(),
            trading: trading.clone(),
        };
        std::thread::Builder::new().name("desk".into()).spawn(move || desk.run(&stopped))?
    };
    for client in &clients {
        client.wait_until_open(PATIENCE)?;
    }

    let faults = if options.faults { inject(options, screen, &exchange, &clients, &panic_now)? } else { vec![] };
    screen.wait_until(options.duration);
    // All is quiet for a moment, so that both sides can be counted.
    trading.store(false, Ordering::Relaxed);
    exchange.stop_feeds();
    let settled = exchange.settle(&clients, PATIENCE);
    drop(stop);
    let orders = desk.join().map_err(|_| "the desk's thread panicked")?;
    ledgers[0].accepted(orders);

    let report = Report::new(&exchange, &clients, &ledgers, faults);
    let shutdown = supervisor.shutdown(Duration::from_secs(5));
    report.print(screen);
    if !settled {
        screen.say("desk", "messages that the exchange wrote have not arrived on connections that stayed open");
    }
    Ok(settled && report.is_clean() && shutdown.left_behind.is_empty())
}

/// Recovers a little faster than by default: it is a demonstration.
fn desk_client(url: &str, name: &str) -> Result<ClientConfig, Box<dyn Error>> {
    Ok(ClientConfig::new(url)?
        .name(name)
        .heartbeat(Heartbeat::deribit(Duration::from_secs(1)))
        .backoff(Duration::from_millis(200), Duration::from_secs(2))
        .stable_after(Duration::from_secs(2)))
}

fn subscribe() -> Message {
    let channels = ["book.BTC-PERPETUAL.raw", "trades.BTC-PERPETUAL.raw"];
    let params = json!({ "channels": channels });
    let request = json!({ "jsonrpc": "2.0", "id": "desk:subscribe", "method": "public/subscribe", "params": params });
    request.to_string().into()
}

/// A strategy that lives on its client's own thread.
struct Strategy {
    ledger: Ledger,
    panic_now: Arc<AtomicBool>,
    screen: Screen,
}

impl Handler for Strategy {
    fn on_open(&mut self, context: &mut Context<'_>) {
        self.screen.say(context.name(), format!("open, connection {}", context.epoch().unwrap_or(0)));
        self.ledger.opened();
        if context.send(subscribe()).is_ok() {
            self.ledger.accepted(1);
        }
    }

    fn on_message(&mut self, _context: &mut Context<'_>, message: MessageRef<'_>) {
        if self.panic_now.swap(false, Ordering::Relaxed) {
            panic!("the strategy has a bug");
        }
        self.ledger.received(message);
    }

    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        self.screen.tell(context.name(), &event);
    }
}

/// What the desk's own thread works with.
struct Desk {
    prod: Client,
    shared_events: Receiver<ClientEvent>,
    supervisor_events: Receiver<ws_supervisor::SupervisorEvent>,
    ledgers: Vec<Ledger>,
    screen: Screen,
    trading: Arc<AtomicBool>,
}

impl Desk {
    /// Returns how many messages were accepted for deribit-prod.
    fn run(&self, stopped: &Receiver<()>) -> u64 {
        let prod_events = self.prod.events();
        let trade = tick(Duration::from_millis(50));
        let (mut accepted, mut order) = (0, 0u64);
        loop {
            select! {
                recv(prod_events) -> event => if let Ok(event) = event {
                    if let Event::Open { .. } = event {
                        self.ledgers[0].opened();
                        accepted += u64::from(self.prod.send(subscribe()).is_ok());
                    }
                    self.note(0, self.prod.name(), &event);
                },
                recv(self.shared_events) -> event => if let Ok(ClientEvent { name, event, .. }) = event {
                    if let Event::Open { .. } = event {
                        self.ledgers[2].opened();
                    }
                    self.note(2, &name, &event);
                },
                recv(self.supervisor_events) -> event => if let Ok(event) = event {
                    self.screen.alert(&event);
                },
                recv(trade) -> _ => if self.trading.load(Ordering::Relaxed) {
                    order += 1;
                    let params = json!({ "instrument_name": "BTC-PERPETUAL", "amount": 10, "label": order });
                    let id = format!("desk:{order}");
                    let request = json!({ "jsonrpc": "2.0", "id": id, "method": "private/buy", "params": params });
                    // Without a connection the order is refused and forgotten: it would be stale on the next.
                    accepted += u64::from(self.prod.send(request.to_string()).is_ok());
                },
                recv(stopped) -> _ => {
                    // What was delivered before the end still counts.
                    prod_events.try_iter().for_each(|event| self.note(0, self.prod.name(), &event));
                    self.shared_events.try_iter().for_each(|event| self.note(2, &event.name, &event.event));
                    return accepted;
                }
            }
        }
    }

    fn note(&self, ledger: usize, name: &str, event: &Event) {
        match event {
            Event::Message(message) => self.ledgers[ledger].received(message.view()),
            other => self.screen.tell(name, other),
        }
    }
}

/// One fault after another, spread over the time there is; the next waits until the last is recovered from.
fn inject(
    options: &Options,
    screen: &Screen,
    exchange: &Exchange,
    clients: &[Client; 3],
    panic_now: &AtomicBool,
) -> Result<Vec<FaultReport>, Box<dyn Error>> {
    // A panic that is part of the show needs no backtrace.
    std::panic::set_hook({
        let screen = screen.clone();
        Box::new(move |info| {
            let thread = std::thread::current();
            let what = info.payload().downcast_ref::<&str>().copied().unwrap_or("a panic");
            screen.say(thread.name().unwrap_or("?"), format!("panic on the worker's thread: {what}"));
        })
    });
    let [prod, test, binance] = clients;
    let faults: [(&str, &str, &Client, &dyn Fn()); 5] = [
        ("tcp_drop", "the exchange drops the TCP connection", prod, &|| {
            exchange.deribit_prod.cut();
        }),
        ("mute", "the exchange goes mute: it accepts bytes and answers nothing", binance, &|| {
            exchange.binance.mute();
        }),
        ("panic", "the strategy panics at its next message", test, &|| {
            panic_now.store(true, Ordering::Relaxed);
            exchange.deribit_test.push(r#"{"jsonrpc":"2.0","id":"desk:bug","result":"unexpected"}"#);
        }),
        ("refused_upgrade", "the exchange drops the connection and refuses the next two upgrades", prod, &|| {
            exchange.refuse_next(2);
            exchange.deribit_prod.cut();
        }),
        ("server_restart", "the exchange goes down and comes back half a second later", binance, &|| {
            exchange.binance.pause();
            std::thread::sleep(Duration::from_millis(500));
            if let Err(error) = exchange.binance.resume() {
                screen.say("exchange", format!("cannot come back: {error}"));
            }
        }),
    ];
    let mut reports = vec![];
    for (index, (kind, what, client, act)) in faults.into_iter().enumerate() {
        screen.wait_until(options.duration.mul_f64((index as f64 + 0.5) / 6.0));
        client.wait_until_open(PATIENCE)?;
        let epoch = client.epoch();
        screen.say(client.name(), format!("--- fault {}: {what}", index + 1));
        let begun = Instant::now();
        act();
        while client.epoch() == epoch || client.ready_state() != ReadyState::Open {
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} did not recover from {kind} within {PATIENCE:?}", client.name()).into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let recovered_in = begun.elapsed();
        screen.say(client.name(), format!("--- recovered in {:.1} ms", recovered_in.as_secs_f64() * 1e3));
        reports.push(FaultReport { kind, client: client.name().to_owned(), recovered_in });
    }
    Ok(reports)
}
