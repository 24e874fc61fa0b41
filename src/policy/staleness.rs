//! Does data still come, on a line that is alive? What the venue says of itself (heartbeats, answers) does not count.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline::later;

/// What a client does when no data has come for [`stale_after`](crate::ClientConfig::stale_after).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum StaleAction {
    /// Ends the connection in good order ([`DisconnectReason::Stale`](crate::DisconnectReason::Stale)) and makes another.
    #[default]
    Reconnect,
    /// Says so ([`Event::Stale`](crate::Event::Stale)), once in each silence, and leaves the connection alone.
    Tell,
}

/// What stays the same from one connection to the next.
#[derive(Clone, Default)]
pub(crate) struct StaleRules {
    /// For all data together.
    pub(crate) after: Option<Duration>,
    /// For each channel.
    pub(crate) channel_after: Option<Duration>,
    pub(crate) action: StaleAction,
    /// Whether data is to be expected now.
    pub(crate) gate: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl fmt::Debug for StaleRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, a channel {:?}: {:?}", self.after, self.channel_after, self.action)
    }
}

/// Data has not come for too long: all of it, or a channel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) channel: Option<Arc<str>>,
    pub(crate) lasted: Duration,
}

/// While not all that came is read, how often to look whether it is.
const UNREAD_LOOKS: Duration = Duration::from_millis(50);

/// When something was last heard.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    /// The silence since then has been told of.
    told: bool,
}

impl Heard {
    fn at(at: Instant) -> Self {
        Self { at, told: false }
    }

    /// How long it has been silent, if that is too long and new.
    fn too_long(&mut self, limit: Duration, now: Instant) -> Option<Duration> {
        let lasted = now.saturating_duration_since(self.at);
        (lasted >= limit && !std::mem::replace(&mut self.told, lasted >= limit)).then_some(lasted)
    }
}

/// One connection's watch. It begins when the session is open: a line that never delivers is stale too.
#[derive(Debug)]
pub(crate) struct Watch {
    rules: StaleRules,
    /// When data last came: set for every message.
    last_data: Instant,
    all: Heard,
    channels: HashMap<Arc<str>, Heard>,
    /// Data was not to be expected when it was last looked at.
    closed: bool,
    due: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(rules: StaleRules, now: Instant) -> Self {
        let (all, channels) = (Heard::at(now), HashMap::new());
        Self { rules, last_data: now, all, channels, closed: false, due: None }
    }

    pub(crate) fn opened(&mut self, now: Instant) {
        self.start_afresh(now);
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A message of the caller's came.
    #[inline(always)]
    pub(crate) fn data(&mut self, at: Instant) {
        self.last_data = at;
    }

    /// Whether it has to be told which channel a message belongs to.
    pub(crate) fn tells_channels_apart(&self) -> bool {
        self.rules.channel_after.is_some()
    }

    pub(crate) fn channel(&mut self, channel: &str, at: Instant) {
        if let Some(heard) = self.channels.get_mut(channel) {
            *heard = Heard::at(at);
        }
    }

    /// Reading begins again after it was held up: what lies behind is no silence of the venue's.
    pub(crate) fn start_afresh(&mut self, now: Instant) {
        (self.last_data, self.all) = (now, Heard::at(now));
        self.channels.values_mut().for_each(|heard| *heard = Heard::at(now));
        self.due = self.step().map(|step| later(now, step));
    }

    /// How often it is looked at at least: a quarter of the shortest patience, by which a gate that opens and a channel that
    /// is new are noticed.
    fn step(&self) -> Option<Duration> {
        let shortest = [self.rules.after, self.rules.channel_after].into_iter().flatten().min()?;
        Some((shortest / 4).max(Duration::from_millis(1)))
    }

    /// Bytes came that are the beginning of a message, or the middle of one: it may be a large one on a slow line.
    pub(crate) fn part(&mut self, at: Instant) {
        if self.due.is_some() && at > self.last_data {
            self.last_data = at;
            self.channels.values_mut().for_each(|heard| *heard = Heard::at(at));
        }
    }

    /// Something may be due. `caught_up` is whether all that came is read. `active` are the channels that are subscribed to.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        caught_up: bool,
        active: impl FnOnce() -> Vec<Arc<str>>,
    ) -> Vec<Silence> {
        let Some(step) = self.step().filter(|_| self.due.is_some_and(|due| now >= due)) else { return Vec::new() };
        if !caught_up {
            self.due = Some(later(now, step.min(UNREAD_LOOKS)));
            return Vec::new();
        }
        self.due = Some(later(now, step));
        let was_closed = self.closed;
        self.closed = self.rules.gate.as_ref().is_some_and(|is_open| !is_open());
        if self.closed || was_closed {
            self.start_afresh(now);
            return Vec::new();
        }
        let mut silences = Vec::new();
        if let Some(limit) = self.rules.after {
            if self.last_data > self.all.at {
                self.all = Heard::at(self.last_data);
            }
            silences.extend(self.all.too_long(limit, now).map(|lasted| Silence { channel: None, lasted }));
            let at_limit = later(self.all.at, limit);
            self.due = self.due.filter(|due| self.all.told || *due < at_limit).or(Some(at_limit));
        }
        if let Some(limit) = self.rules.channel_after {
            // Those that are no longer subscribed to are left behind.
            let mut before = std::mem::take(&mut self.channels);
            for channel in active() {
                let mut heard = before.remove(&channel).unwrap_or(Heard::at(now));
                let lasted = heard.too_long(limit, now);
                silences.extend(lasted.map(|lasted| Silence { channel: Some(channel.clone()), lasted }));
                self.channels.insert(channel, heard);
            }
        }
        silences
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const S: Duration = Duration::from_secs(1);

    fn watch(rules: StaleRules, now: Instant) -> Watch {
        let mut watch = Watch::new(rules, now);
        watch.opened(now);
        watch
    }

    fn ten() -> StaleRules {
        StaleRules { after: Some(10 * S), ..StaleRules::default() }
    }

    /// From deadline to deadline up to `until`; returns when it was told of a silence.
    fn run(watch: &mut Watch, start: Instant, until: Instant, active: &[&str]) -> Vec<(u64, Silence)> {
        let active: Vec<Arc<str>> = active.iter().map(|name| (*name).into()).collect();
        let mut told = Vec::new();
        while let Some(at) = watch.due().filter(|at| *at <= until) {
            let silences = watch.tick(at, true, || active.clone());
            told.extend(silences.into_iter().map(|one| ((at - start).as_secs(), one)));
            assert!(watch.due().is_some_and(|due| due > at), "never due for ever at one instant");
        }
        told
    }

    #[test]
    fn a_silence_is_told_once_at_its_limit_and_again_after_data() {
        let start = Instant::now();
        let mut watch = watch(ten(), start);
        let silent = |lasted: u32| Silence { channel: None, lasted: lasted * S };
        assert_eq!(run(&mut watch, start, start + 60 * S, &[]), [(10, silent(10))]);
        watch.data(start + 61 * S);
        assert_eq!(run(&mut watch, start, start + 200 * S, &[]), [(71, silent(10))]);
    }

    #[test]
    fn a_feed_that_is_slow_but_flows_is_never_stale() {
        let start = Instant::now();
        let mut watch = watch(ten(), start);
        for second in (9..300).step_by(9) {
            assert_eq!(run(&mut watch, start, start + second * S - S / 2, &[]), []);
            watch.data(start + second * S);
        }
    }

    #[test]
    fn a_large_message_on_a_slow_line_is_no_silence() {
        let start = Instant::now();
        let mut watch = watch(StaleRules { channel_after: Some(10 * S), ..ten() }, start);
        for second in 1..60 {
            let now = start + second * S;
            watch.part(now);
            assert_eq!(run(&mut watch, start, now, &["book"]), []);
        }
        assert_eq!(run(&mut watch, start, start + 80 * S, &["book"]).len(), 2, "then it is");
    }

    #[test]
    fn while_not_all_is_read_or_the_gate_is_closed_nothing_is_stale() {
        let start = Instant::now();
        let open = Arc::new(AtomicBool::new(false));
        let seen = open.clone();
        let gate = move || seen.load(Ordering::Relaxed);
        let mut watch = watch(StaleRules { gate: Some(Arc::new(gate)), ..ten() }, start);
        assert_eq!(run(&mut watch, start, start + 100 * S, &[]), []);
        open.store(true, Ordering::Relaxed);
        let told = run(&mut watch, start, start + 200 * S, &[]);
        let [(at, _)] = told[..] else { panic!("{told:?}") };
        assert!((110..=113).contains(&at), "its time begins when the gate opens: {at}");
        let mut unread = super::Watch::new(ten(), start);
        unread.opened(start);
        for second in 1..100 {
            assert_eq!(unread.tick(start + second * S, false, Vec::new), []);
        }
    }

    #[test]
    fn each_channel_has_a_silence_of_its_own() {
        let start = Instant::now();
        let mut watch = watch(StaleRules { channel_after: Some(10 * S), ..StaleRules::default() }, start);
        let mut told = Vec::new();
        for second in 1..60 {
            let now = start + second * S;
            told.extend(run(&mut watch, start, now, &["busy", "mute"]));
            watch.channel("busy", now);
            watch.channel("nobody asked for it", now);
        }
        let [(at, Silence { channel: Some(channel), .. })] = &told[..] else { panic!("{told:?}") };
        assert!(&**channel == "mute" && (10..=13).contains(at), "{told:?}");
    }
}
