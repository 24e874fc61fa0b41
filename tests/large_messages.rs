//! Large messages leave in bounded slices: a caller, reads, pings, commands and stops don't wait for them, and their memory is
//! released.
#![allow(missing_docs)]
mod common;

use std::time::{Duration, Instant};

use common::{LONG, config, eventually, next_open};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ClientConfig, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, Supervisor, Tls,
    TlsBackend,
};

const BACKENDS: [Option<TlsBackend>; 3] = [None, Some(TlsBackend::NativeTls), Some(TlsBackend::Rustls)];
const LARGE: usize = 16 << 20;

fn server(backend: Option<TlsBackend>, script: Script) -> (Server, ClientConfig) {
    let server = match backend {
        None => Server::start(script).unwrap(),
        Some(_) => Server::start_tls(script).unwrap(),
    };
    let config = config(&server).heartbeat(Heartbeat::disabled()).send_bytes(256 << 20).max_message_size(64 << 20);
    let config = match backend {
        None => config,
        Some(backend) => config.tls(Tls::new().backend(backend)).root_certificate(server.ca_pem()),
    };
    (server, config)
}

/// The time that a call takes must not grow with the message: a caller that waits for sixty-four times the bytes fails.
#[test]
fn send_returns_before_a_large_message_has_left_and_it_arrives_whole() {
    for backend in BACKENDS {
        let (server, config) = server(backend, Script::silent());
        let client = Client::connect(config).unwrap();
        next_open(&client);
        let payload: Vec<u8> = (0..LARGE).map(|n| (n % 251) as u8).collect();
        let message = Message::binary(payload);
        let began = Instant::now();
        client.send(message.clone()).unwrap();
        let returned = began.elapsed();
        client.send("behind it").unwrap();
        assert!(server.wait_until(LONG, |records| records[0].received.len() == 2), "{backend:?}");
        let arrived = began.elapsed();
        assert_eq!(server.records()[0].received[0], message, "{backend:?}");
        assert!(returned < arrived / 2, "{backend:?}: returned after {returned:?}, arrived after {arrived:?}");
        assert!(client.stats().sent == 2 && client.stats().queued == 0);
    }
}

#[test]
fn a_large_message_under_way_delays_neither_reads_nor_a_stop() {
    struct Sends(Message, crossbeam_channel::Sender<String>);
    impl Handler for Sends {
        fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
            if message.as_text() == Some("go") {
                context.send(self.0.clone()).unwrap();
            }
            let _ = self.1.send(message.as_text().unwrap_or_default().to_owned());
        }
    }
    for backend in BACKENDS {
        for inline in [false, true] {
            // The server reads nothing more, so the message stays under way.
            let (server, config) = server(backend, Script::silent().then_deaf());
            let supervisor = Supervisor::start().unwrap();
            let (say, said) = crossbeam_channel::unbounded();
            let message = Message::binary(vec![7; LARGE]);
            let config = config.close_timeout(Duration::from_secs(5));
            let config = match inline {
                true => {
                    let message = message.clone();
                    config.delivery(Delivery::inline(move || Sends(message.clone(), say.clone())))
                }
                false => config,
            };
            let client = supervisor.spawn_client(config).unwrap();
            client.wait_until_open(LONG).unwrap();
            match inline {
                true => drop(server.push("go")),
                false => client.send(message).unwrap(),
            }
            eventually("under way", || client.stats().bytes_sent > 64 << 10 && client.stats().queued == 1);
            server.push("read meanwhile");
            match inline {
                true => while said.recv_timeout(LONG).unwrap() != "read meanwhile" {},
                false => assert_eq!(common::next_text(&client), "read meanwhile"),
            }
            supervisor.stop_client(client.id()).unwrap();
            let stats = client.stats();
            assert_eq!((stats.accepted, stats.sent, stats.unsent), (1, 0, 1), "{backend:?}, inline {inline}");
        }
    }
}

/// What the server sends meanwhile is read before the message has arrived.
#[test]
fn messages_are_read_while_a_large_message_leaves_to_a_server_that_reads() {
    for backend in BACKENDS {
        let (server, config) = server(backend, Script::silent());
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config.close_timeout(Duration::from_secs(30))).unwrap();
        next_open(&client);
        client.send(Message::binary(vec![7; 3 * LARGE])).unwrap();
        server.push("read meanwhile");
        assert_eq!(common::next_text(&client), "read meanwhile");
        assert_eq!(server.records()[0].received.len(), 0, "{backend:?}: it was read after the large message had left");
        supervisor.stop_client(client.id()).unwrap();
        assert_eq!((client.stats().sent, server.records()[0].received.len()), (1, 1), "{backend:?}");
    }
}

/// Some gateways refuse long frames; and a ping need not wait for the end of a long message.
#[test]
fn with_a_largest_frame_long_messages_arrive_in_fragments_and_whole() {
    for backend in BACKENDS {
        let (server, config) = server(backend, Script::echo());
        let client = Client::connect(config.max_frame_size(32 << 10)).unwrap();
        next_open(&client);
        for len in [0, 1, 32 << 10, (32 << 10) + 1, 1_000_000] {
            let message = Message::text("x".repeat(len));
            client.send(message.clone()).unwrap();
            let echoed = common::next(&client, |event| match event {
                Event::Message(message) => Some(message),
                _ => None,
            });
            assert!(echoed == message, "{backend:?}: {len} bytes came back as {}", echoed.len());
        }
        assert_eq!(server.records()[0].received.len(), 5);
    }
}

/// The message is not copied, and once the server's kernel has it no part of it is kept.
#[test]
fn the_memory_of_a_large_message_is_released_when_it_has_arrived() {
    for backend in BACKENDS {
        let (server, config) = server(backend, Script::silent());
        let client = Client::connect(config).unwrap();
        next_open(&client);
        let payload = bytes::Bytes::from(vec![7; LARGE]);
        client.send(Message::binary(payload.clone())).unwrap();
        assert!(server.wait_until(LONG, |records| records[0].received.len() == 1));
        eventually("only this test has it", || payload.is_unique());
        assert!(client.stats().sent == 1 && client.stats().uncertain == 0, "{backend:?}");
    }
}
