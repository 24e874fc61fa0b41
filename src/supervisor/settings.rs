//! The settings of a supervisor.

use std::time::Duration;

use crate::error::ConfigError;
use crate::lifecycle::ExitReason;

/// Whose restarts are counted together.
///
/// ```
/// use ws_supervisor::{IntensityScope, Supervisor};
/// let otp = Supervisor::builder().intensity_scope(IntensityScope::Supervisor).start()?;
/// # drop(otp);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum IntensityScope {
    /// Each client has its own budget, and exceeding it parks that client alone. The default: one venue's trouble is
    /// not another's.
    #[default]
    Client,
    /// OTP's rule: one budget for all, and exceeding it stops everything and ends [`Supervisor::join`](crate::Supervisor::join) with the reason.
    Supervisor,
}

/// Which restarts spend the budget.
///
/// ```
/// use ws_supervisor::{RestartCounting, Supervisor};
/// let otp = Supervisor::builder().restart_counting(RestartCounting::All).start()?;
/// # drop(otp);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum RestartCounting {
    /// Those after a panic. Restarts for the network's sake (retries exhausted, heartbeat lost) are paced by the backoff
    /// and go on for as long as the outage does.
    Crashes,
    /// OTP's rule: every restart but one that was asked for.
    All,
}

/// Settings of a supervisor; made by [`Supervisor::builder`](crate::Supervisor::builder).
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{IntensityScope, Supervisor};
///
/// let supervisor = Supervisor::builder()
///     .intensity(5, Duration::from_secs(30))
///     .intensity_scope(IntensityScope::Client)
///     .max_clients(100)
///     .start()?;
/// # drop(supervisor);
/// # Ok::<(), ws_supervisor::StartError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct SupervisorBuilder {
    pub(crate) max_restarts: usize,
    pub(crate) window: Duration,
    pub(crate) scope: IntensityScope,
    pub(crate) counting: Option<RestartCounting>,
    pub(crate) max_clients: Option<usize>,
    pub(crate) grace: Duration,
    pub(crate) metrics_every: Duration,
}

impl Default for SupervisorBuilder {
    fn default() -> Self {
        Self {
            max_restarts: 10,
            window: Duration::from_secs(60),
            scope: IntensityScope::default(),
            counting: None,
            max_clients: None,
            grace: Duration::from_secs(5),
            metrics_every: Duration::from_secs(1),
        }
    }
}

impl SupervisorBuilder {
    /// At most `max_restarts` within `window`, a sliding window on the monotonic clock that includes its edge; the
    /// next restart is refused. Zero restarts means that the first crash is one too many. Defaults to 10 in 60 s.
    pub fn intensity(mut self, max_restarts: usize, window: Duration) -> Self {
        (self.max_restarts, self.window) = (max_restarts, window);
        self
    }

    /// Whose restarts are counted together. Defaults to [`IntensityScope::Client`].
    pub fn intensity_scope(mut self, scope: IntensityScope) -> Self {
        self.scope = scope;
        self
    }

    /// Which restarts spend the budget. Defaults to [`RestartCounting::Crashes`], and with
    /// [`IntensityScope::Supervisor`] to [`RestartCounting::All`].
    pub fn restart_counting(mut self, counting: RestartCounting) -> Self {
        self.counting = Some(counting);
        self
    }

    pub(crate) fn counts(&self, exit: &ExitReason) -> bool {
        let usual = match self.scope {
            IntensityScope::Client => RestartCounting::Crashes,
            IntensityScope::Supervisor => RestartCounting::All,
        };
        match self.counting.unwrap_or(usual) {
            // Of normal exits only a permanent client is restarted, and OTP counts those.
            RestartCounting::Crashes => matches!(exit, ExitReason::Panicked(_) | ExitReason::Closed),
            RestartCounting::All => *exit != ExitReason::RestartRequested,
        }
    }

    /// How many clients there may be, parked and restarting ones included. Defaults to no limit.
    pub fn max_clients(mut self, clients: usize) -> Self {
        self.max_clients = Some(clients);
        self
    }

    /// The grace time when the supervisor is dropped, or ends by its intensity. Defaults to 5 s.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How often a supervisor publishes its clients' counters ([`metrics`](crate::metrics)). Defaults to 1 s;
    /// [`Supervisor::publish_metrics`](crate::Supervisor::publish_metrics) publishes them at any moment.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::Supervisor;
    /// let supervisor = Supervisor::builder().metrics_interval(Duration::from_secs(10)).start()?;
    /// # Ok::<(), ws_supervisor::StartError>(())
    /// ```
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn metrics_interval(mut self, every: Duration) -> Self {
        self.metrics_every = every;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.window.is_zero() {
            return Err(ConfigError::new("intensity", "the window must be greater than zero"));
        }
        if self.metrics_every.is_zero() {
            return Err(ConfigError::new("metrics_interval", "must be greater than zero"));
        }
        if self.max_clients == Some(0) {
            return Err(ConfigError::new("max_clients", "must be at least 1"));
        }
        Ok(())
    }
}
