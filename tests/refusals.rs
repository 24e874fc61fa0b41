//! What servers, resolvers and networks answer to a dial, and what a client makes of it: told in full, tried again in time.
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{LONG, closing, config, eventually, ms, next, raw, takes, to};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

fn refused(config: ClientConfig) -> ConnectError {
    match Client::connect(config) {
        Err(StartError::Connect(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn interim_answers_are_passed_over() {
    for interim in ["100 Continue", "103 Early Hints"] {
        let server = raw(move |mut stream, _, answer| {
            stream.write_all(format!("HTTP/1.1 {interim}\r\nX: y\r\n\r\n{answer}\r\n").as_bytes()).unwrap();
            std::mem::forget(stream);
        });
        Client::connect(to(server)).unwrap();
    }
}

#[test]
fn an_answer_that_comes_a_byte_at_a_time_is_taken() {
    let server = raw(|mut stream, _, answer| {
        for byte in format!("HTTP/1.1 100 Go on\n\n{answer}X-Folded: a;\r\n b\r\n\r\n").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        std::mem::forget(stream);
    });
    Client::connect(to(server)).unwrap();
}

#[test]
fn the_body_of_a_refusal_is_told_whole_however_it_comes() {
    for (head, body) in [
        ("Content-Length: 6\r\n", "banned"),
        ("Transfer-Encoding: chunked\r\n", "3\r\nban\r\n3\r\nned\r\n0\r\n\r\n"),
        ("", "banned"),
    ] {
        let server = raw(move |mut stream, _, _| {
            stream.write_all(format!("HTTP/1.1 302 No\r\n{head}Location: /elsewhere\r\n\r\n").as_bytes()).unwrap();
            for byte in body.bytes() {
                takes(ms(2));
                stream.write_all(&[byte]).unwrap();
            }
        });
        let error = refused(to(server));
        let ConnectError::Refused(refusal) = &error else { panic!("{error}") };
        assert_eq!((refusal.status, &*refusal.body, refusal.location()), (302, "banned", Some("/elsewhere")), "{head}");
        // A path may be a key.
        assert!(error.to_string().contains("points elsewhere") && !error.to_string().contains("/elsewhere"), "{error}");
    }
}

#[test]
fn a_refusal_for_haste_is_not_answered_in_haste_and_patience_has_jitter() {
    let wait = |server: &Server| {
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap()).unwrap();
        next(&client, |event| match event {
            Event::ConnectFailed { retry_in, .. } => retry_in,
            _ => None,
        })
    };
    for status in [418, 429, 503] {
        let retry_in = wait(&Server::start(Script::refuse(status)).unwrap());
        assert!(retry_in >= ms(700), "{status}: the next attempt in {retry_in:?}");
    }
    let server = Server::start(Script::refuse(403).header("Retry-After", "10")).unwrap();
    let waits: Vec<_> = (0..10).map(|_| wait(&server)).collect();
    let (min, max) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
    assert!(min >= Duration::from_secs(10) && max - min > ms(100), "{waits:?}");
}

#[test]
fn which_statuses_park_is_the_users_to_say() {
    let supervisor = Supervisor::start().unwrap();
    let spawn = |status, config: fn(ClientConfig) -> ClientConfig| {
        let server = Server::start(Script::refuse(status)).unwrap();
        let client = supervisor.spawn_client(config(common::config(&server))).unwrap();
        eventually("an attempt", || client.stats().failed_attempts > 0);
        (client, server)
    };
    let (parked, _server) = spawn(410, |config| config.park_on([410]));
    common::wait_for_state(&parked, ReadyState::Parked);
    let (patient, _server) = spawn(403, |config| config.park_on([]));
    eventually("more attempts", || patient.stats().failed_attempts > 2);
}

#[test]
fn credentials_that_are_refused_are_prepared_afresh_until_the_retries_are_used_up() {
    let server = Server::scripted(|n| if n < 2 { Script::refuse(403) } else { Script::silent() }).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor
        .spawn_client(config(&server).prepare(|dial| {
            let token = match dial.last_error() {
                None => "stale".to_owned(),
                Some(error) => format!("fresh after {}", error.to_string().len()),
            };
            Ok(dial.header("Authorization", token)?)
        }))
        .unwrap();
    client.wait_until_open(LONG).unwrap();
    assert!(server.records()[2].headers.iter().any(|(_, value)| value.starts_with("fresh")));
    let never = Server::start(Script::refuse(401)).unwrap();
    let client = supervisor.spawn_client(config(&never).max_retries(2).prepare(|_| Ok(()))).unwrap();
    common::wait_for_state(&client, ReadyState::Parked);
    assert_eq!(never.accepts(), 3);
}

#[test]
fn the_second_address_is_tried_when_the_first_takes_the_connection_and_does_not_serve() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = Server::start(Script::refuse(503)).unwrap();
    for (first, timeout) in [(mute.local_addr().unwrap(), ms(200)), (busy.address(), LONG)] {
        let server = Server::echo().unwrap();
        let addresses = vec![first, server.address()];
        let config = ClientConfig::new("ws://venue.example/").unwrap().connect_timeout(timeout).backoff(ms(5), ms(20));
        let config = config.max_retries(u32::MAX).resolver(move |_, _| Ok(addresses.clone()));
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        assert_eq!(client.stats().failed_attempts, 0, "in one attempt");
    }
}

/// Answers the first bytes of a TLS handshake with these.
fn answering(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
        }
    });
    url
}

/// A fatal alert (RFC 8446 section 6.2).
fn alerting(alert: u8) -> String {
    answering(vec![0x15, 3, 3, 0, 2, 2, alert])
}

#[test]
fn an_alert_is_the_servers_verdict_on_us_and_comes_with_advice() {
    let new = |url| ClientConfig::new(url).unwrap().tls(common::tls());
    for alert in [42, 43, 44, 45, 46, 48, 116] {
        let error = refused(new(alerting(alert)));
        assert!(matches!(error, ConnectError::Tls { fault, .. } if fault.is_by_server()), "{alert}: {error}");
        assert!(error.is_retryable() && error.to_string().contains("client certificate"), "{alert}: {error}");
    }
    let version = refused(new(alerting(70))).to_string();
    assert!(version.contains("no version of TLS that both sides speak"), "{version}");
    let plain = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    let plain = refused(new(plain));
    assert!(plain.to_string().contains("ws://"), "{plain}");
    let encrypted = raw(|mut stream, _, _| stream.write_all(&[0x15, 3, 3, 0, 2, 2, 10]).unwrap());
    let encrypted = refused(to(encrypted)).to_string();
    assert!(encrypted.contains("use `wss://`"), "{encrypted}");
}

#[test]
fn urls_are_written_as_the_wire_wants_them() {
    let server = Server::start(Script::echo().header("Sec-WebSocket-Protocol", "")).unwrap();
    let url = format!("{}ws/币安人生usdt@trade?名=值", server.url()).replace("ws://", "WS://");
    Client::connect(ClientConfig::new(url).unwrap()).unwrap();
    let target = server.records()[0].target.clone();
    assert_eq!(target, "/ws/%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@trade?%E5%90%8D=%E5%80%BC");
    let error = refused(ClientConfig::new("ws://[fe80::1%25lo]:9/").unwrap());
    assert!(!matches!(error, ConnectError::Resolve { .. }), "a zone is decoded: {error}");
}

#[test]
fn a_close_is_told_as_the_server_sent_it_on_one_line() {
    for (code, reason) in [(0, "zero"), (999, "x"), (1005, ""), (1006, "gone"), (1015, "tls"), (2000, "token expired")]
    {
        let server = Server::start(Script::silent().then_raw(closing(code, reason))).unwrap();
        let client = Client::connect(config(&server)).unwrap();
        let seen = next(&client, |event| match event {
            Event::Disconnected { reason: DisconnectReason::ClosedByServer(Some(frame)), .. } => Some(frame),
            _ => None,
        });
        assert_eq!((seen.code, &*seen.reason), (code, reason));
    }
    let server = Server::start(Script::silent().then_close(1000, "bye\nERROR client `desk`: parked")).unwrap();
    let client = Client::connect(config(&server)).unwrap();
    let reason = next(&client, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason.to_string()),
        _ => None,
    });
    assert_eq!(reason, r"closed by the server: 1000 bye\nERROR client `desk`: parked");
}

#[test]
fn a_key_in_the_path_is_in_no_output() {
    let url = venue::binance::raw_url("wss://stream.binance.com:9443", "LISTENKEYpqia91ma");
    let config = ClientConfig::new(url).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let nowhere = config.clone().resolver(|_, _| Err(std::io::Error::other("no")));
    supervisor.spawn_client(nowhere).unwrap();
    let shown = format!("{config:?} {:?}", supervisor.list_clients());
    assert!(!shown.contains("LISTENKEY") && shown.contains("wss://stream.binance.com:9443"), "{shown}");
}

#[test]
fn for_ever_is_a_duration_like_any_other() {
    let ever = Duration::MAX;
    type Knob = fn(ClientConfig) -> ClientConfig;
    let knobs: [(&str, Knob); 14] = [
        ("ping_pong", |c| c.heartbeat(Heartbeat::ping_pong(Duration::MAX))),
        ("server_ping", |c| c.heartbeat(Heartbeat::server_ping(Duration::MAX))),
        ("message", |c| c.heartbeat(Heartbeat::message(Duration::MAX, "p", |_| false))),
        ("answer", |c| c.heartbeat(Heartbeat::answer(Duration::MAX, |_| None))),
        ("stable_after", |c| c.stable_after(Duration::MAX)),
        ("backoff", |c| c.backoff(Duration::MAX, Duration::MAX)),
        ("backoff's cap", |c| c.backoff(ms(1), Duration::MAX).jitter(1.0)),
        ("connect_timeout", |c| c.connect_timeout(Duration::MAX)),
        ("request_timeout", |c| c.request_timeout(Duration::MAX)),
        ("close_timeout", |c| c.close_timeout(Duration::MAX)),
        ("stall_threshold", |c| c.stall_threshold(Duration::MAX)),
        ("max_age", |c| c.max_age(Duration::MAX)),
        ("event_bytes", |c| c.event_bytes(usize::MAX)),
        ("event_capacity", |c| c.event_capacity(usize::MAX)),
    ];
    let server = Server::echo().unwrap();
    for (what, knob) in knobs {
        let supervisor = Supervisor::builder().shutdown_grace(ms(200)).start().unwrap();
        let client = supervisor.spawn_client(knob(config(&server))).unwrap();
        client.wait_until_open(LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
        let _ = client.start_request(Request::new("a", ()).timeout(ever).wait_for_limit(ever)).unwrap();
        let _ = client.send_confirmed("a", ever);
        server.close_all(1001, "");
        eventually("noticed", || client.ready_state() != ReadyState::Open || client.epoch() > 1);
        assert_eq!(client.stats().restarts, 0, "{what}");
        supervisor.shutdown(ms(200));
    }
}

#[test]
fn whoever_asks_no_client_dials_more_often_than_the_floor() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let begun = Instant::now();
    let restless = supervisor.spawn_client(config(&server).max_age(ms(1))).unwrap();
    takes(ms(1_500));
    let allowed = 20 + 1 + begun.elapsed().as_millis() as usize / 100;
    assert!(server.accepts() <= allowed, "{} of {allowed}", server.accepts());
    assert!(restless.epoch() >= 10, "and it goes on: {}", restless.epoch());
}

#[test]
fn a_loop_of_crashes_turns_less_and_less_often_and_is_parked() {
    struct Poisoned;
    impl Handler for Poisoned {
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            panic!("poison");
        }
    }
    let server = Server::start(Script::silent().greet(|_| vec!["poison".into()])).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let begun = Instant::now();
    let client = supervisor.spawn_client(config(&server).delivery(Delivery::inline(|| Poisoned))).unwrap();
    eventually("a second run", || server.accepts() >= 2);
    common::wait_for_state(&client, ReadyState::Parked);
    assert_eq!(server.accepts(), 11);
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// A server of bare bytes for one connection, of whose request it gets the first part.
fn reads_a_part(serve: impl FnOnce(std::net::TcpStream, Vec<u8>) + Send + 'static) -> ClientConfig {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut part = vec![0; 1000];
        let read = stream.read(&mut part).unwrap();
        part.truncate(read);
        serve(stream, part);
    });
    // More than the two kernels take.
    to(address).header("X-Token", "a".repeat(8 << 20))
}

fn accepts(head: &[u8]) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade";
    format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes()
}

/// A server that finds the head too large says so before it has read all of it, and hangs up.
#[test]
fn a_refusal_that_comes_while_the_request_is_still_written_is_told() {
    for hangs_up in [true, false] {
        let config = reads_a_part(move |mut stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 431 Too Large\r\nContent-Length: 3\r\n\r\nbig");
            if !hangs_up {
                std::mem::forget(stream);
            }
        });
        match refused(config) {
            ConnectError::Refused(refusal) => assert_eq!((refusal.status, &*refusal.body), (431, "big")),
            other => panic!("hangs up: {hangs_up}: {other}"),
        }
    }
}

#[test]
fn an_interim_answer_that_comes_meanwhile_does_not_end_the_request() {
    let config = reads_a_part(|mut stream, mut head| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").unwrap();
        let mut chunk = vec![0; 1 << 20];
        while !head.ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut chunk).unwrap();
            head.extend_from_slice(&chunk[..read]);
        }
        stream.write_all(&accepts(&head)).unwrap();
        std::mem::forget(stream);
    });
    Client::connect(config).unwrap();
}

/// What is sent then would be read as a part of the head.
#[test]
fn a_server_that_accepts_before_it_has_read_all_is_not_believed() {
    let config = reads_a_part(|mut stream, head| {
        stream.write_all(&accepts(&head)).unwrap();
        std::mem::forget(stream);
    });
    let error = refused(config);
    assert!(error.to_string().contains("before the server had read all"), "{error}");
}

#[test]
fn much_that_comes_at_once_is_read_to_its_end() {
    let server = raw(|mut stream, _, answer| {
        let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "l".repeat(300));
        stream.write_all(format!("{}{answer}\r\n", interim.repeat(300)).as_bytes()).unwrap();
        std::mem::forget(stream);
    });
    Client::connect(to(server)).unwrap();
    let chunks = format!("Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", "1\r\nb\r\n".repeat(60_000));
    let headers = format!("X: {}\r\nContent-Length: 5000\r\n\r\n{}", "h".repeat(61_000), "b".repeat(5_000));
    for (rest, length) in [(chunks, 60_000), (headers, 5_000)] {
        let server = raw(move |mut stream, _, _| {
            stream.write_all(format!("HTTP/1.1 403 No\r\n{rest}").as_bytes()).unwrap();
            std::mem::forget(stream);
        });
        match refused(to(server)) {
            ConnectError::Refused(refusal) => assert_eq!(refusal.body.len(), length),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_header_that_may_not_be_hides_neither_status_nor_body() {
    for header in ["Retry-After : 5", "X: \u{1}", "no colon here", "Bad Name: x"] {
        let server = raw(move |mut stream, _, _| {
            let _ = stream.write_all(format!("HTTP/1.1 401 No\r\n{header}\r\nContent-Length: 3\r\n\r\nban").as_bytes());
        });
        match refused(to(server)) {
            ConnectError::Refused(refusal) => assert_eq!((refusal.status, &*refusal.body), (401, "ban"), "{header}"),
            other => panic!("{header}: {other}"),
        }
    }
}
