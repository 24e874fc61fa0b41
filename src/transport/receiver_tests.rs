use super::*;
use crate::transport::head::{MASKED, SPLIT_CONTROL};

fn receiver(buffer: usize, max_message: usize) -> Receiver {
    Receiver::new(buffer, false, max_message, None)
}

/// As many of them as there is room for; returns the others.
fn put<'a>(receiver: &mut Receiver, bytes: &'a [u8]) -> &'a [u8] {
    let space = receiver.space();
    let (some, rest) = bytes.split_at(space.len().min(bytes.len()));
    assert!(!some.is_empty(), "there always is room");
    space[..some.len()].copy_from_slice(some);
    receiver.came(some.len());
    rest
}

/// A server's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(len as u8),
        len @ 126..65_536 => {
            frame.push(126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// All that comes of these bytes, `size` of them at a time, and how it ended if it did.
fn all(receiver: &mut Receiver, bytes: &[u8], size: usize) -> (Vec<String>, Option<Fault>) {
    let mut heard = vec![];
    let mut rest = bytes;
    while !rest.is_empty() {
        let left = put(receiver, &rest[..size.min(rest.len())]);
        rest = &rest[size.min(rest.len()) - left.len()..];
        loop {
            let next = match receiver.next() {
                Ok(Next::Nothing) => break,
                Ok(Next::Part) => continue,
                Ok(Next::Message) => receiver.body().map(|body| match body {
                    BodyRef::Text(text) => format!("text {text}"),
                    BodyRef::Binary(bytes) => format!("binary {}", bytes.len()),
                }),
                Ok(Next::Ping) => Ok(format!("ping {:?}", receiver.control())),
                Ok(Next::Pong) => Ok(format!("pong {:?}", receiver.control())),
                Ok(Next::Close(frame)) => Ok(format!("close {frame:?}")),
                Ok(Next::BadClose(_, fault)) => Err(fault),
                Err(fault) => Err(fault),
            };
            match next {
                Ok(next) => heard.push(next),
                Err(fault) => return (heard, Some(fault)),
            }
        }
    }
    (heard, None)
}

#[test]
fn messages_come_out_whole_however_their_bytes_come() {
    let large = vec![7; 70_000];
    let bytes = [
        frame(0x81, "a €".as_bytes()),
        frame(0x82, &[1; 200]),
        frame(0x01, "sp€".as_bytes()[..3].as_ref()),
        frame(0x89, &[9]),
        frame(0x00, &"sp€".as_bytes()[3..]),
        frame(0x80, b"lit"),
        frame(0x82, &large),
        frame(0x8a, b""),
        frame(0x81, b""),
        frame(0x88, &[3, 232, b'!']),
        frame(0x81, b"nothing counts after a close frame"),
    ]
    .concat();
    let expected = [
        "text a €",
        "binary 200",
        "ping [9]",
        "text sp€lit",
        "binary 70000",
        "pong []",
        "text ",
        "close Some(CloseFrame { code: 1000, reason: \"!\" })",
    ];
    for buffer in [256, 1024, 100_000] {
        for size in [1, 2, 3, 7, 255, 8192, bytes.len()] {
            let (heard, fault) = all(&mut receiver(buffer, 1 << 20), &bytes, size);
            assert_eq!(
                (&heard[..], fault),
                (&expected.map(String::from)[..], None),
                "buffer {buffer}, parts of {size}"
            );
        }
    }
}

#[test]
fn a_broken_rule_is_found_where_it_is_broken() {
    let text_in_fragments = [frame(0x01, b"a"), frame(0x81, b"b")].concat();
    let bad_in_the_second = [frame(0x01, "€".as_bytes()[..2].as_ref()), frame(0x80, b"x")].concat();
    let half = frame(0x81, &"€".as_bytes()[..2]);
    for (bytes, fault) in [
        (&text_in_fragments[..], UNFINISHED),
        (&frame(0x80, b"a"), NOTHING_TO_CONTINUE),
        (&frame(0xc1, b"compressed unasked"), RESERVED_BIT),
        (&[0x81, 0x81][..], MASKED),
        (&[0x08, 0][..], SPLIT_CONTROL),
        (&frame(0x82, &[0; 101]), TOO_LARGE),
        (&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255], TOO_LARGE),
        (&[frame(0x02, &[0; 60]), frame(0x80, &[0; 60])].concat(), TOO_LARGE),
        (&frame(0x81, b"\xff"), NO_UTF8),
        // A server that says more than it has sent: the first bad byte is enough.
        (&[0x81, 100, b'a', 0xff], NO_UTF8),
        (&bad_in_the_second, NO_UTF8),
        (&half, NO_UTF8),
        (&frame(0x88, &[3]), SHORT_CLOSE),
        (&frame(0x88, &1005_u16.to_be_bytes()), CLOSE_CODE),
        (&frame(0x88, &[3, 232, 0xff]), NO_UTF8),
    ] {
        for size in [1, 2, bytes.len()] {
            let (heard, found) = all(&mut receiver(256, 100), bytes, size);
            assert_eq!((heard.len(), found), (0, Some(fault)), "{bytes:?} in parts of {size}");
        }
    }
}

#[test]
fn a_close_frame_is_told_as_it_was_sent() {
    let close = |bytes: &[u8]| {
        let mut receiver = receiver(256, 100);
        put(&mut receiver, bytes);
        receiver.next().unwrap()
    };
    let said = |code, reason: &str| Some(CloseFrame { code, reason: reason.into() });
    assert_eq!(close(&frame(0x88, b"")), Next::Close(None));
    assert_eq!(close(&frame(0x88, &[3, 237])), Next::BadClose(said(1005, ""), CLOSE_CODE));
    assert_eq!(close(&frame(0x88, b"\x03\xf0no\xe9")), Next::BadClose(said(1008, "no\u{fffd}"), NO_UTF8));
    let long = [&4001_u16.to_be_bytes()[..], &[b'x'; 200]].concat();
    assert_eq!(close(&frame(0x88, &long)), Next::BadClose(said(4001, &"x".repeat(123)), LONG_CONTROL));
}

#[test]
fn millions_of_empty_fragments_hold_nobody_up_and_cost_no_memory() {
    let mut receiver = receiver(128 << 10, 1 << 20);
    put(&mut receiver, &frame(0x01, b""));
    let mut parts = 0;
    for _ in 0..4 {
        put(&mut receiver, &[0x00, 0].repeat(30_000));
        loop {
            match receiver.next().unwrap() {
                Next::Part => parts += 1,
                Next::Nothing => break,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(parts >= 4 * 30_000 / FRAMES_AT_ONCE, "{parts}");
    assert_eq!(receiver.assembly.len(), 0);
    put(&mut receiver, &frame(0x80, b"the end"));
    assert_eq!(receiver.next(), Ok(Next::Message));
    assert!(receiver.body().unwrap() == BodyRef::Text("the end"));
}

#[test]
fn a_length_that_is_only_claimed_costs_no_memory() {
    let mut receiver = receiver(256, 1 << 30);
    put(&mut receiver, &[0x82, 127, 0, 0, 0, 0, 0x3f, 0, 0, 0, 1, 2, 3]);
    assert_eq!(receiver.next(), Ok(Next::Nothing));
    assert_eq!(receiver.assembly.bytes(), [1, 2, 3]);
    assert!(receiver.assembly.take_bytes().capacity() < 256);
}

#[test]
fn small_messages_of_one_read_share_a_small_block_and_a_lone_one_shares_nothing() {
    let body = |receiver: &mut Receiver| {
        assert_eq!(receiver.next(), Ok(Next::Message));
        match receiver.take_body().unwrap() {
            Body::Text(text) => text.into_bytes(),
            Body::Binary(bytes) => bytes,
        }
    };
    let mut receiver = receiver(64 << 10, 1 << 20);
    put(&mut receiver, &frame(0x81, &[b't'; 100]).repeat(300));
    let mut blocks = vec![];
    for _ in 0..300 {
        let bytes = body(&mut receiver);
        assert_eq!(bytes, [b't'; 100][..]);
        let address = bytes.as_ptr() as usize;
        if blocks.last().is_none_or(|(begin, _)| address.wrapping_sub(*begin) >= BLOCK) {
            blocks.push((address, bytes));
        }
    }
    assert!(blocks.len() <= 300 * 102 / BLOCK + BLOCK / 102, "{} blocks", blocks.len());
    put(&mut receiver, &frame(0x82, &[1; 100]).repeat(30));
    (0..30).for_each(|_| assert!(body(&mut receiver).is_unique(), "one of a few"));
    put(&mut receiver, &[frame(0x82, &[1; 3000]), frame(0x82, &[1; 3000])].concat());
    assert!(body(&mut receiver).is_unique(), "one that is not small");
}

#[test]
fn a_clients_messages_are_unmasked_each_by_itself() {
    let masked = |payload: &[u8], mask: [u8; 4]| {
        let mut frame = vec![0x81, 0x80 | payload.len() as u8];
        frame.extend(mask);
        frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
        frame
    };
    let mut receiver = Receiver::new(256, true, 100, None);
    put(&mut receiver, &[masked(b"first", [1, 2, 3, 4]), masked(b"second", [5, 6, 7, 8])].concat());
    for expected in ["first", "second"] {
        assert_eq!(receiver.next(), Ok(Next::Message));
        let Body::Text(text) = receiver.take_body().unwrap() else { panic!("it is text") };
        assert_eq!(text.as_str(), expected);
    }
}

/// What a large message needed is not given away with a small one.
#[test]
fn a_small_message_in_fragments_takes_only_what_it_needs() {
    let mut receiver = receiver(1024, 1 << 20);
    let large = [frame(0x01, &[b'x'; 30_000]), frame(0x80, &[b'x'; 30_000])].concat();
    assert_eq!(all(&mut receiver, &large, 1000).0.len(), 1);
    let memory = receiver.assembly.text().as_ptr();
    for _ in 0..3 {
        put(&mut receiver, &[frame(0x01, b"sm"), frame(0x80, b"all")].concat());
        assert_eq!(receiver.next(), Ok(Next::Message));
        let Body::Text(text) = receiver.take_body().unwrap() else { panic!("it is text") };
        assert_eq!((text.as_str(), receiver.assembly.text().as_ptr()), ("small", memory));
    }
}

/// What can't be made smaller gets larger when it is packed: the bound is for what comes out.
#[test]
#[cfg(feature = "compression")]
fn a_message_of_the_largest_size_may_be_longer_when_it_is_packed() {
    let mut noise = vec![0; 1000];
    fastrand::Rng::with_seed(7).fill(&mut noise);
    let mut deflate = crate::transport::deflate::Deflate::new(1, 15, true, 0).unwrap();
    let packed = deflate.message(&noise).unwrap();
    assert!(packed.len() > 1000);
    let (head, tail) = packed.split_at(500);
    for bytes in [frame(0xc2, &packed), [frame(0x42, head), frame(0x80, tail)].concat()] {
        let inflate = Some(Box::new(Inflate::new(15, false)));
        let mut receiver = Receiver::new(4096, false, 1000, inflate);
        assert_eq!(all(&mut receiver, &bytes, 4096), (vec!["binary 1000".to_owned()], None));
    }
}
