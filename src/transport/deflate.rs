//! Messages that are compressed (RFC 7692, permessage-deflate): one direction each, with what both sides agreed on.

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::head::{Fault, TOO_LARGE};

const NOT_INFLATED: Fault = Fault { code: 1007, what: "a compressed message does not decompress" };

/// What ends a message and is not sent (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// What comes out grows by so much at first.
const STEP: usize = 4 << 10;

/// zlib has no raw deflate with a window of 256 bytes.
const SMALLEST_WINDOW: u8 = 9;

pub(crate) struct Inflate {
    state: Decompress,
    takeover: bool,
}

impl Inflate {
    pub(crate) fn new(window_bits: u8, takeover: bool) -> Self {
        let state = Decompress::new_with_window_bits(false, window_bits.max(SMALLEST_WINDOW));
        Self { state, takeover }
    }

    /// Stops as soon as more than `limit` comes out, whatever is still to come: memory is taken for what is there.
    pub(crate) fn message(&mut self, compressed: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.clear();
        let mut has_ended = false;
        for mut input in [compressed, &TAIL] {
            // Nothing was cut off a stream that ended by itself.
            if has_ended {
                break;
            }
            loop {
                let room = out.len().max(STEP).min((limit - out.len()).saturating_add(1));
                out.reserve_exact(room);
                let (in_before, out_before) = (self.state.total_in(), out.len());
                let status = self.state.decompress_vec(input, out, FlushDecompress::Sync);
                let status = status.map_err(|_| NOT_INFLATED)?;
                let taken = (self.state.total_in() - in_before) as usize;
                input = &input[taken..];
                if out.len() > limit {
                    return Err(TOO_LARGE);
                }
                match status {
                    // The sender may end its stream with a message, and begin another with the next.
                    Status::StreamEnd => {
                        self.state.reset(false);
                        has_ended = input.is_empty();
                    }
                    _ if taken == 0 && out.len() == out_before && !input.is_empty() => {
                        return Err(NOT_INFLATED);
                    }
                    _ => {}
                }
                if input.is_empty() && out.len() < out.capacity() {
                    break;
                }
            }
        }
        if !self.takeover {
            self.state.reset(false);
        }
        Ok(())
    }
}

pub(crate) struct Deflate {
    /// Made with the first message that is to be compressed: it takes a third of a megabyte.
    state: Option<Compress>,
    level: u32,
    window_bits: u8,
    takeover: bool,
    above: usize,
}

impl Deflate {
    /// `None` where the peer takes only what zlib can't make: then nothing is compressed, which is allowed.
    pub(crate) fn new(level: u32, window_bits: u8, takeover: bool, above: usize) -> Option<Self> {
        (window_bits >= SMALLEST_WINDOW).then_some(Self { state: None, level, window_bits, takeover, above })
    }

    /// The message compressed, if it is to be.
    pub(crate) fn message(&mut self, message: &[u8]) -> Option<Bytes> {
        if message.len() <= self.above {
            return None;
        }
        let (level, bits) = (Compression::new(self.level), self.window_bits);
        let state = self.state.get_or_insert_with(|| Compress::new_with_window_bits(level, false, bits));
        let mut out = Vec::with_capacity(message.len() / 2 + STEP);
        let mut input = message;
        loop {
            let before = state.total_in();
            // It fails only for a state that was never made.
            let _ = state.compress_vec(input, &mut out, FlushCompress::Sync);
            input = &input[(state.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                break;
            }
            out.reserve(STEP);
        }
        if !self.takeover {
            state.reset();
        }
        out.truncate(out.len() - TAIL.len());
        Some(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(takeover: bool) -> (Deflate, Inflate) {
        (Deflate::new(6, 15, takeover, 0).unwrap(), Inflate::new(15, takeover))
    }

    #[test]
    fn what_is_compressed_comes_out_again_with_and_without_context() {
        for takeover in [false, true] {
            let (mut deflate, mut inflate) = pair(takeover);
            let (mut sizes, mut out) = (vec![], vec![]);
            for size in [1, 5, 300, 300, 70_000, 1_000_000] {
                let message: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
                let compressed = deflate.message(&message).unwrap();
                sizes.push(compressed.len());
                inflate.message(&compressed, size, &mut out).unwrap();
                assert!(out == message, "{size} bytes");
            }
            assert_eq!(takeover, sizes[3] < sizes[2], "the context is taken over: {sizes:?}");
        }
    }

    #[test]
    fn a_bomb_is_given_up_as_soon_as_it_is_too_large() {
        let (mut deflate, mut inflate) = pair(true);
        let bomb = deflate.message(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < 80 << 10);
        let mut out = vec![];
        assert_eq!(inflate.message(&bomb, 100_000, &mut out), Err(TOO_LARGE));
        assert!(out.capacity() < 100_100, "{}", out.capacity());
    }

    /// RFC 7692 section 7.2.3.4 has a zero byte follow then, which not every server sends.
    #[test]
    fn a_stream_may_end_with_a_message() {
        use std::io::Write;
        let mut ended = flate2::write::DeflateEncoder::new(vec![], Compression::fast());
        ended.write_all(b"the end of a stream").unwrap();
        let ended = ended.finish().unwrap();
        for takeover in [false, true] {
            let (mut inflate, mut out) = (Inflate::new(15, takeover), vec![]);
            for compressed in [&ended[..], &[&ended[..], &[0]].concat(), &ended] {
                inflate.message(compressed, 100, &mut out).unwrap();
                assert_eq!(out, b"the end of a stream");
            }
        }
    }

    #[test]
    fn what_does_not_decompress_is_a_fault() {
        let (_, mut inflate) = pair(true);
        assert_eq!(inflate.message(&[0xff; 40], 1000, &mut vec![]), Err(NOT_INFLATED));
    }

    #[test]
    fn small_messages_are_left_as_they_are() {
        let mut deflate = Deflate::new(6, 15, true, 100).unwrap();
        assert!(deflate.message(&[0; 100]).is_none());
        assert!(deflate.message(&[0; 101]).is_some());
        assert!(Deflate::new(6, 8, true, 0).is_none(), "a window that zlib can't make");
    }
}
