//! The gate that every message from a handle passes (a handler's and the worker's own go into the outbox directly): it
//! stamps the message with the epoch, and lets the worker know when no sender is on its way through any more, so that
//! what it drains after closing is all there is.
//! Touches atomics only; every interleaving is checked with loom.

#[cfg(all(loom, test))]
use loom::{
    sync::atomic::{AtomicU64, Ordering},
    thread::yield_now,
};
#[cfg(not(all(loom, test)))]
use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread::yield_now,
};

/// Who may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Nobody.
    Shut,
    /// Messages for whatever connection comes next, if the caller asked for that.
    Queue,
    /// Messages for the open connection of this epoch.
    Open { epoch: u64 },
    /// Nobody, ever again: whatever is set later, by a thread that had been left behind, is not heard.
    Ended,
}

// [epoch: 40 bits][phase: 2][senders on their way: 22]
const SENDERS: u64 = (1 << 22) - 1;
const PHASE_SHIFT: u32 = 22;
const EPOCH_SHIFT: u32 = 24;

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU64,
    /// Whether anyone may pass in `Pass::Queue`.
    queues: bool,
}

/// A sender on its way through; the worker waits for it to drop. One that is turned away holds nothing up.
pub(crate) struct Passage<'a> {
    gate: Option<&'a Gate>,
    pub(crate) pass: Pass,
}

impl Gate {
    pub(crate) fn new(queues: bool) -> Self {
        Self { word: AtomicU64::new(encode(Pass::Queue)), queues }
    }

    /// Enters. While the passage lives, a worker that closes the gate waits: enqueue and let go, nothing else.
    pub(crate) fn enter(&self) -> Passage<'_> {
        // A look first: however many senders knock at a closed gate, none of them keeps the worker that closed it.
        let pass = decode(self.word.load(Ordering::Acquire));
        if matches!(pass, Pass::Shut | Pass::Ended) || (pass == Pass::Queue && !self.queues) {
            return Passage { gate: None, pass };
        }
        let word = self.word.fetch_add(1, Ordering::AcqRel);
        Passage { gate: Some(self), pass: decode(word) }
    }

    /// Who may pass now.
    pub(crate) fn pass(&self) -> Pass {
        decode(self.word.load(Ordering::Acquire))
    }

    /// Lets `pass` through from now on. Called by the one that owns the client's worker state.
    pub(crate) fn set(&self, pass: Pass) {
        let mut word = self.word.load(Ordering::Relaxed);
        while decode(word) != Pass::Ended {
            let next = encode(pass) | (word & SENDERS);
            match self.word.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(actual) => word = actual,
            }
        }
    }

    /// As `set`, and returns only when every sender that passed before is through: all it accepted is in the channel.
    /// A sender holds a passage for one enqueue, so this waits for a preempted thread at worst.
    pub(crate) fn close(&self, pass: Pass) {
        self.set(pass);
        while self.word.load(Ordering::Acquire) & SENDERS != 0 {
            yield_now();
        }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate {
            gate.word.fetch_sub(1, Ordering::Release);
        }
    }
}

fn encode(pass: Pass) -> u64 {
    match pass {
        Pass::Shut => 0,
        Pass::Queue => 1 << PHASE_SHIFT,
        Pass::Open { epoch } => epoch << EPOCH_SHIFT | 2 << PHASE_SHIFT,
        Pass::Ended => 3 << PHASE_SHIFT,
    }
}

fn decode(word: u64) -> Pass {
    match (word >> PHASE_SHIFT) & 3 {
        0 => Pass::Shut,
        1 => Pass::Queue,
        3 => Pass::Ended,
        _ => Pass::Open { epoch: word >> EPOCH_SHIFT },
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_passage_keeps_the_epoch_it_entered_with() {
        let gate = Gate::new(false);
        gate.set(Pass::Open { epoch: 7 });
        let passage = gate.enter();
        gate.set(Pass::Shut);
        assert_eq!(passage.pass, Pass::Open { epoch: 7 });
        assert_eq!(gate.enter().pass, Pass::Shut);
        drop(passage);
        gate.close(Pass::Open { epoch: 8 });
        assert_eq!(gate.enter().pass, Pass::Open { epoch: 8 });
        gate.close(Pass::Ended);
        gate.set(Pass::Open { epoch: 9 });
        assert_eq!(gate.enter().pass, Pass::Ended, "what has ended stays ended");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    #[test]
    fn nothing_is_accepted_after_what_close_drained() {
        crate::wake::explore(|| {
            let gate = Arc::new(Gate::new(false));
            gate.set(Pass::Open { epoch: 1 });
            // The channel, as far as the promise goes: how many messages are in it.
            let channel = Arc::new(AtomicUsize::new(0));
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let (gate, channel) = (gate.clone(), channel.clone());
                    loom::thread::spawn(move || {
                        let passage = gate.enter();
                        let accepted = matches!(passage.pass, Pass::Open { .. });
                        if accepted {
                            channel.fetch_add(1, Ordering::Relaxed);
                        }
                        accepted
                    })
                })
                .collect();
            gate.close(Pass::Shut);
            let drained = channel.load(Ordering::Relaxed);
            let accepted = senders.into_iter().filter_map(|s| s.join().ok()).filter(|accepted| *accepted).count();
            assert_eq!(drained, accepted);
        });
    }
}
