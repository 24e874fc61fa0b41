//! A point in time to be done by: one is carried along, never a fresh duration.

use std::time::{Duration, Instant};

/// So much time after `now`; for a time beyond all reason, a year.
pub(crate) fn later(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 86_400))
}
