//! What a supervisor has to say: to whoever watches it, and at its end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::handed_back::HandedBack;
use crate::lifecycle::{ExitReason, ParkReason};
use crate::state::ClientId;
use crate::telemetry::duty::Doing;
use crate::user_code::UserCode;

/// What happens to a supervisor's clients, for alerts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SupervisorEvent {
    /// A worker ended abnormally and was started anew.
    #[non_exhaustive]
    Restarted {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// Why the worker ended.
        reason: ExitReason,
        /// How many times now.
        restarts: u64,
    },
    /// A client was given up on. Someone has to look.
    #[non_exhaustive]
    Parked {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// Why.
        reason: ParkReason,
        /// What was accepted and could not be told to a handler, which is gone. Else it is in [`Event`](crate::Event)s.
        handed_back: HandedBack,
    },
    /// A turn of a client's loop lasts longer than its `stall_threshold`: `doing` has not returned.
    /// Told once a turn, while it lasts; [`Stats::longest_turn`](crate::Stats) has the whole of it later.
    #[non_exhaustive]
    Stalled {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// How long the turn has lasted so far.
        lasts: Duration,
        /// What has not returned.
        doing: Doing,
    },
    /// A client has not read its socket for longer than its `stall_threshold`, since its events are not read. Told once a
    /// pause, while it lasts.
    #[non_exhaustive]
    ReaderBehind {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// For how long so far.
        lasts: Duration,
    },
    /// A client ended and is no longer supervised.
    #[non_exhaustive]
    Closed {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// Why.
        reason: ExitReason,
        /// What was accepted and could not be told to a handler, which is gone. Else it is in [`Event`](crate::Event)s.
        handed_back: HandedBack,
    },
    /// A thread did not come back within its grace time and was left behind.
    #[non_exhaustive]
    LeftBehind {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// What was on its way to that thread, where no queue could be told. What the thread had in its hands follows in
        /// `CameBack`.
        handed_back: HandedBack,
    },
    /// A thread that was left behind has ended after all; told though the supervisor has ended before it.
    #[non_exhaustive]
    CameBack {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// The messages and requests that it had in its hands.
        handed_back: HandedBack,
    },
    /// Code of yours panicked outside a client's run: the panic was caught and changed nothing else. Reported at most once in
    /// half a second for each kind of code.
    #[non_exhaustive]
    UserCodePanicked {
        /// Which client called it; `None` for the logger and the metrics recorder, which belong to the process.
        client: Option<ClientId>,
        /// The client's name.
        name: Option<Arc<str>>,
        /// What panicked.
        code: UserCode,
        /// How many times since the last such event.
        times: u64,
        /// The latest panic's message.
        panic: Box<str>,
    },
    /// The supervisor has ended. The last event, unless threads were abandoned: [`CameBack`](Self::CameBack) may follow for
    /// each. Then the channel is disconnected.
    #[non_exhaustive]
    Ended {
        /// Why.
        exit: SupervisorExit,
    },
    /// The supervisor's own thread panicked and was replaced; the clients did not notice.
    #[non_exhaustive]
    Recovered {
        /// The panic's message.
        panic: Box<str>,
    },
}

impl SupervisorEvent {
    /// The client that it happened to; `None` where it is the supervisor itself.
    ///
    /// ```
    /// use ws_supervisor::Supervisor;
    /// # let supervisor = Supervisor::start()?;
    /// for event in supervisor.events().try_iter() {
    ///     eprintln!("{}: {event}", event.name().unwrap_or("the supervisor"));
    /// }
    /// # Ok::<(), ws_supervisor::StartError>(())
    /// ```
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Restarted { name, .. }
            | Self::Parked { name, .. }
            | Self::Stalled { name, .. }
            | Self::ReaderBehind { name, .. }
            | Self::Closed { name, .. }
            | Self::LeftBehind { name, .. }
            | Self::CameBack { name, .. } => Some(name),
            Self::UserCodePanicked { name, .. } => name.as_deref(),
            Self::Recovered { .. } | Self::Ended { .. } => None,
        }
    }

    /// What it hands back of yours; `None` where that can be nothing.
    ///
    /// ```
    /// use ws_supervisor::Supervisor;
    /// # let supervisor = Supervisor::start()?;
    /// for event in supervisor.events().try_iter() {
    ///     if let Some(handed_back) = event.handed_back().filter(|handed_back| !handed_back.is_empty()) {
    ///         eprintln!("to be settled by hand: {handed_back:?}");
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handed_back(&self) -> Option<&HandedBack> {
        match self {
            Self::Parked { handed_back, .. }
            | Self::Closed { handed_back, .. }
            | Self::LeftBehind { handed_back, .. }
            | Self::CameBack { handed_back, .. } => Some(handed_back),
            _ => None,
        }
    }
}

impl fmt::Display for SupervisorEvent {
    /// What happened, without the name; and how much it hands back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restarted { reason, restarts, .. } => write!(f, "restart {restarts} ({reason})")?,
            Self::Parked { reason, .. } => write!(f, "parked: {reason}")?,
            Self::Stalled { lasts, doing, .. } => write!(f, "stalled: {doing} has not returned for {lasts:.1?}")?,
            Self::ReaderBehind { lasts, .. } => write!(f, "its events are not read, nor its socket, for {lasts:.1?}")?,
            Self::Closed { reason, .. } => write!(f, "closed: {reason}")?,
            Self::LeftBehind { .. } => f.write_str("its thread did not end in time and is left behind")?,
            Self::CameBack { .. } => f.write_str("its thread, which was left behind, has ended")?,
            Self::UserCodePanicked { code, times: 1, panic, .. } => write!(f, "{code} panicked: {panic}")?,
            Self::UserCodePanicked { code, times, panic, .. } => {
                write!(f, "{code} panicked {times} times; last: {panic}")?
            }
            Self::Ended { exit } => write!(f, "the supervisor ended: {exit}")?,
            Self::Recovered { panic } => write!(f, "the supervisor's thread panicked and was replaced: {panic}")?,
        }
        match self.handed_back() {
            Some(back) if !back.is_empty() => {
                let (unsent, uncertain, responses) = (back.unsent.len(), back.uncertain.len(), back.responses.len());
                write!(f, "; hands back {unsent} unsent, {uncertain} uncertain, {responses} responses")
            }
            _ => Ok(()),
        }
    }
}

/// Why a supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorExit {
    /// `shutdown`, or the supervisor was dropped.
    ShutDown,
    /// [`IntensityScope::Supervisor`](crate::IntensityScope::Supervisor): the common budget was exceeded.
    #[non_exhaustive]
    IntensityExceeded {
        /// The client whose restart was one too many.
        client: Arc<str>,
        /// Why its worker ended.
        last: ExitReason,
    },
}

impl fmt::Display for SupervisorExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShutDown => f.write_str("shut down"),
            Self::IntensityExceeded { client, last } => {
                write!(f, "restart intensity exceeded by client `{client}`; last: {last}")
            }
        }
    }
}

/// What a shutdown left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Names of the clients whose threads did not come back in time. Their sockets are shut.
    pub left_behind: Vec<Arc<str>>,
}
