//! What can be seen of a client from any thread: counters, the heartbeat's health, how long turns take.

pub(crate) mod counter;
pub(crate) mod duty;
pub(crate) mod health;
pub(crate) mod stats;
