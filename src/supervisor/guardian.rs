//! The guardian's thread. It replaces the supervisor's thread when that panics (the table outlives the thread, and the next
//! one adopts what it finds), and it makes the supervisor's calls of user code: log lines, metrics, destructors. A logger that
//! blocks therefore delays other log lines, and no restart.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use super::event::SupervisorEvent;
use super::table::{Job, Table};
use crate::logger;
use crate::metrics;
use crate::user_code::panic_message;

/// Pause before the system is asked again for a thread that it did not give.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// A running guardian.
pub(super) struct Guardian {
    thread: Thread,
    handle: Mutex<Option<JoinHandle<()>>>,
    /// Disconnected when the guardian has ended.
    ended: Receiver<()>,
}

impl Guardian {
    /// Starts the guardian, which starts the supervisor's thread.
    pub(super) fn start(table: &Arc<Table>) -> io::Result<Self> {
        let table = table.clone();
        let (last, ended) = crossbeam_channel::bounded(0);
        let handle = std::thread::Builder::new().name("ws-guardian".into()).spawn(move || {
            let _last = last;
            while !guard_one(&table) {}
            table.guardian_ends();
        })?;
        Ok(Self { thread: handle.thread().clone(), handle: Mutex::new(Some(handle)), ended })
    }

    /// Joins the guardian's thread, which has the last calls of user code to make, if it ends by then. Not from that thread
    /// itself, on which the last handle of a supervisor may be dropped.
    pub(super) fn join_by(&self, deadline: Instant) {
        if std::thread::current().id() == self.thread.id() {
            return;
        }
        if self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected) {
            if let Some(handle) = self.handle.lock().take() {
                let _ = handle.join();
            }
        }
    }
}

/// Reports the end of the supervisor's thread, however it ends.
struct EndNotice(Arc<Table>);

impl Drop for EndNotice {
    fn drop(&mut self) {
        self.0.push_job(Job::SupervisorThreadEnded);
    }
}

/// Starts a supervisor's thread and stays until that has ended. True when it was the last.
fn guard_one(table: &Arc<Table>) -> bool {
    let supervised = table.clone();
    let run = move || {
        let _notice = EndNotice(supervised.clone());
        supervised.run();
    };
    let thread = match std::thread::Builder::new().name("ws-supervisor".into()).spawn(run) {
        Ok(thread) => thread,
        Err(error) => {
            logger::error!("no thread for the supervisor, trying again in {TRY_AGAIN:?}: {error}");
            std::thread::sleep(TRY_AGAIN);
            return false;
        }
    };
    loop {
        match table.next_job() {
            Some(Job::Call(call)) => drop(catch_unwind(AssertUnwindSafe(|| call(table)))),
            Some(Job::Look) | None => {}
            Some(Job::SupervisorThreadEnded) => break,
        }
        table.publish_metrics_if_due(Instant::now());
    }
    match thread.join() {
        Ok(()) => true,
        Err(payload) => {
            let panic = panic_message(payload);
            logger::error!("the supervisor's thread panicked and is replaced: {panic}");
            metrics::recovered();
            table.publish(SupervisorEvent::Recovered { panic });
            false
        }
    }
}
