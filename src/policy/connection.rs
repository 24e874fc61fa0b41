//! All that decides for one connection, as one object: heartbeat, requests, subscriptions, what must be renewed, how old
//! it may grow. Given `now` and what happened, it says what to do; [`due`](Connection::due) says when it wants to be
//! asked again. The worker carries it out; the tests drive it without a worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::monitor::Beat;
use super::monitors::Monitors;
use super::requests::{Claim, Pending, Purpose, Told, Whom};
use super::staleness::{Silence, StaleAction, Watch};
use super::subscriptions::Only;
use super::terms::{Action, Rules, Tables, Turn};
use super::upkeep::{Renewal, Upkeep};
use crate::deadline::later;
use crate::error::RequestError;
use crate::message::{CloseFrame, Message, MessageRef};
use crate::request::RequestId;
use crate::response::Response;
use crate::state::DisconnectReason;

/// Whose a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It is delivered, and counts as data.
    Caller,
    /// A heartbeat or an answer: it is not delivered.
    Library,
    /// A heartbeat that is delivered all the same. It is no data.
    Both,
}

pub(crate) struct Connection {
    pub(super) rules: Arc<Rules>,
    pub(super) monitors: Monitors,
    watch: Watch,
    pub(super) upkeep: Upkeep,
    pub(super) opening: bool,
    /// Channels planned in one go: few while a rate limit lets few out.
    pub(super) plans: usize,
    /// How long the venue is left alone after it refused for the moment, next time.
    pub(super) patience: Duration,
    renewal_patience: Duration,
    /// When to look at the table of channels again.
    pub(super) channels_due: Option<Instant>,
    /// Channels wait for the answer to a request under whose id they have to be asked for.
    pub(super) waits_for_id: bool,
}

/// Channels planned in one go, at least and at most: other work gets its turn in between.
pub(super) const PLANS: (usize, usize) = (16, 1_000);

/// While not all that came is read, how often to look whether it is.
const UNREAD_LOOKS: Duration = Duration::from_millis(50);

/// How long a venue that refused for the moment is left alone, at first and at most.
pub(super) const PATIENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

impl Connection {
    /// For a connection that is there now.
    pub(crate) fn open<T: Tables>(
        rules: Arc<Rules>,
        nonce: u64,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) -> Self {
        let (monitors, first) = Monitors::open(&rules.heartbeat, nonce, now);
        let watch = Watch::new(rules.stale.clone(), now);
        let (upkeep, opening, plans, patience) = (Upkeep::default(), false, PLANS.1, PATIENCE.0);
        let (renewal_patience, channels_due) = (patience, None);
        let connection = Self {
            rules,
            monitors,
            watch,
            upkeep,
            opening,
            plans,
            patience,
            renewal_patience,
            channels_due,
            waits_for_id: false,
        };
        for beat in first {
            connection.beat(beat, false, now, tables, out);
        }
        connection
    }

    /// Its session is open: from now on it grows old.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.opening = false;
        self.upkeep.opened(now, self.rules.max_age);
        self.watch.opened(now);
    }

    /// What has to be asked before something expires.
    pub(crate) fn renew(&mut self, now: Instant, renewal: Option<Renewal>) {
        self.upkeep.renew(now, renewal);
    }

    pub(crate) fn monitors(&self) -> &Monitors {
        &self.monitors
    }

    /// When it wants to be asked again, if nothing else happens.
    pub(crate) fn due(&self, tables: &impl Tables) -> Option<Instant> {
        let own = [self.monitors.due(), self.watch.due(), self.upkeep.due(), self.channels_due];
        own.into_iter().chain([tables.requests_due()]).flatten().min()
    }

    /// Whether a rate limit holds up what it would ask for, so that a change of what is wanted is no reason to ask now.
    pub(crate) fn is_held_up(&self) -> bool {
        self.upkeep.is_held_up()
    }

    /// Its session is being opened: nothing that may end the connection is asked.
    pub(crate) fn restores(&mut self, now: Instant) {
        self.opening = true;
        self.upkeep.ask_for_channels_at(now);
    }

    /// Whether every channel that is wanted has been asked for and answered.
    pub(crate) fn is_restored(&self, tables: &impl Tables) -> bool {
        !self.upkeep.asks_later()
            && tables.subscriptions(|table| !table.is_asking() && !table.has_more(Only::Unsuspected))
    }

    /// Reading begins again after it was held up.
    pub(crate) fn reads_again(&mut self, now: Instant) {
        self.monitors.excuse(now);
        self.watch.start_afresh(now);
    }

    /// A ping frame came. True: it is a sign of life.
    pub(crate) fn ping(&mut self, now: Instant) -> bool {
        self.monitors.ping(now)
    }

    /// A pong frame came. True: it is a sign of life.
    pub(crate) fn pong(&mut self, payload: &[u8], now: Instant) -> bool {
        self.monitors.pong(payload, now)
    }

    /// Whether messages need to be shown to it at all: on a quiet connection none is.
    #[inline]
    pub(crate) fn listens(&self, tables: &impl Tables) -> bool {
        self.monitors.reads_messages() || self.watch.tells_channels_apart() || !tables.expects_no_answer()
    }

    /// A message of the caller's came.
    #[inline(always)]
    pub(crate) fn data(&mut self, at: Instant) {
        self.watch.data(at);
    }

    /// This machine may have slept: the line is tried at once.
    pub(crate) fn slept(&mut self, now: Instant) {
        self.monitors.ask_now(now);
        self.watch.start_afresh(now);
    }

    /// A message came: whose it is.
    pub(crate) fn message<T: Tables>(
        &mut self,
        message: MessageRef<'_>,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) -> Owner {
        if let Some(verdict) = self.monitors.message(message, now) {
            if verdict.alive {
                out.push(Action::Alive);
            }
            self.beat(verdict.action, false, now, tables, out);
            return if verdict.is_delivered { Owner::Both } else { Owner::Library };
        }
        if !tables.expects_no_answer() && self.answer(message, now, tables, out) {
            return Owner::Library;
        }
        if self.watch.tells_channels_apart() {
            if let Some(channel) = self.rules.dialect.as_ref().and_then(|dialect| dialect.channel_of(message)) {
                self.watch.channel(&channel, now);
            }
        }
        Owner::Caller
    }

    /// A message that may be an answer came; false if it is none of ours.
    fn answer<T: Tables>(
        &mut self,
        message: MessageRef<'_>,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) -> bool {
        let Some(answer) = self.rules.correlation.read(message) else { return false };
        let outcome = answer.outcome.map_err(RequestError::Rpc);
        match tables.requests(|table| table.claim(&answer.id, outcome.is_err())) {
            Claim::Nobody => return false,
            Claim::Late { id, own: Some(purpose), method }
            | Claim::Pending(id, Pending { method, whom: Whom::Worker(purpose), .. }) => {
                self.own_answered(purpose, Response { id: id.clone(), method, outcome }, now, tables, out);
                self.expect_more(purpose, id, now, tables);
            }
            Claim::Late { id, method, .. } => out.push(Action::TellLate(Response { id, method, outcome })),
            Claim::Pending(id, pending) => {
                tables.answered(&pending.method, now.saturating_duration_since(pending.asked_at));
                let response = Response { id, method: pending.method, outcome };
                self.ended((response, pending.whom), now, tables, out);
            }
        }
        true
    }

    /// The answer may have been a part, and the others come under the same id.
    fn expect_more(&mut self, purpose: Purpose, id: RequestId, now: Instant, tables: &impl Tables) {
        let Purpose::Subscription(batch) = purpose else { return };
        if tables.subscriptions(|table| table.expects_more(batch)) {
            tables.requests(|table| table.expect_more(id, purpose, now));
        }
        self.channels_due = tables.subscriptions(|table| table.due());
    }

    /// Something may be due.
    pub(crate) fn tick<T: Tables>(&mut self, turn: Turn, tables: &T, out: &mut Vec<Action<T::Caller>>) {
        let now = turn.now;
        for beat in self.monitors.tick(now, turn.caught_up, turn.heard_at, turn.mid_frame) {
            self.beat(beat, turn.clogged, now, tables, out);
        }
        if turn.mid_frame {
            self.watch.part(turn.heard_at);
        }
        for silence in self.watch.tick(now, turn.caught_up, || tables.subscriptions(|table| table.active())) {
            out.push(self.silent(silence));
        }
        self.expire(now, turn.caught_up, tables, out);
        if self.channels_due.is_some_and(|due| now >= due) && !turn.caught_up {
            self.channels_due = Some(now + UNREAD_LOOKS);
        }
        if self.channels_due.is_some_and(|due| now >= due) {
            let refused = tables.subscriptions(|table| table.expire(now));
            out.extend(refused.into_iter().map(Action::Refused));
            self.channels_due = tables.subscriptions(|table| table.due());
            self.upkeep.ask_for_channels_at(now);
        }
        let all = if self.opening { Only::Unsuspected } else { Only::All };
        if self.upkeep.take_asking(now, turn.wants_changed) {
            self.ask_for_channels(all, now, tables, out);
        } else if turn.wants_changed && !self.upkeep.is_held_up() {
            self.ask_for_channels(Only::Awaited, now, tables, out);
        }
        if let Some(request) = self.upkeep.take_renewal(now) {
            if let Err(unasked) = self.ask(request, Purpose::Renewal, now, tables, out) {
                match unasked.try_again(now) {
                    Some(at) => self.upkeep.renew_again(at),
                    None => out.push(not_renewed(unasked.describe())),
                }
            }
        }
        if self.upkeep.is_too_old(now, || tables.requests(|table| table.pending())) {
            out.push(Action::End { reason: DisconnectReason::MaxAge, code: Some(CloseFrame::NORMAL) });
        }
    }

    /// Requests whose time is up: whoever waits is told.
    pub(crate) fn expire<T: Tables>(
        &mut self,
        now: Instant,
        caught_up: bool,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) {
        if tables.requests_due().is_none_or(|due| now < due) {
            return;
        }
        for told in tables.requests(|table| table.expire(now, caught_up)) {
            self.ended(told, now, tables, out);
        }
    }

    fn silent<C>(&self, silence: Silence) -> Action<C> {
        let Silence { channel, lasted } = silence;
        match self.rules.stale.action {
            StaleAction::Tell => Action::Stale { channel, lasted },
            StaleAction::Reconnect => {
                let reason = DisconnectReason::Stale { channel, silent_for: lasted };
                Action::End { reason, code: Some(CloseFrame::NORMAL) }
            }
        }
    }

    fn beat<T: Tables>(&self, beat: Beat, clogged: bool, now: Instant, tables: &T, out: &mut Vec<Action<T::Caller>>) {
        match beat {
            Beat::Nothing => {}
            Beat::Ping(_) if clogged => {}
            Beat::Ping(payload) => out.push(Action::Ping(payload)),
            Beat::Send(message) => self.send_first(message, now, tables, out),
            Beat::Refused(error) => {
                out.push(Action::Warn(format!("the venue refused a heartbeat request: {error}").into()));
            }
            Beat::Lost { missed } => {
                out.push(Action::End { reason: DisconnectReason::HeartbeatLost { missed }, code: None });
            }
        }
    }

    /// A heartbeat does not wait for the rate limits, but the venue counts it.
    fn send_first<T: Tables>(&self, message: Message, now: Instant, tables: &T, out: &mut Vec<Action<T::Caller>>) {
        match tables.admit_heartbeat(message, now) {
            Ok(message) => out.push(Action::Beat(message)),
            Err(refused) => out.push(Action::Warn(format!("a heartbeat is not sent: {refused}").into())),
        }
    }

    /// A request has ended, by its answer or by its time.
    fn ended<T: Tables>(&mut self, told: Told<T::Caller>, now: Instant, tables: &T, out: &mut Vec<Action<T::Caller>>) {
        match told {
            (response, Whom::Worker(purpose)) => self.own_answered(purpose, response, now, tables, out),
            told => out.push(Action::Tell(told)),
        }
    }

    fn own_answered<T: Tables>(
        &mut self,
        purpose: Purpose,
        response: Response,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) {
        match purpose {
            Purpose::Renewal => match &response.outcome {
                Err(RequestError::Rpc(error)) if self.is_temporary(error) => {
                    out.push(Action::Warn(format!("the renewal is refused for the moment: {error}").into()));
                    self.upkeep.renew_again(after(&mut self.renewal_patience, now));
                }
                _ => match self.renewed(response) {
                    Ok(renewal) => {
                        self.renewal_patience = PATIENCE.0;
                        self.upkeep.renew(now, renewal);
                    }
                    Err(message) => out.push(not_renewed(message)),
                },
            },
            Purpose::Subscription(batch) => {
                let outcome = match response.outcome {
                    Ok(result) => Ok(result),
                    Err(RequestError::Rpc(error)) if self.is_temporary(&error) => {
                        out.push(Action::Warn(format!("channels are refused for the moment: {error}").into()));
                        tables.subscriptions(|table| table.put_off(batch));
                        // Whatever else is refused meanwhile changes nothing.
                        if !self.upkeep.asks_later() {
                            self.upkeep.ask_for_channels_at(after(&mut self.patience, now));
                        }
                        return;
                    }
                    Err(RequestError::Rpc(error)) => Err(error),
                    Err(_) => {
                        tables.subscriptions(|table| table.unanswered(batch));
                        return self.ask_when_free(now);
                    }
                };
                if outcome.is_ok() {
                    self.patience = PATIENCE.0;
                }
                self.batch_answered(batch, &outcome, now, tables, out);
                // A batch that was refused is tried again in halves, and what callers wanted meanwhile is next.
                match std::mem::take(&mut self.waits_for_id) {
                    true => self.upkeep.ask_for_channels_at(now),
                    false => self.ask_when_free(now),
                }
            }
        }
    }

    fn renewed(&self, response: Response) -> Result<Option<Renewal>, Box<str>> {
        let result: Value = response.decode().map_err(|error| error.to_string())?;
        self.rules.dialect.as_ref().map_or(Ok(None), |dialect| dialect.renewed(&result))
    }
}

/// When a venue that refused for the moment is asked again; the next time is later.
fn after(patience: &mut Duration, now: Instant) -> Instant {
    let at = later(now, *patience);
    *patience = (*patience * 2).min(PATIENCE.1);
    at
}

fn not_renewed<C>(message: Box<str>) -> Action<C> {
    Action::End { reason: DisconnectReason::RenewalFailed(message), code: None }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
