//! One open connection: read, feed the heartbeat, act, deliver, write, wait; and the orderly close.

use std::os::fd::AsFd;
use std::time::Instant;

use super::{Ended, Pacer, Run};
use crate::command::Order;
use crate::delivery::Overflow;
use crate::event::{DisconnectReason, Event, ReadyState};
use crate::gate::Pass;
use crate::message::{CloseFrame, Message};
use crate::queue::Overrun;
use crate::session::heartbeat::{Action, Monitor};
use crate::transport::{Broken, Incoming, Outgoing, Transport, wait};
use crate::worker::Context;

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

impl Run<'_> {
    pub(super) fn serve(&mut self, mut transport: Transport) -> Ended {
        let result = self.serve_until_broken(&mut transport);
        match result {
            Ok(order) => {
                self.close(&mut transport, order);
                Ended::Ordered(order)
            }
            Err(broken) => {
                if let Some(code) = broken.code {
                    let reason = "".into();
                    let _ = transport.queue(Outgoing::Close(CloseFrame { code, reason }));
                    let _ = transport.flush();
                }
                transport.shut();
                Ended::Lost(broken.reason)
            }
        }
    }

    fn serve_until_broken(&mut self, transport: &mut Transport) -> Result<Order, Broken> {
        let shared = self.shared;
        (self.reads_broken, self.writes_broken) = (false, false);
        let opened = Instant::now();
        let (mut monitor, first) = Monitor::open(shared.config.heartbeat.clone(), fastrand::u64(..), opened);
        self.act(first)?;
        self.opened(opened);
        shared.health.publish(&monitor);
        let mut pacer = Pacer::default();
        let mut was_paused = false;
        loop {
            if let Some(order) = shared.orders.standing() {
                return Ok(order);
            }
            self.take_commands();
            let driven = self.drive(transport);
            let now = Instant::now();
            let read = match driven {
                Ok(_) => self.read_batch(transport, &mut monitor, now),
                Err(broken) => Err(broken),
            };
            let read = read.map_err(|broken| self.last_words(transport, &mut monitor, broken))?;
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
            if self.seat.reconnect.stable_at().is_some_and(|at| now >= at) {
                self.seat.reconnect.settle(now);
            }
            let pump = self.pump(&mut pacer, now, read == Read::Paused);
            if read == Read::More {
                continue;
            }
            let deadlines = [monitor.due(), self.seat.reconnect.stable_at(), pump];
            let deadline = deadlines.into_iter().flatten().min();
            self.wait(transport, read, deadline)?;
        }
    }

    fn opened(&mut self, now: Instant) {
        let shared = self.shared;
        self.seat.epoch += 1;
        self.seat.open = true;
        self.seat.reconnect.opened(now);
        let epoch = self.seat.epoch;
        shared.counters.received_this_epoch.set(0);
        shared.counters.epoch.set(epoch);
        shared.gate.set(Pass::Open { epoch });
        shared.status.set(ReadyState::Open);
        log::info!("client `{}`: open ({}), connection {epoch}", shared.tag.name, shared.config.target);
        self.emit(Event::Open { epoch });
    }

    /// Takes what callers sent, but no more than the transport can carry away: the bounded channel is what holds a
    /// caller back.
    fn take_commands(&mut self) {
        if !self.seat.outbox.is_empty() {
            return;
        }
        for item in self.shared.outbound.1.try_iter().take(READ_BATCH) {
            // The gate sees to it that none is stale.
            debug_assert!(item.epoch.is_none_or(|epoch| epoch == self.seat.epoch));
            self.seat.outbox.push(item);
            self.idle_turns = 0;
        }
    }

    fn read_batch(&mut self, transport: &mut Transport, monitor: &mut Monitor, now: Instant) -> Result<Read, Broken> {
        for _ in 0..READ_BATCH {
            if self.seat.queue.as_mut().is_some_and(|queue| !queue.ready()) {
                return Ok(Read::Paused);
            }
            let incoming = transport.read(now).inspect_err(|_| self.reads_broken = true)?;
            match incoming {
                Incoming::Message(message) => {
                    self.idle_turns = 0;
                    self.received(transport, monitor, message, now)?;
                }
                Incoming::Ping => {
                    // The pong is queued behind whatever is being written; do not let it wait for a next turn.
                    self.drive(transport)?;
                    if monitor.ping(now) {
                        self.heartbeat(monitor);
                    }
                }
                Incoming::Pong(payload) => {
                    if monitor.pong(&payload, now) {
                        self.heartbeat(monitor);
                    }
                }
                Incoming::Close(frame) => {
                    let _ = self.drive(transport);
                    return Err(lost(DisconnectReason::ClosedByServer(frame)));
                }
                Incoming::Nothing => return Ok(Read::CaughtUp),
                Incoming::Ended => return Err(lost(DisconnectReason::ClosedByServer(None))),
            }
        }
        Ok(Read::More)
    }

    /// The connection is broken, most likely found by a write. What the server said before that may still be in the
    /// kernel, fills of orders among it: it is read first, and a close frame in it is the better reason.
    fn last_words(&mut self, transport: &mut Transport, monitor: &mut Monitor, broken: Broken) -> Broken {
        if self.reads_broken || !matches!(broken.reason, DisconnectReason::Transport(_)) {
            return broken;
        }
        self.writes_broken = true;
        let mut last = broken;
        for _ in 0..LAST_BATCHES {
            transport.refresh();
            match self.read_batch(transport, monitor, Instant::now()) {
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
    fn drive(&mut self, transport: &mut Transport) -> Result<bool, Broken> {
        if self.writes_broken {
            return Ok(false);
        }
        self.seat.outbox.drive(transport, &self.shared.counters.sent)
    }

    fn heartbeat(&mut self, monitor: &Monitor) {
        self.shared.counters.heartbeats.add(1);
        self.shared.health.publish(monitor);
    }

    fn received(
        &mut self,
        transport: &mut Transport,
        monitor: &mut Monitor,
        message: Message,
        now: Instant,
    ) -> Result<(), Broken> {
        let counters = &self.shared.counters;
        counters.received.add(1);
        counters.received_this_epoch.add(1);
        let before = monitor.last_received();
        let verdict = monitor.message(&message, now);
        if verdict.ours {
            if monitor.last_received() != before {
                self.heartbeat(monitor);
            }
            self.act(verdict.action)?;
            self.drive(transport)?;
            return Ok(());
        }
        if let Some(handler) = &mut self.handler {
            let epoch = Some(self.seat.epoch);
            handler.on_message(&mut Context { shared: self.shared, outbox: &mut self.seat.outbox, epoch }, message);
            if !self.seat.outbox.is_empty() {
                self.drive(transport)?;
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

    fn act(&mut self, action: Action) -> Result<(), Broken> {
        match action {
            Action::Nothing => {}
            // A peer that takes nothing gets no heap of pings.
            Action::Ping(_) if self.seat.outbox.has_urgent() => {}
            Action::Ping(payload) => self.seat.outbox.push_urgent(Outgoing::Ping(payload)),
            Action::Send(message) => self.seat.outbox.push_urgent(Outgoing::Message(message)),
            Action::Lost { missed } => return Err(lost(DisconnectReason::HeartbeatLost { missed })),
        }
        Ok(())
    }

    fn wait(&mut self, transport: &mut Transport, read: Read, deadline: Option<Instant>) -> Result<(), Broken> {
        let shared = self.shared;
        if !shared.config.idle.may_park(self.idle_turns) {
            self.idle_turns = self.idle_turns.saturating_add(1);
            transport.refresh();
            return Ok(());
        }
        let takes_commands = self.seat.outbox.is_empty();
        // A paused socket is not polled for reading: it would be readable all the time.
        let socket = match read {
            Read::Paused if transport.is_full() => Some(rustix::event::PollFlags::OUT),
            Read::Paused => None,
            _ => Some(transport.interest()),
        };
        let look = || shared.orders.pending() || (takes_commands && !shared.outbound.1.is_empty());
        let waited = wait(socket.map(|interest| (transport.tcp().as_fd(), interest)), &shared.wake, deadline, look);
        match waited {
            // A worker that callers keep busy never gets to poll: it must still find out what came.
            Ok(waited) if waited.socket || waited.skipped => transport.refresh(),
            Ok(_) => {}
            Err(error) => return Err(lost(DisconnectReason::Transport(error.to_string().into()))),
        }
        Ok(())
    }

    /// The orderly end: what was accepted is written, then a close frame, then the server has its say; all of it
    /// within three quarters of the order's time, so that whoever waits for us sees us come back.
    fn close(&mut self, transport: &mut Transport, mut order: Order) {
        let shared = self.shared;
        let share = |order: Order| {
            let now = Instant::now();
            now + order.deadline.saturating_duration_since(now).mul_f64(0.75)
        };
        let mut deadline = share(order);
        shared.gate.close(Pass::Queue);
        shared.status.set(ReadyState::Closing);
        let mut asked = false;
        while Instant::now() < deadline {
            // A shutdown may have less patience than what we began with.
            if let Some(later) = shared.orders.standing().filter(|later| later.deadline < order.deadline) {
                (order, deadline) = (later, share(later));
            }
            if !asked {
                self.take_commands();
            }
            let Ok(written) = self.seat.outbox.drive(transport, &shared.counters.sent) else { break };
            if written && !asked {
                if !shared.outbound.1.is_empty() {
                    continue;
                }
                asked = true;
                let frame = CloseFrame { code: CloseFrame::NORMAL, reason: "".into() };
                let flushed = transport.queue(Outgoing::Close(frame)).and_then(|()| transport.flush());
                if flushed.is_err() {
                    break;
                }
            }
            match transport.read(Instant::now()) {
                Ok(Incoming::Nothing) => {
                    let interest = (transport.tcp().as_fd(), transport.interest());
                    match wait(Some(interest), &shared.wake, Some(deadline), || false) {
                        Ok(waited) if waited.socket => transport.refresh(),
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
                Ok(Incoming::Message(message)) => self.received_while_closing(message),
                Ok(Incoming::Close(_)) => {
                    let _ = transport.flush();
                    break;
                }
                Ok(Incoming::Ended) | Err(_) => break,
                Ok(Incoming::Ping | Incoming::Pong(_)) => {}
            }
        }
        transport.shut();
    }

    /// Delivered if there is room. The caller asked for the end, so a full queue no longer holds it up.
    fn received_while_closing(&mut self, message: Message) {
        let counters = &self.shared.counters;
        counters.received.add(1);
        counters.received_this_epoch.add(1);
        if let Some(queue) = &mut self.seat.queue {
            let dropped = match self.shared.config.overflow {
                Overflow::DropOldest | Overflow::DropNewest => queue.push_message(message).unwrap_or(1),
                _ => queue.push_or_drop(message),
            };
            counters.dropped.add(dropped);
        } else if let Some(handler) = &mut self.handler {
            let outbox = &mut self.seat.outbox;
            handler.on_message(&mut Context { shared: self.shared, outbox, epoch: None }, message);
        }
    }
}

fn lost(reason: DisconnectReason) -> Broken {
    Broken { reason, code: None }
}
