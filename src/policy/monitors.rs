//! All heartbeats of one connection: each finds out by itself, and the first to lose patience ends it.

use std::time::{Duration, Instant};

use super::heartbeat::Heartbeat;
use super::monitor::{Beat, Monitor, Verdict};
use crate::message::MessageRef;

#[derive(Debug)]
pub(crate) struct Monitors {
    all: Vec<Monitor>,
    /// Whether messages may belong to one of them: asked for every message.
    reads_messages: bool,
}

impl Monitors {
    /// For a connection that opened now, and what to send first.
    pub(crate) fn open(rules: &Heartbeat, nonce: u64, now: Instant) -> (Self, Vec<Beat>) {
        let each = |(at, rule): (u64, Heartbeat)| Monitor::open(rule, nonce.wrapping_add(at), now);
        let (all, first): (Vec<Monitor>, _) = (0..).zip(rules.each()).map(each).unzip();
        let reads_messages = all.iter().any(Monitor::reads_messages);
        (Self { all, reads_messages }, first)
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.all.iter().filter_map(Monitor::due).min()
    }

    /// Of the one that has missed most.
    pub(crate) fn failures(&self) -> u32 {
        self.all.iter().map(Monitor::failures).max().unwrap_or(0)
    }

    pub(crate) fn last_received(&self) -> Option<Instant> {
        self.all.iter().filter_map(Monitor::last_received).max()
    }

    /// Of the first that has one.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.all.iter().find_map(Monitor::round_trip)
    }

    pub(crate) fn tick(&mut self, now: Instant, caught_up: bool, heard_at: Instant, mid_frame: bool) -> Vec<Beat> {
        // Most turns nothing is due, and nothing is made for them.
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.all.iter_mut().map(|monitor| monitor.tick(now, caught_up, heard_at, mid_frame)).collect()
    }

    pub(crate) fn ping(&mut self, now: Instant) -> bool {
        self.all.iter_mut().fold(false, |alive, monitor| monitor.ping(now) | alive)
    }

    pub(crate) fn pong(&mut self, payload: &[u8], now: Instant) -> bool {
        self.all.iter_mut().any(|monitor| monitor.pong(payload, now))
    }

    #[inline]
    pub(crate) fn reads_messages(&self) -> bool {
        self.reads_messages
    }

    /// What those make of it to which it belongs: one sign of life, though several wait for it, and the first's answer.
    pub(crate) fn message(&mut self, message: MessageRef<'_>, now: Instant) -> Option<Verdict> {
        let verdicts = self.all.iter_mut().map(|monitor| monitor.message(message, now)).filter(|verdict| verdict.ours);
        verdicts.reduce(|first, other| Verdict {
            alive: first.alive || other.alive,
            is_delivered: first.is_delivered || other.is_delivered,
            action: if first.action == Beat::Nothing { other.action } else { first.action },
            ..first
        })
    }

    pub(crate) fn excuse(&mut self, now: Instant) {
        self.all.iter_mut().for_each(|monitor| monitor.excuse(now));
    }

    /// The line may have died while this machine slept: whoever can asks at once.
    pub(crate) fn ask_now(&mut self, now: Instant) {
        self.all.iter_mut().for_each(|monitor| monitor.ask_now(now));
    }
}
