//! HTTP/1.1, as much of it as an upgrade or a proxy needs: a head that is whole, a body that says why, and when to come again.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant, SystemTime};

use super::attempt::{Attempt, Halt};
use crate::error::{ConnectError, Phase, Refusal};
use crate::transport::Layer;

/// Interim answers that are passed over; the deadline is their other bound.
pub(super) const MAX_INTERIM: usize = 1_000;

pub(super) const MAX_HEAD: usize = 64 << 10;
pub(super) const MAX_HEADERS: usize = 128;
const MAX_BODY: usize = 64 << 10;

/// As many bytes of chunks are read for that: the smallest take six for one.
const MAX_CHUNKS: usize = 8 * MAX_BODY;

/// A refusal's body is waited for so long: the connection is of no other use.
const BODY_TIME: Duration = Duration::from_secs(2);

/// Where a head ends, of which the bytes before `looked` have been looked at.
pub(super) fn head_end(came: &[u8], looked: usize) -> Option<usize> {
    let end = came[looked..].windows(2).position(|pair| pair == b"\n\n" || pair == b"\n\r");
    match end.map(|at| looked + at)? {
        at if came[at + 1] == b'\n' => Some(at + 2),
        at if came.get(at + 2) == Some(&b'\n') => Some(at + 3),
        _ => None,
    }
}

/// Parses a whole head as a user agent has to: a server's and a proxy's answer alike.
pub(super) fn parse<'h, 'b>(
    headers: &'h mut [httparse::Header<'b>],
    head: &'b [u8],
) -> Result<httparse::Response<'h, 'b>, Halt> {
    let mut response = httparse::Response::new(headers);
    let mut parser = httparse::ParserConfig::default();
    // RFC 9112 section 5.2: a user agent must take a folded line for a space.
    parser.allow_obsolete_multiline_headers_in_responses(true);
    // A header that is not allowed hides neither the status nor the others.
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.ignore_invalid_headers_in_responses(true);
    match parser.parse_response(&mut response, head) {
        Ok(httparse::Status::Complete(_)) => Ok(response),
        Ok(httparse::Status::Partial) => Err(wrong("not HTTP/1.1 (a head without an end)")),
        Err(httparse::Error::TooManyHeaders) => Err(wrong(format!("more than {MAX_HEADERS} headers"))),
        Err(error) => Err(wrong(format!("not HTTP/1.1 ({error})"))),
    }
}

/// The values of all headers of this name.
pub(super) fn values<'h>(response: &'h httparse::Response<'_, '_>, name: &str) -> Vec<&'h str> {
    let of_name = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    of_name.filter_map(|header| std::str::from_utf8(header.value).ok()).collect()
}

/// How long an answer asks to be left alone.
pub(super) fn asks_to_wait(response: &httparse::Response<'_, '_>) -> Option<Duration> {
    // A date is compared with the server's own clock: ours may be wrong.
    let date = values(response, "date").first().and_then(|date| httpdate::parse_http_date(date).ok());
    let now = date.unwrap_or_else(SystemTime::now);
    values(response, "retry-after").first().and_then(|value| retry_after(value, now))
}

/// Writes all of it.
pub(super) fn write(attempt: &Attempt<'_>, wire: &mut dyn Layer, mut bytes: &[u8]) -> Result<(), Halt> {
    while !bytes.is_empty() {
        match wire.write(bytes) {
            Ok(0) => return Err(attempt.lost("it closed the connection")),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => attempt.unblock(wire.socket_mut())?,
            Err(error) => return Err(broken(attempt, &error)),
        }
    }
    Ok(())
}

/// Reads until the head is whole; returns its length. What is no HTTP is told at once.
pub(super) fn read_head(attempt: &Attempt<'_>, wire: &mut dyn Layer, came: &mut Vec<u8>) -> Result<usize, Halt> {
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
                [0x15, 3, ..] if attempt.phase() == Phase::Proxy => "it speaks TLS: use `https://`".to_owned(),
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
pub(super) fn read_body(attempt: &Attempt<'_>, wire: &mut dyn Layer, refusal: &Refusal, mut came: Vec<u8>) -> Vec<u8> {
    let until = Instant::now() + BODY_TIME;
    let is_chunked =
        refusal.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    // RFC 9110 section 6.4.1: these have none. RFC 9112 section 6.3: a length that stands twice may be taken as one.
    if matches!(refusal.status, 204 | 304) {
        return Vec::new();
    }
    let length = refusal.header("content-length").and_then(|value| value.split(',').next()?.trim().parse().ok());
    let length = length.unwrap_or(usize::MAX);
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

pub(super) fn read_some(attempt: &Attempt<'_>, wire: &mut dyn Layer, head: &mut Vec<u8>) -> Result<(), Halt> {
    let mut chunk = [0; 4096];
    loop {
        match wire.read(&mut chunk) {
            Ok(0) => {
                return Err(attempt.lost(match attempt.phase() {
                    Phase::Proxy => "the proxy closed the connection before it answered",
                    _ if attempt.dial.target.tls => "the server closed the connection before it answered",
                    _ => "the server closed the connection before it answered (if it speaks TLS, use `wss://`)",
                }));
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

/// A date or seconds (RFC 9110 section 10.2.3). Of what proxies make of the latter the first whole number is taken: no wait
/// at all would be the worst reading.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(date) = httpdate::parse_http_date(value) {
        return Some(date.duration_since(now).unwrap_or_default());
    }
    let seconds = value.split([',', '.']).next().unwrap_or_default().trim();
    let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(seconds.parse().unwrap_or(u64::MAX)))
}

/// A TLS 1.3 server refuses us only after the handshake.
pub(super) fn broken(attempt: &Attempt<'_>, error: &io::Error) -> Halt {
    #[cfg(feature = "rustls")]
    if let Some(refusal) = super::rustls::verdict(error) {
        return refusal;
    }
    #[cfg(feature = "native-tls")]
    if let Some(refusal) = super::native_tls::refusal(&error.to_string()) {
        return refusal;
    }
    attempt.broken(error)
}

pub(super) fn wrong(message: impl Into<Box<str>>) -> Halt {
    ConnectError::Handshake { message: message.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
