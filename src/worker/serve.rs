//! One open connection: read, feed the heartbeat, act, deliver, write, wait; and the orderly close.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::event::PollFlags;

use super::establish::Ready;
use super::requests::PATIENCE;
use super::{Ended, Pacer, Run};
use crate::command::Order;
use crate::connect::Halt;
use crate::error::RefusedChannel;
use crate::event::Event;
use crate::inbound::context::Context;
use crate::inbound::queue::Overrun;
use crate::message::{CloseFrame, Message};
use crate::outbound::gate::Pass;
use crate::outbound::link;
use crate::outbound::link::Link;
use crate::overflow::Overflow;
use crate::policy::heartbeat::{Action, Monitor};
use crate::policy::rate_limit;
use crate::state::{DisconnectReason, ReadyState};
use crate::transport::{Broken, Incoming, Outgoing, Transport};

/// Messages read before commands and deadlines get their turn.
const READ_BATCH: usize = 256;

/// Batches read from a connection that can no longer be written to.
const LAST_BATCHES: usize = 1024;

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

/// What `read_one` found.
pub(super) enum One {
    Message(Message, Instant),
    Control,
    Nothing,
}

/// While a worker spins, the clock is read, and deadlines looked at, once in so many turns that find nothing.
const TURNS_A_CLOCK: u32 = 16;

impl Run<'_> {
    pub(super) fn serve(&mut self, transport: Transport, deadline: Instant) -> Ended {
        let tcp = transport.tcp().clone();
        self.link.open(transport);
        let ended = match self.make_ready(&tcp, deadline) {
            Ok((monitor, ready)) => self.serve_ready(&tcp, monitor, ready),
            Err(halt) => {
                self.say_goodbye(CloseFrame::GOING_AWAY);
                self.shared.subscriptions.lock().disconnected();
                Ended::NotReady(halt)
            }
        };
        let _ = tcp.shutdown(Shutdown::Both);
        self.link.let_go(&self.shared.source.sent);
        ended
    }

    fn make_ready(&mut self, tcp: &TcpStream, deadline: Instant) -> Result<(Monitor, Ready), Halt> {
        (self.reads_broken, self.closing) = (false, false);
        // Whatever an earlier session was about when it ended, by a panic perhaps: this connection knows none of it.
        self.link.outbox.clear_urgent();
        self.shared.subscriptions.lock().disconnected();
        let heartbeat = self.shared.config.heartbeat.clone();
        let (mut monitor, first) = Monitor::open(heartbeat, fastrand::u64(..), Instant::now());
        // The first action only asks for heartbeats, and never is a lost one.
        let _ = self.act(first);
        let ready = self.establish(tcp, &mut monitor, deadline)?;
        Ok((monitor, ready))
    }

    fn serve_ready(&mut self, tcp: &TcpStream, monitor: Monitor, ready: Ready) -> Ended {
        match self.serve_until_broken(tcp, monitor, ready) {
            Ok(order) => {
                self.close(tcp, order);
                Ended::Ordered(order)
            }
            Err(broken) => {
                if let Some(code) = broken.code {
                    self.say_goodbye(code);
                }
                Ended::Lost(broken.reason)
            }
        }
    }

    /// A close frame, if there is room for it at once.
    fn say_goodbye(&mut self, code: u16) {
        if let Some(transport) = &mut self.link.transport {
            let _ = transport.queue(Outgoing::Close(CloseFrame { code, reason: "".into() }));
            let _ = transport.flush();
        }
    }

    fn serve_until_broken(&mut self, tcp: &TcpStream, mut monitor: Monitor, ready: Ready) -> Result<Order, Broken> {
        let shared = self.shared;
        self.opened(Instant::now(), ready).map_err(|broken| self.last_words(&mut monitor, broken))?;
        shared.health.publish(&monitor);
        let mut pacer = Pacer::default();
        let mut was_paused = false;
        let mut only_read = false;
        loop {
            let driven = if std::mem::take(&mut only_read) {
                Ok(true)
            } else {
                if let Some(order) = shared.orders.standing() {
                    return Ok(order);
                }
                if self.link.take(&shared.source.queue) {
                    self.idle_turns = 0;
                }
                self.drive()
            };
            let read = driven.and_then(|_| self.read_batch(&mut monitor));
            let read = read.map_err(|broken| self.last_words(&mut monitor, broken))?;
            let spins = read != Read::More && !shared.config.idle.may_park(self.idle_turns);
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
                monitor.excuse(now);
            }
            was_paused = read == Read::Paused;
            let action = monitor.tick(now, read == Read::CaughtUp);
            if action != Action::Nothing {
                shared.health.publish(&monitor);
                self.act(action)?;
                continue;
            }
            if self.timers.next().is_some_and(|at| now >= at) {
                self.fire_timers(now);
                continue;
            }
            if self.seat.reconnect.stable_at().is_some_and(|at| now >= at) {
                self.seat.reconnect.settle(now);
            }
            if self.look_after_session(now, read == Read::CaughtUp)? {
                continue;
            }
            let pump = self.pump(&mut pacer, now, read == Read::Paused);
            if spins {
                shared.duty.begin(now);
            }
            if spins || read == Read::More {
                continue;
            }
            let session = self.session_due();
            let deadlines = [monitor.due(), self.seat.reconnect.stable_at(), self.timers.next(), pump, session];
            let deadline = deadlines.into_iter().flatten().min();
            only_read = self.wait(tcp, read, deadline)?;
        }
    }

    fn opened(&mut self, now: Instant, ready: Ready) -> Result<(), Broken> {
        let shared = self.shared;
        self.renewal = ready.renewal;
        let replaced_at = shared.config.oldest().and_then(|age| now.checked_add(age));
        self.rotation = replaced_at.and_then(|at| Some((at, at.checked_add(PATIENCE)?)));
        self.ask_again_at = None;
        self.seat.epoch += 1;
        self.seat.open = true;
        self.seat.reconnect.opened(now);
        let epoch = self.seat.epoch;
        shared.counters.received_before.set(shared.counters.received.get() - ready.kept.len() as u64);
        shared.counters.epoch.set(epoch);
        // What was decided while the session was being opened is asked for now.
        shared.resubscribe.store(true, Ordering::Relaxed);
        let (restored, refused) = {
            let subscriptions = shared.subscriptions.lock();
            (subscriptions.active(), subscriptions.refusals())
        };
        self.link.release();
        // What waited for this connection goes first.
        self.link.take(&shared.source.queue);
        let mut result = self.drive().map(drop);
        shared.gate.set(Pass::Open { epoch });
        shared.status.set(ReadyState::Open);
        let name = &shared.tag.name;
        log::info!("client `{name}`: open ({}), connection {epoch}", shared.config.target);
        for RefusedChannel { channel, error, .. } in &refused {
            log::warn!("client `{name}`: the server refused channel {channel}: {error}");
        }
        self.emit(Event::Open { epoch, restored, refused });
        let lagged = (ready.dropped > 0).then_some(Event::Lagged { dropped: ready.dropped });
        let (before, after) = match shared.config.overflow {
            Overflow::DropOldest => (lagged, None),
            _ => (None, lagged),
        };
        before.into_iter().for_each(|event| self.emit(event));
        for message in ready.kept {
            let at = message.received_at().unwrap_or(now);
            // Each of them, also when the line is found broken in between.
            result = result.and(self.deliver(message, at));
        }
        after.into_iter().for_each(|event| self.emit(event));
        result
    }

    fn read_batch(&mut self, monitor: &mut Monitor) -> Result<Read, Broken> {
        let read = self.read_some(monitor);
        if let Some(queue) = &mut self.seat.queue {
            queue.flush();
        }
        if let Some(transport) = &mut self.link.transport {
            transport.acknowledge();
            if let Some(nanos) = transport.take_in_socket() {
                self.shared.counters.time_in_socket.record(nanos.get());
            }
        }
        read
    }

    fn read_some(&mut self, monitor: &mut Monitor) -> Result<Read, Broken> {
        for _ in 0..READ_BATCH {
            if self.seat.queue.as_mut().is_some_and(|queue| !queue.ready()) {
                return Ok(Read::Paused);
            }
            let Some(transport) = &mut self.link.transport else { return Ok(Read::CaughtUp) };
            let incoming = transport.read().inspect_err(|_| self.reads_broken = true)?;
            let now = transport.read_at();
            match incoming {
                Incoming::Message(message) => {
                    self.idle_turns = 0;
                    self.received(monitor, message, now)?;
                }
                Incoming::Nothing => return Ok(Read::CaughtUp),
                Incoming::Ping => self.pinged(monitor, now)?,
                Incoming::Pong(payload) => self.ponged(monitor, &payload, now),
                Incoming::Close(frame) => return Err(self.closed(frame)),
                Incoming::Ended => return Err(lost(DisconnectReason::ClosedByServer(None))),
            }
        }
        Ok(Read::More)
    }

    /// Reads one message or control frame, for a session that is not open yet.
    pub(super) fn read_one(&mut self, monitor: &mut Monitor) -> Result<One, Broken> {
        let Some(transport) = &mut self.link.transport else { return Ok(One::Nothing) };
        let incoming = transport.read()?;
        let now = transport.read_at();
        match incoming {
            Incoming::Message(message) => return Ok(One::Message(message, now)),
            Incoming::Nothing => return Ok(One::Nothing),
            Incoming::Ping => self.pinged(monitor, now)?,
            Incoming::Pong(payload) => self.ponged(monitor, &payload, now),
            Incoming::Close(frame) => return Err(self.closed(frame)),
            Incoming::Ended => return Err(lost(DisconnectReason::ClosedByServer(None))),
        }
        Ok(One::Control)
    }

    fn pinged(&mut self, monitor: &mut Monitor, now: Instant) -> Result<(), Broken> {
        // The pong is queued behind whatever is being written; do not let it wait for a next turn.
        self.drive()?;
        if monitor.ping(now) {
            self.heartbeat(monitor);
        }
        Ok(())
    }

    fn ponged(&mut self, monitor: &mut Monitor, payload: &[u8], now: Instant) {
        if monitor.pong(payload, now) {
            self.heartbeat(monitor);
            self.record_round_trip(monitor);
        }
    }

    fn closed(&mut self, frame: Option<CloseFrame>) -> Broken {
        let _ = self.drive();
        lost(DisconnectReason::ClosedByServer(frame))
    }

    /// The connection is broken, most likely found by a write. What the server said before that may still be in the
    /// kernel, fills of orders among it: it is read first, and a close frame in it is the better reason.
    fn last_words(&mut self, monitor: &mut Monitor, broken: Broken) -> Broken {
        if self.reads_broken || !matches!(broken.reason, DisconnectReason::Transport(_)) {
            return broken;
        }
        self.link.writes_broken = true;
        let mut last = broken;
        for _ in 0..LAST_BATCHES {
            self.refresh();
            match self.read_batch(monitor) {
                Ok(Read::More) => {}
                Ok(_) => break,
                Err(found) => {
                    if !matches!(found.reason, DisconnectReason::Transport(_)) {
                        last = found;
                    }
                    break;
                }
            }
        }
        last
    }

    /// Writes what waits, as far as the kernel takes it.
    pub(super) fn drive(&mut self) -> Result<bool, Broken> {
        self.link.drive(&self.shared.source.sent)
    }

    fn refresh(&mut self) {
        if let Some(transport) = &mut self.link.transport {
            transport.refresh();
        }
    }

    fn record_round_trip(&self, monitor: &Monitor) {
        if let Some(time) = monitor.round_trip() {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            self.shared.counters.ping_round_trip.record(micros);
        }
    }

    fn heartbeat(&mut self, monitor: &Monitor) {
        self.shared.counters.heartbeats.add(1);
        self.shared.health.publish(monitor);
    }

    #[inline]
    fn received(&mut self, monitor: &mut Monitor, message: Message, now: Instant) -> Result<(), Broken> {
        self.shared.counters.received.add(1);
        if monitor.reads_messages() && self.heartbeat_message(monitor, &message, now)? {
            return Ok(());
        }
        if self.shared.requests.is_idle() { self.deliver(message, now) } else { self.match_answer(message, now) }
    }

    #[inline(never)]
    fn match_answer(&mut self, message: Message, now: Instant) -> Result<(), Broken> {
        match self.answered(message)? {
            Some(message) => self.deliver(message, now),
            None => Ok(()),
        }
    }

    /// Shows a message to the heartbeat; true when it was one.
    #[inline(never)]
    pub(super) fn heartbeat_message(
        &mut self,
        monitor: &mut Monitor,
        message: &Message,
        now: Instant,
    ) -> Result<bool, Broken> {
        let before = monitor.last_received();
        let verdict = monitor.message(message, now);
        if verdict.ours {
            if monitor.last_received() != before {
                self.heartbeat(monitor);
                self.record_round_trip(monitor);
            }
            self.act(verdict.action)?;
            self.drive()?;
        }
        Ok(verdict.ours)
    }

    /// To the handler or the queue. Inlined where every message passes: a call and a move of the message cost a tenth of
    /// a flood.
    #[inline(always)]
    fn deliver(&mut self, message: Message, now: Instant) -> Result<(), Broken> {
        let counters = &self.shared.counters;
        if let Some(handler) = &mut self.handler {
            self.shared.duty.begin(now);
            let epoch = Some(self.seat.epoch);
            let (outbox, timers) = (&mut self.link.outbox, &mut self.timers);
            handler.on_message(&mut Context { shared: self.shared, outbox, timers, epoch, now }, message);
            if !self.link.outbox.is_empty() {
                self.drive()?;
            }
        } else if let Some(queue) = &mut self.seat.queue {
            match queue.push_message(message) {
                Ok(0) => {}
                Ok(dropped) => counters.dropped.add(dropped),
                Err(Overrun) => {
                    counters.dropped.add(1);
                    return Err(lost(DisconnectReason::Overflow));
                }
            }
        }
        Ok(())
    }

    pub(super) fn act(&mut self, action: Action) -> Result<(), Broken> {
        match action {
            Action::Nothing => {}
            // A peer that takes nothing gets no heap of pings.
            Action::Ping(_) if self.link.outbox.has_urgent() => {}
            Action::Ping(payload) => self.link.outbox.push_urgent(Outgoing::Ping(payload)),
            Action::Send(message) => {
                // It does not wait, but the venue counts it.
                let _ = rate_limit::charge(&self.shared.limits, &message);
                self.link.outbox.push_urgent(Outgoing::Message(message));
            }
            Action::Lost { missed } => return Err(lost(DisconnectReason::HeartbeatLost { missed })),
        }
        Ok(())
    }

    /// Sleeps. True when the socket alone ended the sleep: then there is nothing else to look after first.
    fn wait(&mut self, tcp: &TcpStream, read: Read, deadline: Option<Instant>) -> Result<bool, Broken> {
        let shared = self.shared;
        let Some(transport) = &self.link.transport else { return Ok(false) };
        // A paused socket is not polled for reading: it would be readable all the time.
        let interest = match read {
            Read::Paused if transport.is_full() => Some(PollFlags::OUT),
            Read::Paused => None,
            _ => Some(transport.interest()),
        };
        // Channels that a rate limit holds up are looked at again when it is time, not before.
        let may_ask = self.ask_again_at.is_none();
        let takes_more = self.link.outbox.is_empty();
        let look = |link: &Link| {
            shared.orders.pending()
                || (link.outbox.is_empty() && !shared.source.queue.is_empty())
                || (may_ask && shared.resubscribe.load(Ordering::Relaxed))
                || shared.requests.due_before(deadline)
        };
        let socket = interest.map(|interest| (tcp.as_fd(), interest));
        match link::sleep(&shared.line, &mut self.link, socket, deadline, look) {
            // A worker that callers keep busy never gets to poll: it must still find out what came.
            Ok(waited) if waited.socket || waited.skipped => {
                self.refresh();
                Ok(waited.socket && !waited.rung && takes_more)
            }
            Ok(_) => Ok(false),
            Err(error) => Err(lost(DisconnectReason::Transport(error.to_string().into()))),
        }
    }
}

pub(super) fn lost(reason: DisconnectReason) -> Broken {
    Broken { reason, code: None }
}
