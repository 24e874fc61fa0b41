//! What the caller wants to be subscribed to, what the server has acknowledged, and what to ask for next. The wanted
//! set is the caller's alone: nothing that the server says or sends adds to it. Pure: no socket, thread or clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::RefusedChannel;
use crate::request::{Request, RpcError};

/// One request for some channels.
///
/// ```
/// use std::sync::Arc;
/// use ws_supervisor::{Request, venue::Batch};
/// let channels: Vec<Arc<str>> = vec!["trades".into(), "book".into()];
/// let batches: Vec<_> = channels.chunks(100).map(|some| Batch::new(Request::new("subscribe", some), some)).collect();
/// # let _ = batches;
/// ```
#[derive(Clone, Debug)]
pub struct Batch {
    pub(crate) request: Request,
    pub(crate) channels: Vec<Arc<str>>,
}

impl Batch {
    /// `request` asks for exactly these channels.
    pub fn new(request: Request, channels: &[Arc<str>]) -> Self {
        Self { request, channels: channels.to_vec() }
    }
}

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
    /// What the server refused on the present connection.
    pub refused: Vec<RefusedChannel>,
}

pub(crate) fn names<C: AsRef<str>>(channels: impl IntoIterator<Item = C>) -> Vec<Arc<str>> {
    channels.into_iter().map(|channel| Arc::from(channel.as_ref())).collect()
}

/// What a batch asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Subscribe,
    Unsubscribe,
}

/// What is known of a channel on the present connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AtServer {
    Absent,
    /// A batch is under way, by its number.
    Asked(u64),
    Present,
    Refused(RpcError),
    /// A batch had no answer.
    Unknown,
}

#[derive(Debug)]
struct Channel {
    wanted: bool,
    at_server: AtServer,
    /// The server would not let it go.
    kept: Option<RpcError>,
    /// How many wait for it: what becomes of it is remembered until each has seen it.
    waiting: usize,
    /// The latest operation that was asked for, and its first batch: answers to older batches are ignored.
    meant: Option<(Operation, u64)>,
    /// Something had no answer on this connection, so that the server may have it or not.
    uncertain: bool,
    /// How many channels may go together with this one: a batch that was refused is halved until the culprit is found.
    together: usize,
}

impl Channel {
    fn unwanted() -> Self {
        Self {
            wanted: false,
            at_server: AtServer::Absent,
            kept: None,
            waiting: 0,
            meant: None,
            uncertain: false,
            together: usize::MAX,
        }
    }

    /// What was asked was not done.
    fn undo(&mut self, operation: Operation) {
        self.at_server = match operation {
            _ if self.uncertain => AtServer::Unknown,
            Operation::Subscribe => AtServer::Absent,
            Operation::Unsubscribe => AtServer::Present,
        };
    }
}

/// How a channel that somebody waits for stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Settled,
    Refused(RpcError),
    UnderWay,
}

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    channels: BTreeMap<Arc<str>, Channel>,
    batches: HashMap<u64, (Operation, Vec<Arc<str>>)>,
    /// Batches whose time ran out: their answers may still come.
    late: BTreeMap<u64, (Operation, Vec<Arc<str>>)>,
    last_batch: u64,
}

impl Subscriptions {
    /// The caller wants these. One that was refused is asked for again.
    pub(crate) fn want(&mut self, channels: &[Arc<str>]) {
        for name in channels {
            let channel = self.channels.entry(name.clone()).or_insert_with(Channel::unwanted);
            (channel.wanted, channel.kept) = (true, None);
            if matches!(channel.at_server, AtServer::Refused(_)) {
                (channel.at_server, channel.together) = (AtServer::Absent, usize::MAX);
            }
        }
    }

    /// The caller does not want these any more.
    pub(crate) fn unwant(&mut self, channels: &[Arc<str>]) {
        for name in channels {
            if let Some(channel) = self.channels.get_mut(name) {
                (channel.wanted, channel.kept) = (false, None);
            }
        }
        self.sweep();
    }

    /// Somebody waits for these, or does not any more.
    pub(crate) fn wait(&mut self, channels: &[Arc<str>], waits: bool) {
        for name in channels {
            if waits {
                self.channels.entry(name.clone()).or_insert_with(Channel::unwanted).waiting += 1;
            } else if let Some(channel) = self.channels.get_mut(name) {
                channel.waiting -= 1;
            }
        }
        self.sweep();
    }

    /// What the server should be asked now, in groups that may go together.
    pub(crate) fn plan(&self) -> Vec<(Operation, Vec<Arc<str>>)> {
        let mut groups: BTreeMap<(bool, usize), Vec<Arc<str>>> = BTreeMap::new();
        for (name, channel) in &self.channels {
            let asks = match (&channel.at_server, channel.wanted) {
                (AtServer::Absent | AtServer::Unknown, true) => true,
                (AtServer::Present | AtServer::Unknown, false) if channel.kept.is_none() => false,
                // Refused now, but an earlier request for it may have been carried out.
                (AtServer::Refused(_), false) if channel.uncertain && channel.kept.is_none() => false,
                _ => continue,
            };
            groups.entry((asks, channel.together)).or_default().push(name.clone());
        }
        let group = |((asks, together), names): ((bool, usize), Vec<Arc<str>>)| {
            let operation = if asks { Operation::Subscribe } else { Operation::Unsubscribe };
            names.chunks(together).map(move |chunk| (operation, chunk.to_vec())).collect::<Vec<_>>()
        };
        // What is to go first makes room for what is to come.
        groups.into_iter().flat_map(group).collect()
    }

    /// A batch is about to be sent; returns its number.
    pub(crate) fn asked(&mut self, operation: Operation, channels: Vec<Arc<str>>) -> u64 {
        self.last_batch += 1;
        for name in &channels {
            if let Some(channel) = self.channels.get_mut(name) {
                channel.at_server = AtServer::Asked(self.last_batch);
                if channel.meant.is_none_or(|(meant, _)| meant != operation) {
                    channel.meant = Some((operation, self.last_batch));
                }
            }
        }
        self.batches.insert(self.last_batch, (operation, channels));
        self.last_batch
    }

    /// Whether batches wait for their answers.
    pub(crate) fn is_asking(&self) -> bool {
        !self.batches.is_empty()
    }

    /// The channels of a batch that may still be answered.
    pub(crate) fn channels_of(&self, batch: u64) -> Vec<Arc<str>> {
        let known = self.batches.get(&batch).or_else(|| self.late.get(&batch));
        known.map_or_else(Vec::new, |(_, channels)| channels.clone())
    }

    /// The server carried out a batch; `acknowledged` says for which channels.
    pub(crate) fn answered(&mut self, batch: u64, acknowledged: impl Fn(&str) -> bool) {
        if let Some((operation, names)) = self.late.remove(&batch) {
            return self.answered_late(batch, operation, &names, acknowledged);
        }
        self.end_batch(batch, |operation, name, channel, _| {
            channel.uncertain = false;
            channel.at_server = match operation {
                Operation::Subscribe if acknowledged(name) => AtServer::Present,
                Operation::Subscribe => AtServer::Refused(RpcError::new(0, "not acknowledged by the server")),
                // One that the server does not name was not subscribed to.
                Operation::Unsubscribe => AtServer::Absent,
            };
        });
    }

    /// A batch that was given up on was carried out after all. What was asked since, and meant the same, need not be
    /// waited for.
    fn answered_late(
        &mut self,
        batch: u64,
        operation: Operation,
        names: &[Arc<str>],
        acknowledged: impl Fn(&str) -> bool,
    ) {
        for name in names.iter().filter(|name| operation == Operation::Unsubscribe || acknowledged(name)) {
            let Some(channel) = self.channels.get_mut(name) else { continue };
            let still = channel.meant.is_some_and(|(meant, since)| meant == operation && since <= batch);
            if still && matches!(channel.at_server, AtServer::Unknown | AtServer::Asked(_) | AtServer::Refused(_)) {
                let subscribed = operation == Operation::Subscribe;
                channel.at_server = if subscribed { AtServer::Present } else { AtServer::Absent };
                channel.uncertain = false;
            }
        }
        self.sweep();
    }

    /// The server refused a batch. Of several channels one may be to blame: they are tried in halves.
    pub(crate) fn refused(&mut self, batch: u64, error: &RpcError) {
        self.end_batch(batch, |operation, _, channel, size| match (operation, size) {
            (Operation::Subscribe, 1) => channel.at_server = AtServer::Refused(error.clone()),
            (Operation::Unsubscribe, 1) => {
                channel.undo(operation);
                channel.kept = Some(error.clone());
            }
            (operation, size) => {
                channel.together = size / 2;
                channel.undo(operation);
            }
        });
    }

    /// A batch was not sent after all.
    pub(crate) fn withdrawn(&mut self, batch: u64) {
        self.end_batch(batch, |operation, _, channel, _| channel.undo(operation));
    }

    /// Nobody knows what became of a batch. To ask again does no harm.
    pub(crate) fn unanswered(&mut self, batch: u64) {
        if let Some(known) = self.batches.get(&batch) {
            self.late.insert(batch, known.clone());
            if self.late.len() > 256 {
                self.late.pop_first();
            }
        }
        self.end_batch(batch, |_, _, channel, _| (channel.at_server, channel.uncertain) = (AtServer::Unknown, true));
    }

    fn end_batch(&mut self, batch: u64, mut verdict: impl FnMut(Operation, &str, &mut Channel, usize)) {
        let Some((operation, names)) = self.batches.remove(&batch) else { return };
        for name in &names {
            let channel = self.channels.get_mut(name).filter(|channel| channel.at_server == AtServer::Asked(batch));
            if let Some(channel) = channel {
                verdict(operation, name, channel, names.len());
            }
        }
        self.sweep();
    }

    /// The connection is over: the next one knows nothing.
    pub(crate) fn disconnected(&mut self) {
        self.batches.clear();
        self.late.clear();
        for channel in self.channels.values_mut() {
            (channel.kept, channel.meant) = (None, None);
            (channel.at_server, channel.uncertain, channel.together) = (AtServer::Absent, false, usize::MAX);
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        self.channels.retain(|_, channel| {
            let gone = match channel.at_server {
                AtServer::Absent => true,
                AtServer::Refused(_) => !channel.uncertain,
                _ => false,
            };
            channel.wanted || channel.waiting > 0 || !gone
        });
    }

    /// How a channel stands for someone who wants it, or wants it gone.
    pub(crate) fn standing(&self, channel: &str, wanted: bool) -> Standing {
        match self.channels.get(channel) {
            None => Standing::Settled,
            Some(Channel { at_server: AtServer::Refused(error), .. }) if wanted => Standing::Refused(error.clone()),
            Some(Channel { kept: Some(error), .. }) if !wanted => Standing::Refused(error.clone()),
            // Somebody else has decided otherwise since.
            Some(channel) if channel.wanted != wanted => Standing::Settled,
            Some(Channel { at_server: AtServer::Present, .. }) if wanted => Standing::Settled,
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
