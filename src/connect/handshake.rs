//! The WebSocket upgrade (RFC 6455 section 4.1): our request, and every check that section asks of a client. Written
//! here rather than taken from tungstenite so that a refusal keeps its status and headers, a list in `Connection` is
//! understood, an extension nobody asked for is refused, and no header value reaches a log.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, SystemTime};

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use super::attempt::{Attempt, Halt};
use crate::config::settings::Settings;
use crate::dial::Dial;
use crate::error::{ConnectError, Refusal};
use crate::target::Header;
use crate::transport::Wire;

const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_BODY: usize = 4 << 10;

/// Runs the upgrade; returns the bytes that came after the server's answer.
pub(super) fn upgrade(attempt: &Attempt<'_>, wire: &mut Wire) -> Result<Vec<u8>, Halt> {
    let key = generate_key();
    write_all(attempt, wire, request(attempt.settings, attempt.dial, &key).as_bytes())?;
    let mut head = Vec::with_capacity(1024);
    loop {
        if let Some(length) = check(attempt.settings, &key, &head)? {
            return Ok(head.split_off(length));
        }
        if head.len() >= MAX_HEAD {
            return Err(wrong("headers longer than 64 KiB"));
        }
        read_some(attempt, wire, &mut head)?;
    }
}

fn request(settings: &Settings, dial: &Dial, key: &str) -> String {
    let target = &dial.target;
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n",
        target.path_and_query, target.authority
    );
    if !settings.subprotocols.is_empty() {
        request += &format!("Sec-WebSocket-Protocol: {}\r\n", settings.subprotocols.join(", "));
    }
    for Header { name, value } in &dial.headers {
        request += &format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    request + "\r\n"
}

fn write_all(attempt: &Attempt<'_>, wire: &mut Wire, mut bytes: &[u8]) -> Result<(), Halt> {
    while !bytes.is_empty() {
        match wire.write(bytes) {
            Ok(0) => return Err(attempt.lost("the server closed the connection")),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(wire.socket_mut())?,
            Err(error) => return Err(attempt.broken(&error)),
        }
    }
    Ok(())
}

fn read_some(attempt: &Attempt<'_>, wire: &mut Wire, head: &mut Vec<u8>) -> Result<(), Halt> {
    let mut chunk = [0; 4096];
    loop {
        match wire.read(&mut chunk) {
            Ok(0) => return Err(attempt.lost("the server closed the connection before it answered")),
            Ok(read) => {
                head.extend_from_slice(&chunk[..read]);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(wire.socket_mut())?,
            Err(error) => return Err(attempt.broken(&error)),
        }
    }
}

fn wrong(message: impl Into<Box<str>>) -> Halt {
    ConnectError::Handshake { message: message.into() }.into()
}

/// The length of the head when it is whole and right; `None` while it is not whole.
fn check(settings: &Settings, key: &str, head: &[u8]) -> Result<Option<usize>, Halt> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(wrong(format!("more than {MAX_HEADERS} headers"))),
        Err(error) => return Err(wrong(format!("not HTTP/1.1 ({error})"))),
    };
    let all = |name: &str| -> Vec<&str> {
        let ours = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        ours.filter_map(|header| std::str::from_utf8(header.value).ok()).collect()
    };
    let status = response.code.unwrap_or_default();
    if status != 101 {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into_boxed_str();
        let body = &head[length..];
        return Err(Halt::Failed(ConnectError::Refused(Box::new(Refusal {
            status,
            retry_after: all("retry-after").first().and_then(|value| retry_after(value, SystemTime::now())),
            headers: response.headers.iter().map(|header| (header.name.into(), text(header.value))).collect(),
            body: text(&body[..body.len().min(MAX_BODY)]),
        }))));
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
    if all("sec-websocket-extensions").iter().any(|value| !value.trim().is_empty()) {
        return Err(wrong("an extension that was not offered"));
    }
    let refused = |message: String| Err(Halt::Failed(ConnectError::Subprotocol { message: message.into() }));
    match all("sec-websocket-protocol")[..] {
        [] if settings.subprotocols.is_empty() => Ok(Some(length)),
        [] => refused("the server chose none of those offered".into()),
        [one] if settings.subprotocols.iter().any(|offered| offered == one) => Ok(Some(length)),
        _ => refused("the server chose one that was not offered".into()),
    }
}

/// RFC 9110 section 10.2.3: seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientConfig;

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

    fn verdict(config: &ClientConfig, head: &[u8]) -> Result<Option<usize>, ConnectError> {
        check(&config.resolve().unwrap(), KEY, head).map_err(|halt| match halt {
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
    fn a_right_answer_is_taken_whole_and_not_before() {
        let mut head = good_with("X: y");
        assert_eq!(verdict(&config(), &head[..head.len() - 1]), Ok(None));
        let length = head.len();
        head.extend(b"\x81\x00");
        assert_eq!(verdict(&config(), &head), Ok(Some(length)));
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
        for noise in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"\x15\x03\x01\x00\x02\x02\x0a", b"HTTP/2 101\r\n\r\n"] {
            assert!(verdict(&config(), noise).is_err());
        }
    }

    #[test]
    fn a_refusal_keeps_status_headers_body_and_retry_after() {
        let mut head = answer("503 Busy", &["Retry-After: 7", "X-Why: load"]);
        head.extend(b"come back later");
        let Err(error @ ConnectError::Refused(_)) = verdict(&config(), &head) else { panic!() };
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let ConnectError::Refused(refusal) = error else { unreachable!() };
        assert_eq!((refusal.status, &*refusal.body), (503, "come back later"));
        assert!(refusal.headers.contains(&("X-Why".into(), "load".into())));
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after(" 12 ", now), Some(Duration::from_secs(12)));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn the_request_carries_what_was_configured() {
        let config = config().header("X-Desk", "options").subprotocol("a").subprotocol("b");
        let settings = config.resolve().unwrap();
        let (target, headers) = (settings.target.clone(), settings.headers.clone());
        let mut dial = Dial::new(target, headers, 1, std::time::Instant::now());
        let request = request(&settings, &dial, KEY);
        assert!(request.starts_with("GET /p?q=1 HTTP/1.1\r\nHost: h\r\n"), "{request}");
        assert!(request.contains("\r\nSec-WebSocket-Protocol: a, b\r\nX-Desk: options\r\n\r\n"), "{request}");
        dial.url("ws://other/?token=2").unwrap();
        dial.header("x-desk", "futures").unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(request.starts_with("GET /?token=2 HTTP/1.1\r\nHost: other\r\n"), "{request}");
        assert!(request.ends_with("\r\nx-desk: futures\r\n\r\n") && !request.contains("options"), "{request}");
    }
}
