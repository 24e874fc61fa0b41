//! Secrets in what is recorded: the values of keys that are known to hold some.

use std::borrow::Cow;

/// Keys whose values are secrets, or as good as one, in the sign-ins of venues.
const KEYS: [&str; 14] = [
    "secret",
    "client_secret",
    "password",
    "passphrase",
    "signature",
    "sign",
    "sig",
    "token",
    "access_token",
    "refresh_token",
    "apiKey",
    "api_key",
    "apikey",
    "listenKey",
];

const INSTEAD: &str = "[redacted]";

/// JSON text with those values replaced: strings, in one line or many. All else stays as it is.
pub(super) fn redacted(text: &str) -> Cow<'_, str> {
    let mut out = Cow::Borrowed(text);
    for key in KEYS {
        let mut from = 0;
        while let Some((begins, ends)) = value_of(&out, key, from) {
            out.to_mut().replace_range(begins..ends, INSTEAD);
            from = begins + INSTEAD.len();
        }
    }
    out
}

/// Where the next string stands that is the value of this key: what is between the quotes. In a JSON text within a JSON
/// string the quotes are escaped, and are found as well.
fn value_of(text: &str, key: &str, from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    loop {
        let found = at + text.get(at..)?.find(key)?;
        let after = found + key.len();
        at = after;
        for quote in ["\"", "\\\""] {
            if !text[..found].ends_with(quote) || (quote == "\"" && text[..found].ends_with("\\\"")) {
                continue;
            }
            let Some(rest) = text[after..].strip_prefix(quote) else { continue };
            let Some(rest) = rest.trim_start().strip_prefix(':') else { continue };
            let Some(rest) = rest.trim_start().strip_prefix(quote) else { continue };
            let begins = text.len() - rest.len();
            let ends = end_of_string(rest, quote)?;
            return Some((begins, begins + ends));
        }
    }
}

fn end_of_string(rest: &str, quote: &str) -> Option<usize> {
    if quote == "\\\"" {
        return rest.find(quote);
    }
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn the_values_of_secret_keys_are_replaced_and_nothing_else() {
        let sign_in = r#"{"method":"public/auth","params":{"client_id":"me","client_secret" : "s\"3","n":1}}"#;
        let expected = r#"{"method":"public/auth","params":{"client_id":"me","client_secret" : "[redacted]","n":1}}"#;
        assert_eq!(redacted(sign_in), expected);
        let answer = r#"{"result":{"access_token":"abc","refresh_token":"def","scope":"x"}}"#;
        assert_eq!(
            redacted(answer),
            r#"{"result":{"access_token":"[redacted]","refresh_token":"[redacted]","scope":"x"}}"#
        );
        for same in [r#"{"signal":"up","tokens":["a"],"sign":1}"#, "", "not json: \"token", r#""token":"#] {
            assert_eq!(redacted(same), same);
        }
        let within = r#"{"unsent":["{\"token\":\"abc\",\"a\":\"b\"}"]}"#;
        assert_eq!(redacted(within), r#"{"unsent":["{\"token\":\"[redacted]\",\"a\":\"b\"}"]}"#);
    }
}
