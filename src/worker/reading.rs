//! The one way to read: a message or a control frame at a time, the connection sees each.

use std::time::Instant;

use super::run::Run;
use crate::message::{CloseFrame, Message};
use crate::policy::connection::Connection;
use crate::state::DisconnectReason;
use crate::transport::{Broken, Incoming};

/// What one read brought.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// A message, which `take` was given.
    Message,
    /// Something that is not the caller's: a control frame, a heartbeat, an answer.
    Other,
    /// A part of a message, as much of it as may be read in one go: others get their turn.
    Part,
    /// Nothing more for now.
    Nothing,
}

impl Run<'_> {
    /// Reads what is next; a message that is the caller's goes to `take`. Inlined, since every message passes here: moving it
    /// once more makes a flood some percent slower.
    #[inline(always)]
    pub(super) fn read_next(
        &mut self,
        connection: &mut Connection,
        take: impl FnOnce(&mut Self, Message, Instant) -> Result<(), Broken>,
    ) -> Result<Came, Broken> {
        let Some(transport) = &mut self.link.transport else { return Ok(Came::Nothing) };
        let incoming = transport.read().inspect_err(|_| self.reads_broken = true)?;
        let now = transport.read_at();
        match incoming {
            Incoming::Message(message) => {
                self.idle_turns = 0;
                self.core.counters.received.add(1);
                if !connection.listens(self.core) {
                    take(self, message, now)?;
                    return Ok(Came::Message);
                }
                match self.show(connection, message, now)? {
                    Some(message) => take(self, message, now).map(|()| Came::Message),
                    None => Ok(Came::Other),
                }
            }
            Incoming::Nothing => Ok(Came::Nothing),
            Incoming::Part => Ok(Came::Part),
            // Each arm by itself: to pass the frame on as a whole would put every message into memory first.
            Incoming::Ping => self.pinged(connection, now),
            Incoming::Pong(payload) => self.ponged(connection, &payload, now),
            Incoming::Close(frame) => self.closed(frame),
            Incoming::Ended => Err(Broken::because(DisconnectReason::ClosedByServer(None))),
        }
    }

    /// Shows a message to the connection; gives it back if it is the caller's.
    #[inline(never)]
    fn show(&mut self, connection: &mut Connection, message: Message, now: Instant) -> Result<Option<Message>, Broken> {
        let message = connection.message(message, now, self.core, &mut self.actions);
        self.carry_out(connection)?;
        if message.is_some() {
            // What it answered goes before it.
            self.tell_untold();
        }
        Ok(message)
    }

    #[inline(never)]
    fn pinged(&mut self, connection: &mut Connection, now: Instant) -> Result<Came, Broken> {
        // The pong is queued behind whatever is being written; do not let it wait for a next turn.
        self.write_out()?;
        if connection.ping(now) {
            self.alive(connection);
        }
        Ok(Came::Other)
    }

    #[inline(never)]
    fn ponged(&mut self, connection: &mut Connection, payload: &[u8], now: Instant) -> Result<Came, Broken> {
        if connection.pong(payload, now) {
            self.alive(connection);
        }
        Ok(Came::Other)
    }

    #[inline(never)]
    fn closed(&mut self, frame: Option<CloseFrame>) -> Result<Came, Broken> {
        // Its answer leaves, if there is room for it.
        let _ = self.write_out();
        Err(Broken::because(DisconnectReason::ClosedByServer(frame)))
    }
}
