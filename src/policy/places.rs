//! Which of a configuration's URLs is dialled, and which of a host's addresses first: what served before, and not what let us
//! down since.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The URLs, by number: the configuration's own is 0.
#[derive(Debug)]
pub(crate) struct Places {
    count: usize,
    at: usize,
    /// Attempts that failed since a session was open last.
    tried: usize,
    /// Those that no retry of ours helps, in this run of the worker.
    refused: Vec<usize>,
    /// Until when each asked to be left alone.
    waits: Vec<Option<Instant>>,
}

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        Self { count, at: 0, tried: 0, refused: Vec::new(), waits: vec![None; count] }
    }

    pub(crate) fn current(&self) -> usize {
        self.at
    }

    /// An attempt there failed; for good, as far as it is ours to say. The server asked to be left alone until `not_before`.
    /// Returns how long to wait for the first of all URLs that is ready: the wait belongs to the URL that asked for it.
    pub(crate) fn failed(&mut self, for_good: bool, not_before: Option<Instant>, now: Instant) -> Duration {
        self.tried = self.tried.saturating_add(1);
        if for_good && !self.refused.contains(&self.at) {
            self.refused.push(self.at);
        }
        self.waits[self.at] = not_before;
        let ready_in = |at: usize| self.waits[at].map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        // The next in turn, of those that are ready soonest.
        let next = (1..=self.count).map(|step| (self.at + step) % self.count).min_by_key(|at| ready_in(*at));
        self.at = next.unwrap_or(self.at);
        ready_in(self.at)
    }

    /// Someone asked for a connection now.
    pub(crate) fn reset(&mut self) {
        self.waits.fill(None);
    }

    /// Whether each was tried.
    pub(crate) fn all_tried(&self) -> bool {
        self.tried >= self.count
    }

    /// Whether there is none left for which it makes sense.
    pub(crate) fn all_refused(&self) -> bool {
        self.refused.len() >= self.count
    }

    pub(crate) fn opened(&mut self) {
        self.tried = 0;
        self.waits[self.at] = None;
        self.refused.clear();
    }

    /// What was open has fallen silent: another may speak.
    pub(crate) fn move_on(&mut self) {
        self.at = (self.at + 1) % self.count;
    }

    /// A new run of the worker: what was refused may have been mended.
    pub(crate) fn new_run(&mut self) {
        self.refused.clear();
    }
}

/// Addresses that are remembered for not having served.
const MAX_AVOIDED: usize = 16;

#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// The one whose session was open last.
    prefer: Option<SocketAddr>,
    /// Those that took a connection since and did not serve, the latest at the end.
    avoid: Vec<SocketAddr>,
    /// Those that asked to be left alone, and until when.
    waits: Vec<(SocketAddr, Instant)>,
    /// When all addresses of the last attempt asked to be left alone: how long the one asked that is free first.
    pub(crate) soonest_free: Option<Duration>,
    /// After the last attempt an address of the host is left that did not ask to be left alone.
    pub(crate) another_is_free: bool,
}

impl Addresses {
    /// In the order in which they are tried: the one that served last, then the resolver's order with the families in turns
    /// (RFC 8305 section 4), and last those that did not serve lately.
    /// One that asked to be left alone is left out, unless each did.
    pub(crate) fn in_order(&self, mut all: Vec<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        if all.iter().any(|address| !self.waits(address, now)) {
            all.retain(|address| !self.waits(address, now));
        }
        let first_family = all.first().is_some_and(SocketAddr::is_ipv6);
        let (one, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|address| address.is_ipv6() == first_family);
        let (mut one, mut other) = (one.into_iter(), other.into_iter());
        let mut order = Vec::new();
        loop {
            let before = order.len();
            order.extend(one.next().into_iter().chain(other.next()));
            if order.len() == before {
                break;
            }
        }
        order.sort_by_key(|address| match self.avoid.iter().position(|avoided| avoided == address) {
            Some(at) => at + 2,
            None => usize::from(self.prefer != Some(*address)),
        });
        order
    }

    /// Whether this address asked to be left alone until later than `now`.
    pub(crate) fn waits(&self, address: &SocketAddr, now: Instant) -> bool {
        self.wait_of(address, now).is_some()
    }

    /// It took the connection. If it does not serve, the next attempt begins with another.
    pub(crate) fn took(&mut self, address: SocketAddr) {
        self.avoid.retain(|avoided| *avoided != address);
        self.avoid.push(address);
        let excess = self.avoid.len().saturating_sub(MAX_AVOIDED);
        self.avoid.drain(..excess);
    }

    /// It asked to be left alone until then.
    pub(crate) fn asked_to_wait(&mut self, address: SocketAddr, until: Instant, now: Instant) {
        self.waits.retain(|(other, until)| *other != address && now < *until);
        self.waits.push((address, until));
    }

    /// For how long it still asks to be left alone.
    pub(crate) fn wait_of(&self, address: &SocketAddr, now: Instant) -> Option<Duration> {
        let until = self.waits.iter().find(|(other, until)| other == address && now < *until)?.1;
        Some(until - now)
    }

    /// Someone asked for a connection now.
    pub(crate) fn reset(&mut self) {
        self.waits.clear();
    }

    /// The session over the one that took it last is open.
    pub(crate) fn opened(&mut self) {
        self.prefer = self.avoid.pop();
        self.avoid.clear();
    }

    /// The session was open, and did not last or fell silent.
    pub(crate) fn let_down(&mut self) {
        if let Some(address) = self.prefer.take() {
            self.took(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|port| SocketAddr::from(([192, 0, 2, 1], *port))).collect()
    }

    #[test]
    fn urls_are_given_up_only_when_each_was_refused() {
        let (mut places, now) = (Places::new(2), Instant::now());
        places.failed(true, None, now);
        assert_eq!((places.current(), places.all_tried(), places.all_refused()), (1, false, false));
        places.failed(false, None, now);
        places.failed(true, None, now);
        assert!(places.all_tried() && !places.all_refused(), "the second may come back");
        places.failed(true, None, now);
        assert!(places.all_refused());
        places.new_run();
        assert!(!places.all_refused(), "someone may have mended it");
        places.opened();
        assert_eq!((places.current(), places.all_tried()), (0, false));
        places.move_on();
        assert_eq!(places.current(), 1);
    }

    #[test]
    fn what_served_is_first_until_it_lets_us_down() {
        let (all, now) = (addresses(&[1, 2, 3]), Instant::now());
        let mut known = Addresses::default();
        assert_eq!(known.in_order(all.clone(), now), all);
        known.took(all[0]);
        known.took(all[1]);
        assert_eq!(known.in_order(all.clone(), now), addresses(&[3, 1, 2]));
        known.opened();
        assert_eq!(known.in_order(all.clone(), now), addresses(&[2, 1, 3]));
        known.took(all[1]);
        assert_eq!(known.in_order(all.clone(), now), addresses(&[1, 3, 2]), "it took the connection and did not serve");
        known.opened();
        known.let_down();
        assert_eq!(known.in_order(all, now), addresses(&[1, 3, 2]), "it served and fell silent");
    }

    #[test]
    fn a_wait_belongs_to_the_url_and_the_address_that_asked_for_it() {
        const S: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let mut places = Places::new(2);
        assert_eq!(places.failed(false, Some(now + 3600 * S), now), Duration::ZERO, "the other is ready");
        assert_eq!(places.current(), 1);
        assert_eq!(places.failed(false, Some(now + 60 * S), now), 60 * S, "the sooner of both");
        assert_eq!((places.current(), places.failed(false, None, now + 60 * S)), (1, Duration::ZERO));
        assert_eq!(places.current(), 1, "the first still waits");
        assert_eq!(places.failed(false, None, now + 3600 * S), Duration::ZERO);
        assert_eq!(places.current(), 0);

        let (all, mut known) = (addresses(&[1, 2]), Addresses::default());
        known.asked_to_wait(all[0], now + 5 * S, now);
        assert_eq!(known.in_order(all.clone(), now), addresses(&[2]));
        assert_eq!(known.in_order(all.clone(), now + 5 * S), all);
        known.asked_to_wait(all[1], now + 5 * S, now);
        assert_eq!(known.in_order(all.clone(), now), all, "each asked for it: the caller waits");
    }

    #[test]
    fn families_take_turns() {
        let six = |port| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
        let four = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let order = Addresses::default().in_order(vec![six(1), six(2), six(3), four(1)], Instant::now());
        assert_eq!(order, [six(1), four(1), six(2), six(3)]);
    }
}
