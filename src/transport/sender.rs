//! Messages in, bytes out: the sending half of RFC 6455, with no socket and no clock. Frames are encoded into a buffer that the
//! wire empties a slice at a time. A payload longer than a slice is encoded as the buffer empties, so that a message costs time
//! in proportion to its length and no second copy of it is kept.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::head::apply_mask;
use crate::message::CloseFrame;

/// Bytes of payload that are encoded in one go.
const SLICE: usize = 64 << 10;

pub(super) struct Sender {
    /// Only `buffer[start..]` is still to be written.
    buffer: Vec<u8>,
    start: usize,
    /// The message whose payload is not all in the buffer yet.
    unfinished: Option<Unfinished>,
    /// Control frames that wait for the end of a frame. No pongs.
    controls: VecDeque<(Control, Bytes)>,
    /// The answer to the latest ping, until the buffer is empty. A peer that sends pings and reads nothing would fill our memory
    /// with pongs; RFC 6455 section 5.5.3 allows to answer the latest alone.
    pong: Option<Bytes>,
    /// Bytes of all frames that were put into the buffer so far, on the scale on which the wire counts what it took.
    encoded: u64,
    /// Where each message ends, on the same scale, that was handed over with a request to report it.
    ends: VecDeque<u64>,
    masks: bool,
    /// Longer payloads are sent in fragments of this length (RFC 6455 section 5.4).
    max_frame: usize,
    /// Our close frame was handed over: no frame may follow it (RFC 6455 section 5.5.1). `Some(None)`: one without a code.
    closed: Option<Option<u16>>,
}

struct Unfinished {
    payload: Bytes,
    /// So much of it is encoded.
    at: usize,
    /// The frame that is being encoded begins and ends there.
    frame: (usize, usize),
    mask: [u8; 4],
    is_reported: bool,
}

impl Sender {
    /// `written` bytes have left already.
    pub(super) fn new(masks: bool, max_frame: usize, written: u64) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            unfinished: None,
            controls: VecDeque::new(),
            pong: None,
            encoded: written,
            ends: VecDeque::new(),
            masks,
            max_frame: max_frame.max(1),
            closed: None,
        }
    }

    /// Whether all that was handed over has left.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.start == self.buffer.len() && self.unfinished.is_none() && self.pong.is_none()
    }

    /// Whether the next message has to wait for the end of one that is being encoded.
    pub(super) fn is_in_a_message(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Whether a control frame can leave before the end of the message that is being encoded.
    pub(super) fn fragments(&self) -> bool {
        self.max_frame < usize::MAX
    }

    /// Bytes that are encoded and have not left.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether a frame may still be sent.
    fn can_send(&self) -> bool {
        self.closed.is_none()
    }

    /// The code of our close frame, once that was handed over.
    pub(super) fn close_code(&self) -> Option<Option<u16>> {
        self.closed
    }

    /// Bytes that left without passing through here.
    #[cfg(feature = "testing")]
    pub(super) fn bypassed(&mut self, bytes: usize) {
        self.encoded += bytes as u64;
    }

    /// Takes a message. `is_reported`: `next_written` reports when it has left. There is none unfinished.
    pub(super) fn message(&mut self, is_text: bool, is_compressed: bool, payload: Bytes, is_reported: bool) {
        if !self.can_send() {
            return;
        }
        self.encode_pong();
        let opcode = OpCode::Data(if is_text { Data::Text } else { Data::Binary });
        let end = payload.len().min(self.max_frame);
        let mask = self.head(opcode, is_compressed, end == payload.len(), end);
        self.unfinished = Some(Unfinished { payload, at: 0, frame: (0, end), mask, is_reported });
        self.encode();
    }

    pub(super) fn control(&mut self, control: Control, payload: &[u8]) {
        if !self.can_send() {
            return;
        }
        if control == Control::Close {
            self.closed = Some(payload.first_chunk().map(|code| u16::from_be_bytes(*code)));
        }
        match (control, &self.unfinished) {
            (Control::Pong, unfinished) if unfinished.is_some() || self.buffered() > 0 => {
                self.pong = Some(Bytes::copy_from_slice(payload));
            }
            (_, Some(_)) => self.controls.push_back((control, Bytes::copy_from_slice(payload))),
            (_, None) => {
                // No frame may follow a close frame.
                self.encode_pong();
                self.encode_control(control, payload);
            }
        }
    }

    fn encode_pong(&mut self) {
        if let Some(payload) = self.pong.take() {
            self.encode_control(Control::Pong, &payload);
        }
    }

    pub(super) fn close(&mut self, frame: Option<&CloseFrame>) {
        let payload = frame.map(|frame| [&frame.code.to_be_bytes()[..], frame.reason.as_bytes()].concat());
        self.control(Control::Close, payload.as_deref().unwrap_or_default());
    }

    /// Writes until about so many bytes have left, or nothing is left. An error is the wire's: `WouldBlock` when it is full.
    pub(super) fn write(&mut self, wire: &mut impl Write, most: usize) -> io::Result<()> {
        let mut written = 0;
        while !self.is_idle() && written < most {
            if self.start == self.buffer.len() {
                self.encode();
            }
            match wire.write(&self.buffer[self.start..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                some => {
                    self.start += some;
                    written += some;
                }
            }
            if self.start == self.buffer.len() {
                self.buffer.clear();
                self.start = 0;
            }
        }
        Ok(())
    }

    /// Where the next message ends that has left in full, given what the wire has taken.
    pub(super) fn next_written(&mut self, written: u64) -> Option<u64> {
        let end = *self.ends.front()?;
        (end <= written).then(|| self.ends.pop_front()).flatten()
    }

    /// Encodes the next slice of the message under way, and what follows its end.
    fn encode(&mut self) {
        let Some(mut message) = self.unfinished.take() else { return self.encode_pong() };
        let room = SLICE.saturating_sub(self.buffered()).max(1);
        let until = message.frame.1.min(message.at.saturating_add(room));
        let begins = self.buffer.len();
        self.buffer.extend_from_slice(&message.payload[message.at..until]);
        if self.masks {
            apply_mask(&mut self.buffer[begins..], message.mask, message.at - message.frame.0);
        }
        self.encoded += (until - message.at) as u64;
        message.at = until;
        if until < message.frame.1 {
            self.unfinished = Some(message);
            return;
        }
        let is_final = until == message.payload.len();
        if is_final && message.is_reported {
            self.ends.push_back(self.encoded);
        }
        self.encode_pong();
        while let Some((control, payload)) = self.controls.pop_front() {
            self.encode_control(control, &payload);
            if control == Control::Close {
                self.controls.clear();
                return;
            }
        }
        if !is_final {
            let end = message.payload.len().min(until + self.max_frame);
            message.frame = (until, end);
            message.mask = self.head(OpCode::Data(Data::Continue), false, end == message.payload.len(), end - until);
            self.unfinished = Some(message);
        }
    }

    fn encode_control(&mut self, control: Control, payload: &[u8]) {
        let mask = self.head(OpCode::Control(control), false, true, payload.len());
        let begins = self.buffer.len();
        self.buffer.extend_from_slice(payload);
        if self.masks {
            apply_mask(&mut self.buffer[begins..], mask, 0);
        }
        self.encoded += payload.len() as u64;
    }

    /// Encodes the head of a frame; returns its mask.
    fn head(&mut self, opcode: OpCode, rsv1: bool, is_final: bool, len: usize) -> [u8; 4] {
        // RFC 6455 section 5.3: not to be guessed by whoever chose the payload.
        let mask: Option<[u8; 4]> = self.masks.then(rand::random);
        let header = FrameHeader { is_final, rsv1, rsv2: false, rsv3: false, opcode, mask };
        let begins = self.buffer.len();
        // A vector takes all that it is given.
        let _ = header.format(len as u64, &mut self.buffer);
        self.encoded += (self.buffer.len() - begins) as u64;
        mask.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Body;
    use crate::transport::receiver::{Next, Receiver};

    /// A wire that takes so many bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let some = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..some]);
            Ok(some)
        }
    }

    /// What the peer makes of it: `m` and the length of a message, or the letter of a control frame.
    fn received(bytes: &[u8]) -> Vec<String> {
        let mut receiver = Receiver::new(1 << 20, true, usize::MAX, None);
        let mut all = vec![];
        let mut rest = bytes;
        loop {
            match receiver.next().unwrap() {
                Next::Message => match receiver.take_body().unwrap() {
                    Body::Text(text) => all.push(format!("m{}", text.as_str().len())),
                    Body::Binary(bytes) => all.push(format!("m{}", bytes.len())),
                },
                Next::Ping => all.push("ping".into()),
                Next::Pong => all.push("pong".into()),
                Next::Part => {}
                Next::Close(frame) => all.push(format!("close {:?}", frame.map(|frame| frame.code))),
                Next::Nothing if rest.is_empty() => return all,
                Next::Nothing => {
                    let space = receiver.space();
                    let some = space.len().min(rest.len());
                    space[..some].copy_from_slice(&rest[..some]);
                    receiver.came(some);
                    rest = &rest[some..];
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_sent_arrives_whatever_its_length_and_however_slowly_it_leaves() {
        for (max_frame, step) in [(usize::MAX, 7_919), (usize::MAX, 1 << 20), (1_000, 7_919), (100_000, 1 << 20)] {
            let (mut sender, mut wire, mut ends) = (Sender::new(true, max_frame, 0), Slow(vec![], step), vec![]);
            let lengths = [0, 1, 125, 126, 65_535, 65_536, 1_000_000];
            for len in lengths {
                sender.message(false, false, vec![b'x'; len].into(), true);
                while !sender.is_idle() {
                    sender.write(&mut wire, 10_000).unwrap();
                    assert!(sender.buffered() <= SLICE + 14);
                }
                ends.extend(sender.next_written(wire.0.len() as u64));
                assert_eq!(ends.last(), Some(&(wire.0.len() as u64)), "{len}: reported when all of it has left");
            }
            let expected: Vec<_> = lengths.iter().map(|len| format!("m{len}")).collect();
            assert_eq!(received(&wire.0), expected, "frames of {max_frame}");
        }
    }

    #[test]
    fn control_frames_pass_between_fragments_and_never_within_a_frame() {
        for (max_frame, expected) in [(usize::MAX, ["m300000", "ping"]), (4_096, ["ping", "m300000"])] {
            let (mut sender, mut wire) = (Sender::new(true, max_frame, 0), Slow(vec![], usize::MAX));
            sender.message(true, false, vec![b'x'; 300_000].into(), false);
            sender.write(&mut wire, 1).unwrap();
            sender.control(Control::Ping, b"1");
            while !sender.is_idle() {
                sender.write(&mut wire, 1).unwrap();
            }
            assert_eq!(received(&wire.0), expected);
        }
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        let (mut sender, mut wire) = (Sender::new(true, usize::MAX, 0), Slow(vec![], usize::MAX));
        sender.close(Some(&CloseFrame { code: 1000, reason: "done".into() }));
        sender.message(true, false, Bytes::from_static(b"late"), true);
        sender.control(Control::Pong, b"");
        sender.close(None);
        sender.write(&mut wire, usize::MAX).unwrap();
        assert_eq!(received(&wire.0), ["close Some(1000)"]);
        assert_eq!((sender.close_code(), sender.can_send()), (Some(Some(1000)), false));
    }

    /// A peer that sends pings and reads nothing.
    #[test]
    fn of_pongs_that_wait_the_latest_alone_is_kept() {
        for large in [false, true] {
            let (mut sender, mut wire) = (Sender::new(true, usize::MAX, 0), Slow(vec![], usize::MAX));
            sender.control(Control::Pong, b"first");
            if large {
                sender.message(true, false, vec![b'x'; 300_000].into(), false);
            }
            let before = sender.buffered();
            (0..100_000).for_each(|n: u32| sender.control(Control::Pong, &n.to_be_bytes()));
            assert!(sender.buffered() == before && sender.controls.is_empty());
            while !sender.is_idle() {
                sender.write(&mut wire, usize::MAX).unwrap();
            }
            let expected = if large { vec!["pong", "m300000", "pong"] } else { vec!["pong", "pong"] };
            assert_eq!(received(&wire.0), expected);
        }
    }
}
