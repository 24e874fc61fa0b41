//! Secrets in what is recorded: the values of keys that are known to hold some, and what an operation of signing in is given.

use std::borrow::Cow;

/// Keys whose values are secrets, or as good as one, in the sign-ins of venues: in small letters, without `_` and `-`.
const KEYS: [&str; 24] = [
    "accesskey",
    "accesstoken",
    "apikey",
    "apisecret",
    "auth",
    "authorization",
    "authsig",
    "clientsecret",
    "jwt",
    "key",
    "listenkey",
    "passcode",
    "passphrase",
    "password",
    "privatekey",
    "refreshtoken",
    "secret",
    "secretkey",
    "sessiontoken",
    "sig",
    "sign",
    "signature",
    "signedchallenge",
    "token",
];

/// What holds the secrets by their order, where the message says that it signs in.
const BY_ORDER: [&str; 2] = ["args", "params"];

/// How a message says that.
const SIGNS_IN: [&str; 4] = ["\"auth\"", "\"login\"", "\"authenticate\"", "\"authKeyExpires\""];

const INSTEAD: &str = "[redacted]";

/// JSON text with those values replaced by a text that says so, in one pass; JSON within a text of JSON too, however deep. All
/// else stays as it is.
pub(super) fn redacted(text: &str) -> Cow<'_, str> {
    let by_order = SIGNS_IN.iter().any(|words| text.contains(words));
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = text[at..].find('"').map(|found| at + found) {
        let depth = escapes_before(text, found);
        // A key ends with a quote that is escaped as much as the first.
        let begins = found + 1;
        let Some(len) = end_of_text(&text[begins..], depth) else { break };
        let key = &text[begins..begins + len];
        let after = begins + len + depth + 1;
        at = after;
        let Some(rest) = text.get(after..) else { break };
        let Some(value) = rest.trim_start().strip_prefix(':').map(str::trim_start) else {
            // No key: what is inside may be JSON of its own.
            at = begins;
            continue;
        };
        let is_list_of_secrets = by_order && BY_ORDER.contains(&key) && value.starts_with('[');
        if !is_secret(key) && !is_list_of_secrets {
            continue;
        }
        let from = text.len() - value.len();
        let Some(length) = end_of_value(value, depth) else { continue };
        let quote = &text[found - depth..begins];
        // A number or a word of JSON is no secret of these keys; what is empty hides nothing.
        let is_text = value.starts_with(quote);
        if !is_text && !value.starts_with(['[', '{']) {
            continue;
        }
        out.push_str(&text[copied..from]);
        out.push_str(quote);
        out.push_str(INSTEAD);
        out.push_str(quote);
        copied = from + length;
        at = copied;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

fn is_secret(key: &str) -> bool {
    // Longer than any of them with its separators.
    if key.len() > 32 {
        return false;
    }
    let plain: String = key.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect();
    KEYS.binary_search(&plain.as_str()).is_ok()
}

/// Backslashes right before a place.
fn escapes_before(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().rev().take_while(|byte| **byte == b'\\').count()
}

/// Where the text ends that a quote with so many backslashes before it began: at the next that has no more.
fn end_of_text(rest: &str, depth: usize) -> Option<usize> {
    let mut from = 0;
    loop {
        let quote = from + rest[from..].find('"')?;
        let escapes = escapes_before(&rest[..quote], quote);
        if escapes == depth {
            return Some(quote - depth);
        }
        from = quote + 1;
    }
}

/// How long the value is: a text, a list or an object.
fn end_of_value(value: &str, depth: usize) -> Option<usize> {
    let quote = depth + 1;
    if value.as_bytes().get(depth) == Some(&b'"') && value.bytes().take(depth).all(|byte| byte == b'\\') {
        return Some(quote + end_of_text(&value[quote..], depth)? + quote);
    }
    let (mut open, mut at) = (0usize, 0);
    while at < value.len() {
        match value.as_bytes()[at] {
            b'[' | b'{' => open += 1,
            b']' | b'}' => {
                open = open.checked_sub(1)?;
                if open == 0 {
                    return Some(at + 1);
                }
            }
            b'"' => at += 1 + end_of_text(&value[at + 1..], depth)? + depth,
            _ if open == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{KEYS, redacted};

    #[test]
    fn the_values_of_secret_keys_are_replaced_and_nothing_else() {
        assert!(KEYS.is_sorted());
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
        ] {
            assert_eq!(redacted(same), same);
        }
        let within = r#"{"unsent":["{\"token\":\"abc\",\"a\":\"b\"}"]}"#;
        assert_eq!(redacted(within), r#"{"unsent":["{\"token\":\"[redacted]\",\"a\":\"b\"}"]}"#);
    }

    #[test]
    fn sign_ins_of_many_shapes_keep_their_secrets() {
        for (text, secrets) in [
            (r#"{"op":"auth","args":["thekey",1700000000,"thesig"]}"#, vec!["thekey", "thesig"]),
            (r#"{"op":"login","args":[{"apiKey":"thekey","passphrase":"thepass","sign":"thesig"}]}"#, vec!["the"]),
            (r#"{"KEY":"thekey","SIGN":"thesig","timestamp":1}"#, vec!["the"]),
            (r#"{"Signature":"thesig","Authorization":"Bearer thetoken","secretKey":"thekey"}"#, vec!["the"]),
            (r#"{"token":{"a":"thetoken"},"secret":["these","those"]}"#, vec!["the", "those"]),
            (r#"{"a":"{\"b\":\"{\\\"token\\\":\\\"thetoken\\\"}\"}"}"#, vec!["thetoken"]),
            (r#"{"a":"{\"token\":\"the\\\"token\"}"}"#, vec!["the", "token\\\"}"]),
            ("{\"token\" :\n \"thetoken\"}", vec!["thetoken"]),
        ] {
            let redacted = redacted(text);
            assert!(secrets.iter().all(|secret| !redacted.contains(secret)), "{text} became {redacted}");
            assert!(redacted.contains("[redacted]"));
        }
    }

    #[test]
    fn a_long_message_full_of_them_takes_its_length_and_no_more() {
        let long = format!("[{}]", vec![r#"{"token":"abc"}"#; 100_000].join(","));
        let begun = std::time::Instant::now();
        assert!(!redacted(&long).contains("abc"));
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "not the square of it");
    }
}
