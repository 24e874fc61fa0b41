//! `wsup connect`, and what it has in common with `wsup record`.

use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
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
use crate::{Outcome, demo, say};

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

/// How it went. One that never connected was of no use.
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

/// Sends the lines of stdin, on a thread of its own: whoever types does not mind to wait for a connection, a pipe must not lose
/// its first line, and neither holds up what comes. Told of the end when all are sent.
fn send_lines(client: Client) -> Receiver<()> {
    let (end, ended) = bounded(1);
    std::thread::spawn(move || {
        for (number, line) in std::io::stdin().lock().split(b'\n').map_while(Result::ok).enumerate() {
            let Ok(line) = String::from_utf8(line) else {
                eprintln!("{} line {} of stdin is not sent: it is not UTF-8", say::now(), number + 1);
                continue;
            };
            let _ = client.wait_until_open(PATIENCE);
            // A pipe is faster than any line: it waits for room.
            let mut text = line.trim_end_matches('\r').to_owned();
            while let Err(refused) = client.send(text) {
                match refused {
                    SendError::Full { message, .. } => {
                        text = message.as_text().unwrap_or_default().to_owned();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    SendError::RateLimited { message, retry_after, .. } => {
                        text = message.as_text().unwrap_or_default().to_owned();
                        std::thread::sleep(retry_after);
                    }
                    refused => {
                        eprintln!("{} line {} of stdin is not sent: {refused}", say::now(), number + 1);
                        break;
                    }
                }
            }
        }
        let _ = end.send(());
    });
    ended
}

pub fn connect(options: &ConnectOptions) -> Outcome {
    let (mut config, exchange) = config(&options.target)?;
    let recorder = options.record.as_ref().map(|file| recorder(file).start()).transpose()?;
    if let Some(recorder) = &recorder {
        config = config.record(recorder);
    }
    let signal = say::ended_by_signal()?;
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(config)?;
    let name = client.name().to_owned();
    let (events, ends) = (client.events(), say::after(options.lasts));
    let (mut typed, mut over) = (send_lines(client.clone()), say::after(None));
    let writer = say::Writer::start();
    let mut ended = None;
    loop {
        // While whoever reads our stdout is behind, nothing more is taken, and the client stops reading in its turn.
        let (events, again) = match writer.has_room() {
            true => (events.clone(), never()),
            false => (never(), after(Duration::from_millis(5))),
        };
        select! {
            recv(events) -> event => {
                let Ok(event) = event else { break };
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
            recv(typed) -> _ => {
                typed = never();
                over = say::after(options.wait);
            }
            recv(again) -> _ => {}
            recv(writer.gone) -> _ => break,
            recv(signal) -> _ => break,
            recv(ends) -> _ => break,
            recv(over) -> _ => break,
        }
    }
    let outcome = outcome(ended, &client);
    let report = supervisor.shutdown(Duration::from_secs(5));
    if let Some(recorder) = recorder {
        recorder.flush(Duration::from_secs(10));
        let status = recorder.status();
        eprintln!("{} {} entries recorded to {}", say::now(), status.written, status.file.display());
    }
    writer.end();
    drop(exchange);
    Ok(if report.left_behind.is_empty() { outcome } else { ExitCode::FAILURE })
}
