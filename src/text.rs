//! Text that is UTF-8 by its making: checked once, where it came in. One of the two places with `unsafe`, since `str` over
//! shared bytes can't be had without it, short of a second check at every look.
#![allow(unsafe_code)]

use bytes::Bytes;

/// Bytes that are UTF-8. Only what was a `str` becomes one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text(Bytes);

impl Text {
    /// The part of `block` that `text` is, sharing its memory.
    pub(crate) fn within(block: &Bytes, text: &str) -> Self {
        Self(block.slice_ref(text.as_bytes()))
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        // SAFETY: every way to make one begins with a `str`, and nothing changes the bytes afterwards.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_block_is_that_text_and_shares_its_memory() {
        let block = Bytes::from_static("a tick: 1 €".as_bytes());
        let text = std::str::from_utf8(&block[8..]).unwrap();
        let part = Text::within(&block, text);
        assert_eq!((part.as_str(), part.as_str().as_ptr()), ("1 €", block[8..].as_ptr()));
        assert!(part == Text::from("1 €"));
        assert_eq!(part.into_bytes(), "1 €");
    }
}
