//! One attempt to connect: what its steps have in common. One deadline, a stop that cuts it short, a wait.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::config::ResolveFn;
use crate::config::settings::{Hooks, Settings};
use crate::dial::Dial;
use crate::error::{ConnectError, Phase};
use crate::policy::places::Addresses;
use crate::transport::{Socket, Unpack, wait_any};
use crate::wake::Wake;

/// Why an attempt ended without a connection.
#[derive(Debug)]
pub(crate) enum Halt {
    Failed(ConnectError),
    /// Someone wants something else of the worker.
    Cancelled,
}

impl Halt {
    /// The same with another error.
    pub(super) fn map(self, error: impl FnOnce(ConnectError) -> ConnectError) -> Self {
        match self {
            Self::Failed(failed) => Self::Failed(error(failed)),
            Self::Cancelled => Self::Cancelled,
        }
    }
}

impl From<ConnectError> for Halt {
    fn from(error: ConnectError) -> Self {
        Self::Failed(error)
    }
}

/// What an attempt needs of the worker whose time it takes.
pub(crate) struct Worker<'a> {
    pub(crate) wake: &'a Arc<Wake>,
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    pub(crate) register: &'a dyn Fn(&Arc<TcpStream>),
    pub(crate) meanwhile: &'a dyn Fn() -> Option<Instant>,
}

/// One attempt to connect.
pub(crate) struct Attempt<'a> {
    pub(crate) settings: &'a Settings,
    pub(super) resolver: Option<&'a Arc<ResolveFn>>,
    pub(super) unpack: Option<&'a Arc<Unpack>>,
    pub(crate) dial: &'a Dial,
    pub(crate) deadline: Instant,
    pub(crate) wake: &'a Arc<Wake>,
    /// Whether the attempt shall end now; asked after every wake.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// Told of the socket, so that it can be shut from outside.
    pub(crate) register: &'a dyn Fn(&Arc<TcpStream>),
    phase: Cell<Phase>,
    /// When the step under way began, and how long each has taken so far.
    entered: Cell<Instant>,
    took: RefCell<Vec<(Phase, Duration)>>,
    /// When the address at hand has used up its time.
    until: Cell<Instant>,
    /// Done while it waits; says when to do it again.
    meanwhile: &'a dyn Fn() -> Option<Instant>,
    pub(super) known: &'a Addresses,
    /// The address that took the connection.
    pub(super) address: Cell<Option<SocketAddr>>,
    /// Addresses that asked to be left alone, and for how long.
    pub(super) asked_to_wait: RefCell<Vec<(SocketAddr, Duration)>>,
    soonest_free: Cell<Option<Duration>>,
    /// The attempt failed, and an address of the host has not asked to be left alone.
    another_is_free: Cell<bool>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(
        settings: &'a Settings,
        hooks: &'a Hooks,
        dial: &'a Dial,
        known: &'a Addresses,
        worker: Worker<'a>,
    ) -> Self {
        let Worker { wake, cancelled, register, meanwhile } = worker;
        let deadline = dial.deadline();
        Self {
            settings,
            resolver: hooks.resolver.as_ref(),
            unpack: hooks.decode.as_ref().map(|decode| &decode.0),
            dial,
            deadline,
            wake,
            cancelled,
            register,
            meanwhile,
            phase: Cell::new(Phase::Resolve),
            entered: Cell::new(Instant::now()),
            took: RefCell::default(),
            until: Cell::new(deadline),
            known,
            address: Cell::new(None),
            asked_to_wait: RefCell::default(),
            soonest_free: Cell::default(),
            another_is_free: Cell::new(false),
        }
    }

    /// The same attempt, to another place.
    pub(super) fn to<'b>(&'b self, dial: &'b Dial) -> Attempt<'b> {
        let (phase, until, address) = (self.phase.clone(), Cell::new(self.deadline), self.address.clone());
        let (entered, took) = (self.entered.clone(), self.took.clone());
        let (asked_to_wait, another_is_free) = (RefCell::default(), Cell::new(false));
        let soonest_free = Cell::default();
        Attempt { dial, phase, until, address, entered, took, asked_to_wait, another_is_free, soonest_free, ..*self }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// A step begins, and the one before it is over.
    pub(super) fn enter(&self, phase: Phase) {
        let now = Instant::now();
        let lasted = now.saturating_duration_since(self.entered.replace(now));
        let ended = self.phase.replace(phase);
        let mut took = self.took.borrow_mut();
        match took.iter_mut().find(|(phase, _)| *phase == ended) {
            Some((_, time)) => *time += lasted,
            None if !lasted.is_zero() => took.push((ended, lasted)),
            None => {}
        }
    }

    /// The last step is over: how long each has taken, in their order.
    pub(super) fn took(&self) -> Vec<(Phase, Duration)> {
        self.enter(self.phase.get());
        self.took.take()
    }

    pub(super) fn until(&self) -> Instant {
        self.until.get()
    }

    pub(super) fn set_until(&self, until: Instant) {
        self.until.set(until);
    }

    /// The address that took the connection, if one did.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address.get()
    }

    /// The addresses that asked to be left alone, and for how long.
    pub(crate) fn asked_to_wait(&self) -> Vec<(SocketAddr, Duration)> {
        self.asked_to_wait.take()
    }

    /// The attempt has failed at these addresses of the host, all that it has.
    pub(super) fn failed_at(&self, all: &[SocketAddr]) {
        let now = Instant::now();
        let asked = self.asked_to_wait.borrow();
        let waits = |address| self.known.waits(address, now) || asked.iter().any(|(of, _)| of == address);
        self.another_is_free.set(!all.iter().all(waits));
        let asked = asked.iter().filter(|(of, _)| all.contains(of)).map(|(_, wait)| *wait);
        self.soonest_free.set(asked.chain(all.iter().filter_map(|address| self.known.wait_of(address, now))).min());
    }

    /// How long the address asked to be left alone that is free first, of those that asked.
    pub(crate) fn soonest_free(&self) -> Option<Duration> {
        self.soonest_free.get()
    }

    /// Whether an address of the host is left that did not ask to be left alone: then the host's wait is not the URL's.
    pub(crate) fn another_is_free(&self) -> bool {
        self.another_is_free.get()
    }

    fn timeout(&self) -> Halt {
        let limit = self.settings.connect_timeout.saturating_sub(self.deadline.saturating_duration_since(self.until()));
        ConnectError::Timeout { phase: self.phase.get(), limit }.into()
    }

    /// Waits for the socket. An error when the attempt is cancelled or its deadline has passed; `Ok(false)` when
    /// `until`, which may be earlier, has.
    pub(super) fn wait(&self, tcp: &TcpStream, interest: PollFlags, until: Instant) -> Result<bool, Halt> {
        self.wait_for(&[(tcp.as_fd(), interest)], until, || false)
    }

    pub(super) fn wait_for(
        &self,
        sockets: &[(BorrowedFd<'_>, PollFlags)],
        until: Instant,
        ready: impl Fn() -> bool,
    ) -> Result<bool, Halt> {
        let end = self.until();
        let until = until.min(end);
        loop {
            if (self.cancelled)() {
                return Err(Halt::Cancelled);
            }
            if ready() {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= end {
                return Err(self.timeout());
            }
            if now >= until {
                return Ok(false);
            }
            let look = || (self.cancelled)() || ready();
            let until = (self.meanwhile)().map_or(until, |again| again.min(until));
            let waited = wait_any(sockets, self.wake, Some(until), look).map_err(|error| self.broken(&error))?;
            if waited.socket {
                return Ok(true);
            }
        }
    }

    /// An error when the attempt is cancelled or its deadline has passed.
    pub(super) fn check(&self) -> Result<(), Halt> {
        if (self.cancelled)() {
            return Err(Halt::Cancelled);
        }
        if Instant::now() >= self.until() { Err(self.timeout()) } else { Ok(()) }
    }

    /// Waits until the step that just blocked on `socket` can go on.
    pub(super) fn unblock(&self, socket: &mut Socket) -> Result<(), Halt> {
        if let Some(error) = socket.take_write_error() {
            return Err(self.broken(&error));
        }
        // Where the step stopped after it had read enough, there is more to read already: only the time is looked at.
        let until = if socket.has_read_enough() { Instant::now() } else { self.until() };
        self.wait(socket.tcp(), socket.interest(), until)?;
        socket.refresh();
        Ok(())
    }

    /// The step under way met an error of the operating system's.
    pub(super) fn broken(&self, error: &io::Error) -> Halt {
        self.lost(&error.to_string())
    }

    /// The connection ended in the middle of a step.
    pub(super) fn lost(&self, message: &str) -> Halt {
        match self.phase.get() {
            Phase::Resolve => {
                ConnectError::Resolve { host: self.dial.target.host.as_str().into(), message: message.into() }
            }
            phase => ConnectError::Lost { phase, message: message.into() },
        }
        .into()
    }
}
