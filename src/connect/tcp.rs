//! The TCP connection: each address gets its share of what is left of the deadline.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::attempt::{Attempt, Halt};
use crate::error::ConnectError;

pub(super) fn connect(attempt: &Attempt<'_>, addresses: &[SocketAddr]) -> Result<Arc<TcpStream>, Halt> {
    let mut last = None;
    let mut addresses = addresses.to_vec();
    // Keeps the resolver's order otherwise.
    addresses.sort_by_key(|address| attempt.avoid.iter().position(|avoided| avoided == address).map_or(0, |at| at + 1));
    for (index, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let now = Instant::now();
        let until = now + attempt.deadline.saturating_duration_since(now) / left;
        match try_one(attempt, *address, until)? {
            Ok(tcp) => {
                attempt.address.set(Some(*address));
                return Ok(tcp);
            }
            Err(error) => last = Some((*address, error)),
        }
    }
    let (address, error) = last.expect("resolve returns at least one address");
    let (kind, message) = (error.kind(), error.to_string().into());
    Err(ConnectError::Tcp { address: Box::new(address), kind, message }.into())
}

fn try_one(attempt: &Attempt<'_>, address: SocketAddr, until: Instant) -> Result<io::Result<Arc<TcpStream>>, Halt> {
    let started = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(attempt.settings.nodelay)?;
        match socket.connect(&SockAddr::from(address)) {
            Ok(()) => {}
            Err(error) if in_progress(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(socket)
    };
    let tcp = match started() {
        Ok(socket) => TcpStream::from(socket),
        Err(error) => return Ok(Err(error)),
    };
    if !attempt.wait(&tcp, PollFlags::OUT, until)? {
        return Ok(Err(io::ErrorKind::TimedOut.into()));
    }
    Ok(match tcp.take_error() {
        Ok(None) => Ok(Arc::new(tcp)),
        Ok(Some(error)) | Err(error) => Err(error),
    })
}

fn in_progress(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(errno, Some(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR))
}
