//! A supervisor's status over a Unix socket: only its user, only what is allowed, whoever connects and whatever they say.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use common::{Folder, LONG, eventually};
use serde_json::Value;
use ws_supervisor::status_server::{Status, StatusAccess};
use ws_supervisor::testing::Server;
use ws_supervisor::{ClientConfig, Supervisor};

struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn new(place: &Path) -> Self {
        let stream = UnixStream::connect(place).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Self { stream, lines }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).ok().filter(|read| *read > 0).map(|_| line)
    }

    fn status(&mut self) -> Status {
        loop {
            if let Ok(status) = serde_json::from_str(&self.line().expect("a line")) {
                return status;
            }
        }
    }

    /// The answer to a command.
    fn ask(&mut self, command: &str) -> Value {
        self.stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        loop {
            let line: Value = serde_json::from_str(&self.line().expect("an answer")).unwrap();
            if line.get("clients").is_none() {
                return line;
            }
        }
    }
}

#[test]
fn the_status_is_served_to_this_user_alone_and_read_only() {
    let folder = Folder::new("status-read");
    let place = folder.at("s.sock");
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap().name("feed")).unwrap();
    client.wait_until_open(LONG).unwrap();
    let serving = supervisor.serve_status(&place, StatusAccess::ReadOnly).unwrap();
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
    let again = supervisor.serve_status(&place, StatusAccess::ReadOnly).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AddrInUse);

    let (mut peer, mut other) = (Peer::new(&place), Peer::new(&place));
    client.send("x").unwrap();
    eventually("its echo is in the status", || peer.status().clients[0].received == 1);
    let status = other.status();
    assert_eq!((status.clients[0].name.as_str(), status.clients[0].state.as_str()), ("feed", "open"));
    let refused = peer.ask(r#"{"do":"stop","client":"feed"}"#);
    assert_eq!(refused["refused"], "this status is served read-only");
    assert_eq!(supervisor.count_clients().open, 1);
    drop(serving);
    assert!(!place.exists());
    eventually("whoever looks is told of the end", || peer.line().is_none());
}

#[test]
fn commands_are_obeyed_where_they_are_allowed_and_nonsense_is_refused() {
    let folder = Folder::new("status-commands");
    let place = folder.at("s.sock");
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(ClientConfig::new(server.url()).unwrap().name("feed")).unwrap();
    client.wait_until_open(LONG).unwrap();
    let _serving = supervisor.serve_status(&place, StatusAccess::Commands).unwrap();
    let mut peer = Peer::new(&place);
    for (nonsense, words) in [
        ("{", "no command"),
        (r#"{"do":"dance","client":"feed"}"#, "no command"),
        (r#"{"do":"stop"}"#, "no command"),
        (r#"{"do":"stop","client":"feed","force":true}"#, "no command"),
        (r#"{"do":"stop","client":"nobody"}"#, "there is no client `nobody`"),
        (r#"{"do":"resume","client":"feed"}"#, "not parked"),
    ] {
        let answer = peer.ask(nonsense);
        assert!(answer["refused"].as_str().is_some_and(|text| text.contains(words)), "{nonsense}: {answer}");
    }
    assert_eq!(peer.ask(r#"{"do":"restart","client":"feed"}"#)["done"], "restart feed");
    eventually("another connection", || client.epoch() == 2);
    assert_eq!(peer.ask(r#"{"do":"stop","client":"feed"}"#)["done"], "stop feed");
    assert!(peer.status().clients.is_empty());
    assert!(peer.status().events.last().is_some_and(|event| event.client == "feed" && event.what == "closed: closed"));

    // A line without an end is not read for ever, and harms nobody else.
    let mut rude = Peer::new(&place);
    rude.stream.set_write_timeout(Some(LONG)).unwrap();
    let sent = (0..1000).take_while(|_| rude.stream.write_all(&[b'x'; 64 << 10]).is_ok()).count();
    assert!(sent < 1000, "nobody keeps such a line");
    eventually("it is let go", || rude.line().is_none());
    assert!(peer.status().clients.is_empty());
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_a_file_is_not() {
    let folder = Folder::new("status-left");
    let place = folder.at("s.sock");
    let supervisor = Supervisor::start().unwrap();
    drop(UnixListener::bind(&place).unwrap());
    assert!(place.exists(), "as a process that was killed leaves it");
    drop(supervisor.serve_status(&place, StatusAccess::ReadOnly).unwrap());
    fs::write(&place, "something of the user's").unwrap();
    let error = supervisor.serve_status(&place, StatusAccess::ReadOnly).unwrap_err();
    assert!(error.to_string().contains("no socket"), "{error}");
    assert_eq!(fs::read_to_string(&place).unwrap(), "something of the user's");
    // Whoever has the place by then keeps it.
    let folder = Folder::new("status-taken");
    let other = folder.at("s.sock");
    let serving = supervisor.serve_status(&other, StatusAccess::ReadOnly).unwrap();
    fs::remove_file(&other).unwrap();
    let _theirs = UnixListener::bind(&other).unwrap();
    drop(serving);
    assert!(other.exists());
    let missing = supervisor.serve_status("/no/such/folder/s.sock", StatusAccess::ReadOnly).unwrap_err();
    assert!(missing.to_string().starts_with("/no/such/folder/s.sock: "), "{missing}");
}
