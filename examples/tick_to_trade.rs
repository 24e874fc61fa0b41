//! Tick to trade: a price comes in, an order goes out, and nothing lies between but one thread on its own core.
//!
//! `cargo run --release --example tick_to_trade` starts an embedded exchange (nothing leaves this machine) on one core
//! and a client with its strategy inline on another, first parked between ticks, then spinning. For each it prints
//! how long the exchange waited from the write of a tick until it had the order. Options: see `--help`.

use std::error::Error;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use hdrhistogram::Histogram;
use lexopt::prelude::*;
use serde_json::{Value, json};
use tungstenite::WebSocket;
use ws_supervisor::{ClientConfig, Context, Delivery, Handler, IdleStrategy, MessageRef, Stats, Supervisor};

const HELP: &str = "\
From a tick to an order, on an embedded exchange.

  --ticks N     how many, for each way to wait (default 50000)
  --gap N       microseconds between an order and the next tick (default 50)
  --core N      the client's core (default: the last one)
  --json        the last line of stdout is one JSON object; all else goes to stderr";

/// What the strategy pays at most, in hundredths.
const LIMIT: u32 = 10_000;

struct Options {
    ticks: u32,
    gap: Duration,
    core: Option<usize>,
    json: bool,
}

/// Lives on the client's thread. Buys whatever is offered at the limit or below it.
struct Taker;

impl Handler for Taker {
    fn on_message(&mut self, context: &mut Context<'_>, tick: MessageRef<'_>) {
        let Some((id, ask)) = tick.as_text().and_then(read_tick) else { return };
        if ask <= LIMIT {
            // Refused only when the connection is gone, and the order with it: a stale order must not wait for the
            // next one.
            let _ = context.send(format!(r#"{{"buy":{id},"price":{ask}}}"#));
        }
    }
}

/// `{"tick":7,"ask":9995}`: two whole numbers in a known order need no JSON library.
fn read_tick(text: &str) -> Option<(u32, u32)> {
    let (id, ask) = text.strip_prefix(r#"{"tick":"#)?.strip_suffix('}')?.split_once(r#","ask":"#)?;
    Some((id.parse().ok()?, ask.parse().ok()?))
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tick_to_trade: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options { ticks: 50_000, gap: Duration::from_micros(50), core: None, json: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("ticks") => options.ticks = parser.value()?.parse()?,
            Long("gap") => options.gap = Duration::from_micros(parser.value()?.parse()?),
            Long("core") => options.core = Some(parser.value()?.parse()?),
            Long("json") => options.json = true,
            Short('h') | Long("help") => {
                println!("{HELP}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.ticks == 0 {
        return Err("--ticks takes at least 1".into());
    }
    Ok(options)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cores: Vec<_> = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let core = options.core.or(cores.last().copied()).unwrap_or(0);
    let Some(exchange) = cores.iter().copied().find(|other| *other != core) else {
        return Err("two threads that spin need two cores, and this process may use one".into());
    };
    core_affinity::set_for_current(CoreId { id: exchange });
    let say = |line: String| if options.json { eprintln!("{line}") } else { println!("{line}") };
    say(format!("{} ticks each, the exchange on core {exchange}, the client on core {core}; µs", options.ticks));
    say(format!(
        "{:<22}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}{:>9}",
        "between ticks", "min", "p50", "p90", "p99", "p99.9", "p99.99", "max"
    ));
    let mut report = serde_json::Map::new();
    for (name, idle) in [("parked", IdleStrategy::Park), ("spinning", IdleStrategy::BusySpin)] {
        let (times, stats) = trade(options, core, idle)?;
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        let [p50, p90, p99, p999, p9999] = [0.5, 0.9, 0.99, 0.999, 0.9999].map(at);
        let (min, max) = (times.min() as f64 / 1e3, times.max() as f64 / 1e3);
        say(format!("{name:<22}{min:>8.1}{p50:>8.1}{p90:>8.1}{p99:>8.1}{p999:>8.1}{p9999:>9.1}{max:>9.1}"));
        say(format!(
            "  the client read {} ticks and sent {} orders; the longest turn of its loop took {:.1?}",
            stats.received, stats.sent, stats.longest_turn
        ));
        let row: Value = json!({
            "ticks": stats.received, "orders": stats.sent, "min_us": min, "p50_us": p50, "p90_us": p90,
            "p99_us": p99, "p99_9_us": p999, "p99_99_us": p9999, "max_us": max
        });
        report.insert(name.into(), row);
    }
    if options.json {
        println!("{}", Value::Object(report));
    }
    Ok(())
}

/// A run of the exchange: it offers, waits for the order, and notes how long that took.
fn trade(options: &Options, core: usize, idle: IdleStrategy) -> Result<(Histogram<u64>, Stats), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let supervisor = Supervisor::start()?;
    let config = ClientConfig::new(format!("ws://{}", listener.local_addr()?))?;
    let config = config.name("taker").idle_strategy(idle).pin_to(core).delivery(Delivery::inline(|| Taker));
    let client = supervisor.spawn_client(config)?;
    let (tcp, _) = listener.accept()?;
    tcp.set_nodelay(true)?;
    let mut socket = tungstenite::accept(tcp)?;
    socket.get_ref().set_nonblocking(true)?;

    let mut times = Histogram::new(3)?;
    let warm_up = options.ticks / 10;
    for id in 0..warm_up + options.ticks {
        let ask = LIMIT - id % 100;
        let tick = tungstenite::Message::text(format!(r#"{{"tick":{id},"ask":{ask}}}"#));
        let written = Instant::now();
        socket.send(tick)?;
        let order = next_order(&mut socket)?;
        let took = written.elapsed();
        if order != format!(r#"{{"buy":{id},"price":{ask}}}"#) {
            return Err(format!("tick {id} at {ask} was answered by {order}").into());
        }
        if id >= warm_up {
            times.record(u64::try_from(took.as_nanos())?)?;
        }
        let quiet = Instant::now();
        while quiet.elapsed() < options.gap {
            std::hint::spin_loop();
        }
    }
    let stats = client.stats();
    let shutdown = std::thread::spawn(move || supervisor.shutdown(Duration::from_secs(1)));
    // The client says goodbye, and tungstenite answers it.
    while !matches!(socket.read(), Err(error) if !would_block(&error)) {}
    shutdown.join().map_err(|_| "the shutdown panicked")?;
    Ok((times, stats))
}

/// Spins until an order is there. An exchange that waits for ever is of no use to anybody.
fn next_order(socket: &mut WebSocket<TcpStream>) -> Result<String, Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match socket.read() {
            Ok(message) if message.is_text() => return Ok(message.into_text()?.to_string()),
            Ok(_) => {}
            Err(error) if would_block(&error) => {
                if Instant::now() > deadline {
                    return Err("no order within 10 s".into());
                }
                std::hint::spin_loop();
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}
