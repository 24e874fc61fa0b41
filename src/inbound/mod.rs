//! The way up: what the server sent, to a queue or to a handler.

pub(crate) mod backlog;
mod burst;
pub(crate) mod consumer;
pub(crate) mod context;
pub(crate) mod delivery;
pub(crate) mod outlet;
pub(crate) mod queue;
