//! A recording played by a server.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::Server;
use super::script::Script;
use crate::message::Message;
use crate::record::Entry;

/// How fast a recording is played.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Pace {
    /// As it was recorded.
    Recorded,
    /// So many times as fast.
    Times(f64),
    /// As fast as the client takes it.
    FlatOut,
}

/// Messages written in one go, flat out.
const AT_ONCE: usize = 1000;

/// How often it is seen whether a message is due.
const LOOK: Duration = Duration::from_millis(1);

impl Server {
    /// Plays what a venue sent on every connection, from when it is open: the messages of the recording, which may be of one
    /// client or of one connection by a filter of yours. Heartbeats and answers to requests, which were the recording client's own
    /// conversation, are left out.
    ///
    /// # Errors
    /// When no port is to be had, or the pace is no number above 0.
    ///
    /// ```
    /// use ws_supervisor::record::Recording;
    /// use ws_supervisor::testing::{Pace, Server};
    /// use ws_supervisor::{Client, ClientConfig, Event};
    ///
    /// let lines = r#"{"ts":"2021-07-22T22:25:41.062170Z","dir":"in","type":"text","data":"tick"}"#;
    /// let server = Server::replay(Recording::read(lines.as_bytes()).filter_map(Result::ok), Pace::Recorded)?;
    /// let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// assert!(client.events().iter().any(|event| matches!(event, Event::Message(message) if message == "tick")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn replay(entries: impl IntoIterator<Item = Entry>, pace: Pace) -> io::Result<Self> {
        Self::replay_at((Ipv4Addr::LOCALHOST, 0).into(), entries, pace)
    }

    /// As [`replay`](Server::replay), at an address of your choice.
    ///
    /// # Errors
    /// When that can't be listened at, or the pace is no number above 0.
    pub fn replay_at(address: SocketAddr, entries: impl IntoIterator<Item = Entry>, pace: Pace) -> io::Result<Self> {
        if let Pace::Times(times) = pace {
            if !(times.is_finite() && times > 0.0) {
                let rule = format!("a pace of {times} times: must be more than 0");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
            }
        }
        let script = script(entries, pace);
        Self::launch_at(address, Arc::new(move |_| script.clone()), None)
    }
}

/// What [`Server::replay`] plays.
fn script(entries: impl IntoIterator<Item = Entry>, pace: Pace) -> Script {
    let (mut clock, mut latest) = (Clock::default(), Duration::ZERO);
    let mut due = move |entry: &Entry| {
        latest = clock.read(entry, latest).max(latest);
        let since = latest;
        match pace {
            Pace::Recorded => since,
            Pace::Times(factor) => Duration::try_from_secs_f64(since.as_secs_f64() / factor).unwrap_or(Duration::MAX),
            Pace::FlatOut => Duration::ZERO,
        }
    };
    let messages = entries.into_iter().filter_map(|entry| Some((due(&entry), entry.message()?.clone())));
    let messages: Arc<Vec<(Duration, Message)>> = Arc::new(messages.collect());
    // Of each connection: when it began, and what is next.
    let playing: Mutex<HashMap<usize, (Instant, usize)>> = Mutex::default();
    Script::silent().every(LOOK, move |peer| {
        let mut playing = playing.lock();
        let (begun, next) = playing.entry(peer.index).or_insert_with(|| (Instant::now(), 0));
        let elapsed = begun.elapsed();
        let rest = messages[*next..].iter().take(AT_ONCE).take_while(|(due, _)| *due <= elapsed);
        let now: Vec<_> = rest.map(|(_, message)| message.clone()).collect();
        *next += now.len();
        now
    })
}

/// Entries of one recorder are no further apart than this where they are out of order.
const ONE_CLOCK: Duration = Duration::from_secs(1);

/// The time of a replay, from the clocks of a recording: by the monotonic one, which can't be set. Where another recorder's
/// begins, or there is none, the wall's clock says how much time passed.
#[derive(Default)]
pub(super) struct Clock {
    first: Option<SystemTime>,
    zero: Option<Zero>,
}

/// Where a recorder's clock begins in the time of the replay.
struct Zero {
    mono: Duration,
    latest: Duration,
    at: Duration,
}

impl Clock {
    /// When the entry is; it is `now` in the replay. An entry may be a little older than the one before it: the messages of one
    /// read have the time of that read.
    pub(super) fn read(&mut self, entry: &Entry, now: Duration) -> Duration {
        let by_wall = entry.at.duration_since(*self.first.get_or_insert(entry.at)).unwrap_or_default();
        let Some(mono) = entry.since else { return by_wall };
        match &mut self.zero {
            Some(zero) if mono >= zero.latest => {
                zero.latest = mono;
                return zero.at + (mono - zero.mono);
            }
            Some(zero) if zero.latest - mono < ONE_CLOCK => {
                return (zero.at + mono).saturating_sub(zero.mono);
            }
            _ => {}
        }
        let at = if self.zero.is_some() { by_wall.max(now) } else { Duration::ZERO };
        self.zero = Some(Zero { mono, latest: mono, at });
        at
    }
    /// When a time of the recorder's monotonic clock is.
    pub(super) fn at(&self, mono: Duration) -> Duration {
        self.zero.as_ref().map_or(Duration::ZERO, |zero| (zero.at + mono).saturating_sub(zero.mono))
    }
}
