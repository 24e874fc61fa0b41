//! Messages that are compressed (RFC 7692, permessage-deflate): one direction each, with what both sides agreed on.

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};
use zlib_rs::{InflateFlush, Status};

use super::head::{Fault, TOO_LARGE};

const NOT_INFLATED: Fault = Fault { code: 1007, what: "a compressed message does not decompress" };

const NOT_WHOLE: Fault = Fault { code: 1007, what: "the data of a compressed message stops in the middle of a block" };

/// What ends a message and is not sent (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// What comes out grows by so much at first.
const STEP: usize = 4 << 10;

/// zlib has no raw deflate with a window of 256 bytes.
const SMALLEST_WINDOW: u8 = 9;

pub(crate) struct Inflate {
    state: zlib_rs::Inflate,
    takeover: bool,
}

impl Inflate {
    pub(crate) fn new(window_bits: u8, takeover: bool) -> Self {
        Self { state: zlib_rs::Inflate::new(false, window_bits.max(SMALLEST_WINDOW)), takeover }
    }

    /// Decompresses a message. Stops as soon as more than `limit` comes out, whatever is still to come: memory is taken for
    /// what is there.
    pub(crate) fn message(&mut self, compressed: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.clear();
        // RFC 7692 section 7.2.3.6 has one zero byte stand for an empty message. Some senders leave that out as well; the
        // state, which is at the end of a block, stays as it is.
        if compressed.is_empty() {
            return Ok(());
        }
        let has_ended = self.decompress(compressed, limit, out)?;
        if !has_ended {
            self.end_block()?;
        }
        if !self.takeover {
            self.state.reset(false);
        }
        Ok(())
    }

    /// True when the stream itself has ended with the input.
    fn decompress(&mut self, mut input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let mut has_ended = false;
        loop {
            let filled = out.len();
            let room = filled.max(STEP).min((limit - filled).saturating_add(1));
            out.reserve_exact(room);
            out.resize(filled + room, 0);
            let (in_before, out_before) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(input, &mut out[filled..], InflateFlush::SyncFlush);
            let taken = (self.state.total_in() - in_before) as usize;
            let produced = (self.state.total_out() - out_before) as usize;
            out.truncate(filled + produced);
            let status = status.map_err(|_| NOT_INFLATED)?;
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
                _ if taken == 0 && produced == 0 && !input.is_empty() => return Err(NOT_INFLATED),
                _ => {}
            }
            if input.is_empty() && produced < room {
                return Ok(has_ended);
            }
        }
    }

    /// Feeds the end of the block that the sender has left out, and checks that it is one: a message whose data stops in the
    /// middle is not whole. At the end of a block the decompressor stops by itself, here before the byte that follows.
    fn end_block(&mut self) -> Result<(), Fault> {
        const TAIL_AND_ONE: [u8; TAIL.len() + 1] = [0, 0, 0xff, 0xff, 0];
        let (in_before, out_before) = (self.state.total_in(), self.state.total_out());
        let status = self.state.decompress(&TAIL_AND_ONE, &mut [0; 64], InflateFlush::Block);
        let (taken, produced) = (self.state.total_in() - in_before, self.state.total_out() - out_before);
        match status {
            Ok(Status::Ok | Status::BufError) if taken == TAIL.len() as u64 && produced == 0 => Ok(()),
            _ => Err(NOT_WHOLE),
        }
    }
}

/// Bytes that are compressed in one go: some milliseconds.
const SLICE: usize = 64 << 10;

pub(crate) struct Deflate {
    /// Made with the first message that is to be compressed: it takes a third of a megabyte.
    state: Option<Compress>,
    level: u32,
    window_bits: u8,
    takeover: bool,
    above: usize,
}

/// A message that is being compressed.
#[derive(Default)]
pub(crate) struct Deflating {
    /// So much of the message is compressed.
    at: usize,
    out: Vec<u8>,
}

impl Deflate {
    /// `None` where the peer takes only what zlib can't make: then nothing is compressed, which is allowed.
    pub(crate) fn new(level: u32, window_bits: u8, takeover: bool, above: usize) -> Option<Self> {
        (window_bits >= SMALLEST_WINDOW).then_some(Self { state: None, level, window_bits, takeover, above })
    }

    /// Whether a message of this length is sent compressed.
    pub(crate) fn compresses(&self, len: usize) -> bool {
        len > self.above
    }

    /// Compresses the next slice of the message; returns all of it when that was the last.
    pub(crate) fn slice(&mut self, message: &[u8], deflating: &mut Deflating) -> Option<Bytes> {
        let (level, bits) = (Compression::new(self.level), self.window_bits);
        let state = self.state.get_or_insert_with(|| Compress::new_with_window_bits(level, false, bits));
        let Deflating { at, out } = deflating;
        let until = message.len().min(*at + SLICE);
        let is_last = until == message.len();
        // Blocks end where zlib likes, but for the end of the message (RFC 7692 section 7.2.1).
        let flush = if is_last { FlushCompress::Sync } else { FlushCompress::None };
        loop {
            out.reserve(STEP.max((until - *at) / 2));
            let before = state.total_in();
            // It fails only for a state that was never made.
            let _ = state.compress_vec(&message[*at..until], out, flush);
            *at += (state.total_in() - before) as usize;
            if *at == until && out.len() < out.capacity() {
                break;
            }
        }
        if !is_last {
            return None;
        }
        if !self.takeover {
            state.reset();
        }
        out.truncate(out.len() - TAIL.len());
        Some(std::mem::take(out).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Deflate {
        pub(crate) fn message(&mut self, message: &[u8]) -> Option<Bytes> {
            let mut deflating = Deflating::default();
            self.compresses(message.len()).then(|| {
                loop {
                    let (before, compressed) = (deflating.at, self.slice(message, &mut deflating));
                    assert!(deflating.at - before <= SLICE);
                    if let Some(compressed) = compressed {
                        return compressed;
                    }
                }
            })
        }
    }

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
    fn a_message_that_stops_in_the_middle_is_a_fault_and_not_a_shorter_message() {
        let text: Vec<u8> = (0..400u32).flat_map(|n| n.pow(3).to_string().into_bytes()).collect();
        for level in [0, 1, 9] {
            for takeover in [false, true] {
                let whole = Deflate::new(level, 15, takeover, 0).unwrap().message(&text).unwrap();
                // A lone zero byte is an empty message.
                for len in (1..whole.len()).filter(|len| whole[..*len] != [0]) {
                    let (mut inflate, mut out) = (Inflate::new(15, takeover), vec![]);
                    let cut = inflate.message(&whole[..len], 1 << 20, &mut out);
                    assert!(cut.is_err(), "level {level}: {len} of {} bytes gave {}", whole.len(), out.len());
                }
            }
        }
    }

    #[test]
    fn empty_messages_in_any_form_leave_the_stream_as_it_was() {
        for empty in [&[][..], &[0]] {
            let (mut deflate, mut inflate) = pair(true);
            let mut out = vec![];
            for n in 0..5 {
                inflate.message(empty, 100, &mut out).unwrap();
                assert!(out.is_empty());
                let message = [b'm', n];
                inflate.message(&deflate.message(&message).unwrap(), 100, &mut out).unwrap();
                assert_eq!(out, message);
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
