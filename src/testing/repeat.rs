//! A recording repeated into a handler, without a server.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::make;
use super::rehearsal::Rehearsal;
use super::replay::Clock;
use crate::config::ClientConfig;
use crate::event::Event;
use crate::inbound::context::Context;
use crate::inbound::delivery::Handler;
use crate::lifecycle::StartError;
use crate::message::Message;
use crate::record::{Direction, Entry, Frame, Recorded};
use crate::state::ReadyState;

/// Between two calls of a handler are its own frames and steps, and what other threads sent meanwhile: no more of them are
/// looked at.
const LOOK_AHEAD: usize = 10_000;

/// Timers that fire at one instant of a replay.
const TIMERS_AT_ONCE: usize = 1000;

/// A message that a handler sent in a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// When, from the recording's first entry on.
    pub at: Duration,
    /// The message, or the request as it would be written.
    pub sent: Message,
}

/// Replays one client's recording into a handler, with no socket, thread or clock: the handler receives what it received then,
/// in the same order, [`Context::now`] is the recorded time, and timers fire where they fired. So a strategy's run is repeated
/// exactly, as often as you like and as fast as it goes. Returns what it sent.
///
/// `factory` makes the handler, as in [`Delivery::inline`](crate::Delivery::inline): once, and again wherever the client made a
/// new one. A handler that panics is dropped, and the replay goes on with the next, as the client did. A strategy that was
/// changed since may schedule other timers: those fire when their time comes.
///
/// A replay can't repeat everything: values that callers gave the handler ([`Client::tell`](crate::Client::tell)) are not in a recording;
/// secrets are replaced unless they were [recorded](crate::record::RecorderBuilder::with_secrets); a send that was refused
/// because the socket was slow or a rate limit was reached is accepted; what the context says of subscriptions is not recorded.
/// The numbers of requests are those of the run, unless other threads made requests in the middle of a call of the handler.
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
/// let run = testing::replay(recording, ClientConfig::new("wss://venue.example")?, || Quoter)?;
/// assert_eq!(run[0].sent, "quote for tick");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn replay<H: Handler>(
    entries: impl IntoIterator<Item = Entry>,
    config: ClientConfig,
    factory: impl FnMut() -> H,
) -> Result<Vec<Replayed>, StartError> {
    let mut replay = Replay {
        rehearsal: Rehearsal::new(config.unrecorded())?,
        factory,
        handler: None,
        begun: Instant::now(),
        clock: Clock::default(),
        now: Duration::ZERO,
        epoch: None,
        held: Vec::new(),
        scheduled: HashMap::new(),
        sent: Vec::new(),
    };
    let (mut entries, mut ahead) = (entries.into_iter(), VecDeque::new());
    while let Some(entry) = ahead.pop_front().or_else(|| entries.next()) {
        if is_call(&entry) {
            if let Some(id) = next_request(&mut ahead, &mut entries) {
                replay.rehearsal.continue_ids_at(id);
            }
        }
        replay.step(entry);
    }
    Ok(replay.sent)
}

/// Whether the handler is called at this entry.
fn is_call(entry: &Entry) -> bool {
    match &entry.what {
        Recorded::Frame { direction: Direction::In, frame: Frame::Message(_), own: false, held: false } => true,
        Recorded::Frame { .. } => false,
        Recorded::Event { kind, own, .. } => !own || matches!(&**kind, "handler" | "released" | "timer"),
    }
}

/// The number of the first request that the handler made in this call: its entry stands before that of the next call.
fn next_request(ahead: &mut VecDeque<Entry>, entries: &mut impl Iterator<Item = Entry>) -> Option<u64> {
    for n in 0..LOOK_AHEAD {
        if n == ahead.len() {
            ahead.push_back(entries.next()?);
        }
        match &ahead[n].what {
            Recorded::Event { kind, data, .. } if &**kind == "request" => return data["id"].as_u64(),
            _ if is_call(&ahead[n]) => return None,
            _ => {}
        }
    }
    None
}

struct Replay<F, H> {
    rehearsal: Rehearsal,
    factory: F,
    handler: Option<H>,
    begun: Instant,
    clock: Clock,
    /// The recorded time, since the first entry.
    now: Duration,
    /// The connection that is open.
    epoch: Option<u64>,
    /// Messages that came before the session was open.
    held: Vec<Message>,
    /// Timers of the recorded run, and how many there are of each: they fire where they fired then, or never.
    scheduled: HashMap<(Instant, u64), usize>,
    sent: Vec<Replayed>,
}

impl<H: Handler, F: FnMut() -> H> Replay<F, H> {
    fn step(&mut self, entry: Entry) {
        let at = self.clock.read(&entry, self.now);
        match &entry.what {
            Recorded::Frame { direction: Direction::In, frame: Frame::Message(message), own: false, held } => {
                let message = make::received(message.clone(), self.begun + at);
                match held {
                    true => self.held.push(message),
                    false => self.deliver(message, &entry, at),
                }
            }
            Recorded::Frame { .. } => {}
            Recorded::Event { kind, data, own } => match &**kind {
                "handler" => {
                    self.drop_handler();
                    self.handler();
                }
                "connected" => self.held.clear(),
                "released" if !self.held.is_empty() => {
                    let message = self.held.remove(0);
                    self.deliver(message, &entry, at);
                }
                "withheld" => {
                    let nth = data["nth"].as_u64().map_or(self.held.len().saturating_sub(1), |nth| nth as usize);
                    if nth < self.held.len() {
                        self.held.remove(nth);
                    }
                }
                "schedule" => {
                    let due =
                        self.begun + self.clock.at(Duration::from_nanos(data["due"].as_u64().unwrap_or_default()));
                    *self.scheduled.entry((due, data["token"].as_u64().unwrap_or_default())).or_default() += 1;
                }
                "timer" => self.recorded_timer(data["token"].as_u64().unwrap_or_default(), &entry, at),
                _ if *own => {}
                _ => entry.event().into_iter().for_each(|event| self.event(event, &entry, at)),
            },
        }
    }

    /// The time of a call of the handler's; timers whose time is up before it and that the recorded run did not have fire.
    fn call_at(&mut self, entry: &Entry, at: Duration) {
        let mut at_once = 0;
        loop {
            let scheduled = &self.scheduled;
            let is_new = |due: Instant, token: u64| !scheduled.contains_key(&(due, token));
            let Some((due, token)) = self.rehearsal.take_timer(is_new, self.begun + at) else { break };
            self.now = self.now.max(due.saturating_duration_since(self.begun));
            self.rehearsal.stand(self.epoch, ReadyState::Connecting);
            self.call(self.now, |handler, context| handler.on_timer(context, token));
            at_once += 1;
            // One that is always due again at once gets its turns, and then the next entry.
            if at_once > TIMERS_AT_ONCE {
                break;
            }
        }
        self.now = at;
        let epoch = self.epoch.filter(|_| entry.state.is_none());
        self.rehearsal.stand(epoch, entry.state.unwrap_or(ReadyState::Connecting));
    }

    /// Calls the handler.
    fn call(&mut self, at: Duration, code: impl FnOnce(&mut H, &mut Context<'_>)) {
        self.rehearsal.set_now(self.begun + at);
        self.handler();
        let (handler, rehearsal) = (&mut self.handler, &mut self.rehearsal);
        let called = catch_unwind(AssertUnwindSafe(|| {
            if let Some(handler) = handler {
                code(handler, &mut rehearsal.context());
            }
        }));
        if called.is_err() {
            self.drop_handler();
        }
        self.sent.extend(self.rehearsal.take_sent().into_iter().map(|sent| Replayed { at, sent }));
    }

    /// A handler's timers end with it.
    fn drop_handler(&mut self) {
        self.handler = None;
        self.rehearsal.forget_timers();
        self.scheduled.clear();
    }

    /// Makes a handler where there is none; one that panics as it is made is made again at the next call.
    fn handler(&mut self) {
        if self.handler.is_none() {
            self.drop_handler();
            let factory = &mut self.factory;
            self.handler = catch_unwind(AssertUnwindSafe(factory)).ok();
        }
    }

    fn deliver(&mut self, message: Message, entry: &Entry, at: Duration) {
        let epoch = entry.epoch.max(1);
        // A recording of others has no events: its messages came on an open connection.
        if self.epoch.is_none() && entry.state.is_none() {
            self.epoch = Some(epoch);
            if entry.since.is_none() {
                self.call_at(entry, at);
                self.call(at, |handler, context| handler.on_open(context));
            }
        }
        self.call_at(entry, at);
        self.call(at, |handler, context| handler.on_message(context, message.view().on(epoch)));
    }

    fn event(&mut self, event: Event, entry: &Entry, at: Duration) {
        match &event {
            Event::Open { epoch, .. } => self.epoch = Some(*epoch),
            Event::Response(response) | Event::LateResponse(response) => self.rehearsal.settle(&response.id),
            Event::Disconnected { .. } | Event::Parked { .. } | Event::Closed { .. } => {
                self.epoch = None;
                // The handler receives what the recording says was returned.
                drop(self.rehearsal.disconnect());
            }
            _ => {}
        }
        self.call_at(entry, at);
        self.call(at, |handler, context| match event {
            Event::Open { .. } => handler.on_open(context),
            event => handler.on_event(context, event),
        });
    }

    /// A timer fired in the recorded run. A strategy that was changed may not have it.
    fn recorded_timer(&mut self, token: u64, entry: &Entry, at: Duration) {
        let scheduled = &self.scheduled;
        let is_recorded = |due: Instant, other: u64| other == token && scheduled.contains_key(&(due, token));
        let Some(timer) = self.rehearsal.take_timer(is_recorded, self.begun + at) else { return };
        if let Some(left) = self.scheduled.get_mut(&timer) {
            *left -= 1;
            if *left == 0 {
                self.scheduled.remove(&timer);
            }
        }
        self.call_at(entry, at);
        self.call(at, |handler, context| handler.on_timer(context, token));
    }
}
