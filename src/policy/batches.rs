//! Requests for channels that are under way, and those whose answers may still come. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// The server ended a connection while it was asked for them.
    pub(super) on_trial: bool,
    pub(super) asked_at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Batches {
    under_way: HashMap<u64, UnderWay>,
    /// Those that were answered in part, and those with suspects in them: looked for often, and few.
    in_part: BTreeMap<u64, Instant>,
    trials: BTreeSet<u64>,
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
        if under_way.on_trial {
            self.trials.insert(batch);
        }
        self.under_way.insert(batch, under_way);
    }

    pub(super) fn get(&self, batch: u64) -> Option<&UnderWay> {
        self.under_way.get(&batch)
    }

    pub(super) fn get_mut(&mut self, batch: u64) -> Option<&mut UnderWay> {
        self.under_way.get_mut(&batch)
    }

    /// It was answered in part: the rest may follow until then.
    pub(super) fn expect_rest(&mut self, batch: u64, until: Instant) {
        self.in_part.insert(batch, until);
    }

    pub(super) fn end(&mut self, batch: u64) -> Option<UnderWay> {
        self.in_part.remove(&batch);
        self.trials.remove(&batch);
        self.under_way.remove(&batch)
    }

    pub(super) fn is_asking(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(super) fn has_trial(&self) -> bool {
        !self.trials.is_empty()
    }

    /// Whether more answers to a batch may come, though there was one.
    pub(super) fn expects_more(&self, batch: u64) -> bool {
        self.in_part.contains_key(&batch) || self.late.contains_key(&batch)
    }

    /// The channels of a batch that may still be answered.
    pub(super) fn names(&self, batch: u64) -> Vec<Arc<str>> {
        let known = self.get(batch).or_else(|| self.late.get(&batch));
        known.map_or_else(Vec::new, |under_way| under_way.names.clone())
    }

    /// What the server is being asked for since then.
    pub(super) fn joining(&self, since: Option<Instant>) -> Vec<Together> {
        let joining = self.under_way.values().filter(|batch| batch.operation == Operation::Subscribe);
        let joining = joining.filter(|batch| since.is_none_or(|since| batch.asked_at > since));
        joining.map(|batch| Together { names: batch.names.clone(), on_trial: batch.on_trial }).collect()
    }

    /// When the rest of a batch that was answered in part is no longer waited for.
    pub(super) fn parts_due(&self) -> Option<Instant> {
        self.in_part.values().min().copied()
    }

    /// Those whose rest is no longer waited for.
    pub(super) fn incomplete(&self, now: Instant) -> Vec<u64> {
        self.in_part.iter().filter(|(_, until)| **until <= now).map(|(batch, _)| *batch).collect()
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
        let last = self.last;
        *self = Self { last, ..Self::default() };
    }
}
