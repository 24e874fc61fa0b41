//! The WebSocket upgrade (RFC 6455 section 4.1): our request, and every check that section asks of a client. Written
//! here rather than taken from tungstenite so that a refusal keeps its status and headers, a list in `Connection` is
//! understood, an extension nobody asked for is refused, and no header value reaches a log.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant, SystemTime};

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use super::attempt::{Attempt, Halt};
use super::compression::{Agreed, agree, offer};
use super::tls;
use crate::config::settings::Settings;
use crate::dial::Dial;
use crate::error::{ConnectError, Refusal};
use crate::target::Header;
use crate::transport::Wire;

const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_BODY: usize = 64 << 10;

/// As many bytes of chunks are read for that: the smallest take six for one.
const MAX_CHUNKS: usize = 8 * MAX_BODY;

/// A refusal's body is waited for so long: the connection is of no other use.
const BODY_TIME: Duration = Duration::from_secs(2);

/// Interim answers that are passed over; the deadline is their other bound.
const MAX_INTERIM: usize = 1_000;

/// Runs the upgrade; returns the bytes that came after the server's answer, and what was agreed on about compression.
pub(super) fn upgrade(attempt: &Attempt<'_>, wire: &mut Wire) -> Result<(Vec<u8>, Option<Agreed>), Halt> {
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
        match check(attempt.settings, &key, &came)? {
            Verdict::Upgraded(_) if !matches!(written, Written::Whole) => {
                return Err(wrong("it was accepted before the server had read all of it"));
            }
            Verdict::Upgraded(agreed) => return Ok((rest, agreed)),
            // RFC 9110 section 15.2: a client must be able to take them, though it did not ask.
            Verdict::Interim => came = rest,
            Verdict::Refused(mut refusal) => {
                let body = read_body(attempt, wire, &refusal, rest);
                refusal.body = String::from_utf8_lossy(&body).into();
                return Err(Halt::Failed(ConnectError::Refused(refusal)));
            }
        }
    }
    Err(wrong(format!("more than {MAX_INTERIM} interim answers")))
}

/// Where a head ends, of which the bytes before `looked` have been looked at.
fn head_end(came: &[u8], looked: usize) -> Option<usize> {
    let end = came[looked..].windows(2).position(|pair| pair == b"\n\n" || pair == b"\n\r");
    match end.map(|at| looked + at)? {
        at if came[at + 1] == b'\n' => Some(at + 2),
        at if came.get(at + 2) == Some(&b'\n') => Some(at + 3),
        _ => None,
    }
}

/// Reads until the head is whole; returns its length. What is no HTTP is told at once.
fn read_head(attempt: &Attempt<'_>, wire: &mut Wire, came: &mut Vec<u8>) -> Result<usize, Halt> {
    let (mut looked, mut lines) = (0, 0);
    loop {
        // Only new bytes are looked at: a head that comes a byte at a time is not parsed at every byte.
        if let Some(end) = head_end(came, looked) {
            return Ok(end);
        }
        looked = came.len().saturating_sub(2);
        let start = b"HTTP/1.";
        let common = came.len().min(start.len());
        if came[..common] != start[..common] {
            return Err(wrong(match came[..] {
                [0x15, 3, ..] => "the server speaks TLS here: use `wss://`".to_owned(),
                _ => "not HTTP/1.1".to_owned(),
            }));
        }
        if lines > MAX_HEADERS + 1 {
            return Err(wrong(format!("more than {MAX_HEADERS} headers")));
        }
        if came.len() >= MAX_HEAD {
            return Err(wrong("headers longer than 64 KiB"));
        }
        let before = came.len();
        read_some(attempt, wire, came)?;
        lines += came[before..].iter().filter(|byte| **byte == b'\n').count();
    }
}

/// The body of a refusal (RFC 9112 section 6.3), as far as it comes.
fn read_body(attempt: &Attempt<'_>, wire: &mut Wire, refusal: &Refusal, mut came: Vec<u8>) -> Vec<u8> {
    let until = Instant::now() + BODY_TIME;
    let is_chunked =
        refusal.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    let length = refusal.header("content-length").and_then(|value| value.trim().parse().ok()).unwrap_or(usize::MAX);
    loop {
        let (mut body, is_whole) = match is_chunked {
            true => dechunk(&came),
            false => (came[..came.len().min(length)].to_vec(), came.len() >= length),
        };
        body.truncate(MAX_BODY);
        if is_whole || body.len() == MAX_BODY || came.len() >= MAX_CHUNKS {
            return body;
        }
        // All that is there before it is looked at again: it may come a byte at a time.
        let before = came.len();
        loop {
            let mut chunk = [0; 4096];
            match wire.read(&mut chunk) {
                Ok(read) if read > 0 => came.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock && came.len() == before => {
                    let socket = wire.socket_mut();
                    if !matches!(attempt.wait(socket.tcp(), socket.interest(), until), Ok(true)) {
                        return body;
                    }
                    socket.refresh();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ if came.len() == before => return body,
                _ => break,
            }
            if came.len() >= MAX_CHUNKS || Instant::now() >= until {
                break;
            }
        }
        if Instant::now() >= until {
            return body;
        }
    }
}

/// What the chunks hold (RFC 9112 section 7.1), and whether the last one has come.
fn dechunk(mut chunks: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(chunks) {
        if size == 0 {
            return (body, true);
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let end = start.saturating_add(size).min(chunks.len());
        body.extend_from_slice(&chunks[start..end]);
        // After each chunk comes the end of a line.
        let Some(rest) = chunks.get(end + 2..) else { break };
        chunks = rest;
    }
    (body, false)
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
                    if check(attempt.settings, key, &came[..length])? != Verdict::Interim {
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

/// A TLS 1.3 server refuses us only after the handshake.
fn broken(attempt: &Attempt<'_>, error: &io::Error) -> Halt {
    #[cfg(feature = "rustls")]
    if let Some(refusal) = super::rustls::verdict(error) {
        return refusal;
    }
    tls::refusal(&error.to_string()).unwrap_or_else(|| attempt.broken(error))
}

fn read_some(attempt: &Attempt<'_>, wire: &mut Wire, head: &mut Vec<u8>) -> Result<(), Halt> {
    let mut chunk = [0; 4096];
    loop {
        match wire.read(&mut chunk) {
            Ok(0) if attempt.dial.target.tls => {
                return Err(attempt.lost("the server closed the connection before it answered"));
            }
            Ok(0) => {
                let message = "the server closed the connection before it answered (if it speaks TLS, use `wss://`)";
                return Err(attempt.lost(message));
            }
            Ok(read) => {
                head.extend_from_slice(&chunk[..read]);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(wire.socket_mut())?,
            Err(error) => return Err(broken(attempt, &error)),
        }
    }
}

fn wrong(message: impl Into<Box<str>>) -> Halt {
    ConnectError::Handshake { message: message.into() }.into()
}

/// What the server's answer comes to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// With what was agreed on about compression.
    Upgraded(Option<Agreed>),
    Interim,
    /// Its body is still to be read.
    Refused(Box<Refusal>),
}

/// Checks a whole head.
fn check(settings: &Settings, key: &str, head: &[u8]) -> Result<Verdict, Halt> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    // RFC 9112 section 5.2: a user agent must take a folded line for a space.
    let mut parser = httparse::ParserConfig::default();
    parser.allow_obsolete_multiline_headers_in_responses(true);
    // A header that may not be hides neither the status nor the others.
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.ignore_invalid_headers_in_responses(true);
    match parser.parse_response(&mut response, head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(wrong("not HTTP/1.1 (a head without an end)")),
        Err(httparse::Error::TooManyHeaders) => return Err(wrong(format!("more than {MAX_HEADERS} headers"))),
        Err(error) => return Err(wrong(format!("not HTTP/1.1 ({error})"))),
    };
    let all = |name: &str| -> Vec<&str> {
        let ours = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        ours.filter_map(|header| std::str::from_utf8(header.value).ok()).collect()
    };
    let status = response.code.unwrap_or_default();
    if (100..200).contains(&status) && status != 101 {
        return Ok(Verdict::Interim);
    }
    if status != 101 {
        let unfolded = |value: &[u8]| String::from_utf8_lossy(value).split_whitespace().collect::<Vec<_>>().join(" ");
        let text = |value: &[u8]| match value.contains(&b'\n') {
            true => unfolded(value).into_boxed_str(),
            false => String::from_utf8_lossy(value).into(),
        };
        return Ok(Verdict::Refused(Box::new(Refusal {
            status,
            retry_after: all("retry-after").first().and_then(|value| retry_after(value, SystemTime::now())),
            headers: response.headers.iter().map(|header| (header.name.into(), text(header.value))).collect(),
            body: "".into(),
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
    match chosen[..] {
        [] if settings.subprotocols.is_empty() => Ok(Verdict::Upgraded(agreed)),
        [] => refused("the server chose none of those offered".into()),
        [one] if settings.subprotocols.iter().any(|offered| offered == one) => Ok(Verdict::Upgraded(agreed)),
        _ => refused("the server chose one that was not offered".into()),
    }
}

/// RFC 9110 section 10.2.3: seconds, or a date.
/// A date or seconds (RFC 9110 section 10.2.3). Of what proxies make of the latter the first whole number is taken: no wait
/// at all would be the worst reading.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(date) = httpdate::parse_http_date(value) {
        return Some(date.duration_since(now).unwrap_or_default());
    }
    let seconds = value.split([',', '.']).next().unwrap_or_default().trim();
    let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(seconds.parse().unwrap_or(u64::MAX)))
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

    fn verdict(config: &ClientConfig, head: &[u8]) -> Result<Verdict, ConnectError> {
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
    fn a_right_answer_is_taken_and_an_interim_one_passed_over() {
        assert_eq!(verdict(&config(), &good_with("X: y")), Ok(Verdict::Upgraded(None)));
        assert_eq!(verdict(&config(), &good_with("X-Policy: a;\r\n b")), Ok(Verdict::Upgraded(None)), "a folded line");
        assert_eq!(
            verdict(&config(), &good_with("Sec-WebSocket-Protocol: ")),
            Ok(Verdict::Upgraded(None)),
            "chooses nothing"
        );
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
    fn chunks_are_joined_as_far_as_they_came() {
        assert_eq!(dechunk(b"6\r\nbanned\r\n0\r\n\r\n"), (b"banned".to_vec(), true));
        assert_eq!(dechunk(b"3;x=y\r\nban\r\n3\r\nne"), (b"banne".to_vec(), false));
        assert_eq!(dechunk(b"ffffffffffffffff\r\nban"), (b"ban".to_vec(), false));
        assert_eq!(dechunk(b"no chunks"), (vec![], false));
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after(" 12 ", now), Some(Duration::from_secs(12)));
        assert_eq!(retry_after("120, 120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("30.5", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("99999999999999999999999", now), Some(Duration::from_secs(u64::MAX)));
        assert_eq!((retry_after("soon", now), retry_after("-1", now), retry_after("", now)), (None, None, None));
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
        dial.url("ws://other/?token=2").unwrap();
        dial.header("x-desk", "futures").unwrap();
        let request = self::request(&settings, &dial, KEY);
        assert!(request.starts_with("GET /?token=2 HTTP/1.1\r\nHost: other\r\n"), "{request}");
        assert!(request.ends_with("\r\nx-desk: futures\r\n\r\n") && !request.contains("options"), "{request}");
    }
}
