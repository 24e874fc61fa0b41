//! The tokens of JSON text, found in one pass. Text that is not JSON has tokens too: nothing here fails, and each step goes
//! forward.

/// A token, by where it lies in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A string with its quotes, `start..end`. `is_closed` is false where the text ends before its second quote.
    Text { start: usize, end: usize, is_closed: bool },
    /// `{`, `}`, `[`, `]`, `,` or `:`.
    Mark(u8),
    /// A number, a word, or anything else up to the next mark, quote or white space.
    Word { start: usize, end: usize },
}

/// JSON within a text of JSON is looked into so deep. Each level doubles its backslashes, so no message has more.
pub(super) const DEEPEST: usize = 32;

/// A string as it is written, by where it lies and whether it is closed: without its quotes.
pub(super) fn content(text: &str, start: usize, end: usize, is_closed: bool) -> &str {
    &text[start + 1..end - usize::from(is_closed)]
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Before the mark that was read last.
    pub(super) fn step_back(&mut self) {
        self.at -= 1;
    }

    /// The next byte that is not white space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Passes over one value and returns where it begins and ends: a container with all that is in it, up to the end of the
    /// text where it is not closed.
    pub(super) fn skip_value(&mut self) -> Option<(usize, usize)> {
        self.peek()?;
        let start = self.at;
        let mut depth = 0usize;
        for token in self.by_ref() {
            match token {
                Token::Mark(b'{' | b'[') => depth += 1,
                Token::Mark(b'}' | b']') => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        Some((start, self.at))
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let first = self.peek()?;
        let (bytes, start) = (self.text.as_bytes(), self.at);
        self.at += 1;
        if is_mark(first) {
            return Some(Token::Mark(first));
        }
        if first != b'"' {
            let rest = &bytes[self.at..];
            let ends = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'"' || is_mark(*byte);
            self.at += rest.iter().position(ends).unwrap_or(rest.len());
            return Some(Token::Word { start, end: self.at });
        }
        loop {
            match bytes.get(self.at) {
                None => return Some(Token::Text { start, end: self.at, is_closed: false }),
                // What is escaped may be the first byte of several: the others are none that end a string.
                Some(b'\\') => self.at = (self.at + 2).min(bytes.len()),
                Some(b'"') => {
                    self.at += 1;
                    return Some(Token::Text { start, end: self.at, is_closed: true });
                }
                Some(_) => self.at += 1,
            }
            // A backslash may be the last byte before a character of several bytes.
            while !self.text.is_char_boundary(self.at) {
                self.at += 1;
            }
        }
    }
}

fn is_mark(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':')
}

/// The text between two quotes without its escapes. An escape that JSON does not know is left as it is.
pub(super) fn unescape(raw: &str) -> std::borrow::Cow<'_, str> {
    if !raw.contains('\\') {
        return raw.into();
    }
    if let Ok(text) = serde_json::from_str::<String>(&format!("\"{raw}\"")) {
        return text.into();
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at..];
        // Of an escape that is right by itself, the value; a quote and a backslash are always that.
        let len = if escape.starts_with("\\u") { 6 } else { 2 };
        let whole = escape.get(..len).and_then(|one| serde_json::from_str::<String>(&format!("\"{one}\"")).ok());
        match whole {
            Some(character) => {
                out.push_str(&character);
                rest = &escape[len..];
            }
            None => {
                out.push('\\');
                rest = &escape[1..];
            }
        }
    }
    out.push_str(rest);
    out.into()
}
