//! Commands to a worker, which interrupt anything that it does, and the decision at the end of its run.

use std::cmp::Ordering;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use parking_lot::Mutex;

/// A command to a worker, which interrupts anything that it does.
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
    /// End this run and park the client.
    Park,
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
    /// Whether it ends the client, or the run of one that is started again.
    fn is_end(self) -> bool {
        matches!(self, Self::Close | Self::Stop)
    }
}

/// What follows the run that has just ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    /// Another run.
    Restart,
    /// Nothing before `resume_client`.
    Park,
    /// Nothing.
    Close,
}

/// The place for the one command that stands, and for the decision that ends a run. One lock guards both, so that a command
/// is either given in time for the decision, or its giver learns what was decided.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    pending: AtomicBool,
    slot: Mutex<Slot>,
    /// A client that closes itself is started again: a close is a restart.
    is_permanent: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Slot {
    command: Option<Command>,
    /// `None` while a run goes on.
    decided: Option<Decided>,
}

impl Commands {
    pub(crate) fn of(is_permanent: bool) -> Self {
        Self { is_permanent, ..Self::default() }
    }

    fn weight(&self, kind: CommandKind) -> u8 {
        match kind {
            CommandKind::Reconnect => 0,
            CommandKind::Restart | CommandKind::Park => 1,
            CommandKind::Close if self.is_permanent => 1,
            CommandKind::Close => 2,
            CommandKind::Stop => 3,
        }
    }

    /// Gives a command. A stop is never overruled, nor an end by a new connection; of a park and a restart the later stands, of
    /// two alike the more urgent. Returns what was decided, if the run has ended: then a command that has nothing left to end is
    /// not kept; or what a command that overrules this one decides.
    pub(crate) fn give(&self, command: Command) -> Option<Decided> {
        let mut slot = self.slot.lock();
        let kind = match (slot.decided, command.kind) {
            // A run follows anyway; it is to dial at once.
            (Some(Decided::Restart), CommandKind::Restart) => CommandKind::Reconnect,
            (_, kind) => kind,
        };
        let command = Command { kind, ..command };
        let has_effect = match (slot.decided, kind) {
            (None, _) | (_, CommandKind::Stop) => true,
            // There is no run that could be started again.
            (Some(decided), CommandKind::Close) => !self.is_permanent || decided == Decided::Restart,
            (Some(decided), CommandKind::Park | CommandKind::Restart | CommandKind::Reconnect) => {
                decided == Decided::Restart
            }
        };
        if !has_effect {
            return slot.decided;
        }
        let overruled =
            slot.command.filter(|standing| match self.weight(standing.kind).cmp(&self.weight(command.kind)) {
                Ordering::Equal => standing.kind == command.kind && standing.deadline <= command.deadline,
                order => order == Ordering::Greater,
            });
        match overruled {
            None => slot.command = Some(command),
            Some(standing) if standing.kind.is_end() && !command.kind.is_end() => return Some(Decided::Close),
            Some(_) => {}
        }
        self.pending.store(true, Release);
        slot.decided
    }

    /// A run follows after all on one that ended parked.
    pub(crate) fn resumed(&self) {
        self.slot.lock().decided = Some(Decided::Restart);
    }

    /// The supervisor parks the client by itself: nothing but an end is left to be commanded.
    pub(crate) fn parked(&self) {
        let mut slot = self.slot.lock();
        // A restart, and a close that is one, weigh less than an end.
        let outweighs = |command: Command| self.weight(command.kind) > self.weight(CommandKind::Restart);
        if !slot.command.is_some_and(outweighs) {
            slot.command = None;
            self.pending.store(false, Release);
        }
        slot.decided = Some(Decided::Park);
    }

    pub(crate) fn pending(&self) -> bool {
        self.pending.load(Acquire)
    }

    pub(crate) fn standing(&self) -> Option<Command> {
        if self.pending() { self.slot.lock().command } else { None }
    }

    /// Whether the client is to be closed for good by a command that stands.
    pub(crate) fn close_given(&self) -> bool {
        self.standing().is_some_and(|command| command.kind.is_end())
    }

    /// Whether the client is to end, and more than this share of the time for that is gone.
    pub(crate) fn stop_presses(&self, share: f64) -> bool {
        self.standing().is_some_and(|command| command.kind.is_end() && command.is_spent(share, Instant::now()))
    }

    /// Takes the command that stands, if there is one. A stop stands on.
    pub(crate) fn take(&self) -> Option<Command> {
        self.take_from(&mut self.slot.lock())
    }

    fn take_from(&self, slot: &mut Slot) -> Option<Command> {
        let standing = slot.command;
        if standing.is_some_and(|standing| standing.kind != CommandKind::Stop) {
            slot.command = None;
            self.pending.store(false, Release);
        }
        standing
    }

    /// A run begins: commands are for it again. One that was given since the last run ended stands.
    pub(crate) fn begin_run(&self) {
        self.slot.lock().decided = None;
    }

    /// Ends a run: takes the command that stands, and has `decide` draw the conclusion while no other command can be given.
    pub(crate) fn end_run<T>(&self, decide: impl FnOnce(Option<Command>) -> (Decided, T)) -> T {
        let mut slot = self.slot.lock();
        let standing = self.take_from(&mut slot);
        let (decided, result) = decide(standing);
        slot.decided = Some(decided);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn command(kind: CommandKind) -> Command {
        let given = Instant::now();
        Command { kind, given, deadline: given + Duration::from_secs(1) }
    }

    #[test]
    fn a_command_is_in_time_for_the_decision_or_its_giver_learns_of_it() {
        let commands = Commands::default();
        assert_eq!(commands.give(command(CommandKind::Restart)), None);
        let taken = commands.end_run(|standing| (Decided::Park, standing));
        assert_eq!(taken.map(|command| command.kind), Some(CommandKind::Restart));
        for kind in [CommandKind::Restart, CommandKind::Reconnect] {
            assert_eq!(commands.give(command(kind)), Some(Decided::Park));
            assert!(!commands.pending(), "there is nothing that it could end");
        }
        assert_eq!(commands.give(command(CommandKind::Close)), Some(Decided::Park));
        assert!(commands.close_given(), "a close stands: it can still be carried out");
        commands.begin_run();
        assert_eq!(commands.take().map(|command| command.kind), Some(CommandKind::Close));
        assert_eq!(commands.give(command(CommandKind::Reconnect)), None);
        commands.end_run(|_| (Decided::Restart, ()));
        for kind in [CommandKind::Restart, CommandKind::Reconnect] {
            assert_eq!(commands.give(command(kind)), Some(Decided::Restart));
            commands.begin_run();
            let taken = commands.end_run(|standing| (Decided::Restart, standing));
            assert_eq!(
                taken.map(|command| command.kind),
                Some(CommandKind::Reconnect),
                "the run that follows dials at once"
            );
        }
    }
}
