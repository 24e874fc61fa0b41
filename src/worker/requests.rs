//! What the worker does about requests and subscriptions on an open connection: matches answers, sees to deadlines, asks
//! for channels, renews what expires, replaces a connection that is old enough.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Run;
use super::serve::lost;
use crate::deadline::later;
use crate::error::{RefusedChannel, RequestError};
use crate::event::Event;
use crate::message::{CloseFrame, Message};
use crate::outbound::accepted::Outbound;
use crate::policy::rate_limit;
use crate::policy::rate_limit::Over;
use crate::policy::requests::{Barred, Claim, Pending, Purpose, Sink};
use crate::receipt::Receipt;
use crate::request::{Request, RpcError};
use crate::response::Response;
use crate::state::DisconnectReason;
use crate::transport::{Broken, Outgoing};
use crate::venue::Renewal;

/// A connection that is to be replaced waits so long for the answers to its requests.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Hands the answer to who asked; gives the message back if it answers nobody.
    pub(super) fn answered(&mut self, message: Message) -> Result<Option<Message>, Broken> {
        let shared = self.shared;
        let Some(answer) = shared.config.correlation.read(&message) else { return Ok(Some(message)) };
        let outcome = answer.outcome.map_err(RequestError::Rpc);
        match shared.requests.claim(&answer.id) {
            Claim::Nobody => return Ok(Some(message)),
            Claim::Late { own: Some(purpose), method } => {
                self.respond(Response { id: answer.id, method, outcome }, Sink::Worker(purpose))?;
            }
            Claim::Late { method, .. } => {
                self.emit(Event::LateResponse(Box::new(Response { id: answer.id, method, outcome })));
            }
            Claim::Pending(pending) => {
                let response = Response { id: answer.id, method: pending.method, outcome };
                self.respond(response, pending.sink)?;
            }
        }
        Ok(None)
    }

    pub(super) fn respond(&mut self, response: Response, sink: Sink) -> Result<(), Broken> {
        match sink {
            Sink::Caller(sender) => {
                // Nobody waits, and it is an answer: it may be an order's.
                if let Err(unclaimed) = sender.try_send(response) {
                    self.emit(Event::LateResponse(Box::new(unclaimed.into_inner())));
                }
            }
            Sink::Handler => {
                self.emit(Event::Response(Box::new(response)));
                if !self.link.outbox.is_empty() {
                    self.drive()?;
                }
            }
            Sink::Worker(Purpose::Renewal) => self.renewed(response)?,
            Sink::Worker(Purpose::Subscription(batch)) => self.batch_answered(batch, response),
        }
        Ok(())
    }

    fn batch_answered(&mut self, batch: u64, response: Response) {
        let shared = self.shared;
        let outcome = match response.outcome {
            Ok(result) => Ok(result),
            Err(RequestError::Rpc(error)) => Err(error),
            Err(_) => {
                shared.subscriptions.lock().unanswered(batch);
                shared.resubscribe.store(true, Ordering::Relaxed);
                return;
            }
        };
        let refused = shared.settle_batch(batch, &outcome);
        // What was refused in company is tried again, and what was decided meanwhile is next.
        shared.resubscribe.store(true, Ordering::Relaxed);
        self.tell_refusals(refused);
    }

    fn tell_refusals(&mut self, refused: Vec<RefusedChannel>) {
        for refusal in refused {
            let RefusedChannel { channel, error } = &refusal;
            log::warn!("client `{}`: channel {channel} is refused: {error}", self.shared.tag.name);
            self.emit(Event::SubscriptionRefused(Box::new(refusal)));
        }
    }

    fn renewed(&mut self, response: Response) -> Result<(), Broken> {
        let failed = |message: String| lost(DisconnectReason::RenewalFailed(message.into()));
        let result = response.decode().map_err(|error| failed(error.to_string()))?;
        let Some(venue) = &self.shared.config.venue else { return Ok(()) };
        let renewal = venue.renewed(&result).map_err(|error| failed(error.to_string()))?;
        self.renewal = renewal.map(|Renewal { after, request }| (later(Instant::now(), after), request));
        Ok(())
    }

    /// When `look_after_session` has something to do, if nothing else happens.
    pub(super) fn session_due(&self) -> Option<Instant> {
        let renewal = self.renewal.as_ref().map(|(at, _)| *at);
        let rotation = self.rotation.map(|(at, _)| at);
        let due = [self.shared.requests.due(), renewal, rotation, self.ask_again_at];
        due.into_iter().chain([self.link.outbox.held_until()]).flatten().min()
    }

    /// Deadlines of requests, channels to ask for, renewal and age. `caught_up` is whether everything that came is read.
    /// True when something was done.
    pub(super) fn look_after_session(&mut self, now: Instant, caught_up: bool) -> Result<bool, Broken> {
        let shared = self.shared;
        let mut done = false;
        if shared.requests.due().is_some_and(|due| now >= due) {
            // Each is told, whatever becomes of the connection for one of them.
            let mut result = Ok(());
            for (response, sink) in shared.requests.expire(now, caught_up) {
                done = true;
                result = result.and(self.respond(response, sink));
            }
            result?;
        }
        // While the rate limits hold them up, to ask more often would only cost more of the account's tokens.
        if self.ask_again_at.is_none_or(|at| now >= at)
            && (shared.resubscribe.swap(false, Ordering::Relaxed) || self.ask_again_at.is_some())
        {
            self.ask_again_at = None;
            done |= self.ask_for_channels(now);
        }
        if let Some((_, request)) = self.renewal.take_if(|(at, _)| now >= *at) {
            done = true;
            self.ask(request, Purpose::Renewal, now)
                .map_err(|error| lost(DisconnectReason::RenewalFailed(format!("{error:?}").into())))?;
        }
        if let Some((_, latest)) = self.rotation.filter(|(at, _)| now >= *at) {
            if shared.requests.pending() == 0 || now >= latest {
                return Err(Broken { reason: DisconnectReason::MaxAge, code: Some(CloseFrame::NORMAL) });
            }
            self.rotation = Some(((now + Duration::from_millis(50)).min(latest), latest));
        }
        Ok(done)
    }

    /// Asks the server for what the caller wants and does not have, as far as the rate limits let it.
    fn ask_for_channels(&mut self, now: Instant) -> bool {
        let shared = self.shared;
        let (batches, mut refused) = shared.plan_batches();
        let any = !batches.is_empty();
        for (batch, request) in batches {
            // When one is held up, the others wait with it.
            if self.ask_again_at.is_none() {
                match self.ask(request, Purpose::Subscription(batch), now) {
                    Ok(()) => continue,
                    Err(Unasked::Over(Over::Wait(time))) => self.ask_again_at = Some(later(now, time)),
                    Err(Unasked::Barred(Barred::Full)) => self.ask_again_at = Some(now + Duration::from_secs(1)),
                    Err(unasked) => {
                        let error = RpcError::new(0, format!("not asked: {unasked:?}"));
                        refused.extend(shared.settle_batch(batch, &Err(error)));
                        shared.resubscribe.store(true, Ordering::Relaxed);
                        continue;
                    }
                }
            }
            shared.subscriptions.lock().withdrawn(batch);
        }
        self.tell_refusals(refused);
        any
    }

    /// Sends a request of the worker's own. A renewal does not wait: not for the rate limits, nor behind what they hold.
    fn ask(&mut self, request: Request, purpose: Purpose, now: Instant) -> Result<(), Unasked> {
        let shared = self.shared;
        let id = shared.requests.next_id();
        let message = shared.config.correlation.encode(&request, &id).map_err(Unasked::Params)?;
        let urgent = purpose == Purpose::Renewal;
        match urgent {
            // It does not wait, but the venue counts it.
            true => drop(rate_limit::charge(&shared.limits, &message)),
            false => shared.charge(&message, true).map_err(Unasked::Over)?,
        }
        let receipt = Arc::new(Receipt::request(id.clone()));
        let pending = Pending {
            method: request.method,
            message: message.clone(),
            deadline: later(now, shared.config.request_timeout),
            receipt: receipt.clone(),
            sink: Sink::Worker(purpose),
        };
        shared.requests.register(id, pending).map_err(Unasked::Barred)?;
        if urgent {
            receipt.begin();
            self.link.outbox.push_urgent(Outgoing::Message(message));
            return Ok(());
        }
        let epoch = Some(self.seat.epoch);
        self.link.outbox.push(Outbound::charged(message, epoch, Some(receipt)));
        Ok(())
    }
}

/// Why a request of the worker's own was not sent.
#[derive(Debug)]
enum Unasked {
    #[expect(dead_code, reason = "printed")]
    Params(Box<str>),
    Over(Over),
    Barred(Barred),
}
