//! The TCP connection: a race between a host's addresses (RFC 8305), which no dead one can hold up for long.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
#[cfg(not(target_os = "openbsd"))]
use socket2::TcpKeepalive;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::attempt::{Attempt, Halt};
use crate::config::socket::SocketOptions;
use crate::error::ConnectError;
use crate::transport::MAX_SOCKETS;

/// How long the next address waits for the one before it (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// The addresses that can be tried, in order.
pub(super) fn in_order(attempt: &Attempt<'_>, addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let local = attempt.settings.socket.local_address;
    let usable = addresses.into_iter().filter(|one| local.is_none_or(|local| local.is_ipv6() == one.is_ipv6()));
    attempt.known.in_order(usable.collect(), Instant::now()).into()
}

/// The first to take the connection. It is taken from `left`; those that were still at it go to its end. `failed` is how one
/// that may come back failed before.
pub(super) fn race(
    attempt: &Attempt<'_>,
    left: &mut VecDeque<SocketAddr>,
    failed: &mut Option<ConnectError>,
) -> Result<(Arc<TcpStream>, SocketAddr), Halt> {
    let mut running: Vec<(SocketAddr, TcpStream)> = Vec::new();
    let mut last = None;
    let mut next_starts = Instant::now();
    loop {
        while running.is_empty() || Instant::now() >= next_starts {
            let Some(address) = left.pop_front() else { break };
            if running.len() == MAX_SOCKETS {
                // Of many that don't answer the oldest makes room, and has another turn later.
                left.push_back(running.remove(0).0);
            }
            match start(attempt, address) {
                Ok(tcp) => {
                    running.push((address, tcp));
                    next_starts = Instant::now() + HEAD_START;
                }
                Err(error) => last = Some((address, error)),
            }
        }
        if running.is_empty() {
            let Some((address, error)) = last else {
                let message = "none of its addresses is of the family of `local_address`".into();
                return Err(ConnectError::Resolve { host: attempt.dial.target.host.as_str().into(), message }.into());
            };
            return Err(failure(address, &error).into());
        }
        let until = if left.is_empty() { attempt.until() } else { next_starts };
        let sockets: Vec<_> = running.iter().map(|(_, tcp)| (tcp.as_fd(), PollFlags::OUT)).collect();
        if !attempt.wait_for(&sockets, until, || false)? {
            continue;
        }
        let mut at = 0;
        while at < running.len() {
            match outcome(&running[at].1) {
                None => at += 1,
                Some(Ok(())) => {
                    let (address, tcp) = running.remove(at);
                    *failed =
                        last.filter(|(_, error)| may_come_back(error)).map(|(address, error)| failure(address, &error));
                    left.extend(running.into_iter().map(|(address, _)| address));
                    return Ok((Arc::new(tcp), address));
                }
                Some(Err(error)) => {
                    last = Some((running.remove(at).0, error));
                    // The next need not wait for one that is gone.
                    next_starts = Instant::now();
                }
            }
        }
    }
}

fn failure(address: SocketAddr, error: &io::Error) -> ConnectError {
    ConnectError::Tcp { address: Box::new(address), kind: error.kind(), message: error.to_string().into() }
}

/// Whether an address that did not take the connection may do so later: not one to which this machine has no way at all.
fn may_come_back(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable, Unsupported};
    !matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable | Unsupported)
}

/// What has become of an attempt; `None` while it is under way.
fn outcome(tcp: &TcpStream) -> Option<io::Result<()>> {
    match tcp.take_error() {
        Ok(Some(error)) | Err(error) => Some(Err(error)),
        Ok(None) => match tcp.peer_addr() {
            // The kernel can choose the dialled port for this socket when no program listens there and the port is in the
            // ephemeral range: TCP then connects the socket to itself (RFC 9293 section 3.5, simultaneous open).
            Ok(peer) if tcp.local_addr().is_ok_and(|local| local == peer) => Some(Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "no program listens there (the socket was connected to itself)",
            ))),
            Ok(_) => Some(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => None,
            Err(error) => Some(Err(error)),
        },
    }
}

fn start(attempt: &Attempt<'_>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(attempt.settings.nodelay)?;
    set_up(&socket, &attempt.settings.socket, address)?;
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => {}
        Err(error) if in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from(socket))
}

fn set_up(socket: &Socket, options: &SocketOptions, address: SocketAddr) -> io::Result<()> {
    let named = |option: &str, result: io::Result<()>| {
        result.map_err(|error| io::Error::new(error.kind(), format!("option `{option}`: {error}")))
    };
    if let Some(local) = options.local_address {
        named("local_address", socket.bind(&SocketAddr::new(local, 0).into()))?;
    }
    if let Some((idle, interval, retries)) = options.keepalive {
        named("keepalive", keep_alive(socket, idle, interval, retries))?;
    }
    if let Some(bytes) = options.receive_buffer {
        named("receive_buffer", socket.set_recv_buffer_size(bytes))?;
    }
    if let Some(bytes) = options.send_buffer {
        named("send_buffer", socket.set_send_buffer_size(bytes))?;
    }
    if let Some(class) = options.dscp {
        // The upper six bits of a byte (RFC 2474 section 3).
        let class = u32::from(class) << 2;
        named("dscp", if address.is_ipv6() { socket.set_tclass_v6(class) } else { socket.set_tos_v4(class) })?;
    }
    #[cfg(target_os = "linux")]
    {
        if let Some(name) = &options.interface {
            named("interface", socket.bind_device(Some(name.as_bytes())))?;
        }
        if let Some(time) = options.user_timeout {
            named("user_timeout", socket.set_tcp_user_timeout(Some(time)))?;
        }
        if let Some(time) = options.busy_poll {
            let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            named("busy_poll", socket.set_busy_poll(micros))?;
        }
    }
    Ok(())
}

#[cfg(not(target_os = "openbsd"))]
fn keep_alive(socket: &Socket, idle: Duration, interval: Duration, retries: u32) -> io::Result<()> {
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries))
}

/// OpenBSD has one setting for all connections of the machine.
#[cfg(target_os = "openbsd")]
fn keep_alive(socket: &Socket, _: Duration, _: Duration, _: u32) -> io::Result<()> {
    socket.set_keepalive(true)
}

fn in_progress(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(errno, Some(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it happens to who dials a local port of the ephemeral range until the kernel picks that port for the dialler.
    #[test]
    fn a_socket_that_is_connected_to_itself_has_failed() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let own = socket.local_addr().unwrap();
        socket.connect(&own).unwrap();
        let tcp = TcpStream::from(socket);
        assert_eq!(tcp.peer_addr().unwrap(), tcp.local_addr().unwrap());
        let error = outcome(&tcp).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
