//! The orderly end of a connection: what was accepted goes out, a close frame, and the server has its say.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use super::Run;
use crate::command::Order;
use crate::message::{CloseFrame, Message};
use crate::outbound::gate::Pass;
use crate::overflow::Overflow;
use crate::state::ReadyState;
use crate::transport::{Incoming, Outgoing, wait};

impl Run<'_> {
    /// The orderly end: what was accepted is written, then a close frame, then the server has its say; all of it
    /// within three quarters of the order's time, so that whoever waits for us sees us come back.
    pub(super) fn close(&mut self, tcp: &TcpStream, mut order: Order) {
        let shared = self.shared;
        let share = |order: Order| {
            let now = Instant::now();
            now + order.deadline.saturating_duration_since(now).mul_f64(0.75)
        };
        let mut deadline = share(order);
        shared.gate.close(Pass::Queue);
        shared.status.set(ReadyState::Closing);
        self.closing = true;
        let mut asked = false;
        while Instant::now() < deadline {
            // A shutdown may have less patience than what we began with.
            if let Some(later) = shared.orders.standing().filter(|later| later.deadline < order.deadline) {
                (order, deadline) = (later, share(later));
            }
            let now = Instant::now();
            if shared.requests.due().is_some_and(|due| now >= due) {
                for (response, sink) in shared.requests.expire(now, true) {
                    let _ = self.respond(response, sink);
                }
            }
            if !asked {
                self.link.take(&shared.source.queue);
            }
            let Ok(written) = self.drive() else { break };
            // What the rate limits do not let out in time is handed back.
            let held_until = self.link.outbox.held_until();
            let written = written || held_until.is_some_and(|until| until >= deadline);
            if self.link.transport.is_none() {
                break;
            }
            if written && !asked {
                if held_until.is_none() && !shared.source.queue.is_empty() {
                    continue;
                }
                asked = true;
                // Nothing goes out after a close frame.
                self.link.outbox.held = true;
                let frame = CloseFrame { code: CloseFrame::NORMAL, reason: "".into() };
                let Some(transport) = &mut self.link.transport else { break };
                let flushed = transport.queue(Outgoing::Close(frame)).and_then(|()| transport.flush());
                if flushed.is_err() {
                    break;
                }
            }
            let Some(transport) = &mut self.link.transport else { break };
            match transport.read() {
                Ok(Incoming::Nothing) => {
                    let interest = (tcp.as_fd(), transport.interest());
                    let due = [held_until, shared.requests.due()].into_iter().flatten();
                    let until = due.fold(deadline, Instant::min);
                    match wait(Some(interest), &shared.wake, Some(until), || false) {
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
    }

    /// Delivered if there is room. The caller asked for the end, so a full queue no longer holds it up.
    fn received_while_closing(&mut self, message: Message) {
        let counters = &self.shared.counters;
        counters.received.add(1);
        let message = match self.shared.requests.is_idle() {
            true => Some(message),
            false => self.answered(message).unwrap_or(None),
        };
        let Some(message) = message else { return };
        if let Some(queue) = &mut self.seat.queue {
            let dropped = match self.shared.config.overflow {
                Overflow::DropOldest | Overflow::DropNewest => queue.push_message(message).unwrap_or(1),
                _ => queue.push_or_drop(message),
            };
            counters.dropped.add(dropped);
        } else {
            self.with_handler(|handler, context| handler.on_message(context, message));
        }
    }
}
