//! A message that comes in pieces: fragments, or one frame larger than the read buffer. Its memory grows as it comes, whatever
//! length it says it has; text is checked as it comes.

use super::head::{Fault, NO_UTF8};

/// Of the memory that a message once needed no more is kept than this for the next.
pub(super) const KEPT: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Assembly {
    text: String,
    bytes: Vec<u8>,
    /// The beginning of a character whose rest is still to come.
    torn: [u8; 4],
    torn_len: usize,
}

impl Assembly {
    pub(super) fn len(&self) -> usize {
        self.text.len() + self.torn_len + self.bytes.len()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// With its memory, and no more than it needs.
    pub(super) fn take_text(&mut self) -> String {
        self.text.shrink_to_fit();
        std::mem::take(&mut self.text)
    }

    pub(super) fn take_bytes(&mut self) -> Vec<u8> {
        self.bytes.shrink_to_fit();
        std::mem::take(&mut self.bytes)
    }

    /// For the next message.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEPT);
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.torn_len = 0;
    }

    pub(super) fn push(&mut self, some: &[u8]) {
        self.bytes.extend_from_slice(some);
    }

    /// Some of a text. Fails at the first byte that can't be a part of one.
    pub(super) fn push_text(&mut self, mut some: &[u8]) -> Result<(), Fault> {
        while let ([next, rest @ ..], 1..) = (some, self.torn_len) {
            self.torn[self.torn_len] = *next;
            (self.torn_len, some) = (self.torn_len + 1, rest);
            match std::str::from_utf8(&self.torn[..self.torn_len]) {
                Ok(whole) => {
                    self.text.push_str(whole);
                    self.torn_len = 0;
                }
                Err(error) if error.error_len().is_some() => return Err(NO_UTF8),
                Err(_) => {}
            }
        }
        let valid = valid_part(some)?;
        self.text.push_str(valid);
        let torn = &some[valid.len()..];
        if !torn.is_empty() {
            self.torn[..torn.len()].copy_from_slice(torn);
            self.torn_len = torn.len();
        }
        Ok(())
    }

    /// No more of it will come.
    pub(super) fn end_text(&self) -> Result<(), Fault> {
        if self.torn_len > 0 { Err(NO_UTF8) } else { Ok(()) }
    }
}

/// All of it, but for the beginning of a last character that is not whole.
pub(super) fn valid_part(bytes: &[u8]) -> Result<&str, Fault> {
    match simdutf8::compat::from_utf8(bytes) {
        Ok(all) => Ok(all),
        Err(error) if error.error_len().is_some() => Err(NO_UTF8),
        Err(error) => simdutf8::basic::from_utf8(&bytes[..error.valid_up_to()]).map_err(|_| NO_UTF8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_whole_however_it_is_split() {
        let text = "a€😀ß".as_bytes();
        for size in 1..=text.len() {
            let mut assembly = Assembly::default();
            text.chunks(size).for_each(|some| assembly.push_text(some).unwrap());
            assert_eq!((assembly.text(), assembly.end_text()), ("a€😀ß", Ok(())), "in parts of {size}");
            assert_eq!(assembly.len(), text.len());
        }
        let mut assembly = Assembly::default();
        assembly.push_text(&text[..3]).unwrap();
        assert_eq!((assembly.len(), assembly.end_text()), (3, Err(NO_UTF8)), "half a character");
    }

    #[test]
    fn what_is_no_text_fails_at_its_first_byte() {
        for (good, bad) in [(&b"a\xf0"[..], b'\x80'), (b"\xed", b'\xa0'), (b"", b'\xff'), (b"\xe2\x82", b'x')] {
            let mut assembly = Assembly::default();
            assembly.push_text(good).unwrap();
            assert_eq!(assembly.push_text(&[bad]), Err(NO_UTF8), "{good:?} {bad:?}");
        }
    }
}
