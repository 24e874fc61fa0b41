//! Secrets in what is recorded: values of names that are known to hold some, and what an operation that signs in is given.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::json::{DEEPEST, Token, Tokens, content, unescape};

/// Names whose values are secrets in the sign-ins of venues: in small letters, without separators.
const NAMES: [&str; 48] = [
    "accesskey",
    "accesstoken",
    "apikey",
    "apipass",
    "apisecret",
    "apisign",
    "auth",
    "authorization",
    "authsig",
    "authtoken",
    "bearer",
    "bearertoken",
    "clientsecret",
    "cookie",
    "credential",
    "credentials",
    "hmac",
    "idtoken",
    "jwt",
    "key",
    "listenkey",
    "logintoken",
    "mfacode",
    "otp",
    "pass",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "pin",
    "privatekey",
    "pwd",
    "refreshtoken",
    "secret",
    "secretkey",
    "session",
    "sessionid",
    "sessionkey",
    "sessiontoken",
    "setcookie",
    "sid",
    "sig",
    "sign",
    "signature",
    "signedchallenge",
    "token",
    "totp",
    "wstoken",
];

/// And names that end so: `X-MBX-APIKEY`, `CB-ACCESS-SIGN`, `okPassphrase`.
const ENDINGS: [&str; 13] = [
    "accesskey",
    "accesssign",
    "accesstoken",
    "apikey",
    "authorization",
    "authtoken",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "secretkey",
    "signature",
];

/// No name is longer than this with its separators.
const LONGEST: usize = 64;

/// Names of lists that hold secrets by their order, where the message signs in.
const BY_ORDER: [&str; 4] = ["arg", "args", "params", "data"];

/// Values that say that a message signs in; also as the last word of a method, as in `public/auth`.
const SIGNS_IN: [&str; 9] =
    ["auth", "authenticate", "authkeyexpires", "authorize", "login", "logon", "sign", "signin", "server.sign"];

/// Names of a pair's first half and of its second: `{"name":"X-Auth-Token","value":"…"}`.
const PAIR: [[&str; 4]; 2] = [["name", "key", "header", "field"], ["value", "val", "content", "v"]];

pub(super) const INSTEAD: &str = "[redacted]";

/// A number of so few digits is no secret.
const FEW_DIGITS: usize = 3;

/// Replaces secrets in text, in one pass: what is JSON stays JSON, and all else stays as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redaction {
    /// The user's own names, in small letters, without separators.
    own: BTreeSet<String>,
}

impl Redaction {
    pub(super) fn add<N: AsRef<str>>(&mut self, names: impl IntoIterator<Item = N>) {
        self.own.extend(names.into_iter().map(|name| plain_name(name.as_ref())).filter(|name| !name.is_empty()));
    }

    pub(super) fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.redact(text, 0)
    }

    /// Whether values of this name are secrets.
    pub(super) fn is_secret(&self, name: &str) -> bool {
        if name.len() > LONGEST {
            return false;
        }
        let name = plain_name(name);
        NAMES.binary_search(&&*name).is_ok()
            || ENDINGS.iter().any(|ending| name.ends_with(ending))
            || self.own.contains(&name)
    }

    fn redact<'a>(&self, text: &'a str, depth: usize) -> Cow<'a, str> {
        if !text.contains('"') {
            return self.redact_plain(text);
        }
        let signs_in = BY_ORDER.iter().any(|name| text.contains(name)) && signs_in(text);
        let mut out = Output { text, out: String::new(), copied: 0 };
        let mut containers: Vec<Container> = Vec::new();
        let mut tokens = Tokens::new(text);
        while let Some(token) = tokens.next() {
            match token {
                Token::Mark(open @ (b'{' | b'[')) => {
                    if containers.last().is_some_and(|list| list.holds_secrets) {
                        // The list that it stands in is one of secrets.
                        tokens.step_back();
                        out.replace(tokens.skip_value());
                        continue;
                    }
                    containers.push(Container { is_list: open == b'[', is_first: true, ..Container::default() });
                }
                Token::Mark(b'}' | b']') => drop(containers.pop()),
                Token::Mark(b',') => containers.last_mut().into_iter().for_each(|one| one.is_first = false),
                Token::Mark(_) => {}
                Token::Text { start, end, is_closed } => {
                    let raw = content(text, start, end, is_closed);
                    if is_closed && tokens.peek() == Some(b':') {
                        tokens.next();
                        self.value_of(&unescape(raw), signs_in, &mut tokens, containers.last_mut(), &mut out, depth);
                        continue;
                    }
                    let is_last = tokens.peek() == Some(b']');
                    if containers.last().is_some_and(|list| list.holds_secrets || (list.names_a_secret && is_last)) {
                        out.replace(Some((start, end)).filter(|_| !raw.is_empty()));
                        continue;
                    }
                    if let Some(list) = containers.last_mut().filter(|list| list.is_list) {
                        let first = unescape(raw);
                        list.holds_secrets = list.is_first && says_sign_in(&first);
                        list.names_a_secret = list.is_first && self.is_secret(&first);
                    }
                    self.look_into(raw, (start, end), &mut out, depth);
                }
                Token::Word { start, end } => {
                    let word = &text[start..end];
                    if containers.last().is_some_and(|list| list.holds_secrets) && is_long_number(word) {
                        out.replace(Some((start, end)));
                    } else if let Cow::Owned(redacted) = self.redact_plain(word) {
                        out.put((start, end), &redacted);
                    }
                }
            }
        }
        out.finish()
    }

    /// A name was read, and its colon: its value is next.
    fn value_of(
        &self,
        name: &str,
        signs_in: bool,
        tokens: &mut Tokens<'_>,
        object: Option<&mut Container>,
        out: &mut Output<'_>,
        depth: usize,
    ) {
        let text = out.text;
        let Some(first) = tokens.peek() else { return };
        let lower = name.to_ascii_lowercase();
        let is_half = |half: usize| PAIR[half].contains(&&*lower);
        let is_list_of_secrets = signs_in && first == b'[' && BY_ORDER.contains(&name);
        let is_value_of_secret = is_half(1) && object.as_ref().is_some_and(|object| object.names_a_secret);
        // `key` is a name of secrets, and of the first half of a pair: see below.
        let names_a_text = is_half(0) && first == b'"';
        if (self.is_secret(name) && !names_a_text) || is_list_of_secrets || is_value_of_secret {
            let Some((start, end)) = tokens.skip_value() else { return };
            let value = &text[start..end];
            let is_secret = match first {
                b'"' => value.len() > 2,
                b'{' | b'[' => true,
                _ => is_long_number(value),
            };
            out.replace(Some((start, end)).filter(|_| is_secret));
            return;
        }
        if first != b'"' {
            return;
        }
        let Some(Token::Text { start, end, is_closed }) = tokens.next() else { return };
        let raw = content(text, start, end, is_closed);
        if is_half(0) {
            let value = unescape(raw);
            object.into_iter().for_each(|object| object.names_a_secret = self.is_secret(&value));
            if self.is_secret(name) {
                return out.replace(Some((start, end)).filter(|_| !raw.is_empty()));
            }
        }
        self.look_into(raw, (start, end), out, depth);
    }

    /// Redacts JSON, or `name=value`, within a string of JSON.
    fn look_into(&self, raw: &str, place: (usize, usize), out: &mut Output<'_>, depth: usize) {
        let may_hold = |byte: &u8| matches!(byte, b'=' | b':' | b'\\' | b' ');
        if depth >= DEEPEST || !raw.as_bytes().iter().any(may_hold) {
            return;
        }
        if let Cow::Owned(redacted) = self.redact(&unescape(raw), depth + 1) {
            out.put(place, &serde_json::to_string(&redacted).unwrap_or_default());
        }
    }

    /// Text without quotes: `name=value` of a URL or a form, `Name: value` of a header, `Bearer token`, `user:password@host`.
    fn redact_plain<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut out = Output { text, out: String::new(), copied: 0 };
        let mut from = 0;
        while let Some(at) = text[from..].find(['=', ':', ' ', '@']).map(|at| from + at) {
            let (before, after) = (&text[from..at], &text[at + 1..]);
            let name = &before[before.rfind(|c: char| !is_of_a_name(c)).map_or(0, |end| end + last_len(before, end))..];
            from = at + 1;
            let value = match text.as_bytes()[at] {
                b'=' if self.is_secret(name) => Some((from, value_end(after))),
                b':' if self.is_secret(name) => {
                    let blanks = after.len() - after.trim_start_matches(' ').len();
                    Some((from + blanks, after[blanks..].find(['\r', '\n', ';', ',']).unwrap_or(after.len() - blanks)))
                }
                b' ' if name.eq_ignore_ascii_case("bearer") => Some((from, value_end(after))),
                // RFC 3986 section 3.2.1: what stands between `://` and `@`.
                b':' if after.starts_with("//") => {
                    let authority = &after[2..];
                    let authority = &authority[..authority.find(['/', '?', '#', ' ']).unwrap_or(authority.len())];
                    let user = authority.rsplit_once('@').map(|(user, _)| user);
                    user.and_then(|user| {
                        user.split_once(':').map(|(name, password)| (from + 3 + name.len(), password.len()))
                    })
                }
                _ => None,
            };
            if let Some((start, len)) = value.filter(|(_, len)| *len > 0) {
                out.put((start, start + len), INSTEAD);
                from = start + len;
            }
        }
        out.finish()
    }
}

/// An object or a list that is open.
#[derive(Default)]
struct Container {
    is_list: bool,
    /// No comma has followed its first value yet.
    is_first: bool,
    /// Its first value says that those that follow are secrets.
    holds_secrets: bool,
    /// Its `name`, or the first of a list of two, is a name of secrets.
    names_a_secret: bool,
}

/// The text with some places replaced.
struct Output<'a> {
    text: &'a str,
    out: String,
    copied: usize,
}

impl<'a> Output<'a> {
    fn put(&mut self, (start, end): (usize, usize), instead: &str) {
        self.out.push_str(&self.text[self.copied..start]);
        self.out.push_str(instead);
        self.copied = end;
    }

    /// A value of JSON.
    fn replace(&mut self, place: Option<(usize, usize)>) {
        if let Some(place) = place {
            self.put(place, &format!("\"{INSTEAD}\""));
        }
    }

    fn finish(mut self) -> Cow<'a, str> {
        if self.copied == 0 {
            return Cow::Borrowed(self.text);
        }
        self.out.push_str(&self.text[self.copied..]);
        Cow::Owned(self.out)
    }
}

/// In small letters, without what stands between words.
fn plain_name(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn last_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(0, char::len_utf8)
}

/// How long a value is that stands in running text.
fn value_end(text: &str) -> usize {
    text.find(|c: char| {
        c.is_whitespace() || matches!(c, '&' | ';' | ',' | '"' | '\'' | '<' | '>' | '|' | ')' | '}' | ']')
    })
    .unwrap_or(text.len())
}

fn is_long_number(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    digits > FEW_DIGITS
        && word.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E'))
}

/// Whether this value says that its message signs in.
fn says_sign_in(value: &str) -> bool {
    if value.len() > LONGEST {
        return false;
    }
    let value = value.to_ascii_lowercase();
    let last = value.rsplit(['/', '.', ':']).next().unwrap_or_default();
    SIGNS_IN.contains(&&*value) || SIGNS_IN.contains(&last)
}

/// Whether a value of the text says that it signs in.
fn signs_in(text: &str) -> bool {
    let mut tokens = Tokens::new(text);
    while let Some(token) = tokens.next() {
        let Token::Text { start, end, is_closed: true } = token else { continue };
        if tokens.peek() != Some(b':') && says_sign_in(&unescape(content(text, start, end, true))) {
            return true;
        }
    }
    false
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
