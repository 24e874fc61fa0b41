//! Follows the frames in what the server sends, just far enough to know its close frame: tungstenite does not tell of one
//! whose code may not be on the wire, whose reason is no UTF-8, or that is too long. What the server said is what its user
//! has to know.

use crate::message::CloseFrame;

/// RFC 6455 section 5.5: a control frame's payload has at most 125 bytes. Of a longer one no more is kept.
const MAX_CONTROL: usize = 125;

/// RFC 6455 section 5.2: two bytes, up to eight of length, and four of a mask.
const LONGEST_HEAD: usize = 14;

const CLOSE: u8 = 8;

#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What came so far of a head that is not whole yet.
    head: [u8; LONGEST_HEAD],
    head_len: usize,
    /// What is still to come of the payload under way.
    left: u64,
    /// The payload of the first close frame, once its head has come; nothing is followed after it.
    close: Option<Vec<u8>>,
}

impl Frames {
    #[inline]
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(close) = &mut self.close {
                let some =
                    bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX)).min(MAX_CONTROL - close.len());
                close.extend_from_slice(&bytes[..some]);
                self.left -= some as u64;
                return;
            }
            if self.left >= bytes.len() as u64 {
                self.left -= bytes.len() as u64;
                return;
            }
            bytes = &bytes[self.left as usize..];
            self.left = 0;
            match bytes {
                // The usual ones, whole and without a mask.
                [first, length @ 0..126, rest @ ..] if self.head_len == 0 => {
                    bytes = rest;
                    self.begin(*first, u64::from(*length));
                }
                [first, 126, high, low, rest @ ..] if self.head_len == 0 => {
                    bytes = rest;
                    self.begin(*first, u64::from(u16::from_be_bytes([*high, *low])));
                }
                [byte, rest @ ..] => {
                    bytes = rest;
                    self.add_to_head(*byte);
                }
                [] => {}
            }
        }
    }

    fn begin(&mut self, first: u8, length: u64) {
        self.left = length;
        if first & 0x0f == CLOSE {
            self.close = Some(Vec::with_capacity(MAX_CONTROL));
        }
    }

    /// A head that is split, or of an unusual form.
    #[cold]
    fn add_to_head(&mut self, byte: u8) {
        self.head[self.head_len] = byte;
        self.head_len += 1;
        let extended = match self.head[1] & 0x7f {
            _ if self.head_len < 2 => return,
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        if self.head_len < 2 + extended + mask {
            return;
        }
        let length = match extended {
            0 => u64::from(self.head[1] & 0x7f),
            _ => self.head[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        self.head_len = 0;
        self.begin(self.head[0], length);
    }

    /// The first close frame, as far as it has come, if it has a code.
    pub(super) fn close(&self) -> Option<CloseFrame> {
        let [high, low, reason @ ..] = &self.close.as_ref()?[..] else { return None };
        let reason = String::from_utf8_lossy(reason).into();
        Some(CloseFrame { code: u16::from_be_bytes([*high, *low]), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are split, and whatever stands before and behind it.
    #[test]
    fn a_close_frame_is_found_however_it_comes() {
        let close = [&[0x88, 5][..], &1008_u16.to_be_bytes(), b"no\xe9"].concat();
        let long = [&[0x81, 126, 1, 44][..], &[0x88; 300]].concat();
        let longer = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 17, 112][..], &[0x88; 70_000]].concat();
        let masked = [&[0x82, 0x84, 1, 2, 3, 4][..], &[0x88; 4]].concat();
        let all =
            [&[0x89, 0, 0x81, 2, 0x88, 2][..], &long, &longer, &masked, &close, &[0x88, 2, 3, 232], &[7; 300]].concat();
        for size in [1, 2, 3, 7, 300, 8192, all.len()] {
            let mut frames = Frames::default();
            all.chunks(size).for_each(|some| frames.follow(some));
            let found = frames.close().unwrap();
            assert_eq!((found.code, &*found.reason), (1008, "no\u{fffd}"), "in parts of {size}");
        }
        let mut frames = Frames::default();
        frames.follow(&all[..all.len() - 320]);
        assert!(frames.close().is_none());
        // One that may not be as long as it is.
        frames = Frames::default();
        frames.follow(&[&[0x88, 126, 0, 202, 15, 161][..], &[b'x'; 200]].concat());
        assert_eq!((frames.close().unwrap().code, frames.close().unwrap().reason.len()), (4001, 123));
    }
}
