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
        let text = if random.bool() { document.to_string() } else { serde_json::to_string_pretty(&document).unwrap() };
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
        let most = if cfg!(debug_assertions) { 256 << 10 } else { 16 << 20 };
        let (short, long) = (time(part, most / 16), time(part, most));
        // Sixteen times the text; the square would take 256 times as long.
        assert!(long < short * 80 + std::time::Duration::from_millis(50), "{part:?}: {short:?}, then {long:?}");
    }
}
