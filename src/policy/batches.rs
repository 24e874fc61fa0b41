//! Requests for channels that are under way, and those whose answers may still come. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Operation;
use super::suspects::Together;
use crate::request::Request;

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

/// A server may acknowledge the channels of one request in several answers (Kraken does, one for each).
pub(super) const MORE_ANSWERS: Duration = Duration::from_millis(500);

/// Requests whose answers may still come are remembered up to this many.
const MAX_LATE: usize = 256;

/// A request for some channels that is under way.
#[derive(Clone, Debug)]
pub(super) struct UnderWay {
    pub(super) operation: Operation,
    pub(super) names: Vec<Arc<str>>,
    /// Some of them were acknowledged; the rest may be, by answers that still come, until then.
    pub(super) more_until: Option<Instant>,
    /// The server ended a connection while it was asked for them.
    pub(super) on_trial: bool,
}

#[derive(Debug, Default)]
pub(super) struct Batches {
    under_way: HashMap<u64, UnderWay>,
    /// Their time ran out, or a part of them was refused: more answers may come.
    late: BTreeMap<u64, UnderWay>,
    last: u64,
}

impl Batches {
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn insert(&mut self, batch: u64, under_way: UnderWay) {
        self.under_way.insert(batch, under_way);
    }

    pub(super) fn get(&self, batch: u64) -> Option<&UnderWay> {
        self.under_way.get(&batch)
    }

    pub(super) fn get_mut(&mut self, batch: u64) -> Option<&mut UnderWay> {
        self.under_way.get_mut(&batch)
    }

    pub(super) fn end(&mut self, batch: u64) -> Option<UnderWay> {
        self.under_way.remove(&batch)
    }

    pub(super) fn is_asking(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(super) fn has_trial(&self) -> bool {
        self.under_way.values().any(|batch| batch.on_trial)
    }

    /// Whether more answers to a batch may come, though there was one.
    pub(super) fn expects_more(&self, batch: u64) -> bool {
        let expects = |under_way: &UnderWay| under_way.more_until.is_some();
        self.get(batch).is_some_and(expects) || self.late.contains_key(&batch)
    }

    /// The channels of a batch that may still be answered.
    pub(super) fn names(&self, batch: u64) -> Vec<Arc<str>> {
        let known = self.get(batch).or_else(|| self.late.get(&batch));
        known.map_or_else(Vec::new, |under_way| under_way.names.clone())
    }

    /// What the server is being asked for.
    pub(super) fn joining(&self) -> Vec<Together> {
        let joining = self.under_way.values().filter(|batch| batch.operation == Operation::Subscribe);
        joining.map(|batch| Together { names: batch.names.clone(), on_trial: batch.on_trial }).collect()
    }

    /// When the rest of a batch that was answered in part is no longer waited for.
    pub(super) fn parts_due(&self) -> Option<Instant> {
        self.under_way.values().filter_map(|under_way| under_way.more_until).min()
    }

    /// Those whose rest is no longer waited for.
    pub(super) fn incomplete(&self, now: Instant) -> Vec<u64> {
        let is_over = |under_way: &UnderWay| under_way.more_until.is_some_and(|until| until <= now);
        self.under_way.iter().filter(|(_, batch)| is_over(batch)).map(|(batch, _)| *batch).collect()
    }

    /// Answers to the rest of these are believed.
    pub(super) fn keep_late(&mut self, batch: u64, rest: UnderWay) {
        if rest.names.is_empty() {
            return;
        }
        self.late.insert(batch, rest);
        if self.late.len() > MAX_LATE {
            self.late.pop_first();
        }
    }

    pub(super) fn take_late(&mut self, batch: u64) -> Option<UnderWay> {
        self.late.remove(&batch)
    }

    /// The connection is over; numbers are never used again.
    pub(super) fn clear(&mut self) {
        self.under_way.clear();
        self.late.clear();
    }
}
