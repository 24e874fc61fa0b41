//! The way down: what callers, handlers and the worker itself want written.

pub(crate) mod accepted;
pub(crate) mod gate;
pub(crate) mod line;
pub(crate) mod link;
pub(crate) mod mailbox;
pub(crate) mod outbox;
