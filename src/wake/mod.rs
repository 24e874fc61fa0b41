//! How a caller ends the worker's sleep: a flag that says "parked", and a bell beside the socket in `poll`. The protocol
//! is checked with loom (in `line`, together with the direct write that is built on it).

mod bell;

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;

use self::bell::Bell;
pub(crate) use self::bell::Rings;

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Wakes one sleeping thread. The worker announces that it is about to sleep, then looks once more for something to do;
/// a caller enqueues, then asks whether the worker is parked. With a full fence between the two steps on either side,
/// at least one of them sees the other.
#[derive(Debug)]
pub(crate) struct Wake<B = Bell> {
    parked: AtomicBool,
    bell: B,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self::with_bell(Bell::new()?))
    }
}

impl<B: Rings> Wake<B> {
    pub(crate) fn with_bell(bell: B) -> Self {
        Self { parked: AtomicBool::new(false), bell }
    }

    /// Called after something was enqueued: ends the worker's sleep if it sleeps.
    pub(crate) fn wake(&self) {
        if self.is_parked() {
            self.ring();
        }
    }

    /// Called after something was enqueued: whether the worker is about to sleep, sleeps, or has not yet noticed that it
    /// need not. If not, it is awake and will find what was enqueued.
    pub(crate) fn is_parked(&self) -> bool {
        fence(Ordering::SeqCst);
        self.parked.load(Ordering::Relaxed)
    }

    /// Ends the worker's sleep. One caller a sleep pays for the system call, the others find the flag taken down.
    pub(crate) fn ring(&self) {
        if self.parked.swap(false, Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    /// The worker is about to sleep, unless the last look finds something to do. True: it may sleep, on the bell, and
    /// must [`retract`](Wake::retract) afterwards.
    pub(crate) fn announce(&self, last_look: impl FnOnce() -> bool) -> bool {
        // All writes of the flag are read-modify-writes, so that its history is one chain: a caller's late swap of an
        // earlier sleep cannot be ordered around this one.
        self.parked.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if last_look() {
            self.retract(false);
            return false;
        }
        true
    }

    /// The sleep is over, or never began. `rung` says whether the bell was heard.
    pub(crate) fn retract(&self, rung: bool) {
        self.parked.swap(false, Ordering::Relaxed);
        if rung {
            self.bell.silence();
        }
    }

    #[cfg(all(test, loom))]
    pub(crate) fn bell(&self) -> &B {
        &self.bell
    }
}

impl Wake {
    /// What becomes readable when the bell rings; held for as long as somebody sleeps on it.
    pub(crate) fn hear(&self) -> Option<impl Deref<Target: AsFd> + '_> {
        self.bell.hear()
    }

    /// Nobody will sleep on it again.
    pub(crate) fn silence_for_good(&self) {
        self.bell.silence_for_good();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[derive(Default)]
    struct Counted(Cell<u32>);

    impl Rings for Counted {
        fn ring(&self) {
            self.0.set(self.0.get() + 1);
        }
        fn silence(&self) {}
    }

    #[test]
    fn only_a_parked_worker_costs_a_ring_and_only_once() {
        let wake = Wake::with_bell(Counted::default());
        wake.wake();
        assert!(!wake.announce(|| true), "there is something to do");
        wake.wake();
        assert_eq!(wake.bell.0.get(), 0);
        assert!(wake.announce(|| false));
        wake.wake();
        wake.wake();
        assert_eq!(wake.bell.0.get(), 1);
        wake.retract(true);
        wake.wake();
        assert_eq!(wake.bell.0.get(), 1);
    }
}

/// Every interleaving with up to three preemptions: what loom's authors found to catch practically all faults, in
/// seconds rather than hours.
#[cfg(all(test, loom))]
pub(crate) fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
