//! The bottom: a TCP socket that never blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;

use super::unacknowledged::unacknowledged;

/// A TCP socket that never blocks, and remembers what the kernel last said about it. Beneath TLS it reads ahead: one system
/// call brings what TLS takes in small pieces. Without TLS the receiver's own buffer is what it reads into.
#[derive(Debug)]
pub(crate) struct Socket {
    tcp: Arc<TcpStream>,
    /// Empty without TLS. Never cleared: only `ahead[next..end]` means anything.
    ahead: Box<[u8]>,
    next: usize,
    end: usize,
    /// The last read took all there was: another would only learn `WouldBlock`. `poll` clears it.
    drained: bool,
    /// Bytes that may still be read before others get their turn. TLS may read on and on without giving anything back: a
    /// server can send session tickets without end.
    budget: usize,
    /// Reads from `ahead` that may still bring TLS nothing before others get their turn: a change of keys (RFC 8446 section
    /// 4.6.3) has 27 bytes and costs as much time as 10 KiB of data.
    pieces: u32,
    /// The last write was refused: wait for room.
    pub(super) full: bool,
    /// Bytes that the kernel took.
    written: u64,
    /// Bytes read so far.
    came: u64,
    /// Writing has failed, and for what reason, until someone has heard it. From then on nothing is written, and it looks
    /// as if the kernel were full: what is still to be read must not be hidden by it.
    write_failed: bool,
    write_error: Option<io::Error>,
    read_at: Instant,
    /// Bytes read since something was written or acknowledged.
    owes_ack_for: usize,
    /// Whether the kernel says when it had what is read, and what it said last.
    stamped: bool,
    in_socket: Option<NonZeroU64>,
}

/// Bytes that one turn may read beneath TLS.
const READ_BUDGET: usize = 256 << 10;

/// Reads from `ahead` in one turn that bring nothing: two for each record.
const PIECES: u32 = 256;

/// More than this in one go is a stream, of which the kernel acknowledges every second segment as it comes.
const ACKNOWLEDGED: usize = 8 << 10;

impl Socket {
    /// `tcp` must be non-blocking. `ahead` is how many bytes one read may bring; 0: as many as whoever reads has room for.
    pub(crate) fn new(tcp: Arc<TcpStream>, ahead: usize) -> Self {
        let ahead = vec![0; ahead].into_boxed_slice();
        let read_at = Instant::now();
        Self {
            tcp,
            ahead,
            next: 0,
            end: 0,
            drained: false,
            budget: READ_BUDGET,
            pieces: PIECES,
            full: false,
            written: 0,
            came: 0,
            write_failed: false,
            write_error: None,
            read_at,
            owes_ack_for: 0,
            stamped: false,
            in_socket: None,
        }
    }

    /// What the peer of a blocked step waits for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.full { PollFlags::OUT | PollFlags::IN } else { PollFlags::IN }
    }

    pub(crate) fn tcp(&self) -> &Arc<TcpStream> {
        &self.tcp
    }

    pub(crate) fn refresh(&mut self) {
        self.drained = false;
        self.begin_turn();
    }

    /// A turn of reading begins.
    pub(super) fn begin_turn(&mut self) {
        self.budget = READ_BUDGET;
        self.brought_data();
    }

    /// What was read ahead brought the reader data.
    #[inline]
    pub(super) fn brought_data(&mut self) {
        self.pieces = PIECES;
    }

    /// Whether reading stopped since the turn has read enough, not since there was nothing to read.
    pub(crate) fn has_read_enough(&self) -> bool {
        self.budget == 0 || self.pieces == 0
    }

    /// Acknowledges what was read, unless something written meanwhile did. Of much the kernel does it by itself. On Linux only:
    /// elsewhere the kernel decides.
    pub(crate) fn acknowledge(&mut self) {
        if (1..ACKNOWLEDGED).contains(&std::mem::take(&mut self.owes_ack_for)) {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            {
                let socket = socket2::SockRef::from(&*self.tcp);
                let _ = socket.set_tcp_quickack(true);
                let _ = socket.set_tcp_quickack(false);
            }
        }
    }

    /// When bytes were last taken from the kernel.
    pub(crate) fn read_at(&self) -> Instant {
        self.read_at
    }

    /// How many nanoseconds before that the kernel had them, if it was asked.
    pub(crate) fn in_socket(&self) -> Option<NonZeroU64> {
        self.in_socket
    }

    pub(crate) fn take_in_socket(&mut self) -> Option<NonZeroU64> {
        self.in_socket.take()
    }

    /// Asks the kernel to say when it had what is read.
    pub(crate) fn ask_for_stamps(&mut self) -> io::Result<()> {
        ask_for_stamps(&self.tcp)?;
        self.stamped = true;
        Ok(())
    }

    /// Why nothing can be written any more; told once.
    pub(crate) fn take_write_error(&mut self) -> Option<io::Error> {
        self.write_error.take()
    }

    /// Bytes that were taken from the kernel so far.
    pub(super) fn came(&self) -> u64 {
        self.came
    }

    /// Bytes that came so far, those in the kernel among them.
    pub(super) fn arrived(&self) -> u64 {
        self.came + rustix::io::ioctl_fionread(&*self.tcp).unwrap_or(0)
    }

    /// Those that were taken from here.
    pub(super) fn taken(&self) -> u64 {
        self.came - (self.end - self.next) as u64
    }

    /// Bytes that the kernel took so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// How many of them the peer's kernel has acknowledged; `None` where the system does not say.
    pub(super) fn acknowledged(&self) -> Option<u64> {
        Some(self.written.saturating_sub(unacknowledged(&self.tcp)?))
    }

    /// Whether something is read ahead that nobody has taken.
    pub(super) fn has_ahead(&self) -> bool {
        self.next < self.end
    }

    /// Whether there may be something to read.
    pub(super) fn may_have_more(&self) -> bool {
        self.has_ahead() || !self.drained
    }

    /// From the kernel.
    fn read_into(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.drained || self.budget == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let result = match self.stamped {
            true => read_stamped(&self.tcp, buffer),
            false => read_once(&self.tcp, buffer).map(|read| (read, None)),
        };
        match result {
            Ok((read, in_socket)) if read > 0 => {
                (self.read_at, self.in_socket) = (Instant::now(), in_socket);
                self.came += read as u64;
                self.budget = self.budget.saturating_sub(read);
                self.drained = read < buffer.len();
                self.owes_ack_for += read;
                Ok(read)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.drained = true;
                Err(error)
            }
            other => other.map(|_| 0),
        }
    }
}

fn read_once(mut tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match tcp.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(all(target_os = "linux", feature = "kernel-timestamps"))]
fn ask_for_stamps(tcp: &TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt::ReceiveTimestampns};
    Ok(setsockopt(tcp, ReceiveTimestampns, &true)?)
}

/// As `read_once`, with the kernel's time: how long ago it had the last of these bytes.
#[cfg(all(target_os = "linux", feature = "kernel-timestamps"))]
fn read_stamped(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<NonZeroU64>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    loop {
        let mut slices = [io::IoSliceMut::new(buffer)];
        match recvmsg::<()>(tcp.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(message) => {
                let stamp = message.cmsgs().ok().and_then(|mut all| {
                    all.find_map(|one| match one {
                        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
                        _ => None,
                    })
                });
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let age = stamp.map(|stamp| now.saturating_sub(stamp).as_nanos());
                let age = age.and_then(|age| NonZeroU64::new(u64::try_from(age).unwrap_or(u64::MAX).max(1)));
                return Ok((message.bytes, age));
            }
        }
    }
}

#[cfg(not(all(target_os = "linux", feature = "kernel-timestamps")))]
fn ask_for_stamps(_: &TcpStream) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(not(all(target_os = "linux", feature = "kernel-timestamps")))]
fn read_stamped(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<NonZeroU64>)> {
    read_once(tcp, buffer).map(|read| (read, None))
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            return self.read_into(buffer);
        }
        if self.pieces == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.pieces -= 1;
        if !self.has_ahead() {
            let mut ahead = std::mem::take(&mut self.ahead);
            let result = self.read_into(&mut ahead);
            self.ahead = ahead;
            (self.next, self.end) = (0, *result.as_ref().unwrap_or(&0));
            result?;
        }
        let read = buffer.len().min(self.end - self.next);
        buffer[..read].copy_from_slice(&self.ahead[self.next..self.next + read]);
        self.next += read;
        Ok(read)
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.write_failed {
            return Err(ErrorKind::WouldBlock.into());
        }
        loop {
            match (&*self.tcp).write(buffer) {
                Ok(written) => {
                    (self.owes_ack_for, self.full) = (0, false);
                    self.written += written as u64;
                    return Ok(written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.full = true;
                    return Err(error);
                }
                Err(error) => {
                    (self.full, self.write_failed, self.write_error) = (false, true, Some(error));
                    return Err(ErrorKind::WouldBlock.into());
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::wait;
    use crate::wake::Wake;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        (Socket::new(Arc::new(near), 8), listener.accept().unwrap().0)
    }

    #[test]
    fn a_short_read_goes_straight_to_poll() {
        let (mut near, mut far) = pair();
        far.write_all(b"abc").unwrap();
        let wake = Wake::new().unwrap();
        let ready = |near: &Socket| {
            let deadline = Some(Instant::now() + Duration::from_secs(30));
            wait(Some((near.tcp().as_fd(), PollFlags::IN)), &wake, deadline, || false).unwrap()
        };
        assert!(ready(&near).socket);
        let mut buffer = [0; 8];
        assert_eq!(near.read(&mut buffer).unwrap(), 3);
        far.write_all(b"d").unwrap();
        assert!(ready(&near).socket);
        assert_eq!(near.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock, "no system call");
        near.refresh();
        assert_eq!(near.read(&mut buffer).unwrap(), 1);
        drop(far);
        assert!(ready(&near).socket);
        near.refresh();
        assert_eq!(near.read(&mut buffer).unwrap(), 0, "the end is not hidden");
    }

    #[test]
    fn what_was_read_ahead_comes_before_the_end() {
        let (mut near, mut far) = pair();
        far.write_all(b"abcdefghij").unwrap();
        drop(far);
        let mut all = vec![];
        let mut buffer = [0; 3];
        loop {
            match near.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => all.extend_from_slice(&buffer[..read]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    near.refresh();
                }
            }
        }
        assert_eq!(all, b"abcdefghij");
    }
}
