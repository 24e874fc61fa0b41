//! What follows the end of a worker's run: OTP's restart types, as one small pure rule.

use crate::command::{CommandKind, Decided};
use crate::lifecycle::{End, ExitReason, ParkReason};

/// When the supervisor starts a client again after its worker has ended (OTP's child types).
///
/// ```
/// use ws_supervisor::{ClientConfig, Restart};
/// let once = ClientConfig::new("wss://venue.example")?.restart(Restart::Temporary).max_retries(0);
/// # let _ = once;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum Restart {
    /// After an abnormal end only. The default.
    #[default]
    Transient,
    /// Always, even after [`Client::close`](crate::Client::close); only `stop_client` and a shutdown end it.
    Permanent,
    /// Never.
    Temporary,
}

/// What is to become of a client whose run has ended.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    Restart,
    End(End),
}

/// Why a run ended, once the command that stands at its end is taken into account: what was granted before the end is
/// carried out by it.
pub(crate) fn overruled(reason: ExitReason, standing: Option<CommandKind>) -> ExitReason {
    match (standing, reason) {
        (Some(CommandKind::Stop | CommandKind::Close), _) => ExitReason::Closed,
        // A restart follows anyway, and the panic counts.
        (Some(CommandKind::Restart | CommandKind::Reconnect), reason @ ExitReason::Panicked(_)) => reason,
        (Some(CommandKind::Park), _) => ExitReason::ParkRequested,
        (Some(CommandKind::Restart), _) => ExitReason::RestartRequested,
        // A run that would have ended for the network's sake is followed by another instead.
        (
            Some(CommandKind::Reconnect),
            ExitReason::Refused(_)
            | ExitReason::RetriesExhausted { .. }
            | ExitReason::HeartbeatLost { .. }
            | ExitReason::ClosedByServer(_),
        ) => ExitReason::RestartRequested,
        (_, reason) => reason,
    }
}

/// How a run ended, and what follows: decided once, by the thread that ends (by the supervisor, if that thread reports
/// nothing), and passed to the thread that joins it.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) reason: ExitReason,
    pub(crate) fate: Fate,
}

impl Exit {
    /// `standing` is the command that stands as the run ends.
    pub(crate) fn new(restart: Restart, supervised: bool, reason: ExitReason, standing: Option<CommandKind>) -> Self {
        let reason = overruled(reason, standing);
        let stops = standing == Some(CommandKind::Stop);
        Self { fate: fate(restart, supervised, stops, &reason), reason }
    }

    pub(crate) fn decided(&self) -> Decided {
        match &self.fate {
            Fate::Restart => Decided::Restart,
            Fate::End(End::Parked(_)) => Decided::Park,
            Fate::End(End::Closed(_)) => Decided::Close,
        }
    }
}

/// The one place that decides what follows an exit. The thread that ends takes the decision along; the supervisor does it,
/// unless it was told to stop or its budget is spent.
fn fate(restart: Restart, supervised: bool, stop_ordered: bool, exit: &ExitReason) -> Fate {
    let closed = || Fate::End(End::Closed(exit.clone()));
    if !supervised {
        return closed();
    }
    if stop_ordered {
        return Fate::End(End::Closed(ExitReason::Closed));
    }
    match (exit, restart) {
        (ExitReason::RestartRequested, _) => Fate::Restart,
        (ExitReason::ParkRequested, _) => Fate::End(End::Parked(ParkReason::Requested)),
        (_, Restart::Temporary) => closed(),
        // Restarting would only be refused again: someone has to change something first.
        (ExitReason::Refused(error), _) => Fate::End(End::Parked(ParkReason::Refused(error.clone()))),
        (ExitReason::Deserted, _) => Fate::End(End::Parked(ParkReason::Deserted)),
        (ExitReason::ClosedByServer(frame), _) => Fate::End(End::Parked(ParkReason::ClosedByServer(frame.clone()))),
        (_, Restart::Permanent) => Fate::Restart,
        (exit, Restart::Transient) if exit.is_normal() => closed(),
        (_, Restart::Transient) => Fate::Restart,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ConnectError;

    fn fate_of(restart: Restart, exit: ExitReason) -> &'static str {
        match fate(restart, true, false, &exit) {
            Fate::Restart => "restart",
            Fate::End(End::Closed(_)) => "closed",
            Fate::End(End::Parked(_)) => "parked",
        }
    }

    #[test]
    fn the_three_restart_types() {
        let crash = || ExitReason::Panicked("".into());
        let lost = || ExitReason::HeartbeatLost { missed: 2 };
        let tired = || ExitReason::RetriesExhausted { last: "".into() };
        for abnormal in [crash, lost, tired] {
            assert_eq!(fate_of(Restart::Transient, abnormal()), "restart");
            assert_eq!(fate_of(Restart::Permanent, abnormal()), "restart");
            assert_eq!(fate_of(Restart::Temporary, abnormal()), "closed");
        }
        assert_eq!(fate_of(Restart::Transient, ExitReason::Closed), "closed");
        assert_eq!(fate_of(Restart::Permanent, ExitReason::Closed), "restart");
        assert_eq!(fate_of(Restart::Temporary, ExitReason::Closed), "closed");
        assert_eq!(fate_of(Restart::Temporary, ExitReason::RestartRequested), "restart");
        let refused = ExitReason::Refused(ConnectError::Subprotocol { message: "".into() });
        assert_eq!(fate_of(Restart::Permanent, refused), "parked");
    }

    #[test]
    fn the_command_that_stands_at_the_end_is_carried_out_by_it() {
        use CommandKind::{Close, Reconnect, Restart, Stop};
        let refused = || ExitReason::Refused(ConnectError::Subprotocol { message: "".into() });
        let panicked = || ExitReason::Panicked("".into());
        for reason in [refused(), panicked(), ExitReason::Deserted, ExitReason::RestartRequested] {
            assert_eq!(overruled(reason.clone(), None), reason);
            assert_eq!(overruled(reason.clone(), Some(Close)), ExitReason::Closed);
            assert_eq!(overruled(reason, Some(Stop)), ExitReason::Closed);
        }
        for command in [Restart, Reconnect] {
            assert_eq!(overruled(refused(), Some(command)), ExitReason::RestartRequested);
            assert_eq!(overruled(panicked(), Some(command)), panicked(), "a panic counts");
        }
        assert_eq!(overruled(ExitReason::Deserted, Some(Reconnect)), ExitReason::Deserted, "no connection helps that");
    }

    #[test]
    fn a_stop_ends_even_a_permanent_client() {
        let exit = ExitReason::Panicked("".into());
        assert!(matches!(fate(Restart::Permanent, true, true, &exit), Fate::End(End::Closed(ExitReason::Closed))));
    }
}
