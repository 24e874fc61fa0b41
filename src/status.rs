//! The ready state, for those who wait for it to change.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::ConnectError;
use crate::lifecycle::{ExitReason, ParkReason, StartError, WaitError};
use crate::state::ReadyState;

/// The ready state, for those who wait for it to change.
#[derive(Debug, Default)]
pub(crate) struct Status {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Status {
    pub(crate) fn get(&self) -> ReadyState {
        self.inner.lock().state
    }

    pub(crate) fn parked(&self) -> Option<ParkReason> {
        self.inner.lock().parked.clone()
    }

    /// An ended client stays ended.
    pub(crate) fn set(&self, state: ReadyState) {
        self.change(|inner| inner.state = state);
    }

    /// In a replay, in which a client may be followed by another of its name.
    #[cfg(all(feature = "record", feature = "testing"))]
    pub(crate) fn replace(&self, state: ReadyState) {
        self.inner.lock().state = state;
    }

    /// The connection is no longer usable.
    pub(crate) fn leave_open(&self) {
        self.change(|inner| {
            if inner.state == ReadyState::Open {
                inner.state = ReadyState::Connecting;
            }
        });
    }

    pub(crate) fn fail(&self, error: ConnectError) {
        self.change(|inner| inner.last_error = Some(error));
    }

    /// The next attempt is made then.
    pub(crate) fn wait_until(&self, next_attempt: Instant) {
        self.change(|inner| (inner.state, inner.next_attempt) = (ReadyState::Backoff, Some(next_attempt)));
    }

    /// Why the last attempt failed, when the next is made, since when it is open.
    pub(crate) fn outlook(&self) -> (Option<ConnectError>, Option<Instant>, Option<Instant>) {
        let inner = self.inner.lock();
        let next = inner.next_attempt.filter(|_| inner.state == ReadyState::Backoff);
        (inner.last_error.clone(), next, inner.open_since)
    }

    pub(crate) fn park(&self, reason: ParkReason) {
        self.change(|inner| (inner.state, inner.parked) = (ReadyState::Parked, Some(reason)));
    }

    pub(crate) fn close(&self, reason: ExitReason) {
        self.change(|inner| (inner.state, inner.closed) = (ReadyState::Closed, Some(reason)));
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock();
        if inner.state != ReadyState::Closed {
            change(&mut inner);
            if inner.state == ReadyState::Open {
                inner.last_error = None;
                inner.ever_open = true;
                inner.open_since.get_or_insert_with(Instant::now);
            } else {
                inner.open_since = None;
            }
        }
        self.changed.notify_all();
    }

    /// Waits until `seen` gives a result, at most `timeout`.
    fn wait<T>(&self, timeout: Duration, mut seen: impl FnMut(&Inner) -> Option<T>) -> Result<T, WaitError> {
        let deadline = Instant::now().checked_add(timeout);
        let mut inner = self.inner.lock();
        loop {
            if let Some(result) = seen(&inner) {
                return Ok(result);
            }
            let timed_out = match deadline {
                Some(deadline) => self.changed.wait_until(&mut inner, deadline).timed_out(),
                None => {
                    self.changed.wait(&mut inner);
                    false
                }
            };
            if timed_out {
                return seen(&inner)
                    .ok_or(WaitError::Timeout { state: inner.state, last_error: inner.last_error.clone() });
            }
        }
    }

    pub(crate) fn wait_until_open(&self, timeout: Duration) -> Result<(), WaitError> {
        self.wait(timeout, |inner| match inner.state {
            ReadyState::Open => Some(Ok(())),
            ReadyState::Closed => Some(Err(WaitError::Closed)),
            ReadyState::Parked => inner.parked.clone().map(|reason| Err(WaitError::Parked(reason))),
            _ => None,
        })?
    }

    /// For the unsupervised door: open (if only for a moment), or why the first attempt failed.
    pub(crate) fn wait_for_first(&self) -> Result<(), StartError> {
        let first = self.wait(Duration::MAX, |inner| match (&inner.last_error, &inner.closed) {
            _ if inner.ever_open => Some(Ok(())),
            (Some(error), _) => Some(Err(StartError::Connect(error.clone()))),
            (None, Some(reason)) => Some(Err(StartError::Ended(reason.clone()))),
            _ => None,
        });
        first.unwrap_or(Err(StartError::ShutDown))
    }

    pub(crate) fn wait_until_closed(&self, timeout: Duration) -> bool {
        self.wait(timeout, |inner| (inner.state == ReadyState::Closed).then_some(())).is_ok()
    }
}

#[derive(Debug)]
struct Inner {
    state: ReadyState,
    last_error: Option<ConnectError>,
    parked: Option<ParkReason>,
    ever_open: bool,
    open_since: Option<Instant>,
    next_attempt: Option<Instant>,
    closed: Option<ExitReason>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            state: ReadyState::Connecting,
            last_error: None,
            parked: None,
            ever_open: false,
            open_since: None,
            next_attempt: None,
            closed: None,
        }
    }
}
