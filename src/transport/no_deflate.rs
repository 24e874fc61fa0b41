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

impl Deflate {
    pub(crate) fn message(&mut self, _: &[u8]) -> Option<Bytes> {
        match *self {}
    }
}
