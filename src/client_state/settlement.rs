//! The account at a connection's end: what was accepted and not written, which requests nobody knows the outcome of, which
//! channels must be asked for anew. And what is asked for on the worker's own account.

use serde_json::Value;

use super::{Seat, Shared};
use crate::error::RefusedChannel;
use crate::message::Message;
use crate::outbound::accepted::Outbound;
use crate::outbound::gate::Pass;
use crate::outbound::link::Link;
use crate::policy::requests::{Sink, tell_caller};
use crate::policy::subscriptions::{Operation, Subscriptions};
use crate::request::{Json, Request, RpcError};
use crate::response::Response;
use crate::unsettled::UnknownRequest;

/// What was accepted and came to nothing.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) unsent: Vec<Message>,
    /// Of requests of the handler's.
    pub(crate) responses: Vec<Response>,
}

impl Shared {
    /// Closes the gate to `pass` and collects all that was accepted and not written. Messages for whatever connection
    /// comes next stay when the gate still lets such pass.
    pub(crate) fn collect_unsent(&self, seat: &mut Seat, link: &mut Link, pass: Pass) -> Collected {
        self.gate.close(pass);
        link.let_go(&self.source.sent);
        let keep_queued = pass == Pass::Queue;
        let mut collected = Collected::default();
        let mut kept = Vec::new();
        let accepted: Vec<Outbound> = link.outbox.take_all().chain(self.source.queue.try_iter()).collect();
        for item in accepted {
            if keep_queued && item.epoch.is_none() {
                item.receipt.iter().for_each(|receipt| receipt.wait_again());
                kept.push(item);
                continue;
            }
            self.hand_back(item, &mut collected);
        }
        link.outbox.requeue(kept);
        let unknown = self.abandon_requests(&mut collected);
        if self.config.reconcile.is_some() {
            seat.unsettled.unsent.extend(collected.unsent.iter().cloned());
            seat.unsettled.unknown.extend(unknown);
        }
        seat.open = false;
        self.register_socket(None);
        collected
    }

    /// Something accepted was not written.
    pub(super) fn hand_back(&self, item: Outbound, collected: &mut Collected) {
        match &item.receipt {
            None => collected.unsent.push(item.message),
            Some(receipt) => match receipt.request_id() {
                None => receipt.settle(false),
                Some(id) => match self.requests.not_sent(id) {
                    // The worker's own are nobody's loss.
                    None | Some((_, Sink::Worker(_))) => return,
                    Some(told) => collected.responses.extend(tell_caller(told).map(|(response, _)| response)),
                },
            },
        }
        self.counters.unsent.add(1);
    }

    /// The connection is over: no answer will come, and no channel is subscribed to.
    pub(super) fn abandon_requests(&self, collected: &mut Collected) -> Vec<UnknownRequest> {
        let mut unknown = Vec::new();
        for left in self.requests.disconnected() {
            collected.responses.extend(left.untold);
            unknown.push(UnknownRequest { id: left.id, method: left.method, message: left.message });
        }
        self.subscriptions.lock().disconnected();
        self.settled.notify_all();
        unknown
    }

    /// Which requests bring about what the caller wants, each with the number of its batch.
    /// And channels for which there is none.
    pub(crate) fn plan_batches(&self) -> (Vec<(u64, Request)>, Vec<RefusedChannel>) {
        let Some(venue) = &self.config.venue else { return Default::default() };
        let mut subscriptions = self.subscriptions.lock();
        let known = subscriptions.refusals();
        let mut requests = Vec::new();
        for (operation, mut channels) in subscriptions.plan() {
            let batches = match operation {
                Operation::Subscribe => venue.subscribe(&channels),
                Operation::Unsubscribe => venue.unsubscribe(&channels),
            };
            for batch in batches {
                channels.retain(|channel| !batch.channels.contains(channel));
                requests.push((subscriptions.asked(operation, batch.channels), batch.request));
            }
            for forgotten in channels {
                let batch = subscriptions.asked(operation, vec![forgotten]);
                subscriptions.refused(batch, &RpcError::new(0, "the venue's dialect has no request for it"));
            }
        }
        let refused = new_refusals(&subscriptions, &known);
        drop(subscriptions);
        self.settled.notify_all();
        (requests, refused)
    }

    /// A batch was answered, if late; returns the channels that are refused with it.
    pub(crate) fn settle_batch(&self, batch: u64, outcome: &Result<Json, RpcError>) -> Vec<RefusedChannel> {
        let Some(venue) = &self.config.venue else { return Vec::new() };
        let mut subscriptions = self.subscriptions.lock();
        let known = subscriptions.refusals();
        match outcome {
            Err(error) => subscriptions.refused(batch, error),
            Ok(result) => {
                let result: Value = serde_json::from_slice(result.as_bytes()).unwrap_or_default();
                subscriptions.answered(batch, |channel| venue.acknowledges(channel, &result));
            }
        }
        // Before the callers who wait can take back what they wanted.
        let refused = new_refusals(&subscriptions, &known);
        drop(subscriptions);
        self.settled.notify_all();
        refused
    }
}

fn new_refusals(subscriptions: &Subscriptions, known: &[RefusedChannel]) -> Vec<RefusedChannel> {
    subscriptions.refusals().into_iter().filter(|refusal| !known.contains(refusal)).collect()
}
