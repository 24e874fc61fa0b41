//! One open connection: take, write, read, decide, sleep.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;

use super::reading::Came;
use super::run::{Ended, Run};
use crate::command::Command;
use crate::error::RefusedChannel;
use crate::event::Event;
use crate::message::CloseFrame;
use crate::outbound::gate::Pass;
use crate::outbound::link;
use crate::outbound::link::Link;
use crate::overflow::Stage;
use crate::policy::connection::Connection;
use crate::policy::idle::Rest;
use crate::policy::terms::Turn;
use crate::state::{DisconnectReason, ReadyState};
use crate::transport::{Broken, Outgoing, Transport};

/// Messages read before commands and deadlines get their turn.
const READ_BATCH: usize = 256;

/// Batches read from a connection that can no longer be written to.
const LAST_BATCHES: usize = 1024;

/// While a worker spins, the clock is read, and deadlines looked at, once in so many turns that find nothing.
const TURNS_A_CLOCK: u32 = 16;

/// What one turn of reading found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// All that came is read.
    CaughtUp,
    /// There may be more.
    More,
    /// There is no room for more: the socket is left alone.
    Paused,
}

impl Run<'_> {
    /// From a connection to its end. Whatever the way out, what the kernel has is counted before it is let go of.
    pub(super) fn serve(&mut self, transport: Transport, deadline: Instant) -> Ended {
        let tcp = transport.tcp().clone();
        self.link.open(transport);
        let ended = self.serve_on(&tcp, deadline);
        let _ = tcp.shutdown(Shutdown::Both);
        self.link.let_go(&self.core.mailbox.source.sent);
        ended
    }

    fn serve_on(&mut self, tcp: &Arc<TcpStream>, deadline: Instant) -> Ended {
        (self.reads_broken, self.closing) = (false, false);
        let rules = self.state.rules.clone();
        self.forget_session();
        let (now, actions) = (Instant::now(), &mut self.actions);
        let mut connection = Connection::open(rules, fastrand::u64(..), now, self.core, actions);
        if let Err(halt) = self.establish(tcp, &mut connection, deadline) {
            self.say_goodbye(CloseFrame::GOING_AWAY);
            self.forget_session();
            return Ended::NotReady(halt);
        }
        match self.serve_until_broken(tcp, &mut connection) {
            Ok(command) => {
                self.close(tcp, &mut connection, command);
                Ended::Commanded(command)
            }
            Err(broken) => {
                if let Some(code) = broken.code {
                    self.say_goodbye(code);
                }
                Ended::Lost(broken.reason)
            }
        }
    }

    /// Discards what a session that never opened left behind; it may have panicked.
    fn forget_session(&mut self) {
        self.link.outbox.clear_urgent();
        self.actions.clear();
        self.consumer.release();
        self.core.wanted.look(|table| table.disconnected());
        // Only the worker's own can be among them: nobody else is let in before the session is open.
        let _ = self.core.asked.look(|table| table.disconnected());
    }

    /// A close frame, if there is room for it at once.
    fn say_goodbye(&mut self, code: u16) {
        if let Some(transport) = &mut self.link.transport {
            let _ = transport.queue(Outgoing::Close(CloseFrame { code, reason: "".into() }));
            let _ = transport.flush();
        }
    }

    fn serve_until_broken(&mut self, tcp: &TcpStream, connection: &mut Connection) -> Result<Command, Broken> {
        let core = self.core;
        self.opened(Instant::now(), connection).map_err(|broken| self.last_words(connection, broken))?;
        core.health.publish(connection.monitor());
        let mut was_paused = false;
        let mut skips_writing = false;
        loop {
            let written = if std::mem::take(&mut skips_writing) {
                Ok(true)
            } else {
                if let Some(command) = core.commands.standing() {
                    return Ok(command);
                }
                if self.link.take(&core.mailbox.source.queue) {
                    self.idle_turns = 0;
                }
                self.write_out()
            };
            let read = written.and_then(|_| self.read_batch(connection));
            let read = read.map_err(|broken| self.last_words(connection, broken))?;
            let spins = read != Read::More && self.spins();
            if spins {
                self.idle_turns = self.idle_turns.saturating_add(1);
                self.refresh();
                if self.idle_turns % TURNS_A_CLOCK != 0 {
                    continue;
                }
            }
            let now = Instant::now();
            self.end_turn(now);
            if was_paused && read != Read::Paused {
                connection.reads_again(now);
            }
            was_paused = read == Read::Paused;
            if self.look_after(connection, now, read == Read::CaughtUp)? {
                continue;
            }
            if self.consumer.next_timer().is_some_and(|at| now >= at) {
                self.fire_timers(now);
                continue;
            }
            if self.life.reconnect.stable_at().is_some_and(|at| now >= at) {
                self.life.reconnect.forget_if_stable(now);
            }
            let hand_over = self.consumer.hand_over(now, read == Read::Paused);
            if spins {
                core.duty.begin(now);
            }
            if spins || read == Read::More {
                continue;
            }
            let own = [self.life.reconnect.stable_at(), self.consumer.next_timer(), hand_over];
            let deadlines = [connection.due(core), self.link.outbox.limited_until()];
            let deadline = own.into_iter().chain(deadlines).flatten().min();
            skips_writing = self.sleep(tcp, connection, read, deadline)?;
        }
    }

    /// Lets the connection say what is due, and does it. True when something was done.
    fn look_after(&mut self, connection: &mut Connection, now: Instant, caught_up: bool) -> Result<bool, Broken> {
        let core = self.core;
        let wants_changed = !connection.asks_later() && core.wanted.take_changed();
        if !wants_changed && connection.due(core).is_none_or(|due| now < due) {
            return Ok(false);
        }
        let turn = Turn { now, caught_up, clogged: self.link.outbox.has_urgent(), wants_changed };
        connection.tick(turn, core, &mut self.actions);
        let done = !self.actions.is_empty();
        self.carry_out(connection)?;
        Ok(done)
    }

    /// Rests for one turn without sleeping, if the idle strategy says so.
    fn spins(&self) -> bool {
        match self.state.settings.idle.rest(self.idle_turns) {
            Rest::Park => return false,
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => std::thread::yield_now(),
        }
        true
    }

    fn opened(&mut self, now: Instant, connection: &mut Connection) -> Result<(), Broken> {
        let core = self.core;
        connection.opened(now);
        self.life.epoch += 1;
        self.life.open = true;
        self.life.reconnect.opened(now);
        let epoch = self.life.epoch;
        let kept = self.consumer.release();
        let came_before = kept.as_ref().map_or(0, |kept| kept.messages() as u64);
        core.counters.received_before.set(core.counters.received.get() - came_before);
        core.counters.epoch.set(epoch);
        // What was decided while the session was being opened is asked for now.
        core.wanted.set_changed();
        let subscriptions = core.wanted.status();
        self.link.release();
        // What waited for this connection goes first.
        self.link.take(&core.mailbox.source.queue);
        let mut result = self.write_out().map(drop);
        core.mailbox.gate.set(Pass::Open { epoch });
        core.status.set(ReadyState::Open);
        let name = &core.tag.name;
        log::info!("client `{name}`: open ({}), connection {epoch}", self.state.settings.target);
        for RefusedChannel { channel, error, .. } in &subscriptions.refused {
            log::warn!("client `{name}`: the server refused channel {channel}: {error}");
        }
        self.emit(Event::Open { epoch, restored: subscriptions.active, refused: subscriptions.refused });
        let mut kept = kept.into_iter().flat_map(|mut kept| std::iter::from_fn(move || kept.pop()));
        for event in &mut kept {
            match event {
                Event::Message(message) => {
                    let at = message.received_at().unwrap_or(now);
                    // Each of them, also when the line is found broken in between.
                    result = result.and(self.deliver(message, at, Stage::Open));
                }
                lagged => self.emit(lagged),
            }
        }
        result
    }

    fn read_batch(&mut self, connection: &mut Connection) -> Result<Read, Broken> {
        let read = self.read_some(connection);
        self.consumer.flush();
        if let Some(transport) = &mut self.link.transport {
            transport.acknowledge();
            if let Some(nanos) = transport.take_in_socket() {
                self.core.counters.time_in_socket.record(nanos.get());
            }
        }
        read
    }

    fn read_some(&mut self, connection: &mut Connection) -> Result<Read, Broken> {
        for _ in 0..READ_BATCH {
            if !self.consumer.has_room_to_read() {
                return Ok(Read::Paused);
            }
            let next = self.read_next(connection, |run, message, now| run.deliver(message, now, Stage::Open))?;
            if next == Came::Nothing {
                return Ok(Read::CaughtUp);
            }
        }
        Ok(Read::More)
    }

    /// The connection is broken, most likely found by a write. What the server said before that may still be in the
    /// kernel, fills of orders among it: it is read first, and a close frame in it is the better reason.
    fn last_words(&mut self, connection: &mut Connection, broken: Broken) -> Broken {
        if self.reads_broken || !matches!(broken.reason, DisconnectReason::Transport(_)) {
            return broken;
        }
        self.link.only_read_from_now_on();
        for _ in 0..LAST_BATCHES {
            self.refresh();
            match self.read_batch(connection) {
                Ok(Read::More) => {}
                Ok(_) => break,
                Err(found) if matches!(found.reason, DisconnectReason::Transport(_)) => break,
                Err(found) => return found,
            }
        }
        broken
    }

    pub(super) fn refresh(&mut self) {
        if let Some(transport) = &mut self.link.transport {
            transport.refresh();
        }
    }

    /// Sleeps. True when the socket alone ended the sleep: the next turn may go straight to reading.
    fn sleep(
        &mut self,
        tcp: &TcpStream,
        connection: &Connection,
        read: Read,
        deadline: Option<Instant>,
    ) -> Result<bool, Broken> {
        let core = self.core;
        let mailbox = &core.mailbox;
        let Some(transport) = &self.link.transport else { return Ok(false) };
        // A paused socket is not polled for reading: it would be readable all the time.
        let interest = match read {
            Read::Paused if transport.is_full() => Some(PollFlags::OUT),
            Read::Paused => None,
            _ => Some(transport.interest()),
        };
        let takes_more = self.link.outbox.is_empty();
        // Channels that a rate limit holds up are looked at again when it is time, not before.
        let may_ask = !connection.asks_later();
        let look = |link: &Link| {
            core.commands.pending()
                || (link.outbox.is_empty() && !mailbox.source.queue.is_empty())
                || (may_ask && core.wanted.has_changed())
                || core.asked.due_before(deadline)
        };
        let socket = interest.map(|interest| (tcp.as_fd(), interest));
        match link::sleep(&mailbox.line, &mut self.link, socket, deadline, look) {
            // A worker that callers keep busy never gets to poll: it must still find out what came.
            Ok(waited) if waited.socket || waited.skipped => {
                self.refresh();
                Ok(waited.socket && !waited.rung && takes_more)
            }
            Ok(_) => Ok(false),
            Err(error) => Err(Broken::because(DisconnectReason::Transport(error.to_string().into()))),
        }
    }
}
