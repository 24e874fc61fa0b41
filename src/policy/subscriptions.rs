//! What the caller wants to be subscribed to, what the server has acknowledged, and what to ask for next. The wanted
//! set is the caller's alone: nothing that the server says or sends adds to it. Pure: no socket, thread or clock. Every
//! step costs what it changes, not what there is: a client may have twenty thousand channels.
//!
//! Over 400 lines: one table, and all that is done to it but for what is under way (`batches`) and whom an end is blamed on
//! (`suspects`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

pub use super::batches::Batch;
use super::batches::{Batches, MORE_ANSWERS, UnderWay};
pub(crate) use super::channel::Operation;
use super::channel::{AtServer, Channel, Turn};
pub(crate) use super::suspects::Ending;
use super::suspects::{CUTS, Fresh, PROBATION, Together};
use crate::error::RefusedChannel;
use crate::request::RpcError;

/// What a client wants to be subscribed to and what the server has acknowledged.
///
/// ```
/// # use ws_supervisor::{*, venue::{Batch, Venue}, testing::{Script, Server}};
/// # struct Plain;
/// # impl Venue for Plain {
/// #     fn subscribe(&self, channels: &[std::sync::Arc<str>]) -> Vec<Batch> { vec![Batch::new(Request::new("subscribe", channels), channels)] }
/// #     fn unsubscribe(&self, channels: &[std::sync::Arc<str>]) -> Vec<Batch> { vec![Batch::new(Request::new("unsubscribe", channels), channels)] }
/// # }
/// # let server = Server::start(Script::reply(|_, m| {
/// #     let value: serde_json::Value = serde_json::from_str(m.as_text().unwrap()).unwrap();
/// #     vec![serde_json::json!({"id": value["id"], "result": value["params"]}).to_string().into()]
/// # }))?;
/// # let config = ClientConfig::new(server.url())?.venue(Plain);
/// let client = Client::connect(config)?;
/// client.subscribe(["book", "trades"])?;
/// client.unsubscribe(["book"])?;
/// let status = client.subscriptions();
/// assert_eq!((&*status.wanted[0], &*status.active[0]), ("trades", "trades"));
/// assert!(status.refused.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStatus {
    /// What you want: it survives reconnects and restarts.
    pub wanted: Vec<Arc<str>>,
    /// What the server has acknowledged on the present connection.
    pub active: Vec<Arc<str>>,
    /// What the server refused on the present connection, and what was set aside since the server ended the connection
    /// whenever it was asked for; ten minutes later the next connection tries it once more.
    pub refused: Vec<RefusedChannel>,
}

pub(crate) fn names<C: AsRef<str>>(channels: impl IntoIterator<Item = C>) -> Vec<Arc<str>> {
    channels.into_iter().map(|channel| Arc::from(channel.as_ref())).collect()
}

/// How a channel that somebody waits for stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Settled,
    Refused(RpcError),
    UnderWay,
}

/// Which channels may be asked for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Only {
    All,
    /// The session is being opened: those that never ended a connection.
    Unsuspected,
    /// The venue wants to be left alone: what somebody waits for, and it has not put off.
    Awaited,
}

impl Only {
    fn admits(self, channel: &Channel) -> bool {
        self != Self::Awaited || (channel.waiting > 0 && channel.put_off == 0)
    }
}

/// Refused for the moment so often, the channels of a batch are tried in parts: one of them may be the reason.
const PUT_OFF: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    channels: BTreeMap<Arc<str>, Channel>,
    /// Those of them that the server has to be asked about.
    to_ask: BTreeSet<(Turn, Arc<str>)>,
    batches: Batches,
    /// Channels that were settled, one way or the other.
    settled: u64,
    fresh: Fresh,
    /// Channels that the server acknowledged and went on, on whichever connection; and how many they were when a connection's
    /// end was blamed on others last.
    proven: u64,
    proven_by_blame: u64,
}

impl Subscriptions {
    /// The caller wants these. One that was refused is asked for again.
    pub(crate) fn want(&mut self, channels: &[Arc<str>]) {
        for name in channels {
            self.change(name, true, |channel| {
                (channel.wanted, channel.kept) = (true, None);
                if matches!(channel.at_server, AtServer::Refused(_)) {
                    (channel.at_server, channel.together) = (AtServer::Absent, usize::MAX);
                    channel.acquit();
                }
            });
        }
    }

    /// The caller does not want these any more. Should it change its mind before that is done, it is done all the same: it
    /// wants to begin anew.
    pub(crate) fn unwant(&mut self, channels: &[Arc<str>]) {
        for name in channels {
            self.change(name, false, |channel| {
                (channel.wanted, channel.kept, channel.anew) = (false, None, true);
            });
        }
    }

    /// The caller wants these anew: what it has of them is let go first.
    pub(crate) fn want_anew(&mut self, channels: &[Arc<str>]) {
        self.unwant(channels);
        self.want(channels);
    }

    /// Somebody waits for these, or does not any more.
    pub(crate) fn wait(&mut self, channels: &[Arc<str>], waits: bool) {
        for name in channels {
            self.change(name, waits, |channel| match waits {
                true => channel.waiting += 1,
                false => channel.waiting -= 1,
            });
        }
    }

    /// Every change of a channel goes through here: what is to be asked, and what is forgotten, follows from it.
    fn change(&mut self, name: &Arc<str>, create: bool, change: impl FnOnce(&mut Channel)) {
        if create && !self.channels.contains_key(name) {
            self.channels.insert(name.clone(), Channel::unwanted());
        }
        let Some(channel) = self.channels.get_mut(name) else { return };
        let before = channel.turn();
        change(channel);
        if matches!(channel.at_server, AtServer::Absent | AtServer::Refused(_)) {
            channel.anew = false;
        }
        let after = channel.turn();
        let forgotten = channel.is_forgotten();
        if before != after {
            before.map(|turn| self.to_ask.remove(&(turn, name.clone())));
            after.map(|turn| self.to_ask.insert((turn, name.clone())));
        }
        if forgotten {
            self.channels.remove(name);
        }
    }

    /// What the server should be asked now, in groups that may go together: at most so many channels. Suspects go one batch
    /// after the other, so that it is known which one the server closes the connection over; while the session is being
    /// opened not at all.
    pub(crate) fn plan(&self, at_most: usize, only: Only) -> Vec<(Operation, Vec<Arc<str>>)> {
        let mut groups: BTreeMap<(Turn, usize), Vec<Arc<str>>> = BTreeMap::new();
        let mut suspects_left = if self.may_try_suspects(only) { usize::MAX } else { 0 };
        let mut left = at_most;
        for (turn, name) in &self.to_ask {
            let Some(channel) = self.channels.get(name).filter(|channel| only.admits(channel)) else { continue };
            if matches!(turn, Turn::JoinSuspect { .. }) {
                suspects_left = suspects_left.min(channel.together);
                if suspects_left == 0 {
                    break;
                }
                suspects_left -= 1;
            }
            groups.entry((*turn, channel.together)).or_default().push(name.clone());
            left -= 1;
            if left == 0 {
                break;
            }
        }
        let group = |((turn, together), names): ((Turn, usize), Vec<Arc<str>>)| {
            let operation = if turn == Turn::Leave { Operation::Unsubscribe } else { Operation::Subscribe };
            names.chunks(together).map(move |chunk| (operation, chunk.to_vec())).collect::<Vec<_>>()
        };
        groups.into_iter().flat_map(group).collect()
    }

    fn may_try_suspects(&self, only: Only) -> bool {
        // Not before something has proven since the last blame that it is not every channel that ends a connection.
        let is_proven = self.proven > self.proven_by_blame || self.fresh.is_empty();
        only != Only::Unsuspected && is_proven && !self.batches.has_trial() && !self.fresh.has_trial()
    }

    /// Whether there is more to ask now.
    pub(crate) fn has_more(&self, only: Only) -> bool {
        let is_suspect = |turn: &Turn| matches!(turn, Turn::JoinSuspect { .. });
        self.to_ask.first().is_some_and(|(turn, _)| !is_suspect(turn) || self.may_try_suspects(only))
    }

    /// A batch is about to be sent; returns its number.
    pub(crate) fn asked(&mut self, operation: Operation, names: Vec<Arc<str>>, now: Instant) -> u64 {
        let batch = self.batches.next_number();
        for name in &names {
            self.change(name, false, |channel| {
                channel.at_server = AtServer::Asked(batch);
                if channel.meant.is_none_or(|(meant, _)| meant != operation) {
                    channel.meant = Some((operation, batch));
                }
            });
        }
        let is_suspect = |name| self.channels.get(name).is_some_and(|channel: &Channel| channel.suspect);
        let on_trial = operation == Operation::Subscribe && names.iter().any(is_suspect);
        self.batches.insert(batch, UnderWay { operation, names, on_trial, asked_at: now });
        batch
    }

    /// Whether batches wait for their answers.
    pub(crate) fn is_asking(&self) -> bool {
        self.batches.is_asking()
    }

    /// Whether more answers to a batch may come, though there was one.
    pub(crate) fn expects_more(&self, batch: u64) -> bool {
        self.batches.expects_more(batch)
    }

    /// How many channels were settled so far: while this rises, there is progress.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// The channels of a batch that may still be answered.
    pub(crate) fn channels_of(&self, batch: u64) -> Vec<Arc<str>> {
        self.batches.names(batch)
    }

    /// The server carried out a batch, for the acknowledged channels of it. Of a part the rest may follow: when to look,
    /// [`due`](Subscriptions::due) says. Returns what is refused by it.
    pub(crate) fn answered(
        &mut self,
        batch: u64,
        acknowledged: &BTreeSet<Arc<str>>,
        now: Instant,
    ) -> Vec<RefusedChannel> {
        if let Some(mut under_way) = self.batches.take_late(batch) {
            self.answered_late(batch, &under_way, acknowledged);
            under_way.names.retain(|name| !acknowledged.contains(name));
            // Of a part the rest may follow.
            self.batches.keep_late(batch, under_way);
            return Vec::new();
        }
        let Some(under_way) = self.batches.get_mut(batch) else { return Vec::new() };
        if under_way.operation == Operation::Subscribe {
            let (done, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut under_way.names).into_iter().partition(|name| acknowledged.contains(name));
            if !done.is_empty() && !rest.is_empty() {
                under_way.names = rest;
                let on_trial = under_way.on_trial;
                self.batches.expect_rest(batch, now + MORE_ANSWERS);
                for name in &done {
                    self.settle_one(batch, name, |channel| channel.carried_out(Operation::Subscribe));
                }
                self.joined(done, on_trial, now);
                return Vec::new();
            }
            under_way.names = [done.clone(), rest].concat();
            let on_trial = under_way.on_trial;
            self.joined(done, on_trial, now);
        }
        self.end_batch(batch, |operation, name, channel, _| match operation {
            Operation::Subscribe if !acknowledged.contains(name) => {
                channel.uncertain = false;
                channel.at_server = AtServer::Refused(RpcError::new(0, "not acknowledged by the server"));
            }
            operation => channel.carried_out(operation),
        })
    }

    fn joined(&mut self, names: Vec<Arc<str>>, on_trial: bool, now: Instant) {
        if !names.is_empty() {
            self.fresh.push(Together { names, on_trial }, now);
        }
    }

    /// What is no longer fresh was nothing to end the connection over; without a time, all of it.
    fn prove(&mut self, now: Option<Instant>) {
        while let Some(names) = self.fresh.next_proven(now) {
            for name in &names {
                self.proven += 1;
                self.change(name, false, |channel| {
                    channel.proven += 1;
                    channel.acquit();
                });
            }
        }
    }

    /// When to look again: the rest of a batch that was answered in part is no longer waited for, or something is proven.
    pub(crate) fn due(&self) -> Option<Instant> {
        [self.batches.parts_due(), self.fresh.due()].into_iter().flatten().min()
    }

    /// Gives up on parts that did not come, and ends trials; returns what is refused by it. Called when all that came is
    /// read: the end of the connection may be among it.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<RefusedChannel> {
        self.prove(Some(now));
        let nothing_more = BTreeSet::new();
        let mut refused = Vec::new();
        for batch in self.batches.incomplete(now) {
            let known = self.batches.get(batch).cloned();
            refused.extend(self.answered(batch, &nothing_more, now));
            // A part that is later still is believed.
            if let Some(known) = known {
                self.batches.keep_late(batch, known);
            }
        }
        refused
    }

    /// A batch that was given up on was carried out after all. What was asked since, and meant the same, need not be
    /// waited for.
    fn answered_late(&mut self, batch: u64, under_way: &UnderWay, acknowledged: &BTreeSet<Arc<str>>) {
        let UnderWay { operation, names, .. } = under_way;
        for name in names.iter().filter(|name| *operation == Operation::Unsubscribe || acknowledged.contains(*name)) {
            self.change(name, false, |channel| {
                let still = channel.meant.is_some_and(|(meant, since)| meant == *operation && since <= batch);
                if still && matches!(channel.at_server, AtServer::Unknown | AtServer::Asked(_) | AtServer::Refused(_)) {
                    channel.carried_out(*operation);
                }
            });
        }
    }

    /// The server refused a batch. Of several channels one may be to blame: they are tried in halves. Returns what is
    /// refused by it.
    pub(crate) fn refused(&mut self, batch: u64, error: &RpcError) -> Vec<RefusedChannel> {
        // It may be a part, and others follow.
        if let Some(known) = self.batches.get(batch).filter(|known| known.names.len() > 1).cloned() {
            self.batches.keep_late(batch, known);
        }
        self.end_batch(batch, |operation, _, channel, size| match (operation, size) {
            (Operation::Subscribe, 1) => channel.at_server = AtServer::Refused(error.clone()),
            (Operation::Unsubscribe, 1) => {
                channel.undo(operation);
                (channel.kept, channel.anew) = (Some(error.clone()), false);
            }
            (operation, size) => {
                channel.together = size / 2;
                channel.undo(operation);
            }
        })
    }

    /// The server refused a batch for the moment.
    pub(crate) fn put_off(&mut self, batch: u64) {
        self.end_batch(batch, |operation, _, channel, size| {
            channel.undo(operation);
            (channel.put_off, channel.tries) = (channel.put_off + 1, channel.tries + 1);
            if channel.put_off >= PUT_OFF {
                channel.together = (size / 2).max(1);
            }
        });
    }

    /// A batch was not sent after all, or not now.
    pub(crate) fn withdrawn(&mut self, batch: u64) {
        self.end_batch(batch, |operation, _, channel, _| channel.undo(operation));
    }

    /// Nobody knows what became of a batch. To ask again does no harm.
    pub(crate) fn unanswered(&mut self, batch: u64) {
        if let Some(known) = self.batches.get(batch).cloned() {
            self.batches.keep_late(batch, known);
        }
        self.end_batch(batch, |operation, _, channel, size| {
            (channel.at_server, channel.uncertain, channel.tries) = (AtServer::Unknown, true, channel.tries + 1);
            match operation {
                // One of them may be why there is no answer.
                Operation::Subscribe => channel.together = (size / 2).max(1),
                // Whoever wanted it anew was told of the timeout.
                Operation::Unsubscribe => channel.anew = false,
            }
        });
    }

    fn end_batch(
        &mut self,
        batch: u64,
        mut verdict: impl FnMut(Operation, &Arc<str>, &mut Channel, usize),
    ) -> Vec<RefusedChannel> {
        let Some(UnderWay { operation, names, .. }) = self.batches.end(batch) else { return Vec::new() };
        let size = names.len();
        let mut refused = Vec::new();
        for name in &names {
            self.settle_one(batch, name, |channel| verdict(operation, name, channel, size));
            if let Some(Channel { at_server: AtServer::Refused(error), wanted: true, .. }) = self.channels.get(name) {
                refused.push(RefusedChannel { channel: name.clone(), error: error.clone() });
            }
        }
        refused
    }

    fn settle_one(&mut self, batch: u64, name: &Arc<str>, verdict: impl FnOnce(&mut Channel)) {
        let mut settled = 0;
        self.change(name, false, |channel| {
            if channel.at_server == AtServer::Asked(batch) {
                verdict(channel);
                settled = u64::from(matches!(channel.at_server, AtServer::Present | AtServer::Refused(_)));
            }
        });
        self.settled += settled;
    }

    /// The server has ended the connection, and not for a reason of its own: what it was being asked for, or what it had just
    /// acknowledged, may be why. That is narrowed down on the connections that follow.
    pub(crate) fn suspect(&mut self, ending: Ending, now: Instant) {
        // A server that cuts the line over what it is asked for does so at once; a network does it at any time.
        let since = (ending == Ending::Cut).then(|| now.checked_sub(PROBATION)).flatten();
        let blamed = self.fresh.blamed(self.batches.joining(since));
        self.proven_by_blame = self.proven;
        let (proven, alone, half) = (self.proven, blamed.len() == 1, (blamed.len() / 2).max(1));
        for name in &blamed {
            self.change(name, false, |channel| {
                // One that was acknowledged is less likely to be the reason.
                let weight = if channel.at_server == AtServer::Present { 1 } else { 2 };
                channel.cuts += if ending == Ending::Cut { weight } else { 0 };
                channel.suspect |= ending == Ending::Closed || channel.cuts >= CUTS;
                if channel.suspect {
                    channel.together = channel.together.min(half);
                    if alone {
                        channel.strike(ending, proven);
                    }
                }
            });
        }
    }

    /// The connection is over: the next one knows nothing, but for what ended the last ones.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.batches.clear();
        // Whatever ended it, it was none of these.
        self.prove(None);
        let names: Vec<_> = self.channels.keys().cloned().collect();
        for name in &names {
            self.change(name, false, |channel| {
                (channel.kept, channel.meant, channel.uncertain, channel.put_off) = (None, None, false, 0);
                if !channel.suspect {
                    channel.together = usize::MAX;
                }
                channel.at_server = match channel.is_set_aside(now) {
                    true => AtServer::Refused(RpcError::new(0, "set aside: the server ends the connection over it")),
                    false => AtServer::Absent,
                };
            });
        }
    }

    /// How a channel stands for someone who wants it, or wants it gone.
    pub(crate) fn standing(&self, channel: &str, wanted: bool) -> Standing {
        match self.channels.get(channel) {
            None => Standing::Settled,
            Some(Channel { at_server: AtServer::Refused(error), .. }) if wanted => Standing::Refused(error.clone()),
            Some(Channel { kept: Some(error), .. }) => Standing::Refused(error.clone()),
            // Somebody else has decided otherwise since.
            Some(channel) if channel.wanted != wanted => Standing::Settled,
            Some(Channel { at_server: AtServer::Present, anew: false, .. }) if wanted => Standing::Settled,
            Some(Channel { at_server: AtServer::Absent, .. }) if !wanted => Standing::Settled,
            Some(Channel { at_server: AtServer::Refused(_), uncertain: false, .. }) if !wanted => Standing::Settled,
            Some(_) => Standing::UnderWay,
        }
    }

    /// What the caller wants.
    pub(crate) fn wanted(&self) -> Vec<Arc<str>> {
        self.select(|channel| channel.wanted)
    }

    /// What the server has acknowledged on this connection.
    pub(crate) fn active(&self) -> Vec<Arc<str>> {
        self.select(|channel| channel.at_server == AtServer::Present)
    }

    /// What is wanted and refused on this connection.
    pub(crate) fn refusals(&self) -> Vec<RefusedChannel> {
        let refused = |(name, channel): (&Arc<str>, &Channel)| match &channel.at_server {
            AtServer::Refused(error) if channel.wanted => {
                Some(RefusedChannel { channel: name.clone(), error: error.clone() })
            }
            _ => None,
        };
        self.channels.iter().filter_map(refused).collect()
    }

    /// What is wanted and neither acknowledged nor refused.
    pub(crate) fn pending(&self) -> Vec<Arc<str>> {
        let undecided = |at_server: &AtServer| !matches!(at_server, AtServer::Present | AtServer::Refused(_));
        self.select(|channel| channel.wanted && undecided(&channel.at_server))
    }

    pub(crate) fn status(&self) -> SubscriptionStatus {
        SubscriptionStatus { wanted: self.wanted(), active: self.active(), refused: self.refusals() }
    }

    fn select(&self, which: impl Fn(&Channel) -> bool) -> Vec<Arc<str>> {
        self.channels.iter().filter(|(_, channel)| which(channel)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
