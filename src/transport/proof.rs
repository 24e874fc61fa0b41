//! What the venue itself has for sure. Through a proxy the peer whose kernel acknowledges is the proxy, so only what the venue
//! says counts: a pong has everything before its ping behind it, and the answer to a close frame all that there was.

use std::collections::VecDeque;

use bytes::Bytes;

/// Pings that are remembered; a venue that answers none proves nothing.
const MAX_PINGS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Each ping of ours, and how many bytes of the TCP connection were out before it.
    pings: VecDeque<(Bytes, u64)>,
    proven: u64,
}

impl Proof {
    /// A ping follows when so much is out.
    pub(super) fn asked(&mut self, payload: Bytes, written: u64) {
        self.pings.push_back((payload, written));
        if self.pings.len() > MAX_PINGS {
            self.pings.pop_front();
        }
    }

    /// A pong came.
    pub(super) fn answered(&mut self, payload: &[u8]) {
        if let Some(at) = self.pings.iter().position(|(asked, _)| asked == payload) {
            self.proven = self.proven.max(self.pings[at].1);
            self.pings.drain(..=at);
        }
    }

    /// All that was written is there.
    pub(super) fn all(&mut self, written: u64) {
        self.proven = written;
    }

    pub(super) fn proven(&self) -> u64 {
        self.proven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_proves_what_was_out_before_its_ping_and_no_more() {
        let mut proof = Proof::default();
        let ping = |n: u8| Bytes::copy_from_slice(&[n]);
        (1..=3).for_each(|n| proof.asked(ping(n), u64::from(n) * 100));
        assert_eq!(proof.proven(), 0);
        proof.answered(b"unasked");
        proof.answered(&[2]);
        assert_eq!(proof.proven(), 200);
        proof.answered(&[1]);
        assert_eq!(proof.proven(), 200, "an earlier one, answered late, takes nothing back");
        (0..100).for_each(|n| proof.asked(ping(n), 1_000));
        assert!(proof.pings.len() <= MAX_PINGS);
        proof.all(5_000);
        assert_eq!(proof.proven(), 5_000);
    }
}
