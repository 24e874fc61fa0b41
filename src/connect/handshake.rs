//! The WebSocket upgrade (RFC 6455 section 4.1): our request, and every check that section asks of a client. Written
//! here rather than taken from tungstenite so that a refusal keeps its status and headers, a list in `Connection` is
//! understood, an extension nobody asked for is refused, and no header value reaches a log.

use std::io::{ErrorKind, Read, Write};

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use super::attempt::{Attempt, Halt};
use super::compression::{Agreed, agree, offer};
use super::http::{
    MAX_HEAD, MAX_HEADERS, MAX_INTERIM, asks_to_wait, broken, head_end, parse, read_body, read_head, values, wrong,
};
use crate::config::settings::Settings;
use crate::dial::Dial;
use crate::error::{ConnectError, Refusal};
use crate::handshake::SubprotocolChoice;
use crate::target::Header;
use crate::transport::{Layer, Wire};

/// What the server agreed to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// About compression.
    pub(super) agreed: Option<Agreed>,
    pub(super) extensions: Option<Box<str>>,
    pub(super) subprotocol: Option<Box<str>>,
    pub(super) headers: Vec<(Box<str>, Box<str>)>,
}

/// Runs the upgrade; returns the bytes that came after the server's answer, and what it was.
pub(super) fn upgrade(attempt: &Attempt<'_>, wire: &mut Wire) -> Result<(Vec<u8>, Accepted), Halt> {
    let key = generate_key();
    let mut came = Vec::with_capacity(1024);
    let request = request(attempt.settings, attempt.dial, &key);
    let written = write_all(attempt, wire, request.as_bytes(), &key, &mut came)?;
    for _ in 0..=MAX_INTERIM {
        let length = match read_head(attempt, wire, &mut came) {
            Ok(length) => length,
            Err(halt) => {
                // That there is nothing to read says less than what the write met.
                let says_nothing = matches!(halt, Halt::Failed(ConnectError::Lost { .. }));
                return Err(match written {
                    Written::Broke(first) if says_nothing => first,
                    _ => halt,
                });
            }
        };
        let rest = came.split_off(length);
        match check(attempt.settings, attempt.dial.was_redirected_away, &key, &came)? {
            Verdict::Upgraded(_) if !matches!(written, Written::Whole) => {
                return Err(wrong("it was accepted before the server had read all of it"));
            }
            Verdict::Upgraded(accepted) => return Ok((rest, *accepted)),
            // RFC 9110 section 15.2: a client must be able to take them, though it did not ask.
            Verdict::Interim => came = rest,
            // Where it will be followed, what the page says is of no use.
            Verdict::Refused(refusal) if attempt.settings.redirects > 0 && refusal.points_elsewhere() => {
                return Err(Halt::Failed(ConnectError::Refused(refusal)));
            }
            Verdict::Refused(mut refusal) => {
                let body = read_body(attempt, wire, &refusal, rest);
                refusal.body = String::from_utf8_lossy(&body).into();
                return Err(Halt::Failed(ConnectError::Refused(refusal)));
            }
        }
    }
    Err(wrong(format!("more than {MAX_INTERIM} interim answers")))
}

fn request(settings: &Settings, dial: &Dial, key: &str) -> String {
    let target = &dial.target;
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n",
        target.path_and_query,
        settings.host.as_deref().filter(|_| target.is_same_host(&settings.target)).unwrap_or(&target.authority)
    );
    let sets = |name: &str| dial.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if settings.user_agent && !sets("user-agent") {
        request += concat!("User-Agent: ", env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"), "\r\n");
    }
    if let Some(credentials) = target.credentials.as_ref().filter(|_| !sets("authorization")) {
        request += &format!("Authorization: {}\r\n", credentials.basic());
    }
    if !settings.subprotocols.is_empty() && !dial.was_redirected_away {
        request += &format!("Sec-WebSocket-Protocol: {}\r\n", settings.subprotocols.join(", "));
    }
    if let Some(offer) = offer(settings) {
        request += &format!("Sec-WebSocket-Extensions: {offer}\r\n");
    }
    for Header { name, value } in &dial.headers {
        request += &format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    request + "\r\n"
}

/// How far the request came.
enum Written {
    Whole,
    /// The server answered before it had read all.
    InPart,
    /// The line broke, and the server may have said why.
    Broke(Halt),
}

fn write_all(
    attempt: &Attempt<'_>,
    wire: &mut Wire,
    mut bytes: &[u8],
    key: &str,
    came: &mut Vec<u8>,
) -> Result<Written, Halt> {
    while !bytes.is_empty() {
        match wire.write(bytes) {
            Ok(0) => return Ok(Written::Broke(attempt.lost("the server closed the connection"))),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if let Some(error) = wire.socket_mut().take_write_error() {
                    return Ok(Written::Broke(broken(attempt, &error)));
                }
                let mut chunk = [0; 4096];
                match wire.read(&mut chunk) {
                    Ok(0) => return Ok(Written::Broke(attempt.lost("the server closed the connection"))),
                    Ok(read) => came.extend_from_slice(&chunk[..read]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(wire.socket_mut())?,
                    Err(error) => return Ok(Written::Broke(broken(attempt, &error))),
                }
                while let Some(length) = head_end(came, 0) {
                    let away = attempt.dial.was_redirected_away;
                    if check(attempt.settings, away, key, &came[..length])? != Verdict::Interim {
                        return Ok(Written::InPart);
                    }
                    came.drain(..length);
                }
                if came.len() >= MAX_HEAD {
                    return Ok(Written::InPart);
                }
            }
            Err(error) => return Ok(Written::Broke(broken(attempt, &error))),
        }
    }
    Ok(Written::Whole)
}

/// What the server's answer comes to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Upgraded(Box<Accepted>),
    Interim,
    /// Its body is still to be read.
    Refused(Box<Refusal>),
}

/// Checks a whole head.
fn check(settings: &Settings, away: bool, key: &str, head: &[u8]) -> Result<Verdict, Halt> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let response = parse(&mut headers, head)?;
    let all = |name: &str| values(&response, name);
    let status = response.code.unwrap_or_default();
    if (100..200).contains(&status) && status != 101 {
        return Ok(Verdict::Interim);
    }
    let unfolded = |value: &[u8]| String::from_utf8_lossy(value).split_whitespace().collect::<Vec<_>>().join(" ");
    let text = |value: &[u8]| match value.contains(&b'\n') {
        true => unfolded(value).into_boxed_str(),
        false => String::from_utf8_lossy(value).into(),
    };
    let headers = || response.headers.iter().map(|header| (header.name.into(), text(header.value))).collect();
    if status != 101 {
        return Ok(Verdict::Refused(Box::new(Refusal {
            status,
            retry_after: asks_to_wait(&response),
            headers: headers(),
            body: "".into(),
            redirects: 0,
        })));
    }
    let has_token = |name: &str, token: &str| {
        all(name).iter().flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if response.version != Some(1) {
        return Err(wrong("not HTTP/1.1"));
    }
    if !has_token("upgrade", "websocket") {
        return Err(wrong("no `Upgrade: websocket`"));
    }
    if !has_token("connection", "upgrade") {
        return Err(wrong("no `Connection: Upgrade`"));
    }
    if all("sec-websocket-accept") != [derive_accept_key(key.as_bytes()).as_str()] {
        return Err(wrong("`Sec-WebSocket-Accept` does not answer our key: this is no WebSocket server, or a cache"));
    }
    // Of more than one the comma makes what is wrong with it.
    let extensions = all("sec-websocket-extensions").into_iter().filter(|value| !value.trim().is_empty());
    let extensions = extensions.collect::<Vec<_>>().join(",");
    let agreed = (!extensions.is_empty()).then(|| agree(settings, &extensions)).transpose().map_err(wrong)?;
    let refused = |message: String| Err(Halt::Failed(ConnectError::Subprotocol { message: message.into() }));
    let chosen: Vec<_> = all("sec-websocket-protocol").into_iter().filter(|value| !value.trim().is_empty()).collect();
    let subprotocol = match chosen[..] {
        [] if settings.subprotocols.is_empty() || settings.subprotocol_choice != SubprotocolChoice::Required => None,
        [] if away => return refused("none is offered to another host, to which a redirect leads".into()),
        [] => return refused("the server chose none of those offered".into()),
        [one] if settings.subprotocols.iter().any(|offered| offered == one) => Some(one.into()),
        [one] if settings.subprotocol_choice == SubprotocolChoice::Any => Some(one.into()),
        _ => return refused("the server chose one that was not offered".into()),
    };
    let extensions = (!extensions.is_empty()).then(|| extensions.into());
    Ok(Verdict::Upgraded(Box::new(Accepted { agreed, extensions, subprotocol, headers: headers() })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientConfig;
    use std::time::Duration;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn config() -> ClientConfig {
        ClientConfig::new("ws://h/p?q=1").unwrap()
    }

    fn answer(status: &str, headers: &[&str]) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\n{}\r\n\r\n", headers.join("\r\n")).into_bytes()
    }

    fn good() -> Vec<String> {
        vec![
            "Connection: keep-alive, Upgrade".into(),
            "Upgrade: WebSocket".into(),
            format!("Sec-WebSocket-Accept: {ACCEPT}"),
        ]
    }

    fn verdict(config: &ClientConfig, head: &[u8]) -> Result<Verdict, ConnectError> {
        check(&config.resolve().unwrap(), false, KEY, head).map_err(|halt| match halt {
            Halt::Failed(error) => error,
            Halt::Cancelled => unreachable!(),
        })
    }

    fn good_with(extra: &str) -> Vec<u8> {
        let mut headers = good();
        headers.push(extra.to_owned());
        answer("101 Switching Protocols", &headers.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn a_right_answer_is_taken_and_an_interim_one_passed_over() {
        for (extra, value) in [("X: y", "y"), ("X: a;\r\n b", "a; b"), ("X: z\r\nSec-WebSocket-Protocol: ", "z")] {
            let Ok(Verdict::Upgraded(accepted)) = verdict(&config(), &good_with(extra)) else { panic!("{extra}") };
            assert_eq!((&accepted.agreed, &accepted.subprotocol), (&None, &None));
            assert!(accepted.headers.contains(&("X".into(), value.into())), "{:?}", accepted.headers);
        }
        assert_eq!(verdict(&config(), b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"), Ok(Verdict::Interim));
    }

    #[test]
    fn each_check_of_section_4_1_refuses() {
        for missing in 0..3 {
            let headers: Vec<_> = good();
            let kept: Vec<_> =
                headers.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, h)| h.as_str()).collect();
            let error = verdict(&config(), &answer("101 ok", &kept)).unwrap_err();
            assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
        }
        let extension = good_with("Sec-WebSocket-Extensions: permessage-deflate");
        assert!(verdict(&config(), &extension).is_err());
        let protocol = good_with("Sec-WebSocket-Protocol: chat");
        assert!(!verdict(&config(), &protocol).unwrap_err().is_retryable());
        let offered = config().subprotocol("chat");
        assert!(verdict(&offered, &protocol).is_ok());
        assert!(!verdict(&offered, &good_with("X: y")).unwrap_err().is_retryable());
        let optional = config().subprotocol("fix").subprotocol_choice(SubprotocolChoice::Optional);
        assert!(verdict(&optional, &good_with("X: y")).is_ok() && verdict(&optional, &protocol).is_err());
        let any = config().subprotocol("fix").subprotocol_choice(SubprotocolChoice::Any);
        assert!(verdict(&any, &good_with("X: y")).is_ok() && verdict(&any, &protocol).is_ok());
        for noise in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"\x15\x03\x01\x00\x02\x02\x0a", b"HTTP/2 101\r\n\r\n"] {
            assert!(verdict(&config(), noise).is_err());
        }
    }

    #[test]
    fn a_refusal_keeps_status_headers_and_retry_after() {
        let head = answer("503 Busy", &["Retry-After: 7", "X-Why: load", "Location: /elsewhere"]);
        let Ok(Verdict::Refused(refusal)) = verdict(&config(), &head) else { panic!() };
        assert_eq!((refusal.status, refusal.retry_after), (503, Some(Duration::from_secs(7))));
        assert_eq!((refusal.header("x-why"), refusal.location()), (Some("load"), Some("/elsewhere")));
    }

    #[test]
    fn the_request_carries_what_was_configured() {
        let config = config().header("X-Desk", "options").subprotocol("a").subprotocol("b");
        let settings = config.resolve().unwrap();
        let (target, headers) = (settings.target.clone(), settings.headers.clone());
        let mut dial = Dial::new(target, headers, 1, None, std::time::Instant::now());
        let request = request(&settings, &dial, KEY);
        assert!(request.starts_with("GET /p?q=1 HTTP/1.1\r\nHost: h\r\n"), "{request}");
        assert!(request.contains("\r\nSec-WebSocket-Protocol: a, b\r\nX-Desk: options\r\n\r\n"), "{request}");
        assert!(request.contains(concat!("\r\nUser-Agent: ws-supervisor/", env!("CARGO_PKG_VERSION"), "\r\n")));
        assert!(!request.contains("Authorization"));
        dial.url("ws://other/?token=2").unwrap();
        dial.header("x-desk", "futures").unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(request.starts_with("GET /?token=2 HTTP/1.1\r\nHost: other\r\n"), "{request}");
        assert!(request.ends_with("\r\nx-desk: futures\r\n\r\n") && !request.contains("options"), "{request}");
        dial.url("ws://u:p@other/").unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(request.contains("\r\nAuthorization: Basic dTpw\r\n"), "{request}");
        dial.header("authorization", "Bearer token").unwrap();
        dial.header("User-Agent", "desk").unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(!request.contains("Basic") && !request.contains("ws-supervisor/"), "{request}");
        let settings = config.host_header("gateway:1").without_user_agent().resolve().unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(request.contains("\r\nHost: other\r\n"), "it is not the gateway's: {request}");
        dial.url("ws://H/").unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(request.contains("\r\nHost: gateway:1\r\n") && !request.contains("ws-supervisor/"), "{request}");
    }
}
