//! Is the line alive? The machine that finds out: given `now` and what came in, it returns what to send and when it is due
//! next. Only an answer of its own
//! kind counts as life: a pong, a matching message, the venue's beat.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::heartbeat::{Classified, Heartbeat, Kind};
use crate::deadline::later;
use crate::message::{Message, MessageRef};

/// What the worker shall do now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Beat {
    Nothing,
    Ping(Bytes),
    Send(Message),
    Lost {
        missed: u32,
    },
    /// The venue refused a request of the heartbeat's own.
    Refused(Box<str>),
}

/// What became of a message that the heartbeat looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// It belongs to the heartbeat and is not delivered.
    pub(crate) ours: bool,
    /// It is a sign of life.
    pub(crate) alive: bool,
    /// It is delivered all the same.
    pub(crate) is_delivered: bool,
    pub(crate) action: Beat,
}

const NOT_OURS: Verdict = Verdict { ours: false, alive: false, is_delivered: false, action: Beat::Nothing };

/// One connection's heartbeat. A new connection gets a new one, so nothing stale is carried over.
#[derive(Debug)]
pub(crate) struct Monitor {
    rules: Heartbeat,
    /// Makes the pings of this connection unlike those of any other.
    nonce: u64,
    sequence: u64,
    unanswered: VecDeque<(u64, Instant)>,
    due: Option<Instant>,
    /// When it last looked whether there was life.
    looked_at: Instant,
    failures: u32,
    last_received: Option<Instant>,
    round_trip: Option<Duration>,
}

impl Monitor {
    /// For a connection that opened now. The action is what to send first.
    pub(crate) fn open(rules: Heartbeat, nonce: u64, now: Instant) -> (Self, Beat) {
        let mut monitor = Self {
            rules,
            nonce,
            sequence: 0,
            unanswered: VecDeque::new(),
            due: None,
            looked_at: now,
            failures: 0,
            last_received: None,
            round_trip: None,
        };
        monitor.due = monitor.next_due(now, true);
        let action = match &monitor.rules.kind {
            Kind::Dialect { interval, dialect } => dialect.begin(*interval).map_or(Beat::Nothing, Beat::Send),
            _ => Beat::Nothing,
        };
        (monitor, action)
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    fn next_due(&self, now: Instant, after_life: bool) -> Option<Instant> {
        let interval = self.rules.interval()?;
        let slack = match &self.rules.kind {
            Kind::Dialect { dialect, .. } if after_life => dialect.slack(interval),
            _ => Duration::ZERO,
        };
        Some(later(later(now, interval), slack))
    }

    /// Something may be due. `caught_up` is whether everything that came is read: while it is not, an answer may be
    /// waiting unread, and its absence counts for nothing. Any byte that came since the last look is life for our own
    /// pings; and in the middle of a large message on a slow line nothing else can come, whatever is waited for.
    pub(crate) fn tick(&mut self, now: Instant, caught_up: bool, heard_at: Instant, mid_frame: bool) -> Beat {
        if self.due.is_none_or(|due| now < due) {
            return Beat::Nothing;
        }
        let waits_for_answer = match self.rules.kind {
            Kind::PingPong { .. } | Kind::Message { .. } => !self.unanswered.is_empty(),
            Kind::Dialect { .. } | Kind::ServerPing { .. } => true,
            Kind::Disabled => false,
        };
        let heard = heard_at > std::mem::replace(&mut self.looked_at, now);
        let lives = heard && (mid_frame || matches!(self.rules.kind, Kind::PingPong { .. }));
        if lives {
            self.failures = 0;
        } else if waits_for_answer && caught_up {
            self.failures += 1;
            if self.failures >= self.rules.max_missed {
                self.due = None;
                return Beat::Lost { missed: self.failures };
            }
        }
        self.due = self.next_due(now, false);
        match &self.rules.kind {
            Kind::PingPong { .. } => {
                let sequence = self.ask(now);
                let mut payload = [0; 16];
                payload[..8].copy_from_slice(&self.nonce.to_be_bytes());
                payload[8..].copy_from_slice(&sequence.to_be_bytes());
                Beat::Ping(Bytes::copy_from_slice(&payload))
            }
            Kind::Message { payload, .. } => {
                let payload = payload.clone();
                Beat::Send(payload(self.ask(now)))
            }
            _ => Beat::Nothing,
        }
    }

    fn ask(&mut self, now: Instant) -> u64 {
        self.sequence += 1;
        self.unanswered.push_back((self.sequence, now));
        // While nothing is read, pings go on and none is counted: keep no more than can be answered usefully.
        if self.unanswered.len() > 64 {
            self.unanswered.pop_front();
        }
        self.sequence
    }

    fn alive(&mut self, now: Instant) {
        self.failures = 0;
        self.last_received = Some(now);
    }

    /// A pong came. Returns whether it answers a ping of this connection.
    pub(crate) fn pong(&mut self, payload: &[u8], now: Instant) -> bool {
        let Some(sequence) = payload
            .strip_prefix(&self.nonce.to_be_bytes()[..])
            .and_then(|rest| Some(u64::from_be_bytes(rest.try_into().ok()?)))
        else {
            return false;
        };
        let Some(index) = self.unanswered.iter().position(|(asked, _)| *asked == sequence) else { return false };
        let (_, sent) = self.unanswered[index];
        self.unanswered.drain(..=index);
        self.round_trip = Some(now.saturating_duration_since(sent));
        self.alive(now);
        true
    }

    /// A ping frame of the server's came.
    pub(crate) fn ping(&mut self, now: Instant) -> bool {
        let counts = matches!(self.rules.kind, Kind::ServerPing { .. });
        if counts {
            self.alive(now);
            self.due = self.next_due(now, true);
        }
        counts
    }

    /// Whether messages may belong to the heartbeat. Else none need be shown to it.
    pub(crate) fn reads_messages(&self) -> bool {
        matches!(self.rules.kind, Kind::Message { .. } | Kind::Dialect { .. })
    }

    /// A message came.
    pub(crate) fn message(&mut self, message: MessageRef<'_>, now: Instant) -> Verdict {
        match &self.rules.kind {
            Kind::Disabled | Kind::PingPong { .. } | Kind::ServerPing { .. } => NOT_OURS,
            Kind::Message { matcher, .. } => {
                if !matcher(message) {
                    return NOT_OURS;
                }
                if let Some((_, sent)) = self.unanswered.back() {
                    self.round_trip = Some(now.saturating_duration_since(*sent));
                }
                self.unanswered.clear();
                self.alive(now);
                Verdict { ours: true, alive: true, is_delivered: self.rules.is_delivered, action: Beat::Nothing }
            }
            Kind::Dialect { dialect, .. } => match dialect.classify(message) {
                Classified::NotHeartbeat => NOT_OURS,
                Classified::Response { refused } => {
                    let action = refused.map_or(Beat::Nothing, Beat::Refused);
                    Verdict { ours: true, alive: false, is_delivered: false, action }
                }
                Classified::Alive { reply } => {
                    self.alive(now);
                    self.due = self.next_due(now, true);
                    let action = reply.map_or(Beat::Nothing, Beat::Send);
                    Verdict { ours: true, alive: true, is_delivered: self.rules.is_delivered, action }
                }
            },
        }
    }

    /// The line may have died while this machine slept: what asks by itself asks at once, for the first time.
    pub(crate) fn ask_now(&mut self, now: Instant) {
        if matches!(self.rules.kind, Kind::PingPong { .. } | Kind::Message { .. }) && self.due.is_some() {
            self.excuse(now);
            self.due = Some(now);
        }
    }

    /// Reading begins again after it was held up: what is still unanswered starts afresh. What the venue wants to hear of
    /// us is not put off by it.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.unanswered.clear();
        self.failures = 0;
        if matches!(self.rules.kind, Kind::Dialect { .. } | Kind::ServerPing { .. }) {
            self.due = self.next_due(now, true);
        }
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
