//! Servers that break the rules are refused cleanly: a clear error, a bounded memory, and a client that goes on.

mod common;

use std::time::Duration;

use common::{LONG, config, ms, next, next_open};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, ClientConfig, ConnectError, DisconnectReason, Event, ParkReason, Phase, StartError, Supervisor, TlsFault,
};

fn refused(server: &Server, config: ClientConfig) -> ConnectError {
    match Client::connect(config) {
        Err(StartError::Connect(error)) => {
            assert_eq!(server.accepts(), 1, "one attempt");
            error
        }
        other => panic!("{other:?}"),
    }
}

fn refused_answer(script: Script) -> ConnectError {
    let server = Server::start(script).unwrap();
    refused(&server, config(&server))
}

#[test]
fn an_answer_that_is_not_http() {
    for noise in ["SSH-2.0-OpenSSH_9.2\r\n", "\x16\x03\x01 a TLS hello", "\0\0\0\0\0\0", "<html></html>\r\n\r\n"] {
        let error = refused_answer(Script::raw_answer(noise));
        assert!(matches!(error, ConnectError::Handshake { .. }), "{noise:?}: {error}");
        assert!(error.is_retryable());
    }
    let error = refused_answer(Script::raw_answer(""));
    assert!(error.to_string().contains("closed the connection"), "{error}");
}

#[test]
fn a_wrong_accept_key() {
    let error = refused_answer(Script::wrong_accept_key());
    assert!(error.to_string().contains("Sec-WebSocket-Accept"), "{error}");
}

#[test]
fn an_endless_header() {
    let long = format!("HTTP/1.1 101 Switching Protocols\r\nX-Endless: {}", "a".repeat(1 << 20));
    let error = refused_answer(Script::raw_answer(long));
    assert!(error.to_string().contains("64 KiB"), "{error}");
    let many = "HTTP/1.1 101 Switching Protocols\r\n".to_owned() + &"X: y\r\n".repeat(1000);
    let error = refused_answer(Script::raw_answer(many));
    assert!(error.to_string().contains("128 headers"), "{error}");
}

#[test]
fn an_extension_and_a_subprotocol_that_nobody_asked_for() {
    let error = refused_answer(Script::echo().header("Sec-WebSocket-Extensions", "permessage-deflate"));
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    let error = refused_answer(Script::echo().header("Sec-WebSocket-Protocol", "chat"));
    assert!(matches!(error, ConnectError::Subprotocol { .. }) && !error.is_retryable(), "{error}");
    let server = Server::start(Script::echo().header("Sec-WebSocket-Protocol", "chat")).unwrap();
    Client::connect(config(&server).subprotocol("chat").header("X-Desk", "options")).unwrap();
    let headers = &server.records()[0].headers;
    assert!(headers.contains(&("Sec-WebSocket-Protocol".into(), "chat".into())), "{headers:?}");
    assert!(headers.contains(&("X-Desk".into(), "options".into())));
}

#[test]
fn a_refusal_with_its_status_headers_and_patience() {
    let script = Script::refuse(429).header("Retry-After", "3600").body("slow down");
    let server = Server::start(script).unwrap();
    let error = refused(&server, config(&server));
    let ConnectError::Refused(refusal) = &error else { panic!("{error}") };
    assert_eq!((refusal.status, &*refusal.body), (429, "slow down"));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));

    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    let retry_in = next(&client, |event| match event {
        Event::ConnectFailed { retry_in, .. } => retry_in,
        _ => None,
    });
    let patience = Duration::from_secs(3600)..=Duration::from_secs(3600 * 13 / 10);
    assert!(patience.contains(&retry_in), "never sooner, and not with all the others: {retry_in:?}");
}

#[test]
fn connect_timeout_names_the_step_that_it_ran_out_in() {
    let timeout = ms(100);
    let server = Server::start(Script::hold_upgrade()).unwrap();
    let error = refused(&server, config(&server).connect_timeout(timeout));
    assert!(matches!(error, ConnectError::Timeout { phase: Phase::Handshake, .. }), "{error}");

    let server = Server::start_tls(Script::hold_tls()).unwrap();
    let error = refused(&server, config(&server).connect_timeout(timeout));
    assert!(matches!(error, ConnectError::Timeout { phase: Phase::Tls, .. }), "{error}");

    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let stuck = ClientConfig::new("ws://venue.example").unwrap().connect_timeout(timeout).resolver(move |_, _| {
        let _ = held.recv();
        Ok(vec![])
    });
    match Client::connect(stuck) {
        Err(StartError::Connect(error)) => {
            assert!(matches!(error, ConnectError::Timeout { phase: Phase::Resolve, .. }), "{error}");
        }
        other => panic!("{other:?}"),
    }
    drop(release);
}

#[test]
fn an_answer_in_small_pieces_is_put_together() {
    let server = Server::start_tls(Script::echo().delay_tls(ms(20)).delay_upgrade(ms(20))).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    assert_eq!(client.epoch(), 1);
}

/// Frames that break RFC 6455, and the close code that the server is owed.
#[test]
fn frames_that_break_the_rules_end_the_connection_and_the_client_goes_on() {
    let cases: &[(&str, &[u8], u16)] = &[
        ("1 GiB announced", &[0x82, 127, 0, 0, 0, 0, 0x40, 0, 0, 0], 1009),
        ("2^63 bytes announced", &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], 1009),
        ("text that is not UTF-8", &[0x81, 2, 0xc3, 0x28], 1007),
        ("a masked frame", &[0x81, 0x81, 1, 2, 3, 4, 5], 1002),
        ("a reserved bit", &[0xc1, 1, b'a'], 1002),
        ("a reserved opcode", &[0x83, 1, b'a'], 1002),
        ("a reserved control opcode", &[0x8b, 0], 1002),
        ("a fragmented ping", &[0x09, 0], 1002),
        ("a continuation of nothing", &[0x80, 1, b'a'], 1002),
        ("a text within a text", &[0x01, 1, b'a', 0x81, 1, b'b'], 1002),
        ("a ping that is too long", &[0x89, 126, 0, 126], 1002),
    ];
    for (what, frame, code) in cases {
        let raw = match *what {
            "a ping that is too long" => [frame, &[b'p'; 126][..]].concat(),
            _ => frame.to_vec(),
        };
        let server =
            Server::scripted(move |n| if n == 0 { Script::silent().then_raw(raw.clone()) } else { Script::echo() })
                .unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server)).unwrap();
        let reason = next(&client, |event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            Event::Message(message) => panic!("{what}: {message:?}"),
            _ => None,
        });
        assert!(matches!(reason, DisconnectReason::Protocol(_)), "{what}: {reason}");
        assert_eq!(next_open(&client), 2, "{what}");
        assert!(
            server.wait_until(LONG, |records| records[0].close_code == Some(*code)),
            "{what}: {:?}",
            server.records()[0].close_code
        );
    }
}

#[test]
fn a_certificate_that_is_not_trusted_parks_the_client() {
    let server = Server::start_tls(Script::echo()).unwrap();
    let wrong_host = Server::start_tls_for("elsewhere.example", Script::echo()).unwrap();
    let unknown_ca = ClientConfig::new(server.url()).unwrap().tls(common::tls());
    let cases = [
        (&server, unknown_ca, TlsFault::UnknownIssuer, "root_certificate"),
        (&wrong_host, config(&wrong_host), TlsFault::WrongHost, "Tls::server_name"),
    ];
    for (server, config, expected, advice) in cases {
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config).unwrap();
        let reason = next(&client, |event| match event {
            Event::Parked { reason, .. } => Some(reason),
            _ => None,
        });
        match reason {
            ParkReason::Refused(error @ ConnectError::Tls { fault, .. }) => {
                assert_eq!(fault, expected, "{error}");
                assert!(error.to_string().contains(advice), "{error}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(server.accepts(), 1);
    }
    // With its CA it is trusted, by name and by address.
    let address = server.address();
    for url in [server.url(), server.url().replace("127.0.0.1", "localhost")] {
        // Not every machine has a /etc/hosts.
        let config = ClientConfig::new(url).unwrap().resolver(move |_, _| Ok(vec![address]));
        let config = config.root_certificate(server.ca_pem()).tls(common::tls());
        Client::connect(config).unwrap();
    }
}

#[test]
fn a_server_that_accepts_and_closes_meets_the_backoff() {
    let server = Server::start(Script::silent().then_close(4000, "go away")).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let hour = Duration::from_secs(3600);
    let client = supervisor.spawn_client(config(&server).backoff(hour, hour)).unwrap();
    common::wait_for_state(&client, ws_supervisor::ReadyState::Backoff);
    // The first retry is at once; the second is not, though both connections opened.
    assert_eq!((server.accepts(), client.epoch()), (2, 2));
}

#[test]
fn a_server_restart_is_survived() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.pause();
    next(&client, |event| match event {
        Event::ConnectFailed { error: ConnectError::Tcp { .. }, .. } => Some(()),
        _ => None,
    });
    server.resume().unwrap();
    assert_eq!(next_open(&client), 2);
    assert_eq!(client.stats().restarts, 0);
}
