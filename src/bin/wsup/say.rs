//! Output: words or JSON on stderr, messages on stdout.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};
use ws_supervisor::{ConnectError, DisconnectReason, Event, ExitReason, Message};

/// A log line as the library writes it, with the time.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("ws_supervisor") {
            note(format_args!("{} {:<5} {}", now(), record.level(), printable(&record.args().to_string())));
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

/// After this time, or never.
pub fn after(time: Option<Duration>) -> Receiver<Instant> {
    time.map_or_else(crossbeam_channel::never, crossbeam_channel::after)
}

/// Writes a line to stderr. A reader that is gone, or a full disk, is no reason to end.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a line to stdout, past the buffer of the standard library: a line that was not written is not written later.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    out.write_all(format!("{text}\n").as_bytes())
}

/// Writes lines to stdout from a thread of its own: its reader may be slow, and a signal must be received meanwhile.
pub struct Writer {
    lines: Sender<String>,
    /// Receives the first fault, and another one when lines were written in between.
    pub faults: Receiver<io::Error>,
    lost: Receiver<u64>,
}

/// Lines that wait for the reader of stdout.
const WAITING: usize = 1024;

impl Writer {
    pub fn start() -> Self {
        let (lines, waiting) = bounded::<String>(WAITING);
        let ((report, faults), (end, lost)) = (bounded(16), bounded(1));
        std::thread::spawn(move || {
            let (mut count, mut is_broken) = (0, false);
            for text in waiting {
                let written = line(&text);
                count += u64::from(written.is_err());
                if let Err(fault) = &written {
                    if !is_broken {
                        let _ = report.try_send(io::Error::new(fault.kind(), format!("stdout: {fault}")));
                    }
                }
                is_broken = written.is_err();
            }
            let _ = end.send(count);
        });
        Self { lines, faults, lost }
    }

    /// Whether a line has room now.
    pub fn has_room(&self) -> bool {
        self.lines.len() < WAITING
    }

    /// Where there is no room it is lost: ask first.
    pub fn put(&self, text: String) {
        let _ = self.lines.try_send(text);
    }

    /// Waits up to two seconds for the lines to be written. Returns how many were not.
    pub fn end(self) -> u64 {
        let waiting = self.lines.len() as u64;
        drop(self.lines);
        self.lost.recv_timeout(Duration::from_secs(2)).unwrap_or(waiting)
    }
}

/// A message's text, or its bytes in base64.
fn data(message: &Message) -> String {
    message.as_text().map_or_else(|| data_encoding::BASE64.encode(message.as_bytes()), str::to_owned)
}

/// A message as a line. On a terminal, control characters of the server's are written as escapes: they could move the cursor,
/// or set the terminal's keys.
pub fn message_line(message: &Message) -> String {
    let text = data(message);
    match io::stdout().is_terminal() {
        true => printable(&text).into_owned(),
        false => text.replace('\n', " "),
    }
}

/// Text of others without control characters: each is written as its escape, a line's end as a space.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| c.is_control() && c != '\t';
    if !text.contains(is_control) {
        return text.into();
    }
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' => out.push(' '),
            c if is_control(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.into()
}

/// An event on stderr; a message is none.
pub fn tell(event: &Event) {
    words(event).iter().for_each(|words| note(format_args!("{} {words}", now())));
}

/// An event in words; `None` for a message.
pub fn words(event: &Event) -> Option<String> {
    describe(event).map(|words| printable(&words).into_owned())
}

/// Characters of a refusal's body that are shown.
const BODY: usize = 300;

/// The beginning of the server's own words on why it refuses, if it says more than the status.
fn body_of(error: &ConnectError) -> String {
    match error {
        ConnectError::Refused(refusal) if !refusal.body.trim().is_empty() => {
            let body = refusal.body.trim();
            let end = body.char_indices().nth(BODY).map_or(body.len(), |(end, _)| end);
            format!(": {}{}", &body[..end], if end < body.len() { "…" } else { "" })
        }
        _ => String::new(),
    }
}

fn describe(event: &Event) -> Option<String> {
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
        Event::ConnectFailed { attempt, error, retry_in, .. } => {
            let body = body_of(error);
            match retry_in {
                Some(Duration::ZERO) => format!("attempt {attempt} failed: {error}{body}; next at once"),
                Some(wait) => format!("attempt {attempt} failed: {error}{body}; next in {wait:.1?}"),
                None => format!("attempt {attempt} failed: {error}{body}"),
            }
        }
        Event::Restarted { reason, restarts, .. } => format!("restarted ({reason}), {restarts} times now"),
        Event::Parked { reason, .. } => format!("parked: {reason}"),
        Event::Closed { reason: ExitReason::Closed, .. } => "closed".into(),
        Event::Closed { reason, .. } => format!("ended: {reason}"),
        Event::Lagged { dropped, .. } => format!("{dropped} messages dropped"),
        Event::ReadingPaused => "reading is paused: the reader of the messages is behind".into(),
        Event::ReadingResumed { after, .. } => format!("reading again, after {after:.1?}"),
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
