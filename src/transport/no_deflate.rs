//! Without the feature `compression` nothing is compressed: these types have no values.

use bytes::Bytes;

use super::head::Fault;

pub(crate) enum Inflate {}

impl Inflate {
    pub(crate) fn message(&mut self, _: &[u8], _: usize, _: &mut Vec<u8>) -> Result<(), Fault> {
        match *self {}
    }
}

pub(crate) enum Deflate {}

#[derive(Default)]
pub(crate) struct Deflating {}

impl Deflate {
    pub(crate) fn compresses(&self, _: usize) -> bool {
        match *self {}
    }

    pub(crate) fn slice(&mut self, _: &[u8], _: &mut Deflating) -> Option<Bytes> {
        match *self {}
    }
}
