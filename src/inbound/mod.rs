//! The way up: what the server sent, to a queue or to a handler.

pub(crate) mod context;
pub(crate) mod delivery;
pub(crate) mod queue;
