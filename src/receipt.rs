//! How a caller learns what became of its message, and takes it back while it still can.

use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_channel::Sender;

use crate::request::RequestId;

/// How a `send_confirmed` or a request learns what became of its message, and takes it back while it still can.
#[derive(Debug)]
pub(crate) struct Receipt {
    state: AtomicU8,
    account: Account,
}

impl Receipt {
    pub(crate) fn new(written: Sender<bool>) -> Self {
        Self { state: WAITING.into(), account: Account::Confirmed(written) }
    }

    pub(crate) fn request(id: RequestId) -> Self {
        Self { state: WAITING.into(), account: Account::Request(id) }
    }

    /// The request that the message is, if it is one.
    pub(crate) fn request_id(&self) -> Option<&RequestId> {
        match &self.account {
            Account::Request(id) => Some(id),
            Account::Confirmed(_) => None,
        }
    }

    /// The worker is about to write the message. False: the caller has it back.
    pub(crate) fn begin(&self) -> bool {
        self.claim(WRITING)
    }

    /// The caller wants it back. False: too late.
    pub(crate) fn take_back(&self) -> bool {
        self.claim(TAKEN_BACK)
    }

    /// Whether writing has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.state.load(Ordering::Acquire) == WRITING
    }

    pub(crate) fn is_taken_back(&self) -> bool {
        self.state.load(Ordering::Acquire) == TAKEN_BACK
    }

    /// It was not written after all, and waits for the next connection.
    pub(crate) fn wait_again(&self) {
        let _ = self.state.compare_exchange(WRITING, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    fn claim(&self, state: u8) -> bool {
        self.state.compare_exchange(WAITING, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn confirm(&self, written: bool) {
        if let Account::Confirmed(sender) = &self.account {
            let _ = sender.try_send(written);
        }
    }
}

#[derive(Debug)]
enum Account {
    Confirmed(Sender<bool>),
    Request(RequestId),
}

const WAITING: u8 = 0;

const WRITING: u8 = 1;

const TAKEN_BACK: u8 = 2;
