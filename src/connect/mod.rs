//! From a configuration to an open connection: resolve, TCP, TLS, upgrade, under one deadline that a stop can cut
//! short at any point. Touches std::net, native-tls and the transport; knows nothing of the worker.

mod handshake;
mod resolve;
mod tcp;
mod tls;

use std::cell::Cell;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;
use tungstenite::protocol::Role;

use crate::config::ClientConfig;
use crate::dial::Dial;
use crate::error::{ConnectError, Phase};
use crate::transport::{Socket, Transport, Wire, wait};
use crate::wake::Wake;

/// Why an attempt ended without a connection.
#[derive(Debug)]
pub(crate) enum Halt {
    Failed(ConnectError),
    /// Someone wants something else of the worker.
    Cancelled,
}

impl From<ConnectError> for Halt {
    fn from(error: ConnectError) -> Self {
        Self::Failed(error)
    }
}

/// One attempt to connect.
pub(crate) struct Attempt<'a> {
    pub(crate) config: &'a ClientConfig,
    pub(crate) dial: &'a Dial,
    pub(crate) deadline: Instant,
    pub(crate) wake: &'a Arc<Wake>,
    /// Whether the attempt shall end now; asked after every wake.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// Told of the socket, so that it can be shut from outside.
    pub(crate) register: &'a dyn Fn(&Arc<TcpStream>),
    phase: Cell<Phase>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(
        config: &'a ClientConfig,
        dial: &'a Dial,
        wake: &'a Arc<Wake>,
        cancelled: &'a dyn Fn() -> bool,
        register: &'a dyn Fn(&Arc<TcpStream>),
    ) -> Self {
        let deadline = dial.deadline();
        Self { config, dial, deadline, wake, cancelled, register, phase: Cell::new(Phase::Resolve) }
    }

    pub(crate) fn run(&self) -> Result<Transport, Halt> {
        let target = &self.dial.target;
        let addresses = resolve::resolve(self)?;
        self.phase.set(Phase::Tcp);
        let tcp = tcp::connect(self, &addresses)?;
        (self.register)(&tcp);
        let mut socket = Socket::new(tcp, self.config.read_buffer);
        if self.config.kernel_timestamps {
            socket.ask_for_stamps().map_err(|error| self.broken(&error))?;
        }
        let mut wire = if target.tls {
            self.phase.set(Phase::Tls);
            Wire::tls(tls::handshake(self, socket)?)
        } else {
            Wire::plain(socket)
        };
        self.phase.set(Phase::Handshake);
        let tail = handshake::upgrade(self, &mut wire)?;
        Ok(Transport::new(wire, tail, Role::Client, self.config.max_message_size))
    }

    fn timeout(&self) -> Halt {
        ConnectError::Timeout { phase: self.phase.get(), limit: self.config.connect_timeout }.into()
    }

    /// Waits for the socket. An error when the attempt is cancelled or its deadline has passed; `Ok(false)` when
    /// `until`, which may be earlier, has.
    fn wait(&self, tcp: &TcpStream, interest: PollFlags, until: Instant) -> Result<bool, Halt> {
        self.wait_for(Some((tcp.as_fd(), interest)), until, || false)
    }

    fn wait_for(
        &self,
        socket: Option<(BorrowedFd<'_>, PollFlags)>,
        until: Instant,
        ready: impl Fn() -> bool,
    ) -> Result<bool, Halt> {
        let until = until.min(self.deadline);
        loop {
            if (self.cancelled)() {
                return Err(Halt::Cancelled);
            }
            if ready() {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= self.deadline {
                return Err(self.timeout());
            }
            if now >= until {
                return Ok(false);
            }
            let look = || (self.cancelled)() || ready();
            let waited = wait(socket, self.wake, Some(until), look).map_err(|error| self.broken(&error))?;
            if waited.socket {
                return Ok(true);
            }
        }
    }

    /// Waits until the step that just blocked on `socket` can go on.
    fn unblock(&self, socket: &mut Socket) -> Result<(), Halt> {
        self.wait(socket.tcp(), socket.interest(), self.deadline)?;
        socket.refresh();
        Ok(())
    }

    fn broken(&self, error: &std::io::Error) -> Halt {
        let message = format!("connection lost: {error}").into_boxed_str();
        match self.phase.get() {
            Phase::Resolve => ConnectError::Resolve { host: self.dial.target.host.as_str().into(), message },
            Phase::Tls => ConnectError::Tls { certificate: false, message },
            _ => ConnectError::Handshake { message },
        }
        .into()
    }
}
