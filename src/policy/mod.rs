//! What decides. Everything here is given `now` and what happened, and returns what to do and when it wants to be asked
//! again. No socket, thread, lock, channel, clock or log.

pub(crate) mod admission;
pub(crate) mod asking;
mod batches;
pub(crate) mod channel;
pub(crate) mod clocks;
pub(crate) mod connection;
pub(crate) mod heartbeat;
pub(crate) mod idle;
pub(crate) mod monitor;
pub(crate) mod monitors;
pub(crate) mod pacer;
pub(crate) mod places;
pub(crate) mod rate_limit;
pub(crate) mod reconnect;
pub(crate) mod requests;
pub(crate) mod restart;
pub(crate) mod restart_intensity;
pub(crate) mod staleness;
pub(crate) mod subscriptions;
mod suspects;
pub(crate) mod terms;
pub(crate) mod timers;
pub(crate) mod upkeep;
