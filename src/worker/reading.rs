//! The one way to read: a message or a control frame at a time, the connection sees each.

use super::run::Run;
use crate::inbound::consumer::Scene;
use crate::message::{CloseFrame, Message};
use crate::outbound::link::Link;
use crate::overflow::Stage;
use crate::policy::connection::{Connection, Owner};
use crate::record::tap::{Shown, Sort};
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
    /// Reads what is next; a message that is the caller's is taken from where it lies by `take`. Inlined, since every message
    /// passes here.
    #[inline(always)]
    pub(super) fn read_next(
        &mut self,
        connection: &mut Connection,
        take: impl FnOnce(&mut Self) -> Result<(), Broken>,
    ) -> Result<Came, Broken> {
        let Some(transport) = &mut self.link.transport else { return Ok(Came::Nothing) };
        let incoming = match transport.read() {
            Ok(incoming) => incoming,
            Err(broken) => return Err(self.broke(broken)),
        };
        match incoming {
            Incoming::Message => {
                let came_at = transport.read_at();
                self.idle_turns = 0;
                self.core.counters.received.add(1);
                let (owner, broken) =
                    if connection.listens(self.core) { self.show(connection)? } else { (Owner::Caller, None) };
                if self.core.tap().is_some() {
                    self.record(owner)?;
                }
                match owner {
                    Owner::Library => return Ok(Came::Other),
                    Owner::Both => {}
                    Owner::Caller => {
                        connection.data(came_at);
                        self.message_at = Some(came_at);
                    }
                }
                let taken = take(self);
                broken.map_or(taken.map(|()| Came::Message), Err)
            }
            Incoming::Nothing => Ok(Came::Nothing),
            Incoming::Part => Ok(Came::Part),
            Incoming::Ping => self.pinged(connection),
            Incoming::Pong => self.ponged(connection),
            Incoming::Close(frame) => self.closed(frame),
            Incoming::Ended => Err(Broken::because(DisconnectReason::ClosedByServer(None))),
        }
    }

    /// Reading failed: there is nothing more to come.
    #[cold]
    fn broke(&mut self, broken: Broken) -> Broken {
        (self.reads_broken, self.owes) = (true, broken.code);
        broken
    }

    /// The message that was read goes into the recording too.
    #[inline(never)]
    fn record(&mut self, owner: Owner) -> Result<(), Broken> {
        let (Some(transport), Some(tap)) = (&self.link.transport, self.core.tap()) else {
            return Ok(());
        };
        let shown = match owner {
            Owner::Library => Shown::Never,
            Owner::Both | Owner::Caller if !self.life.open => Shown::Held,
            Owner::Both | Owner::Caller => self.core.shown(self.open_epoch()),
        };
        match transport.message() {
            Ok(message) => tap.message(message, shown, transport.read_at()),
            Err(broken) => return Err(self.broke(broken)),
        }
        Ok(())
    }

    /// Shows a message to the connection, which says whose it is, and carries out what the message asks for. When that fails, the
    /// caller's message is still to be delivered: it came before the end.
    #[inline(never)]
    fn show(&mut self, connection: &mut Connection) -> Result<(Owner, Option<Broken>), Broken> {
        let Some(transport) = &self.link.transport else { return Ok((Owner::Library, None)) };
        let epoch = self.life.epoch + u64::from(!self.life.open);
        let message = match transport.message() {
            Ok(message) => message.on(epoch),
            Err(broken) => return Err(self.broke(broken)),
        };
        self.life.is_classifying = true;
        let owner = connection.message(message, transport.read_at(), self.core, &mut self.actions);
        self.life.is_classifying = false;
        let broken = match (self.carry_out(connection), owner) {
            (Err(broken), Owner::Library) => return Err(broken),
            (done, _) => done.err(),
        };
        if owner != Owner::Library {
            // Responses that it brought are delivered before it.
            self.deliver_pending();
        }
        Ok((owner, broken))
    }

    /// The message that was read, to be kept.
    pub(super) fn keep_read(&mut self) -> Result<Option<Message>, Broken> {
        let Some(transport) = &mut self.link.transport else { return Ok(None) };
        transport.take_message().map(Some).map_err(|broken| self.broke(broken))
    }

    /// The message that was read goes to the consumer: a handler sees it where it lies.
    #[inline(always)]
    pub(super) fn deliver_read(&mut self, stage: Stage) -> Result<(), Broken> {
        if !self.consumer.is_handler() {
            return self.keep_read()?.map_or(Ok(()), |message| self.enqueue(message, stage));
        }
        let (epoch, open) = (self.life.epoch, self.open_epoch());
        let Link { transport, outbox, .. } = &mut *self.link;
        let Some(transport) = transport else { return Ok(()) };
        match transport.message() {
            Ok(message) => {
                let scene = Scene { core: self.core, outbox, epoch: open, now: transport.read_at() };
                self.consumer.message(scene, message.on(epoch));
            }
            Err(broken) => return Err(self.broke(broken)),
        }
        self.write_what_waits()
    }

    /// Messages that lie whole in the read buffer go to the consumer one after the other, so many of them at most: a flood is
    /// that and nothing else. Whatever may ask for more of the loop is looked at before each, and ends it: what is next is not a
    /// message of the usual kind, or may be an answer, or there is something to write, or somebody wants a turn. Returns how many
    /// there were.
    #[inline(always)]
    pub(super) fn pass_on_usual(&mut self, connection: &mut Connection, most: usize) -> usize {
        let (core, epoch) = (self.core, self.life.epoch);
        let Link { transport: Some(transport), outbox, .. } = &mut *self.link else { return 0 };
        if core.tap().is_some() || !transport.has_usual() {
            return 0;
        }
        let came_at = transport.read_at();
        let mut passed = 0;
        if let Some(queue) = self.consumer.as_queue() {
            while passed < most && queue.batches_next() && !connection.listens(core) {
                let Some(message) = transport.read_usual() else { break };
                core.counters.received.add(1);
                queue.push_to_batch(message);
                passed += 1;
            }
        } else {
            let scene = Scene { core, outbox, epoch: Some(epoch), now: came_at };
            self.consumer.call(scene, |handler, context| {
                while passed < most && !connection.listens(core) {
                    let Some(message) = transport.read_usual() else { break };
                    core.counters.received.add(1);
                    handler.on_message(context, message.on(epoch));
                    passed += 1;
                    if !context.outbox.is_empty() || core.wants_a_turn(true) {
                        break;
                    }
                }
            });
        }
        if passed > 0 {
            self.idle_turns = 0;
            connection.data(came_at);
            self.message_at = Some(came_at);
        }
        passed
    }

    #[inline(never)]
    fn pinged(&mut self, connection: &mut Connection) -> Result<Came, Broken> {
        if let (Some(tap), Some(transport)) = (self.core.tap(), &self.link.transport) {
            tap.control(Sort::Ping, transport.control(), transport.read_at());
            tap.answered(transport.control(), transport.read_at());
        }
        // The pong is queued behind whatever is being written; do not let it wait for a next turn.
        self.write_out()?;
        let Some(transport) = &self.link.transport else { return Ok(Came::Other) };
        if connection.ping(transport.read_at()) {
            self.alive(connection);
        }
        Ok(Came::Other)
    }

    #[inline(never)]
    fn ponged(&mut self, connection: &mut Connection) -> Result<Came, Broken> {
        let Some(transport) = &self.link.transport else { return Ok(Came::Other) };
        if let Some(tap) = self.core.tap() {
            tap.control(Sort::Pong, transport.control(), transport.read_at());
        }
        if connection.pong(transport.control(), transport.read_at()) {
            self.alive(connection);
        }
        Ok(Came::Other)
    }

    #[inline(never)]
    fn closed(&mut self, frame: Option<CloseFrame>) -> Result<Came, Broken> {
        self.core.tap().iter().for_each(|tap| tap.close(frame.as_ref(), false));
        // Its answer leaves, if there is room for it.
        let left = self.write_out();
        if let (Ok(true), false) = (left, self.closing) {
            self.core.tap().iter().for_each(|tap| tap.close(frame.as_ref(), true));
        }
        Err(Broken::because(DisconnectReason::ClosedByServer(frame)))
    }
}
