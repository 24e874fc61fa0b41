//! A peer that stalls at any step: the attempt ends at its deadline and names the step, and a close ends it at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Renewal, Venue};
use ws_supervisor::*;

use crate::common::{LONG, eventually, ms, never_answers, takes};

/// The time that an attempt has here.
const LIMIT: Duration = Duration::from_millis(400);

/// Takes connections and says nothing.
fn mute() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).collect::<Vec<_>>());
    address
}

/// Sends these bytes one at a time for ever, each before anyone would lose patience.
fn dripping(start: &'static [u8], for_ever: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.read(&mut [0; 1024]);
                for byte in start.iter().copied().chain(std::iter::repeat(for_ever)) {
                    if stream.write_all(&[byte]).is_err() {
                        return;
                    }
                    takes(ms(50));
                }
            });
        }
    });
    address
}

fn to(url: impl AsRef<str>) -> ClientConfig {
    ClientConfig::new(url).unwrap().connect_timeout(LIMIT)
}

/// What the attempt stalls at, as the error names it.
fn stage_of(error: &StartError) -> String {
    match error {
        StartError::Connect(ConnectError::Timeout { phase, limit, .. }) => {
            assert_eq!(*limit, LIMIT);
            format!("{phase:?}")
        }
        StartError::Connect(ConnectError::Session(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

struct SignsIn;

impl Venue for SignsIn {
    fn authenticate(&self, session: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
        let _: serde_json::Value = session.request("sign in", ())?;
        Ok(None)
    }
    fn subscribe(&self, _: &[Arc<str>]) -> Vec<Batch> {
        vec![]
    }
    fn unsubscribe(&self, _: &[Arc<str>]) -> Vec<Batch> {
        vec![]
    }
}

#[test]
fn each_stage_ends_at_the_deadline_under_its_own_name_and_a_close_ends_it_at_once() {
    let (_release, held) = bounded::<()>(0);
    let (_listener, _filled, full) = never_answers();
    let (quiet, silent) = (mute(), Server::start(Script::silent()).unwrap());
    let proxied = |url: String| to("ws://venue.example/").proxy(Proxy::new(url).unwrap());
    let http: &[u8] = b"HTTP/1.1 200 OK\r\nX: ";
    // A record of TLS that announces more than ever comes.
    let record: &[u8] = &[22, 3, 3, 64, 0];
    let stalls: Vec<(&str, ClientConfig)> = vec![
        (
            "Resolve",
            to("ws://venue.example/").resolver(move |_, _| {
                let _ = held.recv();
                Ok(vec![])
            }),
        ),
        ("Tcp", to(format!("ws://{full}/"))),
        ("Proxy", proxied(format!("http://{full}"))),
        ("Proxy", proxied(format!("http://{quiet}"))),
        ("Proxy", proxied(format!("https://{quiet}"))),
        ("Proxy", proxied(format!("socks5://{quiet}"))),
        ("Proxy", proxied(format!("http://{}", dripping(http, b'x')))),
        ("Tls", to(format!("wss://{quiet}/"))),
        ("Tls", to(format!("wss://{quiet}/")).tls(Tls::new().backend(TlsBackend::Rustls))),
        ("Tls", to(format!("wss://{}/", dripping(record, 0)))),
        ("Tls", to(format!("wss://{}/", dripping(record, 0))).tls(Tls::new().backend(TlsBackend::Rustls))),
        ("Handshake", to(format!("ws://{quiet}/"))),
        ("Handshake", to(format!("ws://{}/", dripping(b"HTTP/1.1 101 Switching Protocols\r\nX: ", b'x')))),
        ("signing in", to(silent.url()).venue(SignsIn)),
        ("on_open", to(silent.url()).on_open(|session| session.recv_until(|_| true).map(drop))),
    ];
    std::thread::scope(|scope| {
        for (stage, config) in stalls {
            scope.spawn(move || {
                let begun = Instant::now();
                let error = Client::connect(config.clone()).expect_err(stage);
                assert!(stage_of(&error).contains(stage), "{stage}: {error}");
                // No sooner than it may, and no later than a busy machine takes.
                assert!(
                    begun.elapsed() >= LIMIT && begun.elapsed() < LIMIT + LONG / 2,
                    "{stage}: {:?}",
                    begun.elapsed()
                );

                let supervisor = Supervisor::start().unwrap();
                let patient = config.connect_timeout(10 * LONG);
                let client = supervisor.spawn_client(patient).unwrap();
                eventually("it dials", || client.ready_state() == ReadyState::Connecting);
                let begun = Instant::now();
                client.close().unwrap_or_else(|error| panic!("{stage}: {error}"));
                assert!(begun.elapsed() < LONG, "{stage}: {:?}", begun.elapsed());
            });
        }
    });
}

#[test]
fn prepare_that_takes_all_the_time_is_named_too() {
    let server = Server::echo().unwrap();
    let config = to(server.url()).prepare(|_| {
        takes(LIMIT + ms(50));
        Ok(())
    });
    assert_eq!(stage_of(&Client::connect(config).unwrap_err()), "Prepare");
    assert_eq!(server.accepts(), 0);
}
