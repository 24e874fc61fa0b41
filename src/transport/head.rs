//! The head of a frame (RFC 6455 section 5.2), and what may not stand in it. Bytes in, verdict out.

/// The peer broke the protocol: what it is owed in a close frame, and what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: u16,
    pub(crate) what: &'static str,
}

const fn broken(what: &'static str) -> Fault {
    Fault { code: 1002, what }
}

pub(crate) const TOO_LARGE: Fault = Fault { code: 1009, what: "a message is larger than `max_message_size`" };
pub(crate) const NO_UTF8: Fault = Fault { code: 1007, what: "a text message is not UTF-8" };
pub(super) const RESERVED_BIT: Fault = broken("a reserved bit is set, and no extension was agreed on that uses it");
const RESERVED_OPCODE: Fault = broken("an opcode that means nothing");
pub(super) const LONG_CONTROL: Fault = broken("a control frame of more than 125 bytes");
pub(super) const SPLIT_CONTROL: Fault = broken("a control frame in fragments");
pub(super) const MASKED: Fault = broken("a server's frame is masked");
const UNMASKED: Fault = broken("a client's frame is not masked");
pub(super) const NOTHING_TO_CONTINUE: Fault = broken("a fragment that continues nothing");
pub(super) const UNFINISHED: Fault = broken("a message begins within another's fragments");
pub(super) const SHORT_CLOSE: Fault = broken("a close frame with half a code");
pub(super) const CLOSE_CODE: Fault = broken("a close code that may not be sent");

/// A control frame's payload has at most so many bytes (RFC 6455 section 5.5).
pub(super) const MAX_CONTROL: usize = 125;

/// More of a head than this does not exist.
pub(super) const LONGEST: usize = 14;

pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// The first of the reserved bits (RFC 7692 section 6: this message is compressed).
const RSV1: u8 = 0x40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) is_final: bool,
    pub(super) compressed: bool,
    pub(super) opcode: u8,
    pub(super) mask: Option<[u8; 4]>,
    /// Of the payload.
    pub(super) len: u64,
    /// Of the head itself.
    pub(super) size: usize,
}

impl Head {
    pub(super) fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }

    /// `None` while it is not whole. What is wrong with it is said as soon as its byte is there.
    pub(super) fn read(bytes: &[u8], peer_masks: bool) -> Result<Option<Self>, Fault> {
        let [first, rest @ ..] = bytes else { return Ok(None) };
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
        let compressed = first & RSV1 != 0;
        let is_control = opcode >= CLOSE;
        if first & 0x30 != 0 || (compressed && (is_control || opcode == CONTINUATION)) {
            return Err(RESERVED_BIT);
        }
        if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
            return Err(RESERVED_OPCODE);
        }
        if is_control && !is_final {
            return Err(SPLIT_CONTROL);
        }
        let [second, rest @ ..] = rest else { return Ok(None) };
        let masked = second & 0x80 != 0;
        if masked != peer_masks {
            return Err(if masked { MASKED } else { UNMASKED });
        }
        let short = second & 0x7f;
        let (len, rest) = match short {
            126 => {
                let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*len)), rest)
            }
            127 => {
                let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*len), rest)
            }
            short => (u64::from(short), rest),
        };
        if is_control && len > MAX_CONTROL as u64 {
            return Err(LONG_CONTROL);
        }
        let (mask, rest) = match (masked, rest.split_first_chunk()) {
            (false, _) => (None, rest),
            (true, Some((mask, rest))) => (Some(*mask), rest),
            (true, None) => return Ok(None),
        };
        Ok(Some(Self { is_final, compressed, opcode, mask, len, size: bytes.len() - rest.len() }))
    }
}

/// Masks bytes, or takes the mask off (RFC 6455 section 5.3), of bytes that begin at `offset` of their payload.
pub(super) fn apply_mask(bytes: &mut [u8], mut mask: [u8; 4], offset: usize) {
    mask.rotate_left(offset % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let masked = u64::from_ne_bytes(word.try_into().unwrap_or_default()) ^ wide;
        word.copy_from_slice(&masked.to_ne_bytes());
    }
    for (at, byte) in words.into_remainder().iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let head = |bytes: &[u8]| Head::read(bytes, false).unwrap();
        for part in [&[][..], &[0x81], &[0x81, 126, 0], &[0x82, 127, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(head(part), None, "{part:?}");
        }
        let short = head(&[0x81, 5, b'h']).unwrap();
        assert_eq!((short.len, short.size, short.is_final, short.opcode), (5, 2, true, TEXT));
        assert_eq!(head(&[0x02, 126, 1, 44]).map(|it| (it.len, it.size, it.is_final)), Some((300, 4, false)));
        assert_eq!(head(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]).map(|it| (it.len, it.size)), Some((65_536, 10)));
        let masked = Head::read(&[0x81, 0x81, 1, 2, 3, 4], true).unwrap().unwrap();
        assert_eq!((masked.mask, masked.size), (Some([1, 2, 3, 4]), LONGEST - 8));
    }

    #[test]
    fn what_may_not_stand_in_a_head_is_refused_at_its_byte() {
        let fault = |bytes: &[u8]| Head::read(bytes, false).unwrap_err();
        assert_eq!(fault(&[0x91]), RESERVED_BIT);
        assert_eq!(fault(&[0xc9]), RESERVED_BIT, "a compressed control frame");
        assert_eq!(fault(&[0xc0]), RESERVED_BIT, "only the first fragment says that a message is compressed");
        assert_eq!(fault(&[0x83]), RESERVED_OPCODE);
        assert_eq!(fault(&[0x8b]), RESERVED_OPCODE);
        assert_eq!(fault(&[0x09]), SPLIT_CONTROL);
        assert_eq!(fault(&[0x89, 126, 0, 126]), LONG_CONTROL);
        assert_eq!(fault(&[0x81, 0x85]), MASKED);
        assert_eq!(Head::read(&[0x81, 5], true), Err(UNMASKED));
    }

    #[test]
    fn a_mask_comes_off_in_parts_as_it_does_in_one() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let clear: Vec<u8> = (0..99).collect();
        for split in 0..clear.len() {
            let mut masked = clear.clone();
            apply_mask(&mut masked, mask, 0);
            let (left, right) = masked.split_at_mut(split);
            apply_mask(left, mask, 0);
            apply_mask(right, mask, split);
            assert_eq!(masked, clear);
        }
    }
}
