//! `wsup connect`, and what it has in common with `wsup record`.

use std::io::{self, BufRead};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, after, bounded, never, select};
use ws_supervisor::config_file::filled_in;
use ws_supervisor::record::{Recorder, RecorderBuilder};
use ws_supervisor::testing::DeribitServer;
use ws_supervisor::venue::{binance::Binance, deribit::Deribit};
use ws_supervisor::{
    Client, ClientConfig, Compression, Event, Heartbeat, Proxy, SendError, StaleAction, Supervisor, Tls,
};

use crate::arguments::{ConnectOptions, Target, VenueName};
use crate::{Outcome, demo, record, say, signals};

/// The configuration that the options come to, and the exchange, if it is in this process.
pub fn config(target: &Target) -> Result<(ClientConfig, Option<DeribitServer>), Box<dyn std::error::Error>> {
    let exchange = (target.url == "demo").then(demo::exchange).transpose()?;
    let url = exchange.as_ref().map_or(target.url.clone(), DeribitServer::url);
    let mut config = ClientConfig::new(&url)?.name(if exchange.is_some() { "demo" } else { "connection" });
    for header in &target.header {
        let (name, value) = header.split_once(':').ok_or_else(|| "--header must be \"Name: value\"".to_owned())?;
        config = config.header(name.trim(), filled_in(value.trim())?);
    }
    config = target.subprotocol.iter().fold(config, |config, name| config.subprotocol(name));
    if let Some(ca) = &target.ca {
        config = config.tls(Tls::new().root_file(ca));
    }
    config = match target.proxy.as_deref() {
        Some("environment") => config.proxy(Proxy::from_environment()),
        Some(url) => config.proxy(Proxy::new(url)?),
        None => config,
    };
    let venue = target.venue.or(exchange.as_ref().map(|_| VenueName::Deribit));
    config = match venue {
        // Deribit's heartbeat is its own.
        Some(VenueName::Deribit) if exchange.is_some() => {
            config.venue(Deribit::new().client_credentials("id", "secret"))
        }
        Some(VenueName::Deribit) => config.venue(Deribit::new()),
        Some(VenueName::BinanceSpot) => config.venue(Binance::spot()),
        Some(VenueName::BinanceFutures) => config.venue(Binance::futures()),
        None if target.heartbeat.is_zero() => config.heartbeat(Heartbeat::disabled()),
        None => config.heartbeat(Heartbeat::ping_pong(target.heartbeat)),
    };
    if !target.subscribe.is_empty() {
        if venue.is_none() {
            return Err("--subscribe needs --venue, which knows how; else send the venue's own message".into());
        }
        config = config.subscribe(&target.subscribe);
    }
    if let Some(silence) = target.stale {
        config = config.stale_after(silence).stale_action(StaleAction::Reconnect);
    }
    if target.compress {
        config = config.compression(Compression::deflate());
    }
    if let Err(faults) = config.validate() {
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        return Err(lines.join("\n").into());
    }
    Ok((config, exchange))
}

/// How it ended, when the client itself has.
pub fn ending(event: &Event) -> Option<ExitCode> {
    match event {
        Event::Closed { .. } => Some(ExitCode::SUCCESS),
        Event::Parked { .. } => Some(ExitCode::FAILURE),
        _ => None,
    }
}

/// How it went: a client that never connected was of no use.
pub fn outcome(ended: Option<ExitCode>, client: &Client) -> ExitCode {
    ended.unwrap_or(if client.epoch() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A recorder to this file, compressed where its name says so.
pub fn recorder(file: &Path) -> RecorderBuilder {
    let recorder = Recorder::builder(file);
    if file.extension().is_some_and(|ending| ending == "zst") { recorder.zstd(3) } else { recorder }
}

/// How long a line of stdin waits for a connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of stdin, counted.
#[derive(Default)]
struct Lines {
    read: AtomicU64,
    accepted: AtomicU64,
}

/// Sends the lines of stdin, on a thread of its own: a line waits for a connection, and for room, and what comes in does not
/// wait meanwhile. The receiver gets a value when all are sent, or why stdin could not be read on.
fn send_lines(client: Client, lines: Arc<Lines>) -> Receiver<io::Result<()>> {
    let (end, ended) = bounded(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().split(b'\n') {
            let line = match line {
                Ok(line) => line,
                Err(fault) => {
                    let _ = end.send(Err(io::Error::new(fault.kind(), format!("stdin: {fault}"))));
                    return;
                }
            };
            let number = lines.read.fetch_add(1, Ordering::Relaxed) + 1;
            match String::from_utf8(line) {
                Ok(line) => match send(&client, line.trim_end_matches('\r').to_owned()) {
                    Ok(()) => _ = lines.accepted.fetch_add(1, Ordering::Relaxed),
                    Err(refused) => say::note(format_args!("{} line {number} of stdin: {refused}", say::now())),
                },
                Err(_) => say::note(format_args!("{} line {number} of stdin: not sent: it is not UTF-8", say::now())),
            }
        }
        let _ = end.send(Ok(()));
    });
    ended
}

/// Sends a line when there is a connection with room for it: a pipe is faster than any line.
fn send(client: &Client, mut text: String) -> Result<(), SendError> {
    let _ = client.wait_until_open(PATIENCE);
    loop {
        let message = match client.send(text) {
            Err(SendError::Full { message, .. }) => {
                std::thread::sleep(Duration::from_millis(1));
                message
            }
            Err(SendError::RateLimited { message, retry_after, .. }) => {
                std::thread::sleep(retry_after);
                message
            }
            other => return other,
        };
        text = message.as_text().unwrap_or_default().to_owned();
    }
}

/// Messages that did not arrive, or may not have.
#[derive(Default)]
struct Undelivered {
    unsent: usize,
    uncertain: usize,
}

impl Undelivered {
    fn add(&mut self, event: &Event) {
        if let Event::Disconnected { unsent, uncertain, .. }
        | Event::Parked { unsent, uncertain, .. }
        | Event::Closed { unsent, uncertain, .. } = event
        {
            self.unsent += unsent.len();
            self.uncertain += uncertain.len();
        }
    }
}

pub fn connect(options: &ConnectOptions) -> Outcome {
    let (mut config, exchange) = config(&options.target)?;
    let recorder = options.record.as_ref().map(|file| recorder(file).start()).transpose()?;
    if let Some(recorder) = &recorder {
        config = config.record(recorder);
    }
    let signal = signals::ended_by_signal()?;
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(config)?;
    let name = client.name().to_owned();
    let (events, ends) = (client.events(), say::after(options.lasts));
    let lines = Arc::new(Lines::default());
    let (mut typed, mut over) = (send_lines(client.clone(), lines.clone()), say::after(None));
    let (mut undelivered, mut fault) = (Undelivered::default(), None);
    let writer = say::Writer::start();
    let mut ended = None;
    loop {
        // While the reader of stdout is behind, no event is taken, and the client stops reading in its turn.
        let (events, again) = match writer.has_room() {
            true => (events.clone(), never()),
            false => (never(), after(Duration::from_millis(5))),
        };
        select! {
            recv(events) -> event => {
                let Ok(event) = event else { break };
                undelivered.add(&event);
                match (&event, options.json) {
                    (event, true) => writer.put(say::json(&name, event).to_string()),
                    (Event::Message(message), false) => writer.put(say::message_line(message)),
                    (event, false) => say::tell(event),
                }
                if let Some(code) = ending(&event) {
                    ended = Some(code);
                    break;
                }
            }
            recv(typed) -> end => {
                typed = never();
                match end {
                    Ok(Err(broken)) => {
                        fault = Some(broken);
                        break;
                    }
                    _ => over = say::after(options.wait),
                }
            }
            recv(again) -> _ => {}
            recv(writer.faults) -> found => {
                fault = found.ok();
                break;
            }
            recv(signal) -> _ => break,
            recv(ends) -> _ => break,
            recv(over) -> _ => break,
        }
    }
    let mut outcome = outcome(ended, &client);
    let report = supervisor.shutdown(Duration::from_secs(5));
    events.try_iter().for_each(|event| undelivered.add(&event));
    // A line that still waited for room is refused now.
    let waited = lines.read.load(Ordering::Relaxed) - lines.accepted.load(Ordering::Relaxed);
    let Undelivered { unsent, uncertain } = undelivered;
    if waited > 0 || unsent > 0 || uncertain > 0 {
        let unsent = unsent as u64 + waited;
        say::note(format_args!("{} {unsent} lines were not sent, and {uncertain} may not have arrived", say::now()));
        outcome = ExitCode::FAILURE;
    }
    if let Some(recorder) = recorder {
        let is_written = recorder.flush(Duration::from_secs(10));
        outcome = record::report(&recorder, is_written).unwrap_or(outcome);
    }
    writer.end();
    drop(exchange);
    if let Some(fault) = fault {
        return Err(fault.into());
    }
    Ok(if report.left_behind.is_empty() { outcome } else { ExitCode::FAILURE })
}
