//! The one way to read: a message or a control frame at a time, the connection sees each.

use std::time::Instant;

use super::run::Run;
use crate::message::Message;
use crate::policy::connection::Connection;
use crate::state::DisconnectReason;
use crate::transport::{Broken, Incoming};

/// What one read brought.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A message, which `take` was given.
    Message,
    /// Something that is not the caller's: a control frame, a heartbeat, an answer.
    Other,
    /// Nothing more for now.
    Nothing,
}

impl Run<'_> {
    /// Reads what is next; a message that is the caller's goes to `take`. Inlined, with `take` in it, where every message
    /// passes: one more move of it costs a flood some percent.
    #[inline(always)]
    pub(super) fn read_next(
        &mut self,
        connection: &mut Connection,
        take: impl FnOnce(&mut Self, Message, Instant) -> Result<(), Broken>,
    ) -> Result<Next, Broken> {
        let Some(transport) = &mut self.link.transport else { return Ok(Next::Nothing) };
        let incoming = transport.read().inspect_err(|_| self.reads_broken = true)?;
        let now = transport.read_at();
        match incoming {
            Incoming::Message(message) => {
                self.idle_turns = 0;
                self.core.counters.received.add(1);
                if !connection.listens(self.core) {
                    take(self, message, now)?;
                    return Ok(Next::Message);
                }
                match self.show(connection, message, now)? {
                    Some(message) => take(self, message, now).map(|()| Next::Message),
                    None => Ok(Next::Other),
                }
            }
            Incoming::Nothing => Ok(Next::Nothing),
            control => self.control(connection, control, now).map(|()| Next::Other),
        }
    }

    /// Shows a message to the connection; gives it back if it is the caller's.
    #[inline(never)]
    fn show(&mut self, connection: &mut Connection, message: Message, now: Instant) -> Result<Option<Message>, Broken> {
        let message = connection.message(message, now, self.core, &mut self.actions);
        self.carry_out(connection)?;
        Ok(message)
    }

    #[inline(never)]
    fn control(&mut self, connection: &mut Connection, frame: Incoming, now: Instant) -> Result<(), Broken> {
        match frame {
            Incoming::Ping => {
                // The pong is queued behind whatever is being written; do not let it wait for a next turn.
                self.write_out()?;
                if connection.ping(now) {
                    self.alive(connection);
                }
            }
            Incoming::Pong(payload) => {
                if connection.pong(&payload, now) {
                    self.alive(connection);
                }
            }
            Incoming::Close(frame) => {
                let _ = self.write_out();
                return Err(Broken::because(DisconnectReason::ClosedByServer(frame)));
            }
            Incoming::Ended => return Err(Broken::because(DisconnectReason::ClosedByServer(None))),
            Incoming::Message(_) | Incoming::Nothing => {}
        }
        Ok(())
    }
}
