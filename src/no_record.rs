//! The same calls without the feature `record`: there is no tap, so nothing of this is ever called.

pub(crate) mod tap {
    use std::time::Instant;

    use crate::event::Event;
    use crate::message::{CloseFrame, Message, MessageRef};
    use crate::transport::Outgoing;

    #[derive(Debug)]
    pub(crate) enum Sort {
        Ping,
        Pong,
    }

    #[derive(Debug)]
    pub(crate) enum Tap {}

    impl Tap {
        pub(crate) fn begin(&self, _: u64) {
            match *self {}
        }
        pub(crate) fn message(&self, _: MessageRef<'_>, _: bool, _: Instant) {
            match *self {}
        }
        pub(crate) fn control(&self, _: Sort, _: &[u8], _: Instant) {
            match *self {}
        }
        pub(crate) fn answered(&self, _: &[u8], _: Instant) {
            match *self {}
        }
        pub(crate) fn close(&self, _: Option<&CloseFrame>, _: bool) {
            match *self {}
        }
        pub(crate) fn sent(&self, _: &Message, _: bool) {
            match *self {}
        }
        pub(crate) fn outgoing(&self, _: &Outgoing) {
            match *self {}
        }
        pub(crate) fn event(&self, _: &Event) {
            match *self {}
        }
    }
}
