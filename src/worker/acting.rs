//! What the connection decided is done here: sent, told, logged.

use super::run::Run;
use crate::asked::{Caller, answer_caller};
use crate::event::Event;
use crate::logger;
use crate::outbound::accepted::Accepted;
use crate::policy::connection::Connection;
use crate::policy::requests::Whom;
use crate::policy::terms::Action;
use crate::response::Response;
use crate::transport::{Broken, Outgoing};

/// Heartbeats and answers to them that wait for a peer to take them.
const MAX_URGENT: usize = 64;

impl Run<'_> {
    /// Does what the connection wants done. Each of it, though one ends the connection.
    pub(super) fn carry_out(&mut self, connection: &Connection) -> Result<(), Broken> {
        if self.actions.is_empty() {
            return Ok(());
        }
        self.core.health.publish(connection.monitors());
        let mut actions = std::mem::take(&mut self.actions);
        // Callers first: none of them is to wait for a handler that is told of its own requests.
        actions.sort_by_key(|action| !matches!(action, Action::Tell((_, Whom::Caller(_)))));
        let mut result = Ok(());
        for action in actions.drain(..) {
            result = result.and(self.act(action, connection));
        }
        self.actions = actions;
        // Last, and one at a time: should a handler panic at one, the next handler is told the rest.
        if self.consumer.is_handler() && self.life.open && !self.over && !self.closing {
            self.deliver_some();
        } else {
            self.deliver_pending();
        }
        result?;
        self.write_what_waits()
    }

    fn act(&mut self, action: Action<Caller>, connection: &Connection) -> Result<(), Broken> {
        let name = &self.core.tag.name;
        match action {
            Action::Alive => self.alive(connection),
            Action::Ping(payload) => self.link.outbox.push_urgent(Outgoing::Ping(payload)),
            // A peer that takes nothing gets no heap of answers.
            Action::Beat(_) if self.link.outbox.urgent() >= MAX_URGENT => {}
            Action::Beat(message) | Action::SendFirst(message) => {
                self.link.outbox.push_urgent(Outgoing::Message(message))
            }
            Action::Send { message, receipt, price } => {
                // On a connection that is not open yet only what is urgent is written.
                if self.life.open {
                    self.link.outbox.push(Accepted::own(message, self.life.epoch, receipt, price));
                } else {
                    receipt.begin();
                    self.link.outbox.push_urgent(Outgoing::Message(message));
                }
            }
            Action::Tell((response, Whom::Caller(caller))) => {
                // What came before the answer is in the queue when the caller has it.
                self.consumer.catch_up();
                // Nobody waits, and it is an answer: it may be an order's.
                if let Some(answer) = answer_caller(response, &caller).filter(Response::is_answer) {
                    self.life.pending_events.push_back(Event::LateResponse(Box::new(answer)));
                }
            }
            Action::Tell((response, _)) => self.life.pending_events.push_back(Event::Response(Box::new(response))),
            Action::TellLate(response) => self.life.pending_events.push_back(Event::LateResponse(Box::new(response))),
            Action::Refused(refusal) => {
                // Before the session is open, `Event::Open` tells them all.
                if self.life.open {
                    logger::warn!(client:% = name; "client `{name}`: channel {} is refused: {}", refusal.channel, refusal.error);
                    self.life.pending_events.push_back(Event::SubscriptionRefused(Box::new(refusal)));
                }
            }
            Action::Stale { channel, lasted } => {
                let of = channel.as_ref().map(|channel| format!(" of channel {channel}")).unwrap_or_default();
                logger::warn!(client:% = name; "client `{name}`: stale: no data{of} for {lasted:.1?}");
                self.life.pending_events.push_back(Event::Stale { channel, silent_for: lasted });
            }
            Action::Warn(text) => logger::warn!(client:% = name; "client `{name}`: {text}"),
            // It ends already, and what the server still has to say is read first.
            Action::End { .. } if self.closing => {}
            Action::End { reason, code } => return Err(Broken { reason, code }),
        }
        Ok(())
    }

    /// A sign of life came.
    pub(super) fn alive(&mut self, connection: &Connection) {
        let (counters, monitor) = (&self.core.counters, connection.monitors());
        counters.heartbeats.add(1);
        self.core.health.publish(monitor);
        if let Some(time) = monitor.round_trip() {
            counters.ping_round_trip.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }
}
