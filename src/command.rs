//! What a worker is told to do, whatever it is doing.

use std::cmp::Ordering;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use parking_lot::Mutex;

/// What a worker is told to do, whatever it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) kind: CommandKind,
    pub(crate) given: Instant,
    /// When the orderly end must be over.
    pub(crate) deadline: Instant,
}

impl Command {
    /// Whether more than this share of its time is gone.
    pub(crate) fn is_spent(&self, share: f64, now: Instant) -> bool {
        now >= self.given + self.deadline.saturating_duration_since(self.given).mul_f64(share)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandKind {
    /// End this run; whether another follows is for the restart rule.
    Close,
    /// End for good.
    Stop,
    /// End this run so that a fresh one can begin.
    Restart,
    /// End this connection so that the next can be made; the run goes on.
    Reconnect,
}

impl CommandKind {
    fn weight(self) -> u8 {
        match self {
            Self::Reconnect => 0,
            Self::Restart => 1,
            Self::Close => 2,
            Self::Stop => 3,
        }
    }
}

/// The place for the one command that stands.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    pending: AtomicBool,
    command: Mutex<Option<Command>>,
}

impl Commands {
    /// Gives a command. A stop is never overruled, nor an end by a new connection; of two alike the more urgent stands.
    pub(crate) fn give(&self, command: Command) {
        let mut slot = self.command.lock();
        let stands = |standing: &Command| match standing.kind.weight().cmp(&command.kind.weight()) {
            Ordering::Equal => standing.deadline <= command.deadline,
            order => order == Ordering::Greater,
        };
        if !slot.as_ref().is_some_and(stands) {
            *slot = Some(command);
        }
        self.pending.store(true, Release);
    }

    pub(crate) fn pending(&self) -> bool {
        self.pending.load(Acquire)
    }

    pub(crate) fn standing(&self) -> Option<Command> {
        if self.pending() { *self.command.lock() } else { None }
    }

    pub(crate) fn stop_given(&self) -> bool {
        self.standing().is_some_and(|command| command.kind == CommandKind::Stop)
    }

    /// Whether the client is to end, and more than this share of the time for that is gone.
    pub(crate) fn stop_presses(&self, share: f64) -> bool {
        let stop = self.standing().filter(|command| matches!(command.kind, CommandKind::Stop | CommandKind::Close));
        stop.is_some_and(|command| command.is_spent(share, Instant::now()))
    }

    /// The command that stands is being obeyed, if there is one. A stop stands on.
    pub(crate) fn take(&self) -> Option<Command> {
        let mut slot = self.command.lock();
        let standing = *slot;
        if slot.is_some_and(|standing| standing.kind != CommandKind::Stop) {
            *slot = None;
            self.pending.store(false, Release);
        }
        standing
    }
}
