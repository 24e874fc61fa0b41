//! From a handshake to an open session: sign in, run `on_open`, restore subscriptions, reconcile; all on this thread,
//! under the deadline of the attempt, with heartbeats answered meanwhile.

use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::serve::One;
use super::{Pacer, Run};
use crate::client_state::Shared;
use crate::connect::Halt;
use crate::deadline::later;
use crate::error::{ConnectError, SessionError};
use crate::message::Message;
use crate::outbound::link;
use crate::overflow::Overflow;
use crate::policy::heartbeat::{Action, Monitor};
use crate::policy::rate_limit;
use crate::policy::rate_limit::Over;
use crate::request::{Request, RequestId, RpcError};
use crate::session::{Line, Session};
use crate::transport::{Broken, Outgoing};
use crate::unsettled::Unsettled;
use crate::venue::Renewal;

/// What a session leaves to the open connection.
#[derive(Default)]
pub(super) struct Ready {
    /// Messages that came meanwhile.
    pub(super) kept: VecDeque<Message>,
    /// Of these, dropped because the overflow policy says so: before the kept ones, or after them.
    pub(super) dropped: u64,
    pub(super) renewal: Option<(Instant, Request)>,
}

impl Run<'_> {
    /// Makes the session ready, or says why it cannot be.
    pub(super) fn establish(
        &mut self,
        tcp: &TcpStream,
        monitor: &mut Monitor,
        deadline: Instant,
    ) -> Result<Ready, Halt> {
        let config = &self.shared.config;
        if config.on_open.is_none() && config.venue.is_none() && config.reconcile.is_none() {
            return Ok(Ready::default());
        }
        self.shared.duty.begin(Instant::now());
        let mut talk = Talk {
            run: self,
            tcp,
            monitor,
            deadline,
            pacer: Pacer::default(),
            ready: Ready::default(),
            under_way: HashMap::new(),
        };
        let result = talk.establish();
        let ready = talk.ready;
        self.end_turn(Instant::now());
        match result {
            Ok(()) => Ok(ready),
            // An order weighs more than what the code that it cut short makes of it.
            Err(_) if self.shared.orders.standing().is_some() => Err(Halt::Cancelled),
            Err(error) => Err(Halt::Failed(ConnectError::Session(Box::new(error)))),
        }
    }
}

struct Talk<'t, 'r> {
    run: &'t mut Run<'r>,
    tcp: &'t TcpStream,
    monitor: &'t mut Monitor,
    deadline: Instant,
    pacer: Pacer,
    ready: Ready,
    /// Batches of channels that wait for their answers.
    under_way: HashMap<RequestId, u64>,
}

impl Talk<'_, '_> {
    fn establish(&mut self) -> Result<(), SessionError> {
        let shared = self.run.shared;
        if let Some(venue) = &shared.config.venue {
            let renewal = venue.authenticate(&mut Session::new(self))?;
            self.ready.renewal = renewal.map(|Renewal { after, request }| (later(Instant::now(), after), request));
        }
        if let Some(on_open) = &shared.config.on_open {
            on_open(&mut Session::new(self))?;
        }
        self.restore()?;
        if let Some(reconcile) = shared.config.reconcile.as_ref().filter(|_| self.run.seat.epoch > 0) {
            // Kept until it is settled: should this fail or panic, the next attempt has to settle the same.
            let unsettled = self.run.seat.unsettled.clone();
            reconcile(&mut Session::new(self), &unsettled)?;
            self.run.seat.unsettled = Unsettled::default();
        }
        Ok(())
    }

    /// Asks for all that is wanted, and waits until each channel is acknowledged or refused.
    fn restore(&mut self) -> Result<(), SessionError> {
        let shared = self.run.shared;
        shared.resubscribe.store(true, Ordering::Relaxed);
        loop {
            if shared.resubscribe.swap(false, Ordering::Relaxed) {
                for (batch, request) in shared.plan_batches().0 {
                    match Session::new(self).begin(&request) {
                        Ok(id) => drop(self.under_way.insert(id, batch)),
                        // It can never be sent like that; in smaller parts perhaps.
                        Err(error @ (SessionError::Refused(_) | SessionError::Malformed { .. })) => {
                            shared.settle_batch(batch, &Err(RpcError::new(0, error.to_string())));
                            shared.resubscribe.store(true, Ordering::Relaxed);
                        }
                        Err(error) => return Err(error),
                    }
                }
            } else if self.under_way.is_empty() {
                return Ok(());
            } else {
                let message = self.next(self.deadline, "acknowledgement of subscriptions", None)?;
                self.keep(message)?;
            }
        }
    }

    /// Whether a message is the answer to one of the batches.
    fn settle(&mut self, message: &Message) -> bool {
        let shared = self.run.shared;
        if self.under_way.is_empty() {
            return false;
        }
        let answer = shared.config.correlation.read(message);
        let found = answer.and_then(|answer| Some((self.under_way.remove(&answer.id)?, answer.outcome)));
        let Some((batch, outcome)) = found else { return false };
        shared.settle_batch(batch, &outcome);
        // What was refused in company is tried again.
        shared.resubscribe.store(true, Ordering::Relaxed);
        true
    }

    fn check(&self, until: Instant, waiting_for: &str, limit: Option<Duration>) -> Result<(), SessionError> {
        if self.run.shared.orders.standing().is_some() {
            return Err(SessionError::Cancelled);
        }
        if Instant::now() >= until { Err(self.timeout(waiting_for, limit)) } else { Ok(()) }
    }

    fn timeout(&self, waiting_for: &str, limit: Option<Duration>) -> SessionError {
        let limit = limit.unwrap_or(self.run.shared.config.connect_timeout);
        SessionError::Timeout { waiting_for: waiting_for.into(), limit }
    }

    /// The next message that is no heartbeat; `None` when there is none by `until`.
    fn next_by(&mut self, until: Instant) -> Result<Option<Message>, SessionError> {
        for reads in 1_u32.. {
            if self.run.shared.orders.standing().is_some() {
                return Err(SessionError::Cancelled);
            }
            // However much comes, the time is looked at now and then.
            if reads % 64 == 0 && Instant::now() >= until {
                break;
            }
            self.drive()?;
            match self.run.read_one(self.monitor).map_err(disconnected)? {
                One::Message(message, now) => {
                    self.run.shared.counters.received.add(1);
                    if !self.run.heartbeat_message(self.monitor, &message, now).map_err(disconnected)? {
                        return Ok(Some(message));
                    }
                }
                One::Control => {}
                One::Nothing if Instant::now() >= until => break,
                One::Nothing => self.sleep(until)?,
            }
        }
        Ok(None)
    }

    fn drive(&mut self) -> Result<(), SessionError> {
        self.run.drive().map(drop).map_err(disconnected)
    }

    /// Sleeps until bytes come, a heartbeat is due, or `until`.
    fn sleep(&mut self, until: Instant) -> Result<(), SessionError> {
        let shared = self.run.shared;
        let now = Instant::now();
        self.run.end_turn(now);
        match self.monitor.tick(now, true) {
            Action::Nothing => {}
            action => {
                shared.health.publish(self.monitor);
                self.run.act(action).map_err(disconnected)?;
                return self.drive();
            }
        }
        let pump = self.run.pump(&mut self.pacer, now, false);
        let Some(transport) = &mut self.run.link.transport else { return Err(SessionError::Cancelled) };
        transport.acknowledge();
        let interest = transport.interest();
        let deadline = [self.monitor.due(), pump].into_iter().flatten().fold(until, Instant::min);
        let socket = Some((self.tcp.as_fd(), interest));
        let waited = link::sleep(&shared.line, &mut self.run.link, socket, Some(deadline), |_| shared.orders.pending());
        shared.duty.begin(Instant::now());
        let socket = waited.map_err(|error| SessionError::retryable(format!("cannot wait: {error}")))?.socket;
        if let Some(transport) = self.run.link.transport.as_mut().filter(|_| socket) {
            transport.refresh();
        }
        Ok(())
    }
}

impl Line for Talk<'_, '_> {
    fn shared(&self) -> &Shared {
        self.run.shared
    }

    fn epoch(&self) -> u64 {
        self.run.seat.epoch + 1
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn put(&mut self, message: Message) -> Result<(), SessionError> {
        loop {
            self.check(self.deadline, "room under the rate limit", None)?;
            match rate_limit::charge(&self.run.shared.limits, &message) {
                Ok(()) => break,
                Err(over @ Over::Never { .. }) => return Err(over.refuse(message).into()),
                Err(Over::Wait(time)) => {
                    let until = (Instant::now() + time).min(self.deadline);
                    while let Some(message) = self.next_by(until)? {
                        self.keep(message)?;
                        if Instant::now() >= until {
                            break;
                        }
                    }
                }
            }
        }
        self.run.link.outbox.push_urgent(Outgoing::Message(message));
        self.drive()
    }

    fn next(&mut self, until: Instant, waiting_for: &str, limit: Option<Duration>) -> Result<Message, SessionError> {
        self.check(until, waiting_for, limit)?;
        match self.next_by(until)? {
            Some(message) => Ok(message),
            None => Err(self.timeout(waiting_for, limit)),
        }
    }

    fn keep(&mut self, message: Message) -> Result<(), SessionError> {
        // Also while a later batch waits for its turn under a rate limit.
        if self.settle(&message) {
            return Ok(());
        }
        let config = &self.run.shared.config;
        let kept = &mut self.ready.kept;
        if kept.len() >= config.event_capacity {
            match config.overflow {
                Overflow::Backpressure | Overflow::Disconnect => {
                    return Err(SessionError::TooManyMessages(config.event_capacity));
                }
                Overflow::DropNewest => {}
                Overflow::DropOldest => {
                    kept.pop_front();
                    kept.push_back(message);
                }
            }
            self.ready.dropped += 1;
            self.run.shared.counters.dropped.add(1);
            return Ok(());
        }
        kept.push_back(message);
        Ok(())
    }

    fn take_kept(&mut self, wanted: &mut dyn FnMut(&Message) -> bool) -> Option<Message> {
        let index = self.ready.kept.iter().position(wanted)?;
        self.ready.kept.remove(index)
    }
}

fn disconnected(broken: Broken) -> SessionError {
    SessionError::Disconnected(broken.reason)
}
