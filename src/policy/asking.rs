//! What a connection asks for on its own account: the channels that are wanted, within the rate limits and a part of them
//! at a time, and what renews a token. Of `connection`, which decides when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::admission::Unwritten;
use super::connection::{Connection, PLANS};
use super::rate_limit::Over;
use super::requests::{Barred, Pending, Purpose, Whom};
use super::subscriptions::{Batch, Only, Operation};
use super::terms::{Action, Tables};
use crate::deadline::later;
use crate::message::Message;
use crate::receipt::Receipt;
use crate::request::{Json, Request, RpcError};

impl Connection {
    /// Asks for channels at once, unless there is a reason to wait.
    pub(super) fn ask_when_free(&mut self, now: Instant) {
        if !self.upkeep.asks_later() {
            self.upkeep.ask_for_channels_at(now);
        }
    }

    pub(super) fn is_temporary(&self, error: &RpcError) -> bool {
        self.rules.dialect.as_ref().is_some_and(|dialect| dialect.is_temporary(error))
    }

    pub(super) fn batch_answered<T: Tables>(
        &self,
        batch: u64,
        outcome: &Result<Json, RpcError>,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) {
        let acknowledged = match (outcome, &self.rules.dialect) {
            (Ok(result), Some(dialect)) => {
                let result: Value = serde_json::from_slice(result.as_bytes()).unwrap_or_default();
                let channels = tables.subscriptions(|table| table.channels_of(batch));
                channels.into_iter().filter(|channel| dialect.acknowledges(channel, &result)).collect()
            }
            _ => BTreeSet::new(),
        };
        let refused = tables.subscriptions(|table| match outcome {
            Err(error) => table.refused(batch, error),
            Ok(_) => table.answered(batch, &acknowledged, now),
        });
        out.extend(refused.into_iter().map(Action::Refused));
    }

    /// Asks the server for what the caller wants and does not have, as far as the rate limits let it, and no more than a
    /// part of it in one go.
    pub(super) fn ask_for_channels<T: Tables>(
        &mut self,
        only: Only,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) {
        let rules = self.rules.clone();
        let Some(dialect) = &rules.dialect else { return };
        let plans = self.plans;
        let (mut count, mut held_up) = (0, false);
        for (operation, channels) in tables.subscriptions(|table| table.plan(plans, only)) {
            let batches = match operation {
                Operation::Subscribe => dialect.subscribe(&channels),
                Operation::Unsubscribe => dialect.unsubscribe(&channels),
            };
            let batches = match batches {
                Ok(batches) => batches,
                // One of them is too much for the dialect: found in halves, like one that the server refuses.
                Err(fault) => {
                    self.not_asked(operation, channels, &fault, now, tables, out);
                    continue;
                }
            };
            let mut forgotten: BTreeSet<_> = channels.into_iter().collect();
            for Batch { request, channels: asked } in batches {
                for channel in &asked {
                    forgotten.remove(channel);
                }
                // When one is held up, the others wait with it.
                if held_up {
                    continue;
                }
                let size = asked.len();
                let batch = tables.subscriptions(|table| table.asked(operation, asked, now));
                match self.ask(request, Purpose::Subscription(batch), now, tables, out) {
                    Ok(()) => count += size,
                    Err(unasked) => match unasked.try_again(now) {
                        Some(at) => {
                            self.waits_for_id = matches!(unasked, Unasked::Barred(Barred::Duplicate));
                            tables.subscriptions(|table| table.withdrawn(batch));
                            self.upkeep.hold_up_until(at);
                            held_up = true;
                        }
                        // Like that it can never be sent; in smaller parts perhaps.
                        None => {
                            let error = RpcError::new(0, format!("not asked: {}", unasked.describe()));
                            self.batch_answered(batch, &Err(error), now, tables, out);
                            self.upkeep.ask_for_channels_at(now);
                        }
                    },
                }
            }
            // The dialect put these into no batch.
            for channel in forgotten {
                self.not_asked(operation, vec![channel], "the venue's dialect has no request for it", now, tables, out);
            }
        }
        self.plans = match held_up {
            false => PLANS.1,
            true if count == 0 => self.plans,
            true => (4 * count).clamp(PLANS.0, PLANS.1),
        };
        if !self.upkeep.asks_later() && tables.subscriptions(|table| table.has_more(only)) {
            self.upkeep.ask_for_channels_at(now);
        }
    }

    pub(super) fn not_asked<T: Tables>(
        &mut self,
        operation: Operation,
        channels: Vec<Arc<str>>,
        fault: &str,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) {
        let batch = tables.subscriptions(|table| table.asked(operation, channels, now));
        self.batch_answered(batch, &Err(RpcError::new(0, fault)), now, tables, out);
    }

    /// Sends a request of the connection's own. A renewal waits neither for the rate limits nor behind messages that they
    /// hold up.
    pub(super) fn ask<T: Tables>(
        &self,
        request: Request,
        purpose: Purpose,
        now: Instant,
        tables: &T,
        out: &mut Vec<Action<T::Caller>>,
    ) -> Result<(), Unasked> {
        let id = match &request.id {
            None => tables.next_id(),
            Some(id) => {
                tables.reserve(id);
                id.clone()
            }
        };
        let first = purpose == Purpose::Renewal;
        let write = || self.rules.correlation.encode(&request, &id);
        let (message, mut price) = tables.write(first, now, &write).map_err(Unasked::Unwritten)?;
        let receipt = Arc::new(Receipt::request(id.clone()));
        let pending = Pending {
            method: request.method,
            message: message.clone(),
            asked_at: now,
            deadline: later(now, request.timeout.unwrap_or(self.rules.request_timeout)),
            receipt: receipt.clone(),
            whom: Whom::Worker(purpose),
        };
        if let Err(barred) = tables.requests(|table| table.register(id, pending)) {
            tables.refund(&mut price);
            return Err(Unasked::Barred(barred));
        }
        out.push(match first {
            true => {
                receipt.begin();
                Action::SendFirst(message)
            }
            false => Action::Send { message, receipt, price },
        });
        Ok(())
    }
}

/// Why a request of the connection's own was not sent.
pub(super) enum Unasked {
    Unwritten(Unwritten),
    Barred(Barred),
}

/// A rate limit says when to try again; it is never less than this, so that no turn is spent on nothing.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// Too many requests are pending: some will have ended by then.
const TRY_AGAIN_WHEN_FULL: Duration = Duration::from_secs(1);

impl Unasked {
    pub(super) fn try_again(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Unwritten(Unwritten::Over(Over::Wait(time), _)) => Some(later(now, (*time).max(TRY_AGAIN))),
            Self::Barred(Barred::Full | Barred::Duplicate) => Some(later(now, TRY_AGAIN_WHEN_FULL)),
            Self::Unwritten(_) => None,
        }
    }

    pub(super) fn describe(&self) -> Box<str> {
        match self {
            Self::Unwritten(Unwritten::Fault(text)) => {
                format!("the parameters cannot be written as JSON: {text}").into()
            }
            Self::Unwritten(Unwritten::Over(over, _)) => over.refuse(Message::text("")).to_string().into(),
            Self::Unwritten(Unwritten::Refused(error)) => error.to_string().into(),
            Self::Barred(Barred::Full) => "too many requests are pending".into(),
            Self::Barred(Barred::Duplicate) => "a request with its id is pending".into(),
        }
    }
}
