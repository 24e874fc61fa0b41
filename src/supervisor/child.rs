//! One supervised client as its supervisor sees it, and what of that callers are shown.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client_state::ClientState;
use crate::error::ConnectError;
use crate::lifecycle::{ExitReason, ParkReason};
use crate::policy::restart::{Exit, Restart};
use crate::policy::restart_intensity::RestartIntensity;
use crate::state::{ClientId, ReadyState};
use crate::user_code::PanicsSeen;

/// A client in the supervisor's table.
pub(crate) struct Child {
    pub(crate) state: Arc<ClientState>,
    /// The running worker; taken out to be joined.
    pub(crate) thread: Option<JoinHandle<Exit>>,
    /// Which run of the worker that is: a notice of an earlier one is old news.
    pub(crate) run: u64,
    /// An exit that was joined and not yet acted upon: a supervisor thread that panics in between leaves it here.
    pub(crate) exit: Option<Exit>,
    pub(crate) intensity: RestartIntensity,
    pub(crate) parked: bool,
    /// Resumed before its parking was acted upon: it is started again then.
    pub(crate) resumes: bool,
    pub(crate) stopping: bool,
    /// The system had no thread for it: when to try again, and what it is to be started for.
    pub(crate) waits: Option<Waits>,
    /// Panics of its user code outside a run that have been reported.
    pub(crate) panics_seen: PanicsSeen,
}

/// A client that waits for a thread.
pub(crate) struct Waits {
    pub(crate) until: Instant,
    pub(crate) pause: Duration,
    pub(crate) exit: ExitReason,
}

impl Child {
    /// Whether nobody has to be waited for when it is to end.
    pub(crate) fn is_without_thread(&self) -> bool {
        self.parked || self.waits.is_some()
    }

    /// Whether its worker has ended, joined or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    pub(crate) fn info(&self) -> ClientInfo {
        let core = &self.state.core;
        let counters = &core.counters;
        let phase = match self {
            _ if self.stopping => ClientPhase::Stopping,
            _ if self.parked => ClientPhase::Parked,
            Self { thread: Some(thread), exit: None, .. } if !thread.is_finished() => ClientPhase::Running,
            _ => ClientPhase::Restarting,
        };
        let (last_error, next_attempt, open_since) = core.status.outlook();
        ClientInfo {
            id: core.tag.id,
            name: core.tag.name.clone(),
            venue: core.tag.venue.clone(),
            url: self.state.settings.target.to_string(),
            phase,
            ready_state: core.status.get(),
            restart: self.state.settings.restart,
            epoch: counters.epoch.get(),
            reconnects: counters.epoch.get().saturating_sub(1),
            restarts: counters.restarts.get(),
            parked: core.status.parked().filter(|_| self.parked),
            last_error,
            next_attempt,
            open_since,
        }
    }
}

/// What the supervisor is doing with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientPhase {
    /// Its worker runs (whether connected or not: see the ready state).
    Running,
    /// Its worker has ended and the next is about to start.
    Restarting,
    /// Given up on until `resume_client`.
    Parked,
    /// Asked to end.
    Stopping,
}

/// One line of [`Supervisor::list_clients`](crate::Supervisor::list_clients).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientInfo {
    /// The client's id.
    pub id: ClientId,
    /// Its name.
    pub name: Arc<str>,
    /// [`Venue::name`](crate::venue::Venue::name), or the host.
    pub venue: Arc<str>,
    /// Its server: the URL without path and query, in which there may be secrets.
    pub url: String,
    /// What the supervisor is doing with it.
    pub phase: ClientPhase,
    /// What its connection is doing.
    pub ready_state: ReadyState,
    /// When it is started again.
    pub restart: Restart,
    /// Number of its current or last connection; 0 before the first.
    pub epoch: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Times its worker was started anew after an abnormal end.
    pub restarts: u64,
    /// Why it is parked, if it is.
    pub parked: Option<ParkReason>,
    /// Why the last attempt to connect failed, if it did.
    pub last_error: Option<ConnectError>,
    /// When the next attempt is made, if one is waited for.
    pub next_attempt: Option<Instant>,
    /// Since when the connection is open, if it is.
    pub open_since: Option<Instant>,
}

/// How many clients a supervisor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientCount {
    /// All in the table.
    pub total: usize,
    /// With a running worker.
    pub running: usize,
    /// With an open connection.
    pub open: usize,
    /// Between two workers.
    pub restarting: usize,
    /// Given up on.
    pub parked: usize,
}
