//! Messages that come compressed, by the protocol (RFC 7692) or by a venue's own ways, and messages of ours that leave so.
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{eventually, next, next_text, raw, to};
use flate2::write::{DeflateEncoder, GzEncoder};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

fn large(n: usize) -> String {
    (0..n).map(|n| format!("{{\"price\":{n},\"amount\":{}}}", n % 7)).collect()
}

fn next_message(client: &Client) -> Message {
    next(client, |event| match event {
        Event::Message(message) => Some(message),
        _ => None,
    })
}

fn disconnected(client: &Client) -> String {
    next(client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason.to_string()),
        _ => None,
    })
}

fn connect(server: &Server, compression: Compression) -> Client {
    Client::connect(ClientConfig::new(server.url()).unwrap().compression(compression)).unwrap()
}

#[test]
fn what_both_sides_compress_arrives_as_it_was_sent() {
    let any = || Compression::deflate().above(0);
    for (answer, wanted) in [
        ("permessage-deflate", any()),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", any()),
        ("permessage-deflate; server_max_window_bits=9; client_max_window_bits=9", any()),
        // A window that zlib can't make: nothing of ours is compressed.
        ("permessage-deflate; client_max_window_bits=8", any()),
        ("permessage-deflate; server_no_context_takeover", any().server_no_context_takeover().level(9)),
        (
            "permessage-deflate; server_max_window_bits=10",
            any().server_max_window_bits(11).client_no_context_takeover(),
        ),
    ] {
        for server in
            [Server::start(Script::echo().compression(answer)), Server::start_tls(Script::echo().compression(answer))]
        {
            let server = server.unwrap();
            let mut config = ClientConfig::new(server.url()).unwrap().compression(wanted.clone());
            if !server.ca_pem().is_empty() {
                config = config.root_certificate(server.ca_pem()).tls(common::tls());
            }
            let client = Client::connect(config).unwrap();
            for n in [0, 1, 30, 30, 5_000, 30] {
                client.send(large(n)).unwrap();
                assert_eq!(next_text(&client), large(n), "{answer}");
            }
            let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            client.send(bytes.clone()).unwrap();
            assert_eq!(next_message(&client).as_bytes(), bytes);
            let stats = client.stats();
            assert_eq!((stats.accepted, (stats.sent - stats.uncertain)), (7, 7), "{answer}");
        }
    }
}

#[test]
fn a_server_that_declines_is_talked_to_without() {
    let server = Server::echo().unwrap();
    let client = connect(&server, Compression::deflate().above(0));
    client.send("hello").unwrap();
    assert_eq!(next_text(&client), "hello");
    let offered = server.records()[0].headers.iter().find(|(name, _)| name == "Sec-WebSocket-Extensions").cloned();
    assert_eq!(offered.unwrap().1, "permessage-deflate; client_max_window_bits");
}

#[test]
fn a_server_that_compresses_unasked_or_agrees_to_something_else_is_refused() {
    let connect = |answer: &str, config: fn(ClientConfig) -> ClientConfig| {
        let server = Server::start(Script::echo().compression(answer)).unwrap();
        Client::connect(config(ClientConfig::new(server.url()).unwrap())).unwrap_err().to_string()
    };
    let unasked = connect("permessage-deflate", |config| config);
    assert!(unasked.contains("an extension that was not offered"), "{unasked}");
    let other = connect("permessage-deflate; x=1", |config| config.compression(Compression::deflate()));
    assert!(other.contains("`x=1`, which means nothing"), "{other}");
    // One whose frames say that they are compressed, though that was never agreed on.
    let server = Server::start(Script::silent().then_raw([0xc1, 1, 0])).unwrap();
    let client = Client::connect(ClientConfig::new(server.url()).unwrap()).unwrap();
    let reason = disconnected(&client);
    assert!(reason.contains("a reserved bit is set"), "{reason}");
}

#[test]
fn what_would_not_fit_when_it_is_unpacked_ends_the_connection() {
    let bomb = Message::text("0".repeat(4 << 20));
    let server = Server::start(Script::silent().compression("permessage-deflate").greet(move |_| vec![bomb.clone()]));
    let server = server.unwrap();
    let config = ClientConfig::new(server.url()).unwrap().compression(Compression::deflate()).max_message_size(1 << 20);
    let client = Client::connect(config).unwrap();
    let reason = disconnected(&client);
    assert!(reason.contains("larger than `max_message_size`"), "{reason}");
    eventually("the server hears why", || server.records()[0].close_code == Some(CloseFrame::TOO_LARGE));
}

#[test]
fn small_messages_of_ours_leave_as_they_are() {
    let (seen, heads) = std::sync::mpsc::channel();
    let address = raw(move |mut stream, _, answer| {
        write!(stream, "{answer}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n").unwrap();
        let mut head = [0; 2];
        while stream.read_exact(&mut head).is_ok() {
            let len = usize::from(head[1] & 0x7f);
            stream.read_exact(&mut vec![0; 4 + len]).unwrap();
            seen.send((head[0], len)).unwrap();
        }
    });
    let client = Client::connect(to(address).compression(Compression::deflate().above(100))).unwrap();
    client.send("x".repeat(100)).unwrap();
    assert_eq!(heads.recv().unwrap(), (0x81, 100));
    client.send("x".repeat(101)).unwrap();
    let (first, len) = heads.recv().unwrap();
    assert!(first == 0xc1 && len < 30, "{first:x}, {len} bytes");
}

/// A frame whose first reserved bit says that it is compressed.
fn compressed(opcode: u8, data: &[u8]) -> Vec<u8> {
    [&[0xc0 | opcode, 126][..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// A message's data, as RFC 7692 section 7.2.1 has it: flushed, without the last four bytes.
fn deflated(bytes: &[u8], level: flate2::Compression) -> Vec<u8> {
    let mut deflate = DeflateEncoder::new(vec![], level);
    deflate.write_all(bytes).unwrap();
    deflate.flush().unwrap();
    let mut data = deflate.get_ref().clone();
    data.truncate(data.len() - 4);
    data
}

/// With context takeover: a message that leaves something in the decompressor damages those that follow.
const AGREED: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

#[test]
fn an_empty_compressed_message_changes_none_that_follow_and_a_part_of_a_message_is_none() {
    let stored = flate2::Compression::none();
    let address = raw(move |mut stream, n, answer| {
        write!(stream, "{answer}{AGREED}").unwrap();
        let whole = compressed(2, &deflated(b"stored as it is", stored));
        match n {
            0 => stream.write_all(&[&[0xc2, 0][..], &whole, &[0xc1, 0], &whole].concat()).unwrap(),
            _ => {
                // The last byte of a stored block is missing, and the byte that ends the message: the rest is no error to zlib.
                let part = deflated(b"order", stored);
                let part = &part[..part.len() - 2];
                stream.write_all(&[&whole[..], &compressed(1, part)].concat()).unwrap();
            }
        }
        let _ = stream.read(&mut [0; 1000]);
        std::mem::forget(stream);
    });
    let client = Client::connect(to(address).compression(Compression::deflate())).unwrap();
    let messages: Vec<_> = (0..4).map(|_| next_message(&client).as_bytes().to_vec()).collect();
    assert_eq!(messages, [&b""[..], b"stored as it is", b"", b"stored as it is"]);
    client.reconnect();
    let mut after = vec![];
    let reason = next(&client, |event| match event {
        Event::Message(message) => {
            after.push(message.as_bytes().to_vec());
            None
        }
        Event::Disconnected { epoch: 2, reason, .. } => Some(reason.to_string()),
        _ => None,
    });
    assert_eq!(after, [b"stored as it is"], "and nothing of the part");
    assert!(reason.contains("stops in the middle"), "{reason}");
}

#[test]
fn without_a_largest_message_compressed_ones_arrive_too() {
    let server = Server::start(Script::echo().compression("permessage-deflate")).unwrap();
    let config = ClientConfig::new(server.url()).unwrap().compression(Compression::deflate().above(0));
    let client = Client::connect(config.max_message_size(usize::MAX)).unwrap();
    client.send(large(1000)).unwrap();
    assert_eq!(next_text(&client), large(1000));
}

/// Thirty megabytes in thirty kilobytes, behind a reader that has stopped, and then the end of the connection.
fn kept_of_bombs(frame: Vec<u8>, config: impl FnOnce(ClientConfig) -> ClientConfig) {
    let address = raw(move |mut stream, n, answer| {
        let agreed = if frame[0] & 0x40 > 0 { AGREED } else { "\r\n" };
        write!(stream, "{answer}{agreed}").unwrap();
        match n {
            0 => stream.write_all(&frame.repeat(30)).unwrap(),
            _ => std::mem::forget(stream),
        }
    });
    let client = Client::connect(config(to(address)).event_bytes(2 << 20)).unwrap();
    eventually("another connection", || client.epoch() == 2);
    let (mut kept, mut lagged) = (0, 0);
    next(&client, |event| match event {
        Event::Message(message) => {
            kept += message.len();
            None
        }
        Event::Lagged { dropped, .. } => {
            lagged += dropped;
            None
        }
        Event::Disconnected { .. } => Some(()),
        _ => None,
    });
    assert!(kept <= 6 << 20, "{kept} bytes");
    let stats = client.stats();
    assert_eq!((stats.received, stats.dropped), (30, lagged), "each is delivered or counted");
    assert_eq!(kept as u64 / (1 << 20) + lagged, 30);
}

#[test]
fn what_was_compressed_a_thousandfold_is_bounded_when_its_connection_ends() {
    let large = vec![b'0'; 1 << 20];
    kept_of_bombs(compressed(1, &deflated(&large, flate2::Compression::best())), |config| {
        config.compression(Compression::deflate())
    });
    let mut stream = DeflateEncoder::new(vec![], flate2::Compression::best());
    stream.write_all(&large).unwrap();
    let mut packed = compressed(2, &stream.finish().unwrap());
    packed[0] &= !0x40; // the payload is packed, not the frame
    kept_of_bombs(packed, |config| config.decode(Decode::deflate_raw()));
}

/// A feed that is compressed as feeds are: the end of its connection costs no message of it, however few have been read.
#[test]
fn what_was_compressed_tenfold_is_delivered_when_its_connection_ends() {
    let tick = |n: usize| format!(r#"{{"n":{n},"levels":"{}"}}"#, "100.5 7, ".repeat(100));
    let address = raw(move |mut stream, n, answer| {
        write!(stream, "{answer}{AGREED}").unwrap();
        match n {
            0 => (0..400).for_each(|n| {
                let data = deflated(tick(n).as_bytes(), flate2::Compression::fast());
                stream.write_all(&compressed(1, &data)).unwrap();
            }),
            _ => std::mem::forget(stream),
        }
    });
    let client = Client::connect(to(address).compression(Compression::deflate()).event_capacity(16)).unwrap();
    eventually("another connection", || client.epoch() == 2);
    assert_eq!((client.stats().received, client.stats().dropped), (400, 0));
    for n in 0..400 {
        assert_eq!(next_text(&client), tick(n));
    }
}

fn packed(pack: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Server {
    let ticks = [r#"{"ping":7}"#.to_owned(), large(2), large(1000)];
    let ticks: Vec<_> = ticks.iter().map(|tick| Message::binary(pack(tick.as_bytes()))).collect();
    Server::start(Script::silent().greet(move |_| ticks.clone())).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut deflate = DeflateEncoder::new(vec![], flate2::Compression::fast());
    deflate.write_all(bytes).unwrap();
    deflate.finish().unwrap()
}

#[test]
fn a_venues_own_packing_is_undone_before_heartbeats_and_readers_see_it() {
    let reverse = |bytes: &[u8]| bytes.iter().rev().copied().collect::<Vec<_>>();
    let by = Decode::by(|bytes, out| {
        out.extend(bytes.iter().rev());
        Ok::<_, &str>(())
    });
    for (server, decode) in
        [(packed(gzip), Decode::gzip()), (packed(deflate), Decode::deflate_raw()), (packed(reverse), by)]
    {
        // HTX's way: pings in messages, packed as all others are.
        let heartbeat = Heartbeat::answer(Duration::from_secs(15), |message| {
            let stamp = message.as_text()?.strip_prefix(r#"{"ping":"#)?;
            Some(Message::text(format!(r#"{{"pong":{stamp}"#)))
        });
        let config = ClientConfig::new(server.url()).unwrap().decode(decode).heartbeat(heartbeat);
        let client = Client::connect(config).unwrap();
        assert_eq!((next_text(&client), next_text(&client)), (large(2), large(1000)));
        server.wait_for_message(|message| message.as_text() == Some(r#"{"pong":7}"#));
    }
}

#[test]
fn what_does_not_unpack_or_unpacks_to_too_much_ends_the_connection() {
    for (payload, says) in [
        (vec![1, 2, 3], "does not take"),
        (gzip(&vec![0; 4 << 20]), "larger than `max_message_size`"),
        (gzip(b"cut short")[..12].to_vec(), "does not take"),
        ([gzip(b"whole"), b"and more".to_vec()].concat(), "does not take"),
    ] {
        let message = Message::binary(payload);
        let server = Server::start(Script::silent().greet(move |_| vec![message.clone()])).unwrap();
        let config = ClientConfig::new(server.url()).unwrap().decode(Decode::gzip()).max_message_size(1 << 20);
        let reason = disconnected(&Client::connect(config).unwrap());
        assert!(reason.contains(says), "{reason}");
    }
}

#[test]
fn what_is_packed_in_several_members_is_one_message() {
    let message = Message::binary([gzip(b"one, "), gzip(b"two")].concat());
    let server = Server::start(Script::silent().greet(move |_| vec![message.clone()])).unwrap();
    let client = Client::connect(ClientConfig::new(server.url()).unwrap().decode(Decode::gzip())).unwrap();
    assert_eq!(next_text(&client), "one, two");
}

#[test]
fn what_unpacks_to_no_text_is_a_binary_message() {
    let message = Message::binary(gzip(&[0xff, 0xfe]));
    let server = Server::start(Script::silent().greet(move |_| vec![message.clone(), "as it is".into()])).unwrap();
    let client = Client::connect(ClientConfig::new(server.url()).unwrap().decode(Decode::gzip())).unwrap();
    let message = next_message(&client);
    assert!(message.is_binary() && message.as_bytes() == [0xff, 0xfe]);
    assert_eq!(next_text(&client), "as it is");
}

/// Compressing takes some 20 ms a MiB, or ten times that without optimization.
#[test]
fn messages_are_read_while_a_large_message_is_being_compressed() {
    let server = Server::start(Script::silent().compression("permessage-deflate")).unwrap();
    let client = connect(&server, Compression::deflate().level(9));
    let mut numbers = fastrand::Rng::with_seed(1);
    let message: Vec<u8> = (0..12 << 20).map(|_| numbers.u8(..)).collect();
    let before = client.stats().bytes_sent;
    client.send(Message::binary(message.clone())).unwrap();
    let mut read = 0;
    while client.stats().bytes_sent == before {
        server.push("read meanwhile");
        assert_eq!(next_text(&client), "read meanwhile");
        read += 1;
    }
    assert!(read > 10, "{read} messages were read before the first byte left");
    let arrived = server.wait_for_message(|received| received.len() == message.len());
    assert!(arrived.as_bytes() == message);
}
