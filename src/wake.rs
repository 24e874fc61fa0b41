//! How a caller ends the worker's wait: a flag that says "parked", and a file descriptor beside the socket in `poll`.
//! Sole platform code together with `transport`. The protocol is checked with loom.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// The pure half of the protocol. The worker announces that it is about to wait, then looks at its queues once more;
/// a caller enqueues, then asks whether it must wake. With a full fence between the two steps on either side, at
/// least one of them sees the other.
#[derive(Debug)]
struct Signal {
    parked: AtomicBool,
}

impl Signal {
    fn new() -> Self {
        Self { parked: AtomicBool::new(false) }
    }

    fn announce(&self) {
        // All writes of the flag are read-modify-writes, so that its history is one chain: a caller's late swap of an
        // earlier wait cannot be ordered around this one.
        self.parked.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    fn retract(&self) {
        self.parked.swap(false, Ordering::Relaxed);
    }

    /// Whether the worker is about to wait, waits, or has not yet noticed that it need not.
    fn is_parked(&self) -> bool {
        fence(Ordering::SeqCst);
        self.parked.load(Ordering::Relaxed)
    }

    /// True for one caller per wait: the others need not pay for the system call.
    fn claim(&self) -> bool {
        self.parked.swap(false, Ordering::Relaxed)
    }
}

/// Wakes one waiting thread.
#[derive(Debug)]
pub(crate) struct Wake {
    signal: Signal,
    bell: Bell,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { signal: Signal::new(), bell: Bell::new()? })
    }

    /// Called after something was enqueued: ends the worker's wait if it waits.
    pub(crate) fn wake(&self) {
        if self.is_parked() {
            self.ring();
        }
    }

    /// Called after something was enqueued. False: the worker is awake and will find it.
    pub(crate) fn is_parked(&self) -> bool {
        self.signal.is_parked()
    }

    /// Ends the worker's wait.
    pub(crate) fn ring(&self) {
        if self.signal.claim() {
            self.bell.ring();
        }
    }

    /// The worker is about to wait on [`as_fd`](AsFd::as_fd). It must look at its queues between this and the wait.
    pub(crate) fn announce(&self) {
        self.signal.announce();
    }

    /// The wait is over, or never began. `rung` says whether the descriptor was readable.
    pub(crate) fn retract(&self, rung: bool) {
        self.signal.retract();
        if rung {
            self.bell.silence();
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
use event_bell::EventBell as Bell;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use pair_bell::PairBell as Bell;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod event_bell {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::OwnedFd;

    /// One descriptor, one counter.
    #[derive(Debug)]
    pub(super) struct EventBell(OwnedFd);

    impl EventBell {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
        }

        pub(super) fn ring(&self) {
            // A full counter is as loud as a bell can be.
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }

        pub(super) fn silence(&self) {
            let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
        }
    }

    impl AsFd for EventBell {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

// Compiled for tests on every platform, so that it stays right where it is not the one in use.
#[cfg(any(all(test, not(loom)), not(any(target_os = "linux", target_os = "android"))))]
mod pair_bell {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// For Unixes without eventfd.
    #[derive(Debug)]
    pub(super) struct PairBell {
        rings: UnixStream,
        hears: UnixStream,
    }

    impl PairBell {
        pub(super) fn new() -> io::Result<Self> {
            let (rings, hears) = UnixStream::pair()?;
            rings.set_nonblocking(true)?;
            hears.set_nonblocking(true)?;
            Ok(Self { rings, hears })
        }

        pub(super) fn ring(&self) {
            let _ = (&self.rings).write(&[1]);
        }

        pub(super) fn silence(&self) {
            let mut scratch = [0u8; 64];
            while matches!((&self.hears).read(&mut scratch), Ok(n) if n == scratch.len()) {}
        }
    }

    impl AsFd for PairBell {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.hears.as_fd()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn only_a_parked_worker_costs_a_system_call_and_only_once() {
        let wake = Wake::new().unwrap();
        wake.wake();
        assert!(!readable(wake.as_fd()));
        wake.announce();
        wake.wake();
        assert!(readable(wake.as_fd()));
        wake.retract(true);
        assert!(!readable(wake.as_fd()));
    }

    #[test]
    fn the_socket_pair_bell_rings_and_falls_silent() {
        let bell = pair_bell::PairBell::new().unwrap();
        for _ in 0..200 {
            bell.ring();
        }
        assert!(readable(bell.as_fd()));
        bell.silence();
        assert!(!readable(bell.as_fd()));
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

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::{Arc, Condvar, Mutex, atomic::AtomicUsize};

    /// A lost wake-up shows as a deadlock, which loom reports.
    #[test]
    fn no_wake_up_is_lost() {
        super::explore(|| {
            let signal = Arc::new(Signal::new());
            let queue = Arc::new(AtomicUsize::new(0));
            let bell = Arc::new((Mutex::new(false), Condvar::new()));
            let callers: Vec<_> = (0..2)
                .map(|_| {
                    let (signal, queue, bell) = (signal.clone(), queue.clone(), bell.clone());
                    loom::thread::spawn(move || {
                        queue.fetch_add(1, Ordering::Relaxed);
                        if signal.is_parked() && signal.claim() {
                            *bell.0.lock().unwrap() = true;
                            bell.1.notify_one();
                        }
                    })
                })
                .collect();
            let mut taken = 0;
            while taken < 2 {
                taken += queue.swap(0, Ordering::Relaxed);
                if taken == 2 {
                    break;
                }
                signal.announce();
                if queue.load(Ordering::Relaxed) == 0 {
                    let mut rung = bell.0.lock().unwrap();
                    while !*rung {
                        rung = bell.1.wait(rung).unwrap();
                    }
                    *rung = false;
                }
                signal.retract();
            }
            for caller in callers {
                caller.join().unwrap();
            }
        });
    }

    /// parking_lot's mutex, as weak as it is: one that is found taken says nothing about memory. (loom's own may block
    /// a `try_lock`.)
    struct Link(AtomicBool);

    impl Link {
        fn try_lock(&self) -> bool {
            self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }

        fn lock(&self) {
            while !self.try_lock() {
                loom::thread::yield_now();
            }
        }

        fn unlock(&self) {
            self.0.store(false, Ordering::Release);
        }
    }

    struct Model {
        signal: Signal,
        queue: AtomicUsize,
        link: Link,
        stop: AtomicBool,
        bell: (Mutex<bool>, Condvar),
        written: (Mutex<usize>, Condvar),
    }

    impl Model {
        fn write(&self) {
            let taken = self.queue.swap(0, Ordering::Relaxed);
            if taken > 0 {
                *self.written.0.lock().unwrap() += taken;
                self.written.1.notify_one();
            }
        }

        fn ring(&self) {
            if self.signal.claim() {
                *self.bell.0.lock().unwrap() = true;
                self.bell.1.notify_one();
            }
        }

        fn send(&self) {
            self.queue.fetch_add(1, Ordering::Relaxed);
            if !self.signal.is_parked() {
                return;
            }
            if self.link.try_lock() {
                self.write();
                let nothing_left = self.queue.load(Ordering::Relaxed) == 0;
                self.link.unlock();
                if nothing_left {
                    return;
                }
            }
            self.ring();
        }

        fn work(&self) {
            self.link.lock();
            while !self.stop.load(Ordering::Relaxed) {
                self.write();
                self.signal.announce();
                if self.queue.load(Ordering::Relaxed) == 0 && !self.stop.load(Ordering::Relaxed) {
                    self.link.unlock();
                    let mut rung = self.bell.0.lock().unwrap();
                    while !*rung {
                        rung = self.bell.1.wait(rung).unwrap();
                    }
                    *rung = false;
                    drop(rung);
                    self.signal.retract();
                    self.link.lock();
                } else {
                    self.signal.retract();
                }
            }
            self.link.unlock();
        }
    }

    /// What `worker::link` makes of it: a caller writes for a worker that sleeps, and rings only where it cannot. A
    /// message that nobody writes shows as a deadlock.
    #[test]
    fn what_is_enqueued_is_written_by_a_caller_or_by_the_worker() {
        super::explore(|| {
            let model = Arc::new(Model {
                signal: Signal::new(),
                queue: AtomicUsize::new(0),
                link: Link(AtomicBool::new(false)),
                stop: AtomicBool::new(false),
                bell: (Mutex::new(false), Condvar::new()),
                written: (Mutex::new(0), Condvar::new()),
            });
            let (worker, caller) = (model.clone(), model.clone());
            let worker = loom::thread::spawn(move || worker.work());
            let caller = loom::thread::spawn(move || caller.send());
            model.send();
            let mut written = model.written.0.lock().unwrap();
            while *written < 2 {
                written = model.written.1.wait(written).unwrap();
            }
            drop(written);
            model.stop.store(true, Ordering::Relaxed);
            if model.signal.is_parked() {
                model.ring();
            }
            caller.join().unwrap();
            worker.join().unwrap();
        });
    }
}
