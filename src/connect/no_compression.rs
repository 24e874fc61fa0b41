//! Without the feature `compression` nothing is offered, and nothing is taken.

use crate::config::settings::Settings;
use crate::transport::Extensions;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Agreed {}

pub(super) fn offer(_: &Settings) -> Option<String> {
    None
}

pub(super) fn agree(_: &Settings, _: &str) -> Result<Agreed, String> {
    Err("an extension that was not offered".to_owned())
}

impl Agreed {
    pub(super) fn for_client(&self, _: &Settings) -> Extensions {
        match *self {}
    }
}
