//! The bell that ends a sleep in `poll`: a descriptor that is readable once it was rung. An eventfd on Linux, a pair of
//! sockets on other Unixes.

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
    use crate::wake::bell::Rings;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::fd::{AsFd, BorrowedFd};

    /// One descriptor, one counter.
    #[derive(Debug)]
    pub(crate) struct EventBell(OwnedFd);

    impl EventBell {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
        }
    }

    impl Rings for EventBell {
        fn ring(&self) {
            // A full counter is as loud as a bell can be.
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }

        fn silence(&self) {
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
#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
mod pair_bell {
    use crate::wake::bell::Rings;
    use std::io;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    /// For Unixes without eventfd.
    #[derive(Debug)]
    pub(crate) struct PairBell {
        rings: UnixStream,
        hears: UnixStream,
    }

    impl PairBell {
        pub(crate) fn new() -> io::Result<Self> {
            let (rings, hears) = UnixStream::pair()?;
            rings.set_nonblocking(true)?;
            hears.set_nonblocking(true)?;
            Ok(Self { rings, hears })
        }
    }

    impl Rings for PairBell {
        fn ring(&self) {
            let _ = (&self.rings).write(&[1]);
        }

        fn silence(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::fd::{AsFd, BorrowedFd};

    fn readable(fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    fn rings_and_falls_silent(bell: &(impl Rings + AsFd)) {
        assert!(!readable(bell.as_fd()));
        for _ in 0..200 {
            bell.ring();
        }
        assert!(readable(bell.as_fd()));
        bell.silence();
        assert!(!readable(bell.as_fd()));
    }

    #[test]
    fn either_bell_rings_and_falls_silent() {
        rings_and_falls_silent(&Bell::new().unwrap());
        rings_and_falls_silent(&pair_bell::PairBell::new().unwrap());
    }
}
