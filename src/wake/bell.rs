//! The bell that ends a sleep in `poll`: a descriptor that is readable once it was rung. An eventfd on Linux, a pair of
//! sockets on other Unixes.

use std::time::Duration;

/// Far longer than one write of eight bytes takes, also for a thread that has to wait for its core.
const RINGING: Duration = Duration::from_secs(1);

/// What ends a sleep. The loom models have one of their own.
pub(crate) trait Rings {
    fn ring(&self);
    fn silence(&self);
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use self::event_bell::EventBell as Bell;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use self::pair_bell::PairBell as Bell;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod event_bell {
    use crate::wake::bell::{RINGING, Rings};
    use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
    use rustix::event::{EventfdFlags, eventfd};
    use std::io;
    use std::os::fd::OwnedFd;

    /// One descriptor, one counter. Handles of a client that has ended may live on, its descriptor does not.
    #[derive(Debug)]
    pub(crate) struct EventBell(RwLock<Option<OwnedFd>>);

    impl EventBell {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self(RwLock::new(Some(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))))
        }

        pub(crate) fn hear(&self) -> Option<MappedRwLockReadGuard<'_, OwnedFd>> {
            RwLockReadGuard::try_map(self.0.read(), Option::as_ref).ok()
        }

        pub(crate) fn silence_for_good(&self) {
            // One who is ringing is done in a moment. One who sleeps on it keeps it: a thread that was left behind.
            if let Some(mut fd) = self.0.try_write_for(RINGING) {
                *fd = None;
            }
        }
    }

    impl Rings for EventBell {
        fn ring(&self) {
            // A full counter is as loud as a bell can be.
            if let Some(fd) = &*self.0.read() {
                let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            }
        }

        fn silence(&self) {
            if let Some(fd) = &*self.0.read() {
                let _ = rustix::io::read(fd, &mut [0u8; 8]);
            }
        }
    }
}

// Compiled for tests on every platform, so that it stays right where it is not the one in use.
#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
mod pair_bell {
    use crate::wake::bell::{RINGING, Rings};
    use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
    use std::io;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// For Unixes without eventfd. Handles of a client that has ended may live on, its descriptors do not.
    #[derive(Debug)]
    pub(crate) struct PairBell(RwLock<Option<Pair>>);

    #[derive(Debug)]
    struct Pair {
        rings: UnixStream,
        hears: UnixStream,
    }

    impl PairBell {
        pub(crate) fn new() -> io::Result<Self> {
            let (rings, hears) = UnixStream::pair()?;
            rings.set_nonblocking(true)?;
            hears.set_nonblocking(true)?;
            Ok(Self(RwLock::new(Some(Pair { rings, hears }))))
        }

        pub(crate) fn hear(&self) -> Option<MappedRwLockReadGuard<'_, UnixStream>> {
            RwLockReadGuard::try_map(self.0.read(), |pair| pair.as_ref().map(|pair| &pair.hears)).ok()
        }

        pub(crate) fn silence_for_good(&self) {
            if let Some(mut pair) = self.0.try_write_for(RINGING) {
                *pair = None;
            }
        }
    }

    impl Rings for PairBell {
        fn ring(&self) {
            if let Some(pair) = &*self.0.read() {
                let _ = (&pair.rings).write(&[1]);
            }
        }

        fn silence(&self) {
            let mut scratch = [0u8; 64];
            if let Some(pair) = &*self.0.read() {
                while matches!((&pair.hears).read(&mut scratch), Ok(n) if n == scratch.len()) {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::ops::Deref;
    use std::os::fd::{AsFd, BorrowedFd};

    fn readable(fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    fn rings_and_falls_silent<F: Deref<Target: AsFd>>(bell: &impl Rings, hear: impl Fn() -> Option<F>) {
        let readable = || readable(hear().unwrap().as_fd());
        assert!(!readable());
        for _ in 0..200 {
            bell.ring();
        }
        assert!(readable());
        bell.silence();
        assert!(!readable());
    }

    #[test]
    fn either_bell_rings_and_falls_silent() {
        let bell = Bell::new().unwrap();
        rings_and_falls_silent(&bell, || bell.hear());
        bell.silence_for_good();
        bell.ring();
        assert!(bell.hear().is_none(), "its descriptor is gone");
        let bell = pair_bell::PairBell::new().unwrap();
        rings_and_falls_silent(&bell, || bell.hear());
        bell.silence_for_good();
        bell.ring();
        assert!(bell.hear().is_none(), "its descriptors are gone");
    }
}
