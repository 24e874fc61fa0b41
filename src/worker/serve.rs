//! One open connection: take, write, read, decide, sleep.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::close::Patience;
use super::pause::Pause;
use super::reading::Came;
use super::run::{Ended, Run};
use crate::command::{Command, CommandKind};
use crate::connect::attempt::Halt;
use crate::deadline::later;
use crate::error::{ConnectError, RefusedChannel, SessionError};
use crate::event::Event;
use crate::logger;
use crate::message::CloseFrame;
use crate::metrics;
use crate::outbound::gate::Pass;
use crate::outbound::link;
use crate::outbound::link::Link;
use crate::overflow::Stage;
use crate::policy::connection::Connection;
use crate::policy::idle::Rest;
use crate::policy::subscriptions::Ending;
use crate::policy::terms::Turn;
use crate::state::{DisconnectReason, ReadyState};
use crate::telemetry::duty::Doing;
use crate::transport::{Broken, ENDED, HANG_UP, Transport};

/// Messages read before commands and deadlines get their turn.
const READ_BATCH: usize = 256;

/// Batches read from a connection that is over, at most: a server that goes on for ever is not heard for ever.
const LAST_BATCHES: usize = 1024;

/// A handler's batch is over after this much time, looked at once in so many messages.
const BATCH_TIME: Duration = Duration::from_millis(1);
const MESSAGES_A_CLOCK: usize = 16;

/// While a worker spins, the clock is read, and deadlines looked at, once in so many turns that find nothing.
const TURNS_A_CLOCK: u32 = 16;

/// While the client is stopped, its handler hears what the server still said for this share of the time.
const HEARD: f64 = 0.5;

/// A server that neither takes what we say nor answers our close frame keeps us from the next connection for no longer.
const PATIENCE: Duration = Duration::from_secs(1);

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

/// How a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slept {
    /// There is nothing to read: look at everything.
    Else,
    /// The socket alone ended it: the next turn may go straight to reading.
    SocketOnly,
    /// While reading is held up: the peer has ended the connection.
    HungUp,
}

/// Whether a connection that ends for this reason is closed in good order.
fn is_in_order(reason: &DisconnectReason) -> bool {
    matches!(reason, DisconnectReason::MaxAge | DisconnectReason::RenewalFailed(_) | DisconnectReason::Stale { .. })
}

impl Run<'_> {
    /// From a connection to its end. Whatever the way out, what the kernel has is counted before it is let go of.
    pub(super) fn serve(&mut self, transport: Transport, deadline: Instant) -> Ended {
        let tcp = transport.tcp().clone();
        self.core.tap().iter().for_each(|tap| tap.connected(self.life.epoch + 1));
        self.link.open(transport);
        let ended = self.serve_on(&tcp, deadline);
        // What came before the end is told of before it, though there be no room.
        self.begin_over();
        self.deliver_pending();
        self.deliver_held();
        self.core.counters.dropped.add(self.consumer.held().drop_rest());
        if self.core.commands.stop_presses(HEARD) {
            // There was no time to deliver all that had arrived.
            let unheard = self.link.transport.as_mut().map_or(0, Transport::drop_received);
            self.core.counters.dropped.add(unheard);
        }
        self.consumer.flush();
        self.count_received();
        // Before the socket is shut, which the kernel would count as one more byte that the peer lacks.
        self.link.let_go(&self.core.mailbox.source.books);
        let _ = tcp.shutdown(Shutdown::Both);
        self.core.pauses.end(Instant::now());
        ended
    }

    fn serve_on(&mut self, tcp: &Arc<TcpStream>, deadline: Instant) -> Ended {
        (self.reads_broken, self.closing, self.over) = (false, false, false);
        (self.bytes_seen, self.served_at) = (0, Instant::now());
        self.owes = None;
        let rules = self.work.rules.clone();
        self.forget_session();
        let (now, actions) = (Instant::now(), &mut self.actions);
        let mut connection = Connection::open(rules, fastrand::u64(..), now, self.core, actions);
        if let Err(halt) = self.establish(tcp, &mut connection, deadline) {
            if let Halt::Failed(ConnectError::Session(error)) = &halt {
                if let SessionError::Disconnected(reason) = &**error {
                    self.suspect_channels(reason);
                }
            }
            self.say_goodbye(self.owes.unwrap_or(CloseFrame::GOING_AWAY));
            self.forget_session();
            return Ended::NotReady(halt);
        }
        match self.serve_until_broken(tcp, &mut connection) {
            Ok(command) => {
                let goes_on = matches!(command.kind, CommandKind::Reconnect | CommandKind::Restart);
                let limit = command.deadline;
                let patience = Patience { limit, goes_on, without_progress: None, awaits_answers: true };
                self.close(tcp, &mut connection, patience);
                Ended::Commanded(command)
            }
            // Our own decision, on a line that works: in good order, so that what was written arrives.
            Err(broken) if is_in_order(&broken.reason) => {
                let limit = later(Instant::now(), self.state.settings.close_timeout);
                // A connection that has reached its age has waited for its requests already; a stale one brings no responses.
                let awaits_answers = matches!(broken.reason, DisconnectReason::RenewalFailed(_));
                let patience = Patience { limit, goes_on: true, without_progress: Some(PATIENCE), awaits_answers };
                self.close(tcp, &mut connection, patience);
                Ended::Lost(broken.reason)
            }
            Err(broken) => {
                if let Some(code) = broken.code {
                    self.say_goodbye(code);
                }
                self.suspect_channels(&broken.reason);
                Ended::Lost(broken.reason)
            }
        }
    }

    /// The server has ended the connection: if not for a reason of its own, then perhaps over what it was being asked for.
    fn suspect_channels(&self, reason: &DisconnectReason) {
        const ITS_OWN: [u16; 3] = [CloseFrame::GOING_AWAY, 1012, 1013];
        let ending = match reason {
            DisconnectReason::ClosedByServer(Some(frame)) if ITS_OWN.contains(&frame.code) => return,
            DisconnectReason::ClosedByServer(Some(_)) => Ending::Closed,
            DisconnectReason::ClosedByServer(None) | DisconnectReason::Transport(_) => Ending::Cut,
            _ => return,
        };
        self.core.wanted.look(|table| table.suspect(ending, Instant::now()));
    }

    /// Discards what a session that never opened left behind; it may have panicked.
    fn forget_session(&mut self) {
        self.link.outbox.clear_urgent();
        self.actions.clear();
        let dropped = self.consumer.held().drop_rest();
        self.core.counters.dropped.add(dropped);
        self.core.wanted.look(|table| table.disconnected(Instant::now()));
        // Only the worker's own can be among them: nobody else is let in before the session is open.
        let _ = self.core.asked.look(|table| table.disconnected());
    }

    /// A close frame, if there is room for it at once.
    fn say_goodbye(&mut self, code: u16) {
        if let Some(transport) = &mut self.link.transport {
            let frame = CloseFrame { code, reason: "".into() };
            self.core.tap().iter().for_each(|tap| tap.close(Some(&frame), true));
            let _ = transport.close(frame);
        }
    }

    fn serve_until_broken(&mut self, tcp: &TcpStream, connection: &mut Connection) -> Result<Command, Broken> {
        let core = self.core;
        self.opened(Instant::now(), connection).map_err(|broken| self.last_words(connection, broken))?;
        core.health.publish(connection.monitors());
        let mut pause = Pause::new(self.consumer.is_behind());
        let mut skips_writing = false;
        loop {
            let written = if std::mem::take(&mut skips_writing) {
                Ok(true)
            } else {
                if let Some(command) = core.commands.standing() {
                    return Ok(command);
                }
                if self.run_handler_commands() | self.link.take(&core.mailbox.source.queue) {
                    self.idle_turns = 0;
                }
                self.write_out()
            };
            let read = written.and_then(|_| self.read_batch(connection));
            let mut read = read.map_err(|broken| self.last_words(connection, broken))?;
            if self.consumer.is_deserted() {
                return Err(Broken::because(DisconnectReason::Deserted));
            }
            let spins = read != Read::More && self.spins();
            if spins {
                self.idle_turns = self.idle_turns.saturating_add(1);
                self.refresh();
                if self.idle_turns % TURNS_A_CLOCK != 0 {
                    continue;
                }
            }
            let now = Instant::now();
            self.end_turn_once_told(now);
            self.pause(&mut pause, read == Read::Paused, connection, now);
            self.link.review_sent(now);
            if self.is_due(connection, now) {
                if read == Read::CaughtUp {
                    // The last look may be old: a handler, or whoever stopped the process, took its time. What came until now
                    // counts, before anyone is told that something did not come.
                    self.refresh();
                    read = self.read_batch(connection).map_err(|broken| self.last_words(connection, broken))?;
                }
                let done = self.look_after(connection, now, read == Read::CaughtUp);
                if done.map_err(|broken| self.last_words(connection, broken))? {
                    self.refresh();
                    continue;
                }
            }
            if self.consumer.next_timer().is_some_and(|at| now >= at) {
                self.fire_timers(now);
                // A timer that is due again at once must not keep the socket from being read.
                self.refresh();
                continue;
            }
            if self.life.reconnect.stable_at().is_some_and(|at| now >= at) {
                self.life.reconnect.forget_if_stable(now);
            }
            let hand_over = self.consumer.hand_over(now, read == Read::Paused);
            if spins || read == Read::More {
                continue;
            }
            let own = [self.life.reconnect.stable_at(), self.consumer.next_timer(), hand_over, pause.tells_at()];
            let outbox = &self.link.outbox;
            let deadlines = [connection.due(core), outbox.limited_until(), outbox.review_at()];
            let deadline = own.into_iter().chain(deadlines).flatten().min();
            let slept = self.sleep(tcp, connection, read, &pause, deadline)?;
            if slept == Slept::HungUp {
                if self.consumer.is_behind() && pause.behind_an_earlier_line {
                    // A second connection's worth would have no bound: the kernel keeps it until the reader has caught up.
                    pause.hung_up = true;
                } else {
                    let lost = Broken::because(DisconnectReason::Transport(ENDED.into()));
                    return Err(self.last_words(connection, lost));
                }
            }
            skips_writing = slept == Slept::SocketOnly;
        }
    }

    /// While a handler has yet to be told of something nothing is read: all of that is one turn.
    fn end_turn_once_told(&self, now: Instant) {
        if !self.consumer.is_handler() || self.life.pending_events.is_empty() {
            self.end_turn(now);
        }
    }

    /// Whether the connection wants to be asked.
    fn is_due(&self, connection: &Connection, now: Instant) -> bool {
        self.core.is_to_try_line()
            || (!connection.is_held_up() && self.core.wanted.has_changed())
            || connection.due(self.core).is_some_and(|due| now >= due)
    }

    /// Lets the connection say what is due, and does it. True when something was done.
    fn look_after(&mut self, connection: &mut Connection, now: Instant, caught_up: bool) -> Result<bool, Broken> {
        let core = self.core;
        let wants_changed = !connection.is_held_up() && core.wanted.take_changed();
        core.duty.begin(now, Doing::Upkeep);
        if core.take_try_line() {
            connection.slept(now);
        }
        connection.tick(self.turn(now, caught_up, wants_changed), core, &mut self.actions);
        self.end_turn_once_told(Instant::now());
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
        let came_before = self.consumer.held().open() as u64;
        core.counters.received_before.set(core.counters.received.get() - came_before);
        core.counters.epoch.set(epoch);
        // What was decided while the session was being opened is asked for now.
        core.wanted.set_changed();
        let subscriptions = core.wanted.status();
        self.link.release(epoch);
        // What waited for this connection goes first.
        self.link.take_all(&core.mailbox.source.queue);
        let result = self.write_out().map(drop);
        core.mailbox.gate.set(Pass::Open { epoch });
        core.status.set(ReadyState::Open);
        let name = &core.tag.name;
        let target = self.target.as_ref().unwrap_or(&self.state.settings.target);
        logger::info!(client:% = name, epoch; "client `{name}`: open ({target}), connection {epoch}");
        metrics::opened(core, now.saturating_duration_since(self.served_at));
        self.life.last_error = None;
        self.life.addresses.opened();
        self.life.places.opened();
        for RefusedChannel { channel, error, .. } in &subscriptions.refused {
            logger::warn!(client:% = name; "client `{name}`: the server refused channel {channel}: {error}");
        }
        let pending = core.wanted.look(|table| table.pending());
        let (restored, refused) = (subscriptions.active, subscriptions.refused);
        self.emit(Event::Open { epoch, restored, refused, pending });
        // What came before it is delivered by the turns that follow, before anything is read.
        result
    }

    /// Delivers one of the messages that came while the session was being opened. False when there are none.
    fn deliver_one_held(&mut self) -> Result<bool, Broken> {
        match self.consumer.held().next() {
            None => return Ok(false),
            Some(Event::Message(message)) => {
                let at = message.received_at().unwrap_or_else(Instant::now);
                self.deliver(message, at)?;
            }
            Some(lagged) => self.emit(lagged),
        }
        Ok(true)
    }

    /// All of them, though the line is broken; as long as nobody who stops the client waits for that.
    pub(super) fn deliver_held(&mut self) {
        while !self.core.commands.stop_presses(HEARD) && self.deliver_one_held().unwrap_or(true) {}
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
        self.count_received();
        read
    }

    /// What came since this was last done.
    fn count_received(&mut self) {
        if let Some(transport) = &self.link.transport {
            let came = transport.bytes_read();
            self.core.counters.bytes_received.add(came - std::mem::replace(&mut self.bytes_seen, came));
        }
        if let Some(at) = self.message_at.take() {
            self.core.health.message_came(at);
        }
    }

    fn read_some(&mut self, connection: &mut Connection) -> Result<Read, Broken> {
        let is_handler = self.consumer.is_handler();
        let mut ends = None;
        let (mut count, mut clock_at) = (0, 0);
        while count < READ_BATCH {
            if !self.over && !self.consumer.has_room_to_read() {
                return Ok(Read::Paused);
            }
            if !self.life.pending_events.is_empty() && is_handler {
                self.deliver_some();
                return Ok(Read::More);
            }
            if self.consumer.held().is_ready() && self.deliver_one_held()? {
                count += 1;
                continue;
            }
            let passed = if self.over { 0 } else { self.pass_on_usual(connection, MESSAGES_A_CLOCK) };
            if passed > 0 {
                self.write_what_waits()?;
            } else {
                match self.read_next(connection, |run| run.deliver_read(Stage::Open))? {
                    Came::Nothing => return Ok(Read::CaughtUp),
                    Came::Part => return Ok(Read::More),
                    Came::Message | Came::Other => {}
                }
            }
            count += passed.max(1);
            if is_handler && self.over && self.core.commands.stop_presses(HEARD) {
                return Ok(Read::More);
            }
            if is_handler && !self.over {
                // Whoever wants something sent or done does not wait for a whole batch of a slow handler.
                if self.core.wants_a_turn(self.link.outbox.is_empty()) {
                    return Ok(Read::More);
                }
                if count >= clock_at {
                    clock_at = count + MESSAGES_A_CLOCK;
                    let now = Instant::now();
                    if *ends.get_or_insert(now + BATCH_TIME) <= now {
                        return Ok(Read::More);
                    }
                }
            }
        }
        Ok(Read::More)
    }

    /// The connection is broken, most likely found by a write. What the server said before that may still be in the
    /// kernel, fills of orders among it: it is read first, and a close frame in it is the better reason.
    pub(super) fn last_words(&mut self, connection: &mut Connection, broken: Broken) -> Broken {
        if is_in_order(&broken.reason) {
            return broken;
        }
        self.begin_over();
        self.deliver_pending();
        self.deliver_held();
        match broken.reason {
            _ if self.reads_broken => broken,
            DisconnectReason::Transport(_) => match self.hear(connection, None) {
                // A close frame of the server's is the better reason.
                Some(found) if !matches!(found.reason, DisconnectReason::Transport(_)) => found,
                _ => broken,
            },
            DisconnectReason::HeartbeatLost { .. } => {
                self.hear_what_is_there(connection);
                broken
            }
            _ => broken,
        }
    }

    /// The connection is over: from now on messages that have arrived are read whether there is room for them or not.
    pub(super) fn begin_over(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            let rest = self.link.transport.as_ref().map_or(0, |transport| transport.arrived() - transport.heard());
            if let Some(queue) = self.consumer.as_queue() {
                queue.begin_rest(rest);
            }
        }
    }

    /// We end the connection, and the server may go on for ever: what the kernel has of it now is read.
    pub(super) fn hear_what_is_there(&mut self, connection: &mut Connection) {
        let there = self.link.transport.as_ref().map(Transport::arrived);
        if !self.reads_broken && there.is_some() {
            self.hear(connection, there);
        }
    }

    /// Reads to the end, or to that many bytes of the connection; returns how reading failed, if it did.
    fn hear(&mut self, connection: &mut Connection, until: Option<u64>) -> Option<Broken> {
        self.link.only_read_from_now_on();
        for _ in 0..LAST_BATCHES {
            self.refresh();
            let read = self.read_batch(connection);
            let heard = self.link.transport.as_ref().map_or(u64::MAX, Transport::heard);
            match read {
                Ok(_) if self.core.commands.stop_presses(HEARD) => break,
                Ok(Read::More) if until.is_none_or(|until| heard < until) => {}
                Ok(_) => break,
                Err(found) => return Some(found),
            }
        }
        None
    }

    pub(super) fn refresh(&mut self) {
        if let Some(transport) = &mut self.link.transport {
            transport.refresh();
        }
    }

    /// What the connection is told of this turn.
    pub(super) fn turn(&self, now: Instant, caught_up: bool, wants_changed: bool) -> Turn {
        let transport = self.link.transport.as_ref();
        Turn {
            now,
            caught_up,
            heard_at: transport.map_or(now, Transport::read_at),
            mid_frame: transport.is_some_and(Transport::is_mid_frame),
            clogged: self.link.outbox.has_urgent(),
            wants_changed,
        }
    }

    fn sleep(
        &mut self,
        tcp: &TcpStream,
        connection: &Connection,
        read: Read,
        pause: &Pause,
        deadline: Option<Instant>,
    ) -> Result<Slept, Broken> {
        let core = self.core;
        let mailbox = &core.mailbox;
        let Some(transport) = &self.link.transport else { return Ok(Slept::Else) };
        // A paused socket is not polled for reading, since it would be readable all the time, but for its end.
        let interest = match read {
            Read::Paused if pause.hung_up => None,
            Read::Paused if transport.wants_to_write() => Some(PollFlags::OUT | HANG_UP),
            Read::Paused => Some(HANG_UP),
            _ => Some(transport.interest()),
        };
        let takes_more = self.link.outbox.is_empty() && transport.is_idle() && !transport.wants_to_write();
        // Channels that a rate limit holds up are looked at again when it is time, not before.
        let may_ask = !connection.is_held_up();
        let look = |link: &Link| {
            core.commands.pending()
                || core.has_told()
                || core.is_to_try_line()
                || (link.outbox.takes_more() && !mailbox.source.queue.is_empty())
                || (may_ask && core.wanted.has_changed())
                || core.asked.due_before(deadline)
        };
        let socket = interest.map(|interest| (tcp.as_fd(), interest));
        match link::sleep(&mailbox.line, &mut self.link, socket, deadline, look) {
            // A worker that callers keep busy never gets to poll: it must still find out what came.
            Ok(waited) if read == Read::Paused && waited.hung_up => Ok(Slept::HungUp),
            Ok(waited) if waited.socket || waited.skipped => {
                self.refresh();
                let only = waited.socket && !waited.rung && takes_more;
                Ok(if only { Slept::SocketOnly } else { Slept::Else })
            }
            Ok(_) => Ok(Slept::Else),
            Err(error) => Err(Broken::because(DisconnectReason::Transport(error.to_string().into()))),
        }
    }
}
