//! The same calls without the feature `record`: there is no tap, so none of them is ever made.

pub(crate) mod tap {
    use std::time::Instant;

    use crate::event::Event;
    use crate::message::{CloseFrame, Message, MessageRef};
    use crate::request::RequestId;
    use crate::state::ReadyState;
    use crate::transport::Outgoing;

    #[derive(Debug)]
    pub(crate) enum Sort {
        Ping,
        Pong,
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Shown {
        Now(#[expect(dead_code, reason = "read by a recorder alone")] Option<ReadyState>),
        Held,
        Never,
    }

    #[derive(Debug)]
    pub(crate) enum Tap {}

    impl Tap {
        pub(crate) fn connected(&self, _: u64) {
            match *self {}
        }
        pub(crate) fn message(&self, _: MessageRef<'_>, _: Shown, _: Instant) {
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
        pub(crate) fn event(&self, _: &Event, _: Shown, _: Instant) {
            match *self {}
        }
        pub(crate) fn handler(&self) {
            match *self {}
        }
        pub(crate) fn timer(&self, _: u64, _: Shown, _: Instant) {
            match *self {}
        }
        pub(crate) fn schedule(&self, _: u64, _: Instant, _: Instant) {
            match *self {}
        }
        pub(crate) fn command(&self, _: Shown, _: Instant) {
            match *self {}
        }
        pub(crate) fn released(&self, _: Shown, _: Instant) {
            match *self {}
        }
        pub(crate) fn withheld(&self, _: Option<usize>) {
            match *self {}
        }
        pub(crate) fn request(&self, _: &RequestId, _: Instant) {
            match *self {}
        }
    }
}
