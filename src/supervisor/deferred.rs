//! Calls of user code that the supervisor has to make: they are queued while a lock is held and made by the guardian's thread,
//! where they delay neither a restart nor a stop.

use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use parking_lot::ReentrantMutexGuard;

use super::table::{Job, Table};
use crate::deadline::later;
use crate::metrics;

impl Table {
    pub(super) fn push_job(&self, job: Job) {
        // The receiver is the table's own.
        let _ = self.jobs.0.send(job);
    }

    /// Has the guardian's thread make a call of user code. A caller may hold the table's lock, unless the supervisor has
    /// ended: then the call is made here.
    pub(super) fn defer(&self, call: impl FnOnce(&Self) + Send + 'static) {
        self.push_job(Job::Call(Box::new(call)));
        // Either this sees the guardian's end, or the guardian sees the call.
        fence(Ordering::SeqCst);
        if self.guardian_ended.load(Ordering::Relaxed) {
            self.make_calls();
        }
    }

    /// The next job; `None` when metrics are due.
    pub(super) fn next_job(&self) -> Option<Job> {
        let due = self.next_metrics.lock().filter(|_| !self.rows.lock().children.is_empty());
        match due {
            None => self.jobs.1.recv().ok(),
            Some(due) => self.jobs.1.recv_deadline(due).ok(),
        }
    }

    /// The guardian makes the calls that are left, and none after that.
    pub(super) fn guardian_ends(&self) {
        self.guardian_ended.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.make_calls();
    }

    fn make_calls(&self) {
        for job in self.jobs.1.try_iter() {
            if let Job::Call(call) = job {
                call(self);
            }
        }
    }

    pub(super) fn publish_metrics_if_due(&self, now: Instant) {
        let is_due = || self.next_metrics.lock().is_some_and(|due| now >= due);
        if is_due() {
            let turn = self.publishing.lock();
            // A caller of `publish_metrics` may have published while this waited for the lock.
            if is_due() {
                self.publish_locked(&turn);
            }
        }
    }

    /// Publishes the counters of each client and of all together. The next time that metrics are due is an interval later.
    #[cfg(feature = "metrics")]
    pub(super) fn publish_metrics(&self) {
        self.publish_locked(&self.publishing.lock());
    }

    fn publish_locked(&self, _turn: &ReentrantMutexGuard<'_, ()>) {
        if let Some(due) = &mut *self.next_metrics.lock() {
            *due = later(Instant::now(), self.settings.metrics_every);
        }
        // A recorder is user code: it is not called under the table's lock.
        let states: Vec<_> = self.rows.lock().children.values().map(|child| child.state.clone()).collect();
        states.iter().for_each(|state| state.publish_metrics());
        let count = self.count();
        let states = [
            ("running", count.running),
            ("open", count.open),
            ("restarting", count.restarting),
            ("parked", count.parked),
        ];
        metrics::clients(&states);
    }
}
