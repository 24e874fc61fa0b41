//! Secrets in what is recorded: values of names that are known to hold some, and what an operation that signs in is given.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::json::{Token, Tokens, unescape};

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

/// JSON within a text of JSON is looked into so deep. Each level doubles its backslashes, so no message has more.
const DEEPEST: usize = 32;

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
                Token::Mark(b',') => containers.iter_mut().last().into_iter().for_each(|one| one.is_first = false),
                Token::Mark(_) => {}
                Token::Text { start, end, is_closed } => {
                    let raw = &text[start + 1..if is_closed { end - 1 } else { end }];
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
        let raw = &text[start + 1..if is_closed { end - 1 } else { end }];
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
        if tokens.peek() != Some(b':') && says_sign_in(&unescape(&text[start + 1..end - 1])) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(text: &str) -> String {
        Redaction::default().apply(text).into_owned()
    }

    #[test]
    fn the_values_of_secret_names_are_replaced_and_nothing_else() {
        assert!(NAMES.is_sorted());
        let sign_in = r#"{"method":"public/auth","params":{"client_id":"me","client_secret" : "s\"3","n":1}}"#;
        let expected = r#"{"method":"public/auth","params":{"client_id":"me","client_secret" : "[redacted]","n":1}}"#;
        assert_eq!(redacted(sign_in), expected);
        let answer = r#"{"result":{"access_token":"abc","refresh_token":"def","scope":"x"}}"#;
        assert_eq!(
            redacted(answer),
            r#"{"result":{"access_token":"[redacted]","refresh_token":"[redacted]","scope":"x"}}"#
        );
        for same in [
            r#"{"signal":"up","tokens":["a"],"sign":1}"#,
            "",
            "not json: \"token",
            r#""token":"#,
            r#"{"a":"token","b":["x"],"args":["trades.BTC"],"op":"subscribe"}"#,
            r#"{"token":"","key":-1,"secret":null,"auth":true}"#,
            "the token is late, and the key too",
            "a=1&b=2",
            "wss://venue.example:8443/ws?depth=5",
            "{\"a\":\"\u{e9}\\\\\u{e9}\"}",
        ] {
            assert_eq!(redacted(same), same);
        }
        let within = r#"{"unsent":["{\"token\":\"abc\",\"a\":\"b\"}"]}"#;
        assert_eq!(redacted(within), r#"{"unsent":["{\"token\":\"[redacted]\",\"a\":\"b\"}"]}"#);
    }

    #[test]
    fn sign_ins_of_many_shapes_keep_their_secrets() {
        for text in [
            r#"{"op":"auth","args":["SECRET",1700000000,"SECRET"]}"#,
            r#"{"args":["SECRET"],"op":"auth"}"#,
            r#"{"op":"login","args":[{"apiKey":"SECRET","passphrase":"SECRET","sign":"SECRET"}]}"#,
            r#"{ "op" : "login" , "args" : [ { "anything" : "SECRET" } ] }"#,
            r#"["auth", "SECRET", {"x":"SECRET"}, ["SECRET"]]"#,
            r#"42["login",{"user":"u","x":"SECRET"}]"#,
            r#"{"method":"server.sign","params":["SECRET"]}"#,
            r#"{"KEY":"SECRET","SIGN":"SECRET","timestamp":1}"#,
            r#"{"Signature":"SECRET","Authorization":"Bearer SECRET","secretKey":"SECRET"}"#,
            r#"{"token":{"a":"SECRET"},"secret":["SECRET","SECRET"]}"#,
            r#"{"a":"{\"b\":\"{\\\"token\\\":\\\"SECRET\\\"}\"}"}"#,
            r#"{"a":"{\"token\":\"SE\\\"CRET\"}"}"#,
            "{\"token\" :\n \"SECRET\"}",
            r#"{"path":"C:\\","token":"SECRET"}"#,
            r#"{"password":"hunter2\\","token":"SECRET"}"#,
            r#"{"client_id":"desk\\","client_secret":"SECRET"}"#,
            r#"{"a":"\\\"","token":"SECRET"}"#,
            r#"{"note":"say \"hi\"","token":"SECRET"}"#,
            r#"{"tok\u0065n":"SECRET"}"#,
            r#"{"event":"auth","apiKey":"SECRET","authSig":"SECRET"}"#,
            r#"{"pass":"SECRET"}"#,
            r#"{"pwd":"SECRET"}"#,
            r#"{"otp":"SECRET"}"#,
            r#"{"idToken":"SECRET"}"#,
            r#"{"session_id":"SECRET"}"#,
            r#"{"X-Auth-Token":"SECRET"}"#,
            r#"{"CB-ACCESS-SIGN":"SECRET","X-MBX-APIKEY":"SECRET"}"#,
            r#"{"headers":[["x-auth-token","SECRET"],["set-cookie","sid=SECRET"]]}"#,
            r#"{"headers":[{"name":"X-Auth-Token","value":"SECRET"},{"key":"Authorization","value":"SECRET"}]}"#,
            r#"{"url":"wss://desk:SECRET@venue.example/ws?token=SECRET&x=1"}"#,
            "token=SECRET&x=1",
            "x=1&listenKey=SECRET",
            "Authorization: Bearer SECRET",
            "bad credentials Bearer SECRET",
            r#"{"token":"SECRET"#,
            r#"{"token":["SECRET","#,
        ] {
            let redacted = redacted(text);
            assert!(!redacted.contains("SE") && redacted.contains("[redacted]"), "{text} became {redacted}");
            let is_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert!(!is_json(text) || is_json(&redacted), "{text} became {redacted}");
        }
        assert!(!redacted(r#"{"otp":123456}"#).contains("1234"));
    }

    #[test]
    fn names_of_the_users_own_hold_secrets_too() {
        let mut redaction = Redaction::default();
        redaction.add(["Desk-Pin", "account_id"]);
        let text = r#"{"desk_pin":"SECRET","accountId":"SECRET","pinned":"x"}"#;
        assert_eq!(redaction.apply(text), r#"{"desk_pin":"[redacted]","accountId":"[redacted]","pinned":"x"}"#);
    }

    /// A document with secrets at random places, as far down as texts within texts; and how many secrets are in it.
    fn document(random: &mut fastrand::Rng, depth: usize) -> (serde_json::Value, usize) {
        use serde_json::{Value, json};
        const TEXTS: [&str; 12] = [
            "",
            "plain",
            "say \"hi\"",
            "C:\\",
            "\\\"",
            "\u{e9}\u{1f600}",
            "a\nb\t",
            "{",
            "[1,\"",
            "{\"a\":1}",
            "side",
            "\u{0}",
        ];
        let secret = |random: &mut fastrand::Rng| -> Value {
            let text = format!("{}HIDDEN{}", random.choice(TEXTS).unwrap(), random.choice(TEXTS).unwrap());
            match random.u32(0..5) {
                0 => json!([text]),
                1 => json!({ *random.choice(&TEXTS).unwrap(): text }),
                _ => json!(text),
            }
        };
        match random.u32(0..if depth == 0 { 4 } else { 9 }) {
            0 => (json!(random.i32(..)), 0),
            1 => (json!(random.bool()), 0),
            2 | 3 => (json!(random.choice(&TEXTS).unwrap()), 0),
            4 | 5 => {
                let parts: Vec<_> = (0..random.usize(0..4)).map(|_| document(random, depth - 1)).collect();
                let count = parts.iter().map(|(_, count)| count).sum();
                (parts.into_iter().map(|(part, _)| part).collect(), count)
            }
            6 => {
                let (inner, count) = document(random, depth - 1);
                (json!(inner.to_string()), count)
            }
            _ => {
                let (mut object, mut count) = (serde_json::Map::new(), 0);
                for n in 0..random.usize(0..4) {
                    if random.u32(0..3) == 0 {
                        let name = match random.u32(0..3) {
                            0 => NAMES[random.usize(..NAMES.len())].to_uppercase(),
                            1 => format!("x-{}", ENDINGS[random.usize(..ENDINGS.len())]),
                            _ => NAMES[random.usize(..NAMES.len())].to_owned(),
                        };
                        // An object that lies under a name of secrets twice has only the latter.
                        if object.insert(format!("{name}{}", "_".repeat(n)), secret(random)).is_none() {
                            count += 1;
                        }
                    } else {
                        let (inner, within) = document(random, depth - 1);
                        let name = format!("{}{n}", random.choice(TEXTS).unwrap());
                        count += within;
                        object.insert(name, inner);
                    }
                }
                (Value::Object(object), count)
            }
        }
    }

    #[test]
    fn no_planted_secret_comes_out_and_what_is_json_stays_json() {
        // REDACTIONS: how many documents.
        let count = std::env::var("REDACTIONS").map_or(20_000, |count| count.parse().unwrap());
        let (mut random, mut planted) = (fastrand::Rng::with_seed(7), 0);
        for _ in 0..count {
            let (document, secrets) = document(&mut random, 5);
            planted += secrets;
            let text =
                if random.bool() { document.to_string() } else { serde_json::to_string_pretty(&document).unwrap() };
            let redacted = redacted(&text);
            assert!(!redacted.contains("HIDDEN"), "{text} became {redacted}");
            assert!(serde_json::from_str::<serde_json::Value>(&redacted).is_ok(), "{text} became {redacted}");
            if secrets == 0 {
                assert_eq!(redacted, text, "nothing is replaced where nothing is secret");
            }
        }
        assert!(planted > count / 4, "{planted}");
    }

    #[test]
    fn any_text_takes_time_in_proportion_to_its_length() {
        let time = |part: &str, bytes: usize| {
            let text = part.repeat(bytes / part.len());
            let times = (0..3).map(|_| {
                let began = std::time::Instant::now();
                std::hint::black_box(Redaction::default().apply(&text));
                began.elapsed()
            });
            times.min().unwrap()
        };
        for part in [
            "\"key\":[",
            "\"key\":\"",
            "{\"token\":\"abc\"},",
            "\\\"",
            "\"",
            "\\",
            "[",
            "{\"a\":",
            "key=",
            "key:",
            "://",
            ":",
            "Bearer ",
            "\"auth\",",
            "\"args\":[\"auth\"],",
            "a",
            "\u{e9}",
            "\"\\u0065",
            "\"a=b\\\"\",",
        ] {
            let (short, long) = (time(part, 16 << 10), time(part, 256 << 10));
            // Sixteen times the text; the square would take 256 times as long.
            assert!(long < short * 80 + std::time::Duration::from_millis(50), "{part:?}: {short:?}, then {long:?}");
        }
    }
}
