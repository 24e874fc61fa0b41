//! The seed's production connection: a supervised Deribit client that signs in, subscribes to a book, trades and its own
//! orders, watches its health, survives what happens to it, and shuts down. Offline by default, against an embedded
//! Deribit that holds it to the venue's rules:
//!
//! ```sh
//! cargo run --release --example deribit
//! ```

mod book;
mod options;
mod serve;

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, never, select, tick};
use serde_json::Value;
use ws_supervisor::testing::DeribitServer;
use ws_supervisor::venue::deribit::{self, Deribit, Order};
use ws_supervisor::{
    Client, ClientConfig, Event, Message, PendingResponse, ReadyState, RequestError, Response, Supervisor,
    SupervisorEvent,
};

use crate::book::Book;
use crate::options::Options;

const BOOK: &str = "book.BTC-PERPETUAL.raw";
const TRADES: &str = "trades.BTC-PERPETUAL.raw";
const ORDERS: &str = "user.orders.BTC-PERPETUAL.raw";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    let result = Options::from_args().and_then(|options| match options.serve {
        true => serve::run(&options).map(|()| true),
        false => run(&options),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What the desk has seen.
struct Desk {
    began: Instant,
    client: Client,
    book: Book,
    opens: u64,
    trades: u64,
    order_updates: u64,
    resyncs: u64,
    placed: u64,
    /// The order that waits for its answer.
    pending: Option<(String, PendingResponse)>,
}

impl Desk {
    fn say(&self, text: impl AsRef<str>) {
        println!("{:7.2} s  {}", self.began.elapsed().as_secs_f64(), text.as_ref());
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Message(message) => self.on_message(&message),
            Event::Open { epoch, restored, refused, .. } => {
                self.opens += 1;
                self.say(format!("open: connection {epoch}, signed in, subscribed to {}", restored.join(" ")));
                for refusal in refused {
                    self.say(format!("the venue refused {}: {}", refusal.channel, refusal.error));
                }
            }
            Event::Disconnected { epoch, reason, unsent, .. } => {
                self.book.forget();
                self.say(format!("connection {epoch} lost: {reason}; {} messages handed back", unsent.len()));
            }
            Event::ConnectFailed { attempt, error, retry_in, .. } => {
                let next = retry_in.map_or("no other follows".into(), |wait| format!("the next in {wait:.1?}"));
                self.say(format!("attempt {attempt} failed: {error}; {next}"));
            }
            Event::Parked { reason, .. } => self.say(format!("given up until someone resumes it: {reason}")),
            Event::LateResponse(response) => self.say(format!("late: {} {:?}", response.method, response.outcome)),
            other => self.say(format!("{other:?}")),
        }
    }

    fn on_message(&mut self, message: &Message) {
        let Some(value) = message.as_text().and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return };
        let data = &value["params"]["data"];
        match value["params"]["channel"].as_str().unwrap_or_default().split('.').next() {
            Some("book") => {
                if let Err(gap) = self.book.apply(data) {
                    self.resyncs += 1;
                    self.say(format!("the book has a gap ({gap}): asking for a new snapshot"));
                    let (client, channel) = (self.client.clone(), BOOK);
                    // Not on this thread: it must go on reading, or the acknowledgements are never read either.
                    std::thread::spawn(move || {
                        if let Err(error) = client.unsubscribe([channel]).and_then(|()| client.subscribe([channel])) {
                            eprintln!("{channel}: {error}");
                        }
                    });
                }
            }
            Some("trades") => self.trades += data.as_array().map_or(0, |trades| trades.len() as u64),
            Some("user") => {
                self.order_updates += 1;
                let text = |name: &str| data[name].as_str().unwrap_or("?").to_owned();
                self.say(format!("order {} ({}): {}", text("order_id"), text("label"), text("order_state")));
            }
            _ => {}
        }
    }

    /// A resting order well below the market, so that there is something to lose.
    fn quote(&mut self) {
        let Some(bid) = self.book.best_bid() else { return };
        self.placed += 1;
        let label = format!("quote-{}", self.placed);
        let order = Order::limit("BTC-PERPETUAL", 10.0, (bid * 0.5).round()).label(&label).post_only(true);
        match self.client.start_request(deribit::buy(&order)) {
            Ok(pending) => self.pending = Some((label, pending)),
            Err(error) => self.say(format!("{label} is not at the venue: {error}")),
        }
    }

    /// No answer to an order is not the same as no order: each outcome needs another reaction.
    fn on_answer(&mut self, response: Response) {
        let Some((label, _)) = self.pending.take() else { return };
        match response.decode::<Value>() {
            Ok(placed) => self.say(format!("placed {label}: order {}", placed["order"]["order_id"])),
            Err(error @ (RequestError::Refused(_) | RequestError::NotSent { .. })) => {
                self.say(format!("{label} is not at the venue: {error}"));
            }
            Err(RequestError::Rpc(error)) => self.say(format!("the venue refused {label}: {error}")),
            Err(error) => self.say(format!("{label} may be at the venue; reconcile will tell: {error}")),
        }
    }

    fn health(&self) {
        let (health, stats) = (self.client.heartbeat_health(), self.client.stats());
        let age =
            health.last_received.map_or("none yet".into(), |at| format!("{:.1} s ago", at.elapsed().as_secs_f64()));
        self.say(format!(
            "health: {}, heartbeat {age}, {} missed, {} received, {} reconnects, {} restarts, best bid {}",
            self.client.ready_state(),
            health.consecutive_failures,
            stats.received,
            stats.reconnects,
            stats.restarts,
            self.book.best_bid().map_or("unknown".into(), |bid| bid.to_string()),
        ));
    }
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let embedded = match options.url {
        None => {
            // Its heartbeat's seconds are short, so that some are seen in a short run.
            let builder = DeribitServer::builder().heartbeat_second(Duration::from_millis(50));
            Some(builder.every(Duration::from_millis(2)).start()?)
        }
        Some(_) => None,
    };
    let url = options.url.clone().or_else(|| embedded.as_ref().map(DeribitServer::url)).unwrap_or_default();
    let (id, secret) = match &embedded {
        Some(_) => (Some("id".into()), Some("secret".into())),
        None => (std::env::var("DERIBIT_ID").ok(), std::env::var("DERIBIT_SECRET").ok()),
    };
    let mut venue = Deribit::new().heartbeat_interval(Duration::from_secs(10));
    let signed_in = id.is_some() && secret.is_some();
    if let (Some(id), Some(secret)) = (id, secret) {
        venue = venue.client_signature(id, secret).cancel_on_disconnect(true);
    }
    let channels = match signed_in {
        true => vec![BOOK, TRADES, ORDERS],
        // Raw channels need an account.
        false => vec!["book.BTC-PERPETUAL.100ms", "trades.BTC-PERPETUAL.100ms"],
    };
    let mut config = ClientConfig::new(&url)?.name("deribit").venue(venue).subscribe(channels);
    if signed_in {
        config = config.reconcile(|session, unsettled| {
            let open: Vec<Value> = session.call(deribit::get_open_orders())?;
            println!(
                "           reconcile: {} messages never sent, {} requests unknown, {} orders open at the venue",
                unsettled.unsent.len(),
                unsettled.unknown.len(),
                open.len()
            );
            Ok(())
        });
    }
    if let Some(file) = &options.ca {
        config = config.root_certificate(std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?);
    }

    println!("connecting to {url}");
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(config)?;
    let mut desk = Desk {
        began: Instant::now(),
        client: client.clone(),
        book: Book::default(),
        opens: 0,
        trades: 0,
        order_updates: 0,
        resyncs: 0,
        placed: 0,
        pending: None,
    };
    let (events, alerts) = (client.events(), supervisor.events());
    let (every, done) = (tick(options.duration / 8), after(options.duration));
    let mut turn = 0;
    loop {
        let answer = desk.pending.as_ref().map_or_else(never, |(_, pending)| pending.receiver().clone());
        select! {
            recv(answer) -> response => if let Ok(response) = response { desk.on_answer(response) },
            recv(events) -> event => match event {
                Ok(event) => desk.on_event(event),
                Err(_) => break,
            },
            recv(alerts) -> event => match event {
                Ok(SupervisorEvent::Restarted { name, reason, restarts, .. }) => {
                    desk.say(format!("supervisor: {name} restarted ({reason}), {restarts} times now"));
                }
                // There is nothing left to watch.
                Ok(SupervisorEvent::Parked { .. }) => break,
                _ => {}
            },
            recv(every) -> _ => {
                turn += 1;
                desk.health();
                if let Some(server) = &embedded {
                    trouble(&mut desk, server, turn);
                }
            }
            recv(done) -> _ => break,
        }
    }
    events.try_iter().for_each(|event| desk.on_event(event));
    let open = client.ready_state() == ReadyState::Open;
    let report = supervisor.shutdown(Duration::from_secs(5));
    desk.say(format!(
        "shut down: {} connections, {} book changes, {} trades, {} order updates, {} resyncs",
        desk.opens,
        desk.book.changes(),
        desk.trades,
        desk.order_updates,
        desk.resyncs
    ));
    let Some(server) = embedded else { return Ok(open && report.left_behind.is_empty()) };
    let cancelled = server.wait_until(Duration::from_secs(5), |server| server.open_orders() == 0);
    let violations = server.violations();
    println!(
        "at the venue: {} orders, all cancelled: {cancelled}; rules broken: {violations:?}",
        server.orders().len()
    );
    let survived = desk.opens >= 3 && desk.resyncs >= 1 && desk.order_updates > 0 && desk.trades > 0;
    Ok(open && report.left_behind.is_empty() && cancelled && violations.is_empty() && survived)
}

/// One thing after another.
fn trouble(desk: &mut Desk, server: &DeribitServer, turn: u32) {
    match turn {
        1 | 3 | 6 => desk.quote(),
        2 => {
            desk.say("FAULT: the connection is cut");
            server.server().cut();
        }
        4 => {
            desk.say("FAULT: a change of the book is lost");
            server.break_chain("BTC-PERPETUAL");
        }
        5 => {
            desk.say("FAULT: the venue closes for maintenance");
            server.server().close_all(1012, "maintenance");
        }
        _ => {}
    }
}
