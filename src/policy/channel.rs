//! One channel of a client: what is wanted of it, what is known of it at the server, and what that is to be asked. Pure.

use std::time::Instant;

use super::suspects::{Ending, SET_ASIDE_FOR, STRIKES};
use crate::request::RpcError;

/// What a batch asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Subscribe,
    Unsubscribe,
}

/// What is known of a channel on the present connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AtServer {
    Absent,
    /// A batch is under way, by its number.
    Asked(u64),
    Present,
    Refused(RpcError),
    /// A batch had no answer.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) wanted: bool,
    pub(super) at_server: AtServer,
    /// What the caller has of it is not what it wants: it is let go and asked for again.
    pub(super) anew: bool,
    /// The server would not let it go.
    pub(super) kept: Option<RpcError>,
    /// How many wait for it: what becomes of it is remembered until each has seen it.
    pub(super) waiting: usize,
    /// The latest operation that was asked for, and its first batch: answers to older batches are ignored.
    pub(super) meant: Option<(Operation, u64)>,
    /// Something had no answer on this connection, so that the server may have it or not.
    pub(super) uncertain: bool,
    /// How many channels may go together with this one: a batch that was refused is halved until the culprit is found.
    pub(super) together: usize,
    /// The server ended a connection while it was asked for this one.
    pub(super) suspect: bool,
    /// How much speaks against it since the connection was cut when the server was asked for it, or had just acknowledged it.
    pub(super) cuts: u32,
    /// What speaks against it: the server ended connections over this one alone, and over others it did not.
    pub(super) strikes: u32,
    /// Since when it is set aside.
    pub(super) set_aside: Option<Instant>,
    /// How often other channels had been proven by then.
    pub(super) struck_at: u64,
    /// How often the server acknowledged this one and went on.
    pub(super) proven: u64,
    /// How often the server refused it for the moment, on this connection.
    pub(super) put_off: u32,
    /// How often it was tried as a suspect, and that came to nothing: the others get their turn.
    pub(super) tries: u32,
}

impl Channel {
    pub(super) fn unwanted() -> Self {
        Self {
            wanted: false,
            at_server: AtServer::Absent,
            anew: false,
            kept: None,
            waiting: 0,
            meant: None,
            uncertain: false,
            together: usize::MAX,
            suspect: false,
            cuts: 0,
            strikes: 0,
            set_aside: None,
            struck_at: 0,
            proven: 0,
            put_off: 0,
            tries: 0,
        }
    }

    /// The server ended the connection over this one alone; so often channels were proven so far. Nobody is to blame while it
    /// does that to all.
    pub(super) fn strike(&mut self, ending: Ending, proven: u64) {
        let others = proven - self.proven;
        if self.strikes == 0 || others > self.struck_at {
            (self.strikes, self.struck_at) = (self.strikes + ending.weight(), others);
        }
    }

    /// It is no suspect any more, if it was.
    pub(super) fn acquit(&mut self) {
        (self.suspect, self.cuts, self.strikes, self.tries) = (false, 0, 0, 0);
        self.set_aside = None;
    }

    /// Whether it is not to be asked for on the next connection. After a while it gets one more trial.
    pub(super) fn is_set_aside(&mut self, now: Instant) -> bool {
        if self.strikes < STRIKES {
            return false;
        }
        let since = *self.set_aside.get_or_insert(now);
        if now.saturating_duration_since(since) < SET_ASIDE_FOR {
            return true;
        }
        (self.strikes, self.set_aside) = (STRIKES - 1, None);
        false
    }

    /// What was asked was not done.
    pub(super) fn undo(&mut self, operation: Operation) {
        self.at_server = match operation {
            _ if self.uncertain => AtServer::Unknown,
            Operation::Subscribe => AtServer::Absent,
            Operation::Unsubscribe => AtServer::Present,
        };
    }

    /// What the server did.
    pub(super) fn carried_out(&mut self, operation: Operation) {
        self.uncertain = false;
        (self.at_server, self.anew) = match operation {
            Operation::Subscribe => (AtServer::Present, self.anew),
            // One that the server does not name was not subscribed to.
            Operation::Unsubscribe => (AtServer::Absent, false),
        };
        // A suspect remains one: the server may yet end the connection over it.
        self.put_off = 0;
    }

    /// What the server has to be asked, if anything.
    pub(super) fn asks(&self) -> Option<Operation> {
        match (&self.at_server, self.wanted) {
            (AtServer::Absent | AtServer::Unknown, true) => Some(Operation::Subscribe),
            (AtServer::Present, true) if self.anew && self.kept.is_none() => Some(Operation::Unsubscribe),
            (AtServer::Present | AtServer::Unknown, false) if self.kept.is_none() => Some(Operation::Unsubscribe),
            // Refused now, but an earlier request for it may have been carried out.
            (AtServer::Refused(_), false) if self.uncertain && self.kept.is_none() => Some(Operation::Unsubscribe),
            _ => None,
        }
    }

    /// When it is to be asked about, if it is.
    pub(super) fn turn(&self) -> Option<Turn> {
        Some(match self.asks()? {
            Operation::Unsubscribe => Turn::Leave,
            Operation::Subscribe if self.suspect => Turn::JoinSuspect { tries: self.tries, strikes: self.strikes },
            Operation::Subscribe => Turn::Join,
        })
    }

    pub(super) fn is_forgotten(&self) -> bool {
        let gone = match self.at_server {
            AtServer::Absent => true,
            AtServer::Refused(_) => !self.uncertain,
            _ => false,
        };
        gone && !self.wanted && self.waiting == 0
    }
}

/// What is to be asked, in the order in which it is: what goes makes room for what comes, and what may end the connection
/// comes last, the least tried and the least suspected first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    Leave,
    Join,
    JoinSuspect { tries: u32, strikes: u32 },
}
