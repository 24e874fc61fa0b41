//! What decides: pure policy that is given `now` and the input, and has no socket, thread, channel or clock.

pub(crate) mod heartbeat;
pub(crate) mod json_rpc;
pub(crate) mod rate_limit;
pub(crate) mod reconnect;
pub(crate) mod subscriptions;
