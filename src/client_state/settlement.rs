//! The settlement at the end of a connection, and of a client: what was accepted and not written is handed back, who waits
//! for an answer is told, and what nobody knows is kept for whoever reconciles.

use std::time::Instant;

use super::{ClientState, Kept, Life};
use crate::asked::tell_caller;
use crate::event::Event;
use crate::inbound::queue::Queue;
use crate::lifecycle::{End, ExitReason};
use crate::logger;
use crate::message::Message;
use crate::metrics;
use crate::outbound::accepted::Accepted;
use crate::outbound::gate::Pass;
use crate::outbound::link::Link;
use crate::policy::requests::Whom;
use crate::policy::restart::{Exit, Fate};
use crate::record::tap::Shown;
use crate::response::Response;
use crate::state::{DisconnectReason, ReadyState};
use crate::unsettled::UnknownRequest;

/// What was accepted and came to nothing.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) unsent: Vec<Message>,
    /// Written, and never acknowledged by the peer's kernel.
    pub(crate) uncertain: Vec<Message>,
    /// Of requests whose outcome is an event, each with the request's place in the order of all.
    responses: Vec<(u64, Response)>,
}

/// A connection that was settled.
#[derive(Clone, Debug)]
pub(crate) struct Disconnected {
    epoch: u64,
    reason: DisconnectReason,
    /// How many messages go back to their senders.
    returned: usize,
}

/// The end of a run: what follows, and what there is to report of it.
#[derive(Clone, Debug)]
pub(crate) struct RunEnd {
    pub(crate) exit: Exit,
    disconnected: Option<Disconnected>,
    /// `None` where the client goes on, or its end was announced before.
    announced: Option<End>,
}

impl Collected {
    /// Responses, in the order in which their requests were made: some were never written, others were never answered.
    fn take_responses(&mut self) -> impl Iterator<Item = Response> + use<> {
        let mut responses = std::mem::take(&mut self.responses);
        responses.sort_by_key(|(order, _)| *order);
        responses.into_iter().map(|(_, response)| response)
    }

    /// Events for the consumer; `last` is made of the messages.
    fn events(mut self, last: impl FnOnce(Vec<Message>, Vec<Message>) -> Event) -> impl Iterator<Item = Event> {
        let responses = self.take_responses().map(|response| Event::Response(Box::new(response)));
        responses.chain([last(self.unsent, self.uncertain)])
    }
}

impl ClientState {
    /// Closes the gate to `pass`, detaches the connection, and collects all that was accepted and not written. Messages for
    /// the next connection stay when the gate still lets such pass.
    fn settle(&self, life: &mut Life, link: &mut Link, pass: Pass) -> Collected {
        let mailbox = &self.core.mailbox;
        let books = &mailbox.source.books;
        // The state first: a client that says it is open refuses no message as not open.
        self.core.status.leave_open();
        mailbox.gate.close(pass);
        link.let_go(books);
        let keep_queued = pass == Pass::Queue;
        let mut collected = Collected { uncertain: link.outbox.take_uncertain(), ..Collected::default() };
        let mut kept = Vec::new();
        let mut accepted = link.outbox.take_all(books);
        accepted.extend(mailbox.source.queue.try_iter());
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
        if self.reconciles {
            life.unsettled.unsent.extend(collected.unsent.iter().cloned());
            life.unsettled.uncertain.extend(collected.uncertain.iter().cloned());
            life.unsettled.unknown.extend(unknown);
        }
        life.open = false;
        self.register_socket(None);
        collected
    }

    /// As `settle`; what the consumer must hear of it is put where it waits to be told, `last` as the last.
    pub(crate) fn settle_for(
        &self,
        life: &mut Life,
        link: &mut Link,
        pass: Pass,
        last: impl FnOnce(Vec<Message>, Vec<Message>) -> Event,
    ) -> usize {
        let collected = self.settle(life, link, pass);
        let handed_back = collected.unsent.len() + collected.uncertain.len();
        life.pending_events.extend(collected.events(last));
        handed_back
    }

    /// As `settle_for`, for a connection that is over while the client goes on.
    pub(crate) fn settle_connection(&self, life: &mut Life, link: &mut Link, reason: DisconnectReason) -> Disconnected {
        let (epoch, why) = (life.epoch, reason.clone());
        let last = |unsent, uncertain| Event::Disconnected { epoch, reason, unsent, uncertain };
        let returned = self.settle_for(life, link, Pass::Queue, last);
        Disconnected { epoch, reason: why, returned }
    }

    /// Ends a run, in this order and under one lock: its fate, which the command that stands may overrule; the state; the
    /// account; the announcement. Events for a handler are left in `pending_events`, for the caller to deliver afterwards:
    /// nothing that user code does then changes what was decided.
    ///
    /// `disconnect` says how a connection that is still open has ended, where that is to be an event of its own.
    pub(crate) fn end_run(
        &self,
        life: &mut Life,
        link: &mut Link,
        queue: Option<&mut Queue>,
        reason: ExitReason,
        disconnect: Option<DisconnectReason>,
    ) -> RunEnd {
        let run_end = self.core.commands.end_run(|standing| {
            let exit = self.exit(reason, standing.map(|command| command.kind));
            let disconnect = match &exit.fate {
                Fate::Restart => disconnect.or(Some(DisconnectReason::RestartRequested)),
                Fate::End(_) => disconnect,
            };
            let disconnect = disconnect.filter(|_| life.open);
            let disconnected = disconnect.map(|reason| self.settle_connection(life, link, reason));
            let mut announced = None;
            match &exit.fate {
                Fate::Restart => self.core.status.set(ReadyState::Connecting),
                // The thread had been abandoned, and the end announced in its stead.
                Fate::End(end) if self.has_concluded(end) => {
                    self.settle_for(life, link, end.pass(), |unsent, uncertain| end.event(unsent, uncertain));
                }
                Fate::End(end) => {
                    self.settle_for(life, link, end.pass(), |unsent, uncertain| end.event(unsent, uncertain));
                    self.announce(end);
                    if let Some(queue) = queue {
                        self.conclude_queue(queue, end, life);
                    }
                    announced = Some(end.clone());
                }
            }
            (exit.decided(), RunEnd { exit, disconnected, announced })
        });
        life.exit = Some(run_end.exit.clone());
        run_end
    }

    /// Logs and publishes what has been announced: calls of user code, made when the lock of the decision is released.
    pub(crate) fn report(&self, run_end: &RunEnd) {
        if let Some(disconnected) = &run_end.disconnected {
            self.report_disconnected(disconnected);
        }
        if let Some(end) = &run_end.announced {
            self.report_end(end);
        }
    }

    pub(crate) fn report_disconnected(&self, Disconnected { epoch, reason, returned }: &Disconnected) {
        let name = &self.core.tag.name;
        let back = match returned {
            0 => String::new(),
            one_or_more => format!("; {one_or_more} messages returned"),
        };
        logger::warn!(client:% = name, epoch, reason = reason.kind(); "client `{name}`: connection {epoch} ended: {reason}{back}");
        metrics::disconnected(&self.core.tag, reason);
    }

    pub(crate) fn report_end(&self, end: &End) {
        let (name, target) = (&self.core.tag.name, &self.settings.target);
        match end {
            End::Closed(ExitReason::Closed) => {
                logger::info!(client:% = name; "client `{name}` ({target}): closed");
            }
            End::Closed(reason) => {
                logger::error!(client:% = name; "client `{name}` ({target}): ended: {reason}");
            }
            End::Parked(reason) => {
                logger::error!(client:% = name; "client `{name}` ({target}): parked: {reason}");
            }
        }
    }

    /// Something accepted was not written.
    fn hand_back(&self, mut item: Accepted, collected: &mut Collected) {
        let mailbox = &self.core.mailbox;
        mailbox.source.books.not_sent(&mut item, &mailbox.admission.limits);
        match &item.receipt {
            None => collected.unsent.push(item.message),
            Some(receipt) => match receipt.request_id() {
                None => receipt.confirm(false),
                Some(id) => match self.core.asked.look(|table| table.not_sent(id)) {
                    // The worker's own are nobody's loss.
                    None | Some((_, (_, Whom::Worker(_)))) => {}
                    Some((order, told)) => {
                        collected.responses.extend(tell_caller(told).map(|(response, _)| (order, response)));
                    }
                },
            },
        }
    }

    /// The connection is over: no answer will come, and no channel is subscribed to.
    fn abandon_requests(&self, collected: &mut Collected) -> Vec<UnknownRequest> {
        let mut unknown = Vec::new();
        for left in self.core.asked.look(|table| table.disconnected()) {
            let told = left.told.and_then(tell_caller);
            collected.responses.extend(told.map(|(response, _)| (left.order, response)));
            unknown.push(UnknownRequest { id: left.id, method: left.method, message: left.message });
        }
        self.core.wanted.look(|table| table.disconnected(Instant::now()));
        unknown
    }

    /// Ends a client that has no worker, or parks it: settles the account, wakes all that wait, gives its queue the last
    /// event. Events that no handler can receive any more stay, for the supervisor's event. False when that was done before.
    pub(crate) fn conclude_idle(&self, end: &End) -> bool {
        let mut kept = self.kept.lock();
        let link = &mut *self.core.mailbox.line.lock();
        if self.has_concluded(end) {
            return false;
        }
        let Kept { queue, life, .. } = &mut *kept;
        self.settle_for(life, link, end.pass(), |unsent, uncertain| end.event(unsent, uncertain));
        self.announce(end);
        if let Some(queue) = queue {
            self.conclude_queue(queue, end, life);
        }
        true
    }

    /// The thread is abandoned: the messages that it has taken can't be recovered, those on their way to it can. False when
    /// the end was announced before.
    pub(crate) fn conclude_abandoned(&self, end: &End) -> bool {
        if self.has_concluded(end) {
            return false;
        }
        self.core.status.leave_open();
        let mailbox = &self.core.mailbox;
        mailbox.gate.close(end.pass());
        let collected = self.settle_unwritten(mailbox.source.queue.try_iter());
        let last = collected.events(|unsent, uncertain| end.event(unsent, uncertain));
        let untold = match &self.tail {
            // Closed, so that the thread, should it come back, has nowhere to put a word after the last.
            Some(tail) => tail.lock().conclude(last),
            None => Event::all_handed_back(last),
        };
        self.left.lock().extend(untold);
        self.record(&end.event(Vec::new(), Vec::new()), Shown::Never);
        self.announce(end);
        true
    }

    /// The last events of a client go to its queue.
    fn conclude_queue(&self, queue: &mut Queue, end: &End, life: &mut Life) {
        let Some(last) = life.pending_events.pop_back() else { return };
        self.push_pending(queue, life);
        self.record(&last, Shown::Now(None));
        queue.conclude(end, last);
    }

    /// The events that wait go to the queue.
    pub(crate) fn push_pending(&self, queue: &mut Queue, life: &mut Life) {
        for event in life.pending_events.drain(..) {
            self.record(&event, Shown::Now(None));
            queue.push_event(event);
        }
    }

    pub(super) fn record(&self, event: &Event, shown: Shown) {
        self.core.tap().iter().for_each(|tap| tap.event(event, shown, Instant::now()));
    }

    /// Whatever is left of a client that has ended.
    pub(super) fn settle_rest(&self, life: &mut Life) {
        let link = &mut *self.core.mailbox.line.lock();
        let collected = self.settle(life, link, Pass::Ended);
        let rest = |unsent, uncertain| End::Closed(ExitReason::Closed).event(unsent, uncertain);
        life.pending_events.extend(collected.events(rest));
    }

    /// None of these was written, and no answer to anything will come.
    fn settle_unwritten(&self, items: impl IntoIterator<Item = Accepted>) -> Collected {
        let mut collected = Collected::default();
        items.into_iter().for_each(|item| self.hand_back(item, &mut collected));
        self.abandon_requests(&mut collected);
        collected
    }

    /// The same for a connection that never was one.
    #[cfg(feature = "testing")]
    pub(crate) fn rehearse_the_end(&self, items: Vec<Accepted>) -> crate::handed_back::HandedBack {
        let mut collected = self.settle_unwritten(items);
        let responses = collected.take_responses().collect();
        let Collected { unsent, uncertain, .. } = collected;
        crate::handed_back::HandedBack { unsent, uncertain, responses, dropped: 0 }
    }

    /// Whether that has been said already.
    pub(crate) fn has_concluded(&self, end: &End) -> bool {
        matches!((self.core.status.get(), end), (ReadyState::Closed, _) | (ReadyState::Parked, End::Parked(_)))
    }
}

impl End {
    pub(crate) fn pass(&self) -> Pass {
        match self {
            Self::Closed(_) => Pass::Ended,
            Self::Parked(_) => Pass::Shut,
        }
    }
}
