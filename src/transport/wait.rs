//! The one wait of a worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::wake::Wake;

/// What ended a wait. More than one may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) socket: bool,
    pub(crate) rung: bool,
    /// The peer has ended the connection, or it is broken.
    pub(crate) hung_up: bool,
    /// There was something to do, so the socket was not looked at.
    pub(crate) skipped: bool,
}

/// Asks for the end of a connection without asking for its bytes.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "illumos"))]
pub(crate) const HANG_UP: PollFlags = PollFlags::RDHUP;
/// Elsewhere the system reports only a connection that is broken both ways.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "illumos")))]
pub(crate) const HANG_UP: PollFlags = PollFlags::HUP;

/// No sleep is longer: where poll(2) takes milliseconds in an int (macOS, OpenBSD, illumos) one beyond 24.8 days is an error.
/// Callers look at the time again after any sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(86_400);

/// As many sockets are waited for at once, at most.
pub(crate) const MAX_SOCKETS: usize = 8;

/// Sleeps until `socket` is ready for what is asked, `wake` rings, or `deadline` passes; or not at all when
/// `last_look`, called after callers can see that we are about to sleep, finds something to do.
pub(crate) fn wait(
    socket: Option<(BorrowedFd<'_>, PollFlags)>,
    wake: &Wake,
    deadline: Option<Instant>,
    last_look: impl FnOnce() -> bool,
) -> io::Result<Waited> {
    wait_any(socket.as_slice(), wake, deadline, last_look)
}

/// As `wait`, for the first of several sockets, up to `MAX_SOCKETS`.
pub(crate) fn wait_any(
    sockets: &[(BorrowedFd<'_>, PollFlags)],
    wake: &Wake,
    deadline: Option<Instant>,
    last_look: impl FnOnce() -> bool,
) -> io::Result<Waited> {
    if !wake.announce(last_look) {
        return Ok(Waited { skipped: true, ..Waited::default() });
    }
    let waited = poll_until(sockets, wake, deadline);
    wake.retract(waited.as_ref().is_ok_and(|waited| waited.rung));
    waited
}

/// The sleep itself, once it is announced.
pub(crate) fn poll_until(
    sockets: &[(BorrowedFd<'_>, PollFlags)],
    wake: &Wake,
    deadline: Option<Instant>,
) -> io::Result<Waited> {
    let timeout = deadline.map(|deadline| timeout(deadline.saturating_duration_since(Instant::now())));
    let Some(bell) = wake.hear() else { return Ok(Waited::default()) };
    let bell = bell.as_fd();
    let fd = |at: usize| match sockets.get(at.wrapping_sub(1)) {
        Some((socket, interest)) => PollFd::new(socket, *interest),
        None => PollFd::new(&bell, PollFlags::IN),
    };
    let mut fds: [_; MAX_SOCKETS + 1] = std::array::from_fn(fd);
    let fds = &mut fds[..=sockets.len()];
    let result = poll(fds, timeout.as_ref()).map(|_| {
        let met = fds[1..].iter().fold(PollFlags::empty(), |met, fd| met | fd.revents());
        Waited {
            rung: !fds[0].revents().is_empty(),
            socket: !met.is_empty(),
            hung_up: met.intersects(HANG_UP | PollFlags::HUP | PollFlags::ERR),
            skipped: false,
        }
    });
    match result {
        Err(rustix::io::Errno::INTR) => Ok(Waited::default()),
        other => other.map_err(io::Error::from),
    }
}

/// What poll(2) is given for a wait of this length.
fn timeout(wait: Duration) -> Timespec {
    let wait = wait.min(LONGEST_SLEEP);
    Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Where poll(2) takes an int of milliseconds, more than 24.8 days are an error.
    #[test]
    fn no_sleep_is_longer_than_an_int_of_milliseconds_holds() {
        for wait in [Duration::from_secs(30 * 86_400), Duration::from_secs(u64::MAX), Duration::MAX] {
            let Timespec { tv_sec, tv_nsec } = timeout(wait);
            assert!(tv_sec > 0 && tv_sec * 1000 + tv_nsec / 1_000_000 < i32::MAX.into(), "{wait:?}");
        }
        let short = timeout(Duration::from_millis(1_500));
        assert_eq!((short.tv_sec, short.tv_nsec), (1, 500_000_000));
    }

    #[test]
    fn a_caller_ends_the_wait_and_work_prevents_it() {
        let wake = Arc::new(Wake::new().unwrap());
        assert!(wait(None, &wake, None, || true).unwrap().skipped);
        let caller = std::thread::spawn({
            let wake = wake.clone();
            move || {
                while Arc::strong_count(&wake) > 1 {
                    wake.wake();
                    std::thread::yield_now();
                }
            }
        });
        assert!(wait(None, &wake, None, || false).unwrap().rung);
        drop(wake);
        caller.join().unwrap();
    }
}
