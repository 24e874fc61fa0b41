//! Which names a recording has, and which of their values look like secrets: to be read before a recording is handed on.

use std::collections::BTreeMap;

use super::entry::{Entry, Frame, Recorded};
use super::json::{DEEPEST, Token, Tokens, content, unescape};
use super::redact::{INSTEAD, Redaction};

/// The values of one name in a [`Survey`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Surveyed {
    /// How often the name is there.
    pub count: u64,
    /// How often its value was replaced when it was recorded.
    pub redacted: u64,
    /// Values that look like secrets, the first few of them.
    pub suspects: Vec<String>,
    /// How many values look like secrets.
    pub suspect_count: u64,
}

/// The names in a recording's JSON, and the values that look like secrets: those of names that are known to hold some, long texts
/// of random letters and digits, and tokens of a known form. A guess, for a person to look at.
///
/// ```
/// use ws_supervisor::record::{Recording, Survey};
/// let line = r#"{"ts":"2021-07-22T22:25:41Z","dir":"out","type":"text","data":"{\"op\":\"auth\",\"desk_key\":\"4cB9x2Lq81ZtRw0KpE7v\"}"}"#;
/// let mut survey = Survey::default();
/// Recording::read(line.as_bytes()).filter_map(Result::ok).for_each(|entry| survey.add(&entry));
/// let names: Vec<_> = survey.names().map(|(name, found)| (name, found.suspect_count)).collect();
/// assert_eq!(names, [("desk_key", 1), ("op", 0)]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Survey {
    redaction: Redaction,
    names: BTreeMap<String, Surveyed>,
}

/// Suspects that are kept of one name.
const KEPT: usize = 5;

/// The place of a value that has no name: the text itself, or a list's item.
const NO_NAME: &str = "(no name)";

impl Survey {
    /// With names of your own whose values are secrets, besides those that are known.
    pub fn with_names<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Self {
        let mut survey = Self::default();
        survey.redaction.add(names);
        survey
    }

    /// Looks at an entry.
    pub fn add(&mut self, entry: &Entry) {
        match &entry.what {
            Recorded::Frame { frame: Frame::Message(message), .. } => self.bytes(message.as_bytes()),
            Recorded::Frame { frame: Frame::Ping(bytes) | Frame::Pong(bytes), .. } => self.bytes(bytes),
            Recorded::Frame { frame: Frame::Close(Some(frame)), .. } => self.text(&frame.reason, NO_NAME, 0),
            Recorded::Frame { .. } => {}
            Recorded::Event { data, .. } => self.text(&data.to_string(), NO_NAME, 0),
        }
    }

    /// The names in the order of the alphabet.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Surveyed)> {
        self.names.iter().map(|(name, found)| (&**name, found))
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.text(text, NO_NAME, 0);
        }
    }

    fn text(&mut self, text: &str, name: &str, depth: usize) {
        if !text.contains('"') || depth > DEEPEST {
            return self.value(text, name);
        }
        let mut tokens = Tokens::new(text);
        let mut name = name.to_owned();
        while let Some(token) = tokens.next() {
            let Token::Text { start, end, is_closed } = token else { continue };
            let content = unescape(content(text, start, end, is_closed));
            if is_closed && tokens.peek() == Some(b':') {
                name = content.into_owned();
                self.names.entry(name.clone()).or_default().count += 1;
                continue;
            }
            self.text(&content, &name, depth + 1);
        }
    }

    fn value(&mut self, value: &str, name: &str) {
        if value == INSTEAD {
            self.names.entry(name.to_owned()).or_default().redacted += 1;
            return;
        }
        let is_named = !value.is_empty() && self.redaction.is_secret(name);
        if is_named || value.split_whitespace().any(looks_random) {
            let found = self.names.entry(name.to_owned()).or_default();
            found.suspect_count += 1;
            if found.suspects.len() < KEPT && !found.suspects.iter().any(|known| known == value) {
                found.suspects.push(value.to_owned());
            }
        }
    }
}

/// A key, a signature or a token is at least so long.
const SHORTEST: usize = 16;

/// Hexadecimal digits of a key: fewer are an id.
const HEX: usize = 32;

/// Whether a word looks drawn at random, as keys and signatures do, or has the form of a token.
fn looks_random(word: &str) -> bool {
    let word = word.rsplit(['=', '?', '&']).find(|part| !part.is_empty()).unwrap_or(word);
    // RFC 7519: a JSON web token begins with `{"` in base64.
    if word.starts_with("eyJ") && word.matches('.').count() == 2 {
        return true;
    }
    let is_of_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'_' | b'-');
    if word.len() < SHORTEST || !word.bytes().all(is_of_base64) {
        return false;
    }
    let has = |is: fn(&u8) -> bool| word.bytes().any(|byte| is(&byte));
    let is_hex = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex {
        return word.len() >= HEX && has(u8::is_ascii_alphabetic) && has(u8::is_ascii_digit);
    }
    // Names of instruments and channels have words in them: letters of one case in a row.
    let bytes = word.as_bytes();
    let kind = |byte: u8| (byte.is_ascii_digit(), byte.is_ascii_uppercase(), byte.is_ascii_lowercase());
    let changes = bytes.windows(2).filter(|pair| kind(pair[0]) != kind(pair[1])).count();
    has(u8::is_ascii_digit) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && changes * 3 >= bytes.len()
}

#[cfg(test)]
mod tests {
    use super::looks_random;

    #[test]
    fn keys_look_random_and_names_do_not() {
        for secret in [
            "4cB9x2Lq81ZtRw0KpE7v",
            "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A",
            "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkZXNrIn0.c2ln",
        ] {
            assert!(looks_random(secret), "{secret}");
        }
        for name in [
            "BTC-PERPETUAL",
            "book.BTC-PERPETUAL.100ms",
            "123e4567-e89b-12d3-a456-426614174000",
            "1700000000000000000",
            "btcusdt@depth20@100ms",
            "BTC-27DEC24-100000-C",
            "public/get_instruments",
            "ETH-123456789012345",
        ] {
            assert!(!looks_random(name), "{name}");
        }
    }
}
