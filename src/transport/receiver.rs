//! Bytes in, messages out: the receiving half of RFC 6455, with no socket and no clock. A message that fits the read buffer
//! is told where it lies, without a copy; one that comes in pieces is put together beside it.

use std::ops::Range;

use bytes::Bytes;

use super::assembly::{Assembly, KEPT, valid_part};
use super::deflate::Inflate;
use super::head::{
    BINARY, CLOSE, CLOSE_CODE, CONTINUATION, Fault, Head, LONG_CONTROL, LONGEST, MAX_CONTROL, NO_UTF8,
    NOTHING_TO_CONTINUE, PING, RESERVED_BIT, SHORT_CLOSE, TEXT, TOO_LARGE, UNFINISHED, apply_mask,
};
use crate::message::{Body, BodyRef, CloseFrame};
use crate::text::Text;

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A message is whole: `body` or `take_body` has it until `next` is asked again.
    Message,
    /// `control` has its payload.
    Ping,
    Pong,
    Close(Option<CloseFrame>),
    /// The peer's close frame breaks a rule. As far as it says something, this is it.
    BadClose(Option<CloseFrame>, Fault),
    /// What came is taken apart; perhaps more has to come for one that has begun.
    Nothing,
    /// Many frames, and nothing whole came of them: others may want their turn.
    Part,
}

/// Frames taken apart in one go, if nothing whole comes of them.
const FRAMES_AT_ONCE: usize = 1024;

/// Messages handed to other threads share blocks of this size while so much lies there, but for those that are longer than
/// half of it: a small one that is kept alone keeps no more than that alive.
const BLOCK: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
}

/// How a venue's own packing of its payloads is undone: the payload, the most that may come out, and where that goes.
pub(crate) type Unpack = dyn Fn(&[u8], usize, &mut Vec<u8>) -> Result<(), Box<str>> + Send + Sync;

/// Where the message is that is whole.
#[derive(Clone, Debug)]
enum Place {
    /// In the read buffer.
    Buffer(Range<usize>),
    Assembly,
    Unpacked,
}

/// A message that comes in more than one piece.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    kind: Kind,
    compressed: bool,
    /// What is still to come of the frame under way, if one is.
    frame: Option<Frame>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    left: u64,
    came: usize,
    mask: Option<[u8; 4]>,
    is_final: bool,
}

pub(crate) struct Receiver {
    /// Never cleared: only `buffer[start..end]` means anything.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    peer_masks: bool,
    max_message: usize,
    pieces: Option<Pieces>,
    assembly: Assembly,
    /// Of a text at the start of the buffer that is not whole: so many bytes of its payload are UTF-8.
    checked: usize,
    kind: Kind,
    place: Place,
    inflate: Option<Box<Inflate>>,
    /// Binary messages are packed by the venue, and will be unpacked.
    unpacks: bool,
    /// What came out of a compressed message.
    unpacked: Vec<u8>,
    /// What messages of the latest read share that go to other threads, and where in the buffer it was copied from.
    block: Bytes,
    block_at: usize,
    /// After a close frame nothing counts any more.
    closed: bool,
}

impl Receiver {
    pub(crate) fn new(buffer: usize, peer_masks: bool, max_message: usize, inflate: Option<Box<Inflate>>) -> Self {
        Self {
            buffer: vec![0; buffer.max(LONGEST + MAX_CONTROL)].into_boxed_slice(),
            start: 0,
            end: 0,
            peer_masks,
            max_message,
            pieces: None,
            assembly: Assembly::default(),
            checked: 0,
            kind: Kind::Binary,
            place: Place::Buffer(0..0),
            inflate,
            unpacks: false,
            unpacked: Vec::new(),
            block: Bytes::new(),
            block_at: 0,
            closed: false,
        }
    }

    /// Whatever is binary will be unpacked.
    pub(crate) fn will_unpack(&mut self) {
        self.unpacks = true;
    }

    /// Where bytes that come are to be put. Never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.block = Bytes::new();
        // The latest message has been looked at.
        self.place = Place::Buffer(0..0);
        if self.pieces.is_none() {
            self.assembly.clear();
        }
        self.unpacked.clear();
        self.unpacked.shrink_to(KEPT);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// So many were put there.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Bytes that are not taken apart yet.
    pub(crate) fn unread(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Next, Fault> {
        match self.usual() {
            Some((kind, head, len)) => Ok(self.is_whole_in_buffer(kind, head, len)),
            None => self.next_of_any_kind(),
        }
    }

    #[inline(always)]
    pub(crate) fn has_usual(&self) -> bool {
        self.usual().is_some()
    }

    /// As `next`, for a loop over the usual ones; `None`, and nothing is taken, if what is next is not one.
    #[inline(always)]
    pub(crate) fn next_usual(&mut self) -> Option<BodyRef<'_>> {
        let (kind, head, len) = self.usual()?;
        let begins = self.start + head;
        let payload = &self.buffer[begins..begins + len];
        let body = match kind {
            Kind::Text => BodyRef::Text(text(payload).ok()?),
            Kind::Binary => BodyRef::Binary(payload),
        };
        (self.start, self.checked) = (begins + len, 0);
        Some(body)
    }

    /// The size of head and payload, if a message is next that is whole, in one frame and without a mask.
    #[inline(always)]
    fn usual(&self) -> Option<(Kind, usize, usize)> {
        if self.pieces.is_some() || self.peer_masks || self.closed {
            return None;
        }
        let rest = &self.buffer[self.start..self.end];
        let (first, head, len) = match rest {
            [first @ (0x81 | 0x82), len @ 0..126, ..] => (*first, 2, usize::from(*len)),
            [first @ (0x81 | 0x82), 126, high, low, ..] => (*first, 4, usize::from(u16::from_be_bytes([*high, *low]))),
            _ => return None,
        };
        let kind = if first == 0x81 { Kind::Text } else { Kind::Binary };
        (rest.len() >= head + len && len <= self.max_message).then_some((kind, head, len))
    }

    #[inline(always)]
    fn is_whole_in_buffer(&mut self, kind: Kind, head: usize, len: usize) -> Next {
        let begins = self.start + head;
        (self.kind, self.place) = (kind, Place::Buffer(begins..begins + len));
        (self.start, self.checked) = (begins + len, 0);
        Next::Message
    }

    #[inline(never)]
    fn next_of_any_kind(&mut self) -> Result<Next, Fault> {
        for _ in 0..FRAMES_AT_ONCE {
            if self.closed {
                self.start = self.end;
                return Ok(Next::Nothing);
            }
            if let Some(Pieces { frame: Some(_), .. }) = self.pieces {
                if !self.piece()? {
                    return Ok(Next::Nothing);
                }
                if self.pieces.is_none() {
                    return Ok(Next::Message);
                }
                continue;
            }
            let rest = &self.buffer[self.start..self.end];
            let head = match Head::read(rest, self.peer_masks) {
                // What it says is told all the same.
                Err(LONG_CONTROL) if rest[0] & 0x0f == CLOSE => return Ok(self.long_close()),
                head => head?,
            };
            let whole = head.filter(|head| !head.is_control() || rest.len() - head.size >= head.len as usize);
            let Some(head) = whole else { return Ok(Next::Nothing) };
            if head.is_control() {
                return Ok(self.control_frame(&head));
            }
            self.may_follow(&head)?;
            let fits = head.len <= (self.buffer.len() - head.size) as u64;
            if head.is_final && self.pieces.is_none() && fits {
                return self.in_one_frame(&head);
            }
            self.start += head.size;
            let (kind, compressed) = (kind(head.opcode), head.compressed);
            if self.pieces.is_none() {
                self.assembly.clear();
            }
            let pieces = self.pieces.get_or_insert(Pieces { kind, compressed, frame: None });
            pieces.frame = Some(Frame { left: head.len, came: 0, mask: head.mask, is_final: head.is_final });
        }
        Ok(Next::Part)
    }

    /// Whether a frame may come where it comes.
    fn may_follow(&self, head: &Head) -> Result<(), Fault> {
        match (head.opcode, self.pieces) {
            (CONTINUATION, None) => return Err(NOTHING_TO_CONTINUE),
            (TEXT | BINARY, Some(_)) => return Err(UNFINISHED),
            _ => {}
        }
        if head.compressed && self.inflate.is_none() {
            return Err(RESERVED_BIT);
        }
        let before = if self.pieces.is_some() { self.assembly.len() } else { 0 };
        let is_packed = head.compressed
            || self.pieces.is_some_and(|pieces| pieces.compressed)
            || (self.unpacks && head.opcode != TEXT);
        // What can't be made smaller gets larger when it is packed; what comes out has the bound.
        let most = self.max_message as u64;
        let most = if is_packed { most.saturating_add(most / 64 + 1024) } else { most };
        match head.len.checked_add(before as u64) {
            Some(len) if len <= most => Ok(()),
            _ => Err(TOO_LARGE),
        }
    }

    /// A message in one frame that the buffer has room for.
    fn in_one_frame(&mut self, head: &Head) -> Result<Next, Fault> {
        let (begins, len) = (self.start + head.size, head.len as usize);
        let kind = kind(head.opcode);
        if self.end - begins < len {
            if kind == Kind::Text && !head.compressed && head.mask.is_none() {
                self.checked += valid_part(&self.buffer[begins + self.checked..self.end])?.len();
            }
            return Ok(Next::Nothing);
        }
        if let Some(mask) = head.mask {
            apply_mask(&mut self.buffer[begins..begins + len], mask, 0);
        }
        let next = self.is_whole_in_buffer(kind, head.size, len);
        if head.compressed {
            self.place = Place::Unpacked;
            let inflate = self.inflate.as_mut().ok_or(RESERVED_BIT)?;
            inflate.message(&self.buffer[begins..begins + len], self.max_message, &mut self.unpacked)?;
        }
        Ok(next)
    }

    /// Takes what there is of the frame under way. False when there is nothing.
    fn piece(&mut self) -> Result<bool, Fault> {
        let Some(pieces) = &mut self.pieces else { return Ok(false) };
        let Some(frame) = &mut pieces.frame else { return Ok(false) };
        let some = (self.end - self.start).min(usize::try_from(frame.left).unwrap_or(usize::MAX));
        if some == 0 && frame.left > 0 {
            return Ok(false);
        }
        let payload = &mut self.buffer[self.start..self.start + some];
        if let Some(mask) = frame.mask {
            apply_mask(payload, mask, frame.came);
        }
        match pieces.kind {
            Kind::Text if !pieces.compressed => self.assembly.push_text(payload)?,
            _ => self.assembly.push(payload),
        }
        self.start += some;
        frame.came += some;
        frame.left -= some as u64;
        let Pieces { kind, compressed, .. } = *pieces;
        if frame.left == 0 {
            let is_final = frame.is_final;
            pieces.frame = None;
            if is_final {
                self.pieces = None;
                (self.kind, self.place) = (kind, Place::Assembly);
                self.assembly.end_text()?;
                if compressed {
                    self.place = Place::Unpacked;
                    let inflate = self.inflate.as_mut().ok_or(RESERVED_BIT)?;
                    inflate.message(self.assembly.bytes(), self.max_message, &mut self.unpacked)?;
                }
            }
        }
        Ok(true)
    }

    /// A control frame that is whole.
    fn control_frame(&mut self, head: &Head) -> Next {
        let (begins, len) = (self.start + head.size, head.len as usize);
        let payload = begins..begins + len;
        if let Some(mask) = head.mask {
            apply_mask(&mut self.buffer[payload.clone()], mask, 0);
        }
        self.start = payload.end;
        self.place = Place::Buffer(payload);
        match head.opcode {
            CLOSE => self.close_frame(),
            PING => Next::Ping,
            _ => Next::Pong,
        }
    }

    fn close_frame(&mut self) -> Next {
        self.closed = true;
        let (code, reason) = match self.control() {
            [] => return Next::Close(None),
            [_] => return Next::BadClose(None, SHORT_CLOSE),
            [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        };
        let frame = Some(CloseFrame { code, reason: String::from_utf8_lossy(reason).into() });
        if !CloseFrame::may_be_sent(code) {
            Next::BadClose(frame, CLOSE_CODE)
        } else if std::str::from_utf8(reason).is_err() {
            Next::BadClose(frame, NO_UTF8)
        } else {
            Next::Close(frame)
        }
    }

    /// A close frame that is too long: as much of it as has come.
    fn long_close(&mut self) -> Next {
        self.closed = true;
        let rest = &self.buffer[self.start..self.end];
        let head = if rest[1] & 0x7f == 127 { 10 } else { 4 };
        let frame = match rest.get(head..) {
            Some([high, low, reason @ ..]) if !self.peer_masks => {
                let reason = &reason[..reason.len().min(CloseFrame::MAX_REASON)];
                let reason = String::from_utf8_lossy(reason).into();
                Some(CloseFrame { code: u16::from_be_bytes([*high, *low]), reason })
            }
            _ => None,
        };
        Next::BadClose(frame, LONG_CONTROL)
    }

    /// The payload of the control frame that `next` told of.
    pub(crate) fn control(&self) -> &[u8] {
        match &self.place {
            Place::Buffer(range) => &self.buffer[range.clone()],
            _ => &[],
        }
    }

    #[inline(always)]
    fn payload(&self) -> &[u8] {
        match &self.place {
            Place::Buffer(range) => &self.buffer[range.clone()],
            Place::Assembly => self.assembly.bytes(),
            Place::Unpacked => &self.unpacked,
        }
    }

    pub(crate) fn is_binary(&self) -> bool {
        self.kind == Kind::Binary
    }

    /// Unpacks the message that `next` told of; what comes out is text if it can be. An error is `unpack`'s own, or that more
    /// comes out than may.
    pub(crate) fn unpack(&mut self, unpack: &Unpack) -> Result<Result<(), Fault>, Box<str>> {
        let is_unpacked = matches!(self.place, Place::Unpacked);
        let mut out = if is_unpacked { Vec::new() } else { std::mem::take(&mut self.unpacked) };
        out.clear();
        unpack(self.payload(), self.max_message, &mut out)?;
        if out.len() > self.max_message {
            return Ok(Err(TOO_LARGE));
        }
        self.kind = if simdutf8::basic::from_utf8(&out).is_ok() { Kind::Text } else { Kind::Binary };
        (self.place, self.unpacked) = (Place::Unpacked, out);
        Ok(Ok(()))
    }

    /// The message that `next` told of, where it lies. A text that is none is found here.
    #[inline(always)]
    pub(crate) fn body(&self) -> Result<BodyRef<'_>, Fault> {
        match (&self.place, self.kind) {
            (Place::Assembly, Kind::Text) => Ok(BodyRef::Text(self.assembly.text())),
            (_, Kind::Text) => text(self.payload()).map(BodyRef::Text),
            (_, Kind::Binary) => Ok(BodyRef::Binary(self.payload())),
        }
    }

    /// The same, to be kept.
    #[inline]
    pub(crate) fn take_body(&mut self) -> Result<Body, Fault> {
        match (&self.place, self.kind) {
            (Place::Assembly, Kind::Text) if self.assembly.len() > KEPT => {
                Ok(Body::Text(self.assembly.take_text().into()))
            }
            (Place::Assembly, Kind::Binary) if self.assembly.len() > KEPT => {
                Ok(Body::Binary(self.assembly.take_bytes().into()))
            }
            (Place::Assembly | Place::Unpacked, _) => Ok(match self.body()? {
                BodyRef::Text(text) => Body::Text(text.into()),
                BodyRef::Binary(bytes) => Body::Binary(Bytes::copy_from_slice(bytes)),
            }),
            (Place::Buffer(range), kind) => {
                let range = range.clone();
                let part = self.block_with(range);
                Ok(match kind {
                    Kind::Text => Body::Text(Text::within(&part, text(&part)?)),
                    Kind::Binary => Body::Binary(part),
                })
            }
        }
    }

    /// These bytes of the buffer in memory that is not the buffer's: of their own, or shared with what came with them.
    fn block_with(&mut self, range: Range<usize>) -> Bytes {
        let begins = self.block_at;
        if !self.block.is_empty() && range.start >= begins && range.end <= begins + self.block.len() {
            return self.block.slice(range.start - begins..range.end - begins);
        }
        // What is still masked is no good to share.
        if self.peer_masks || range.len() >= BLOCK / 2 || self.end - range.start < BLOCK {
            return Bytes::copy_from_slice(&self.buffer[range]);
        }
        self.block = Bytes::copy_from_slice(&self.buffer[range.start..range.start + BLOCK]);
        self.block_at = range.start;
        self.block.slice(..range.len())
    }
}

fn kind(opcode: u8) -> Kind {
    if opcode == TEXT { Kind::Text } else { Kind::Binary }
}

#[inline]
fn text(bytes: &[u8]) -> Result<&str, Fault> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| NO_UTF8)
}

#[cfg(test)]
#[path = "receiver_tests.rs"]
mod tests;
