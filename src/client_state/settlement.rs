//! The settlement at the end of a connection, and of a client: what was accepted and not written is handed back, who waits
//! for an answer is told, and what nobody knows is kept for whoever reconciles.

use std::time::Instant;

use super::{ClientState, Kept, Life};
use crate::asked::tell_caller;
use crate::event::Event;
use crate::inbound::queue::Queue;
use crate::lifecycle::{End, ExitReason};
use crate::message::Message;
use crate::metrics;
use crate::outbound::accepted::Accepted;
use crate::outbound::gate::Pass;
use crate::outbound::link::Link;
use crate::policy::requests::Whom;
use crate::response::Response;
use crate::state::{DisconnectReason, ReadyState};
use crate::unsettled::UnknownRequest;

/// What was accepted and came to nothing.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) unsent: Vec<Message>,
    /// Written, and never acknowledged by the peer's kernel.
    pub(crate) uncertain: Vec<Message>,
    /// Of requests whose outcome is an event.
    pub(crate) responses: Vec<Response>,
}

impl Collected {
    /// What the consumer must hear of it; `last` is made of the messages.
    fn events(self, last: impl FnOnce(Vec<Message>, Vec<Message>) -> Event) -> impl Iterator<Item = Event> {
        let responses = self.responses.into_iter().map(|response| Event::Response(Box::new(response)));
        responses.chain([last(self.unsent, self.uncertain)])
    }
}

impl ClientState {
    /// Closes the gate to `pass`, lets go of the connection, and collects all that was accepted and not written. Messages
    /// for whatever connection comes next stay when the gate still lets such pass.
    fn settle(&self, life: &mut Life, link: &mut Link, pass: Pass) -> Collected {
        let mailbox = &self.core.mailbox;
        let books = &mailbox.source.books;
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
        life.untold.extend(collected.events(last));
        handed_back
    }

    /// As `settle_for`, for a connection that is over while the client goes on.
    pub(crate) fn settle_connection(&self, life: &mut Life, link: &mut Link, reason: DisconnectReason) -> usize {
        let epoch = life.epoch;
        let last = |unsent, uncertain| Event::Disconnected { epoch, reason, unsent, uncertain };
        let handed_back = self.settle_for(life, link, Pass::Queue, last);
        if let Some(event @ Event::Disconnected { reason, .. }) = life.untold.back() {
            self.core.tap().iter().for_each(|tap| tap.event(event));
            metrics::disconnected(&self.core.tag, reason);
        }
        handed_back
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
                    None | Some((_, Whom::Worker(_))) => {}
                    Some(told) => collected.responses.extend(tell_caller(told).map(|(response, _)| response)),
                },
            },
        }
    }

    /// The connection is over: no answer will come, and no channel is subscribed to.
    fn abandon_requests(&self, collected: &mut Collected) -> Vec<UnknownRequest> {
        let mut unknown = Vec::new();
        for left in self.core.asked.look(|table| table.disconnected()) {
            collected.responses.extend(left.told.and_then(tell_caller).map(|(response, _)| response));
            unknown.push(UnknownRequest { id: left.id, method: left.method, message: left.message });
        }
        self.core.wanted.look(|table| table.disconnected(Instant::now()));
        unknown
    }

    /// As `conclude`, for a client without a worker.
    pub(crate) fn conclude_idle(&self, end: &End) {
        let mut kept = self.kept.lock();
        self.conclude(&mut kept, &mut self.core.mailbox.line.lock(), end);
    }

    /// The client has ended for good, or is given up on: its queue is told, then everyone who waits. What a handler that is
    /// gone can't be told stays, for the supervisor's event.
    pub(crate) fn conclude(&self, kept: &mut Kept, link: &mut Link, end: &End) {
        if self.has_concluded(end) {
            return;
        }
        let Kept { queue, life } = kept;
        self.settle_for(life, link, end.pass(), |unsent, uncertain| end.event(unsent, uncertain));
        self.announce(end);
        if let Some(queue) = queue {
            conclude_queue(queue, end, life);
        }
    }

    /// The thread was left behind: the messages in its hands can't be recovered, those on their way to it can.
    pub(crate) fn conclude_left_behind(&self, end: &End) {
        if self.has_concluded(end) {
            return;
        }
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
        self.announce(end);
    }

    /// Whatever is left of a client that has ended.
    pub(super) fn settle_rest(&self, life: &mut Life) {
        let link = &mut *self.core.mailbox.line.lock();
        let collected = self.settle(life, link, Pass::Ended);
        let rest = |unsent, uncertain| End::Closed(ExitReason::Closed).event(unsent, uncertain);
        life.untold.extend(collected.events(rest));
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
        let Collected { unsent, uncertain, responses } = self.settle_unwritten(items);
        crate::handed_back::HandedBack { unsent, uncertain, responses, dropped: 0 }
    }

    /// Whether that has been said already.
    pub(crate) fn has_concluded(&self, end: &End) -> bool {
        matches!((self.core.status.get(), end), (ReadyState::Closed, _) | (ReadyState::Parked, End::Parked(_)))
    }
}

/// The last words to a queue.
pub(crate) fn conclude_queue(queue: &mut Queue, end: &End, life: &mut Life) {
    let Some(last) = life.untold.pop_back() else { return };
    life.untold.drain(..).for_each(|event| queue.push_event(event));
    queue.conclude(end, last);
}

impl End {
    pub(crate) fn pass(&self) -> Pass {
        match self {
            Self::Closed(_) => Pass::Ended,
            Self::Parked(_) => Pass::Shut,
        }
    }
}
