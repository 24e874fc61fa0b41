//! What is said, and where: words or JSON on stderr, messages on stdout; and the signals that end it.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};
use ws_supervisor::{DisconnectReason, Event, ExitReason, Message};

/// A log line as the library writes it, with the time.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("ws_supervisor") {
            eprintln!("{} {:<5} {}", now(), record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

pub fn log_to_stderr(level: &str) {
    let _ = log::set_logger(&Log);
    log::set_max_level(level.parse().unwrap_or(log::LevelFilter::Off));
}

/// UTC, to the millisecond.
pub fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Told when a signal asks for the end.
pub fn ended_by_signal() -> Result<Receiver<()>, ctrlc::Error> {
    let (tell, told) = bounded(1);
    ctrlc::set_handler(move || {
        // A second signal finds the first still being obeyed, and ends the process at once.
        if tell.try_send(()).is_err() {
            std::process::exit(130);
        }
    })?;
    Ok(told)
}

/// After this time, or never.
pub fn after(time: Option<Duration>) -> Receiver<Instant> {
    time.map_or_else(crossbeam_channel::never, crossbeam_channel::after)
}

/// A line on stdout. False when nobody reads there any more, as behind `head`.
pub fn line(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Writes lines to stdout from a thread of its own: whoever reads there may be slow, and a signal must be heard meanwhile.
pub struct Writer {
    lines: Sender<String>,
    /// Told when nobody reads any more.
    pub gone: Receiver<()>,
    done: Receiver<()>,
}

/// Lines that wait for whoever reads.
const WAITING: usize = 1024;

impl Writer {
    pub fn start() -> Self {
        let (lines, waiting) = bounded::<String>(WAITING);
        let ((lost, gone), (end, done)) = (bounded(1), bounded(1));
        std::thread::spawn(move || {
            if !waiting.iter().all(|text| line(&text)) {
                let _ = lost.send(());
            }
            let _ = end.send(());
        });
        Self { lines, gone, done }
    }

    /// Whether a line has room now.
    pub fn has_room(&self) -> bool {
        self.lines.len() < WAITING
    }

    /// Where there is no room it is lost: ask first.
    pub fn put(&self, text: String) {
        let _ = self.lines.try_send(text);
    }

    /// Gives what waits a moment to be read.
    pub fn end(self) {
        drop(self.lines);
        let _ = self.done.recv_timeout(Duration::from_secs(2));
    }
}

/// A message's text, or its bytes in base64.
fn data(message: &Message) -> String {
    message.as_text().map_or_else(|| data_encoding::BASE64.encode(message.as_bytes()), str::to_owned)
}

/// A message as a line.
pub fn message_line(message: &Message) -> String {
    data(message).replace('\n', " ")
}

/// An event on stderr; a message is none.
pub fn tell(event: &Event) {
    words(event).iter().for_each(|words| eprintln!("{} {words}", now()));
}

/// An event in words; `None` for a message.
pub fn words(event: &Event) -> Option<String> {
    Some(match event {
        Event::Message(_) => return None,
        Event::Open { epoch, pending, refused, .. } => {
            let mut text = format!("open, connection {epoch}");
            for refused in refused {
                text += &format!("; channel {} is refused: {}", refused.channel, refused.error);
            }
            if !pending.is_empty() {
                text += &format!("; {} channels are not acknowledged yet", pending.len());
            }
            text
        }
        Event::Disconnected { epoch, reason, unsent, uncertain, .. } => {
            let mut text = format!("connection {epoch} ended: {reason}");
            if !unsent.is_empty() {
                text += &format!("; {} messages were not sent", unsent.len());
            }
            if !uncertain.is_empty() {
                text += &format!("; {} may have arrived or not", uncertain.len());
            }
            if let DisconnectReason::HeartbeatLost { .. } = reason {
                text += " (the line is dead, or the venue does not answer pings)";
            }
            text
        }
        Event::ConnectFailed { attempt, error, retry_in, .. } => match retry_in {
            Some(Duration::ZERO) => format!("attempt {attempt} failed: {error}; next at once"),
            Some(wait) => format!("attempt {attempt} failed: {error}; next in {wait:.1?}"),
            None => format!("attempt {attempt} failed: {error}"),
        },
        Event::Restarted { reason, restarts, .. } => format!("restarted ({reason}), {restarts} times now"),
        Event::Parked { reason, .. } => format!("given up on: {reason}"),
        Event::Closed { reason: ExitReason::Closed, .. } => "closed".into(),
        Event::Closed { reason, .. } => format!("ended: {reason}"),
        Event::Lagged { dropped, .. } => format!("{dropped} messages dropped"),
        Event::ReadingPaused => "not read: whoever takes the messages is behind".into(),
        Event::ReadingResumed { after, .. } => format!("read again, after {after:.1?}"),
        Event::Stale { channel, silent_for, .. } => {
            let of = channel.as_ref().map_or(String::new(), |channel| format!(" of channel {channel}"));
            format!("stale: no data{of} for {silent_for:.1?}")
        }
        Event::SubscriptionRefused(refused) => format!("channel {} is refused: {}", refused.channel, refused.error),
        other => format!("{other:?}"),
    })
}

/// The same as JSON, messages too.
pub fn json(client: &str, event: &Event) -> Value {
    match event {
        Event::Message(message) => {
            let kind = if message.is_text() { "text" } else { "binary" };
            json!({ "ts": now(), "client": client, "type": kind, "data": data(message), "binary": message.is_binary() })
        }
        event => json!({ "ts": now(), "client": client, "type": event.kind(), "data": words(event) }),
    }
}
