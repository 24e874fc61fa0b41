//! What comes of some bytes by our receiver and by tungstenite's: the same, but for what is listed in `agree`. For a property
//! test here, and for the fuzzer in `tests/fuzz`, which includes this very file.

use std::io::{self, ErrorKind, Read, Write};

use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

use super::head::Fault;
use super::receiver::{Next, Receiver};
use crate::message::BodyRef;

/// The largest message that both take.
pub(super) const MAX_MESSAGE: usize = 1000;

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// How it went on after the last that was heard.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// More bytes are waited for.
    Waits,
    Fault(Fault),
    BadClose(u16),
}

fn ours(bytes: &[u8], parts: &[usize], buffer: usize) -> (Vec<Heard>, End) {
    let mut receiver = Receiver::new(buffer, false, MAX_MESSAGE, None);
    let (mut heard, mut rest) = (vec![], bytes);
    let mut parts = parts.iter().copied().filter(|part| *part > 0).cycle();
    loop {
        let next = loop {
            match receiver.next() {
                Ok(Next::Part) => {}
                next => break next,
            }
        };
        heard.push(match next {
            Err(fault) => return (heard, End::Fault(fault)),
            Ok(Next::Message) => match receiver.body() {
                Ok(BodyRef::Text(text)) => Heard::Text(text.to_owned()),
                Ok(BodyRef::Binary(bytes)) => Heard::Binary(bytes.to_vec()),
                Err(fault) => return (heard, End::Fault(fault)),
            },
            Ok(Next::Ping) => Heard::Ping(receiver.control().to_vec()),
            Ok(Next::Pong) => Heard::Pong(receiver.control().to_vec()),
            Ok(Next::Close(frame)) => {
                heard.push(Heard::Close(frame.map(|frame| (frame.code, frame.reason.into()))));
                return (heard, End::Waits);
            }
            Ok(Next::BadClose(frame, _)) => return (heard, End::BadClose(frame.map_or(0, |frame| frame.code))),
            Ok(Next::Nothing | Next::Part) if rest.is_empty() => return (heard, End::Waits),
            Ok(Next::Nothing | Next::Part) => {
                let space = receiver.space();
                assert!(!space.is_empty(), "there always is room");
                let some = parts.next().unwrap_or(usize::MAX).min(space.len()).min(rest.len());
                space[..some].copy_from_slice(&rest[..some]);
                receiver.came(some);
                rest = &rest[some..];
                continue;
            }
        });
    }
}

struct Bytes<'a>(&'a [u8]);

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.0.read(buffer) }
    }
}

impl Write for Bytes<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `None` at the end: a broken rule.
fn theirs(bytes: &[u8]) -> (Vec<Heard>, Option<End>) {
    use tungstenite::Message as M;
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let mut ws = WebSocket::from_raw_socket(Bytes(bytes), Role::Client, Some(config));
    let mut heard = vec![];
    loop {
        heard.push(match ws.read() {
            Ok(M::Text(text)) => Heard::Text(text.to_string()),
            Ok(M::Binary(bytes)) => Heard::Binary(bytes.to_vec()),
            Ok(M::Ping(bytes)) => Heard::Ping(bytes.to_vec()),
            Ok(M::Pong(bytes)) => Heard::Pong(bytes.to_vec()),
            Ok(M::Close(Some(frame))) if frame.reason == "Protocol violation" => return (heard, None),
            Ok(M::Close(frame)) => {
                heard.push(Heard::Close(frame.map(|frame| (frame.code.into(), frame.reason.to_string()))));
                return (heard, Some(End::Waits));
            }
            Ok(M::Frame(_)) => unreachable!("frames are not read"),
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                return (heard, Some(End::Waits));
            }
            Err(_) => return (heard, None),
        });
    }
}

/// Whatever the bytes, however they are split, and whatever the buffer.
pub(super) fn agree(bytes: &[u8], parts: &[usize], buffer: usize) {
    let (ours, our_end) = ours(bytes, parts, buffer);
    let (theirs, their_end) = theirs(bytes);
    let context = || format!("{bytes:?} in {parts:?}, buffer {buffer}: {our_end:?}, tungstenite {their_end:?}");
    // 1014 is registered since (bad gateway), and tungstenite does not know it.
    if let (Some(Heard::Close(Some((1014, _)))), None) = (ours.last(), &their_end) {
        return assert_eq!(ours[..ours.len() - 1], theirs[..], "{}", context());
    }
    assert_eq!(ours, theirs, "{}", context());
    match (&our_end, &their_end) {
        (End::Waits, Some(End::Waits)) | (End::Fault(_) | End::BadClose(_), None) => {}
        // A broken rule is found at its first byte, where tungstenite waits for the whole frame.
        (End::Fault(_) | End::BadClose(_), Some(End::Waits)) => {}
        _ => panic!("{}", context()),
    }
}

#[cfg(all(test, feature = "property-tests"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server's frame, mostly one that may be.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![
            6 => Just(0x81_u8), 4 => Just(0x82), 3 => Just(0x01), 3 => Just(0x00), 3 => Just(0x80), 1 => Just(0x02),
            2 => Just(0x89), 1 => Just(0x8a), 1 => Just(0x88), 1 => any::<u8>(),
        ];
        let payload = prop_oneof![
            6 => "[a-z€ß😀]{0,40}".prop_map(String::into_bytes),
            2 => prop::collection::vec(any::<u8>(), 0..60),
            1 => (100_usize..1100).prop_map(|len| vec![b'x'; len]),
            1 => Just([&1000_u16.to_be_bytes()[..], b"bye"].concat()),
        ];
        (first, payload, 0..20_u8).prop_map(|(first, payload, odd)| {
            let len = payload.len();
            let mut frame = vec![first];
            match odd {
                // Longer than it had to be, longer than it is, and masked.
                0 => frame.extend([&[127][..], &(len as u64).to_be_bytes()].concat()),
                1 => frame.extend([126, 1, 200]),
                2 => frame.push(0x80 | (len as u8 & 0x7f)),
                _ if len < 126 => frame.push(len as u8),
                _ => frame.extend([&[126][..], &(len as u16).to_be_bytes()].concat()),
            }
            frame.extend(payload);
            frame
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn whatever_comes_is_what_tungstenite_makes_of_it(
            frames in prop::collection::vec(frame(), 0..12),
            parts in prop::collection::vec(1..200_usize, 1..5),
            buffer in prop_oneof![Just(139_usize), Just(300), Just(4096)],
        ) {
            agree(&frames.concat(), &parts, buffer);
        }
    }
}
