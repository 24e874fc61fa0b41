//! A message that was accepted, on its way to the socket; how many wait, and what became of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::message::Message;
use crate::policy::rate_limit::Price;
use crate::receipt::Receipt;
use crate::telemetry::counter::Counter;
use crate::telemetry::stats::Ended;

/// An accepted message on its way to the socket.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) message: Message,
    /// The connection it was accepted for; `None`: whichever comes next.
    pub(crate) epoch: Option<u64>,
    pub(crate) receipt: Option<Arc<Receipt>>,
    /// What the rate limits took for it, or take when it is written.
    pub(crate) price: Price,
    /// The worker's own: nobody is told what becomes of it, and it is in no account.
    pub(crate) own: bool,
}

impl Accepted {
    /// A handler's, for the open connection; the rate limits have let it pass.
    pub(crate) fn paid(message: Message, epoch: Option<u64>, receipt: Option<Arc<Receipt>>, price: Price) -> Self {
        Self { message, epoch, receipt, price, own: false }
    }

    /// The worker's own.
    pub(crate) fn own(message: Message, epoch: u64, receipt: Arc<Receipt>, price: Price) -> Self {
        Self { own: true, ..Self::paid(message, Some(epoch), Some(receipt), price) }
    }
}

/// How much may wait. One message always may, whatever its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// How much waits: messages in the upper 24 bits, their bytes in the lower 40. One word, so that a sender takes its place
/// by one operation.
#[derive(Debug, Default)]
pub(crate) struct Load(AtomicU64);

const BYTES: u32 = 40;
const ONE: u64 = 1 << BYTES;

impl Load {
    /// More messages than this can't be counted.
    pub(crate) const MAX_MESSAGES: usize = (1 << (64 - BYTES)) - 1;
    /// Nor more bytes than this.
    pub(crate) const MAX_BYTES: usize = {
        const MAX: u64 = (1 << (BYTES - 1)) - 1;
        if MAX < usize::MAX as u64 { MAX as usize } else { usize::MAX / 2 }
    };

    /// Takes a place for a message of so many bytes. False: there is none.
    pub(crate) fn enter(&self, bytes: usize, bound: Bound) -> bool {
        let weight = ONE + bytes as u64;
        // Looked at before it is taken: one that is refused is not in the way of others meanwhile.
        let entered = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            let (messages, waiting) = ((before >> BYTES) as usize, (before & (ONE - 1)) as usize);
            let fits = messages < bound.messages
                && (messages == 0 || waiting.checked_add(bytes).is_some_and(|all| all <= bound.bytes));
            fits.then_some(before + weight)
        });
        entered.is_ok()
    }

    pub(crate) fn leave(&self, bytes: usize) {
        self.0.fetch_sub(ONE + bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn messages(&self) -> usize {
        (self.0.load(Ordering::Relaxed) >> BYTES) as usize
    }
}

/// What became of all that was accepted. Two are counted without the line's lock, the second for a client whose thread is
/// left behind.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) accepted: AtomicU64,
    pub(crate) unsent: AtomicU64,
    /// The kernel had all of it.
    pub(crate) sent: Counter,
    /// Of those sent: the peer's kernel never said that it had it.
    pub(crate) uncertain: Counter,
    /// Bytes that the kernel took.
    pub(crate) bytes: Counter,
}

impl Tally {
    pub(crate) fn read(&self) -> Ended {
        let (uncertain, sent) = (self.uncertain.get(), self.sent.get());
        let unsent = self.unsent.load(Ordering::Relaxed);
        // Last, so that nothing has ended before it was accepted.
        Ended { accepted: self.accepted.load(Ordering::Relaxed), sent, unsent, uncertain, bytes: self.bytes.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_messages_and_bytes_and_one_message_always_fits() {
        let (load, bound) = (Load::default(), Bound { messages: 3, bytes: 10 });
        assert!(load.enter(100, bound), "however long");
        assert!(!load.enter(0, bound) && load.messages() == 1);
        load.leave(100);
        assert!(load.enter(4, bound) && load.enter(6, bound) && !load.enter(1, bound));
        assert!(load.enter(0, bound) && !load.enter(0, bound));
        load.leave(6);
        assert!(load.enter(6, bound));
        assert_eq!(load.messages(), 3);
    }
}
