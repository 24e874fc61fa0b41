//! One line of a recording: what is in it, and its JSON.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::Value;

use super::redact::Redaction;
use super::tap::{Head, Shown, Sort};
use crate::event::Event;
use crate::message::{CloseFrame, Message};
use crate::state::ReadyState;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the server.
    In,
    /// To the server.
    Out,
}

/// A frame of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// A message, with what was compressed or packed undone.
    Message(Message),
    /// A ping and its payload.
    Ping(Vec<u8>),
    /// A pong and its payload.
    Pong(Vec<u8>),
    /// A close frame; `None` without a code.
    Close(Option<CloseFrame>),
}

/// The content of an [`Entry`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Recorded {
    /// Something went over the wire.
    #[non_exhaustive]
    Frame {
        /// Which way.
        direction: Direction,
        /// What.
        frame: Frame,
        /// The frame is the connection's own: a heartbeat, an answer to a request, a control frame. It is not delivered as a
        /// message.
        own: bool,
        /// The message came before the session was open. It is delivered after the event `open`, at an event `released`, unless
        /// an event `withheld` says that the code that opens the session took it, or that it was dropped.
        held: bool,
    },
    /// Something happened to the client: the fields of its [`Event`](crate::Event), in JSON; or a step that a replay repeats.
    #[non_exhaustive]
    Event {
        /// As `open` or `disconnected`; of the steps `connected`, `handler`, `timer`, `schedule`, `command`, `request`,
        /// `released`, `withheld` and `lost`.
        kind: Box<str>,
        /// The fields.
        data: Value,
        /// The client's handler, or its channel, did not receive the event, or it is a step.
        own: bool,
    },
}

/// One entry of a recording.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// When, by the wall's clock; to the microsecond.
    pub at: SystemTime,
    /// When, by the monotonic clock: since its recorder began. `None` in recordings of others.
    pub since: Option<Duration>,
    /// The client's name; empty in recordings of others.
    pub client: Box<str>,
    /// The number of the client's connection; 0 before the first, and in recordings of others.
    pub epoch: u64,
    /// For how long the kernel had it before it was read, where that was asked for.
    pub in_socket: Option<Duration>,
    /// The client's state when this was delivered, if its handler could not send then. `None`: it could, or nothing was
    /// delivered.
    pub state: Option<ReadyState>,
    /// The frame or the event.
    pub what: Recorded,
}

impl Entry {
    /// The message, if it is one from the server that a handler was shown.
    ///
    /// ```
    /// use ws_supervisor::record::Recording;
    /// let lines = r#"{"ts":"2021-07-22T22:25:41.062170Z","dir":"in","type":"text","data":"tick"}"#;
    /// let entry = Recording::read(lines.as_bytes()).next().expect("one")?;
    /// assert_eq!(entry.message().expect("it is one"), "tick");
    /// # Ok::<(), ws_supervisor::record::RecordingError>(())
    /// ```
    pub fn message(&self) -> Option<&Message> {
        match &self.what {
            Recorded::Frame { direction: Direction::In, frame: Frame::Message(message), own: false, .. } => {
                Some(message)
            }
            _ => None,
        }
    }

    /// The event, as it was delivered; of secrets that were replaced it has what stands in their place. `None` for a frame,
    /// for a step, and for an event that is not known.
    pub fn event(&self) -> Option<Event> {
        let Recorded::Event { kind, data, .. } = &self.what else { return None };
        let event = match data {
            Value::Null => serde_json::json!({ "type": kind }),
            data => serde_json::json!({ "type": kind, "data": data }),
        };
        serde_json::from_value(event).ok()
    }

    /// The kind of the event or the step; `None` for a frame.
    pub fn kind(&self) -> Option<&str> {
        match &self.what {
            Recorded::Event { kind, .. } => Some(kind),
            Recorded::Frame { .. } => None,
        }
    }
}

/// A line as it is read.
#[derive(Deserialize)]
struct Line<'a> {
    ts: &'a str,
    dir: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    binary: bool,
    #[serde(borrow, default)]
    client: Cow<'a, str>,
    #[serde(default)]
    epoch: u64,
    mono: Option<u64>,
    socket: Option<u64>,
    #[serde(default)]
    own: bool,
    #[serde(default)]
    held: bool,
    state: Option<ReadyState>,
    code: Option<u16>,
}

/// What is wrong with a line.
pub(super) fn read(line: &str) -> Result<Entry, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let at = humantime::parse_rfc3339(line.ts).map_err(|error| format!("`ts` {:?}: {error}", line.ts))?;
    let what = match line.dir {
        "in" => Recorded::Frame { direction: Direction::In, frame: frame(&line)?, own: line.own, held: line.held },
        "out" => Recorded::Frame { direction: Direction::Out, frame: frame(&line)?, own: line.own, held: line.held },
        "event" => Recorded::Event { kind: line.kind.into(), data: line.data, own: line.own },
        other => return Err(format!("`dir` must be `in`, `out` or `event`, not {other:?}")),
    };
    Ok(Entry {
        at,
        since: line.mono.map(Duration::from_nanos),
        client: line.client.into(),
        epoch: line.epoch,
        in_socket: line.socket.map(Duration::from_nanos),
        state: line.state,
        what,
    })
}

fn frame(line: &Line<'_>) -> Result<Frame, String> {
    let data = line.data.as_str().ok_or("`data` must be a string")?;
    let bytes = || match line.binary {
        true => BASE64.decode(data.as_bytes()).map_err(|error| format!("`data` is no base64: {error}")),
        false => Ok(data.as_bytes().to_vec()),
    };
    Ok(match line.kind {
        "text" | "binary" if line.binary => Frame::Message(Message::binary(bytes()?)),
        "text" => Frame::Message(Message::text(data)),
        "binary" => return Err("a `binary` frame must have `\"binary\":true` and base64 as its `data`".into()),
        "ping" => Frame::Ping(bytes()?),
        "pong" => Frame::Pong(bytes()?),
        "close" => Frame::Close(line.code.map(|code| CloseFrame { code, reason: data.into() })),
        other => return Err(format!("`type` {other:?} is none of a frame's")),
    })
}

/// Writes an entry that lies in memory as a line.
pub(super) fn write(
    head: Head,
    payload: &[u8],
    client: &str,
    at: SystemTime,
    redaction: Option<&Redaction>,
    to: &mut String,
) {
    let dir = match head {
        Head { sort: Sort::Event, .. } => "event",
        Head { is_out: true, .. } => "out",
        _ => "in",
    };
    // Writing to a string does not fail.
    let _ = write!(to, r#"{{"ts":"{}","dir":"{dir}","#, humantime::format_rfc3339_micros(at));
    let base64 = |kind: &str, bytes: &[u8], to: &mut String| {
        let _ = write!(to, r#""type":"{kind}","data":""#);
        BASE64.encode_append(bytes, to);
        to.push_str(r#"","binary":true"#);
    };
    match head.sort {
        Sort::Text => {
            to.push_str(r#""type":"text","data":"#);
            string(&text(payload, redaction), to);
        }
        Sort::Binary => base64("binary", &bytes(payload, redaction), to),
        Sort::Ping => base64("ping", &bytes(payload, redaction), to),
        Sort::Pong => base64("pong", &bytes(payload, redaction), to),
        Sort::Close => {
            to.push_str(r#""type":"close","data":"#);
            string(&text(payload.get(2..).unwrap_or_default(), redaction), to);
            if let [high, low, ..] = payload {
                let _ = write!(to, r#","code":{}"#, u16::from_be_bytes([*high, *low]));
            }
        }
        // `{"type":…,"data":…}` already: what is between the braces.
        Sort::Event => {
            let text = text(payload, redaction);
            to.push_str(text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or_default());
        }
    }
    to.push_str(r#","client":"#);
    string(client, to);
    let _ = write!(to, r#","epoch":{},"mono":{}"#, head.epoch, head.at);
    if head.in_socket > 0 {
        let _ = write!(to, r#","socket":{}"#, head.in_socket);
    }
    match head.shown {
        Shown::Now(None) => {}
        Shown::Now(Some(state)) => {
            to.push_str(r#","state":"#);
            to.push_str(&serde_json::to_string(&state).unwrap_or_default());
        }
        Shown::Held => to.push_str(r#","held":true"#),
        Shown::Never => to.push_str(r#","own":true"#),
    }
    to.push_str("}\n");
}

/// The payload as text, without its secrets unless they are recorded too.
fn text<'a>(payload: &'a [u8], redaction: Option<&Redaction>) -> Cow<'a, str> {
    match (String::from_utf8_lossy(payload), redaction) {
        (text, None) => text,
        (Cow::Borrowed(text), Some(redaction)) => redaction.apply(text),
        (Cow::Owned(text), Some(redaction)) => Cow::Owned(redaction.apply(&text).into_owned()),
    }
}

/// The payload without its secrets: JSON that is sent as bytes holds them as well as text does.
fn bytes<'a>(payload: &'a [u8], redaction: Option<&Redaction>) -> Cow<'a, [u8]> {
    match (std::str::from_utf8(payload), redaction) {
        (Ok(text), Some(redaction)) => match redaction.apply(text) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        _ => Cow::Borrowed(payload),
    }
}

fn string(text: &str, to: &mut String) {
    to.push_str(&serde_json::to_string(text).unwrap_or_default());
}
