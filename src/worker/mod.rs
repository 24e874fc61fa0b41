//! The worker: the loop on the client's own thread, owner of the socket whenever it is awake.
//!
//! One *run* is one life of the thread (`thread`, `run`): wait out the backoff, dial (`connect`), open the session
//! (`establish`), serve (`serve`), close or lose the connection (`close`), and again, until something ends the run. What
//! follows is decided once, at its end, and the thread takes the decision along to whoever joins it.
//!
//! One *turn* is one pass of the loop in `serve`: obey a command; take what callers sent and write it; read what came,
//! a batch at a time, each message through the connection (`policy::connection`) and then to the consumer; let the
//! connection say what is due and carry it out; sleep until a byte, a deadline or a caller. All reading goes through
//! `reading::read_next`, so that heartbeats and answers are noticed in every phase.
//!
//! Who may touch what:
//! - `kept` (the queue, the backoff, the epoch) is locked for the whole run. Others touch it only when there is no worker.
//! - The line (socket and outbox) is locked, after `kept`, whenever the thread is not asleep. While it sleeps on an open
//!   connection a caller may take the lock and write; see `outbound::line`.
//! - The tables of requests and subscriptions are locked for single looks, one at a time, by anyone.
//! - Code of yours (a handler, `prepare`, `on_open`, a venue) runs on this thread, under `kept` and the line, which
//!   nobody else waits for, and under neither table.

mod acting;
mod close;
mod establish;
mod pause;
mod reading;
mod run;
mod serve;
pub(crate) mod thread;
