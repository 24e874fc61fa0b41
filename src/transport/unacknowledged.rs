//! Bytes of a TCP connection that the peer's kernel has not acknowledged. `unsafe` is needed here: no crate offers this request
//! to the kernel as a safe function.
#![allow(unsafe_code)]

use std::net::TcpStream;

/// Bytes that were written and not acknowledged, whether sent or not (Linux, tcp(7): `SIOCOUTQ`).
#[cfg(target_os = "linux")]
pub(super) fn unacknowledged(tcp: &TcpStream) -> Option<u64> {
    use rustix::ioctl::{Getter, Opcode, ioctl};
    const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;
    // SAFETY: the kernel writes one int for this request, which is what the getter has room for, and takes nothing else.
    let bytes = unsafe { ioctl(tcp, Getter::<SIOCOUTQ, libc::c_int>::new()) };
    bytes.ok().and_then(|bytes| u64::try_from(bytes).ok())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn unacknowledged(_: &TcpStream) -> Option<u64> {
    None
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::net::TcpListener;

    #[test]
    fn what_the_peer_has_no_room_for_is_told_also_after_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        let mut written = 0;
        loop {
            match (&near).write(&[0; 65_536]) {
                Ok(bytes) => written += bytes as u64,
                Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let waiting = unacknowledged(&near).unwrap();
        assert!(waiting > 0 && waiting < written, "{waiting} of {written}");
        // Unread data makes it a reset.
        drop(far);
        while (&near).write(&[0]).is_ok_and(|_| true) || near.take_error().unwrap().is_some() {}
        assert!(unacknowledged(&near).unwrap() > 0);
    }
}
