//! The same calls without the feature `metrics`: nothing is published.

use std::time::Duration;

use crate::core::Core;
use crate::error::ConnectError;
use crate::lifecycle::{ExitReason, ParkReason};
use crate::state::{DisconnectReason, Tag};
use crate::telemetry::duty::Doing;
use crate::telemetry::health::HeartbeatHealth;
use crate::telemetry::stats::Stats;

pub(crate) fn opened(_: &Core, _: Duration) {}
pub(crate) fn disconnected(_: &Tag, _: &DisconnectReason) {}
pub(crate) fn connect_failed(_: &Tag, _: &ConnectError) {}
pub(crate) fn restarted(_: &Tag, _: &ExitReason) {}
pub(crate) fn parked(_: &Tag, _: &ParkReason) {}
pub(crate) fn stalled(_: &Tag, _: Doing) {}
pub(crate) fn reader_behind(_: &Tag) {}
pub(crate) fn left_behind(_: &Tag) {}
pub(crate) fn recovered() {}
pub(crate) fn clients(_: &[(&'static str, usize)]) {}

#[derive(Debug, Default)]
pub(crate) struct Published;

impl Published {
    pub(crate) fn publish(&mut self, _: &Core, _: &Stats, _: &HeartbeatHealth) {}
}
