//! The library's log lines. A logger is user code: each line goes through the guard of `user_code`, and is written where no
//! lock is held that another thread waits for.

use crate::user_code::{PROCESS, UserCode};

/// Calls the logger.
pub(crate) fn guarded(line: impl FnOnce()) {
    let _ = PROCESS.guard(UserCode::Logger, line);
}

macro_rules! error {
    ($($line:tt)+) => { $crate::logger::guarded(|| ::log::error!($($line)+)) };
}
macro_rules! warning {
    ($($line:tt)+) => { $crate::logger::guarded(|| ::log::warn!($($line)+)) };
}
macro_rules! info {
    ($($line:tt)+) => { $crate::logger::guarded(|| ::log::info!($($line)+)) };
}
macro_rules! debug {
    ($($line:tt)+) => { $crate::logger::guarded(|| ::log::debug!($($line)+)) };
}

pub(crate) use {debug, error, info, warning as warn};
