//! Recordings played again: by a server, and into a handler without any.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::rehearsal::Rehearsal;
use super::script::Script;
use super::{Server, make};
use crate::config::ClientConfig;
use crate::event::Event;
use crate::inbound::delivery::Handler;
use crate::lifecycle::StartError;
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

/// Timers that fire at one instant of a replay.
const TIMERS_AT_ONCE: usize = 1000;

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
    let mut first = None;
    let mut due = move |entry: &Entry| {
        let since = entry.at.duration_since(*first.get_or_insert(entry.at)).unwrap_or_default();
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

/// What a handler did in a replay, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// When, from the recording's first entry on.
    pub at: Duration,
    /// What it sent: messages, and requests as they would be written.
    pub sent: Message,
}

/// Replays one client's recording into a handler, with no socket, thread or clock: the handler is told what it was told then,
/// in the same order, [`Context::now`](crate::Context::now) is the recorded time, and a timer fires when that comes. So a
/// strategy's run is repeated exactly, as often as you like and as fast as it goes. Returns what it sent.
///
/// Times are the monotonic ones where the recording has them. Responses are those recorded, under the ids recorded: a handler
/// that compares ids sets its own ([`Request::id`](crate::Request::id)). What callers told it
/// ([`Client::tell`](crate::Client::tell)) is not in a recording; failed attempts, refused channels and the client's own end are, and
/// are not told again.
///
/// # Errors
/// When the configuration breaks a rule.
///
/// ```
/// use ws_supervisor::record::Recording;
/// use ws_supervisor::{ClientConfig, Context, Handler, MessageRef, testing};
///
/// struct Quoter;
/// impl Handler for Quoter {
///     fn on_message(&mut self, context: &mut Context<'_>, tick: MessageRef<'_>) {
///         context.send(format!("quote for {}", tick.as_text().unwrap_or_default())).expect("open");
///     }
/// }
///
/// let lines = r#"{"ts":"2021-07-22T22:25:41.062170Z","dir":"in","type":"text","data":"tick"}"#;
/// let recording = Recording::read(lines.as_bytes()).filter_map(Result::ok);
/// let run = testing::replay(recording, ClientConfig::new("wss://venue.example")?, &mut Quoter)?;
/// assert_eq!(run[0].sent, "quote for tick");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn replay(
    entries: impl IntoIterator<Item = Entry>,
    config: ClientConfig,
    handler: &mut impl Handler,
) -> Result<Vec<Replayed>, StartError> {
    let mut rehearsal = Rehearsal::new(config)?;
    let begun = Instant::now();
    let (mut clock, mut now, mut has_opened) = (Clock::default(), Duration::ZERO, false);
    let mut sent = Vec::new();
    for entry in entries {
        let since = clock.read(&entry, now);
        // Of two clocks, or two writers, one may be a little behind: time does not run back.
        let (until, mut at_once) = (since.max(now), 0);
        while let Some(at) = rehearsal.next_timer().map(|at| at.saturating_duration_since(begun).max(now)) {
            // One that is always due again at once gets its turns, and then the next entry.
            at_once = if at > now { 0 } else { at_once + 1 };
            if at > until || at_once > TIMERS_AT_ONCE {
                break;
            }
            now = at;
            rehearsal.set_now(begun + now);
            rehearsal.fire_timers(handler);
            sent.extend(rehearsal.take_sent().into_iter().map(|sent| Replayed { at: now, sent }));
        }
        now = until;
        rehearsal.set_now(begun + now);
        if let Some(message) = entry.message() {
            // A recording of others has no events: what comes comes on an open connection.
            if !has_opened {
                rehearsal.open(entry.epoch.max(1));
                has_opened = true;
                handler.on_open(&mut rehearsal.context());
            }
            let message = make::received(message.clone(), begun + now);
            handler.on_message(&mut rehearsal.context(), message.view().on(entry.epoch.max(1)));
        }
        match entry.event() {
            Some(Event::Open { epoch, .. }) => {
                rehearsal.open(epoch);
                has_opened = true;
                handler.on_open(&mut rehearsal.context());
            }
            Some(event) => {
                if let Event::Response(response) | Event::LateResponse(response) = &event {
                    rehearsal.settle(&response.id);
                }
                if let Event::Disconnected { .. } = event {
                    // What the recording says was handed back is what the handler is told.
                    drop(rehearsal.disconnect());
                    has_opened = true;
                }
                handler.on_event(&mut rehearsal.context(), event);
            }
            None => {}
        }
        sent.extend(rehearsal.take_sent().into_iter().map(|sent| Replayed { at: now, sent }));
    }
    Ok(sent)
}

/// Entries of one recorder are no further apart than this where they are out of order.
const ONE_CLOCK: Duration = Duration::from_secs(1);

/// The time of a replay, from the clocks of a recording: by the monotonic one, unless another recorder's begins, or there is none;
/// then the wall's says how much went by.
#[derive(Default)]
struct Clock {
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
    /// When the entry is; it is `now` in the replay.
    fn read(&mut self, entry: &Entry, now: Duration) -> Duration {
        let by_wall = entry.at.duration_since(*self.first.get_or_insert(entry.at)).unwrap_or_default();
        let Some(mono) = entry.since else { return by_wall };
        match &mut self.zero {
            Some(zero) if mono >= zero.latest => {
                zero.latest = mono;
                return zero.at + (mono - zero.mono);
            }
            // A little behind the other of two writers is no new beginning.
            Some(zero) if zero.latest - mono < ONE_CLOCK => return now,
            _ => {}
        }
        let at = if self.zero.is_some() { by_wall.max(now) } else { Duration::ZERO };
        self.zero = Some(Zero { mono, latest: mono, at });
        at
    }
}
