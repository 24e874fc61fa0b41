//! What follows the end of a worker's run: OTP's restart types, as one small pure rule.

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

/// The one place that decides what follows an exit. The thread that ends takes the decision along; the supervisor does it,
/// unless it was told to stop or its budget is spent.
pub(crate) fn fate(restart: Restart, supervised: bool, stop_ordered: bool, exit: &ExitReason) -> Fate {
    let closed = || Fate::End(End::Closed(exit.clone()));
    if !supervised {
        return closed();
    }
    if stop_ordered {
        return Fate::End(End::Closed(ExitReason::Closed));
    }
    match (exit, restart) {
        (ExitReason::RestartRequested, _) => Fate::Restart,
        (_, Restart::Temporary) => closed(),
        // Restarting would only be refused again: someone has to change something first.
        (ExitReason::Refused(error), _) => Fate::End(End::Parked(ParkReason::Refused(error.clone()))),
        (ExitReason::Deserted, _) => Fate::End(End::Parked(ParkReason::Deserted)),
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
    fn a_stop_ends_even_a_permanent_client() {
        let exit = ExitReason::Panicked("".into());
        assert!(matches!(fate(Restart::Permanent, true, true, &exit), Fate::End(End::Closed(ExitReason::Closed))));
    }
}
