//! The way down: what callers, handlers and the worker itself want written.

pub(crate) mod line;
