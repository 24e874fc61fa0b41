//! The program `wsup`, as a shell sees it: what it prints, where, and its exit status.

#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Folder, LONG, eventually};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{Client, ClientConfig, Message};

fn wsup(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsup"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> (String, String, Option<i32>) {
    let Output { status, stdout, stderr } = wsup(arguments).output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code())
}

/// As an argument.
fn argument(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

/// Asks it to end as a supervisor of processes would.
fn terminate(child: &mut Child) -> Option<i32> {
    let id = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn a_file_is_checked_and_every_fault_has_its_line() {
    let folder = Folder::new("check");
    let good = argument(
        folder.file("good.toml", "[clients.a]\nurl = \"wss://h/ws?key=secret\"\nheader = { X-Key = \"secret\" }\n"),
    );
    let (out, err, code) = run(&["check", &good]);
    assert_eq!((out, err.as_str(), code), (format!("{good}: nothing is wrong; 1 client: a\n"), "", Some(0)));
    let (out, _, _) = run(&["check", &good, "--effective"]);
    assert!(out.contains("connect_timeout") && !out.contains("secret"), "{out}");
    let bad = argument(folder.file("bad.toml", "[clients.a]\nurl = \"ws://h\"\njitter = 3\nheartbeet = {}\n"));
    let (out, err, code) = run(&["check", &bad]);
    let lines: Vec<_> = err.lines().collect();
    assert_eq!((out.as_str(), code, lines.len()), ("", Some(1), 2), "{err}");
    assert_eq!(lines[0], format!("{bad}:3:1: clients.a.jitter: must be between 0 and 1"));
    assert!(lines[1].ends_with("clients.a.heartbeet: unknown key; did you mean `heartbeat`?"), "{err}");
    let json = argument(folder.file("desk.json", "{}"));
    let (_, err, code) = run(&["check", &json]);
    assert_eq!((err, code), (format!("{json}:1:1: must be TOML, and its name must not end in .json\n"), Some(1)));
    let early = "[recorder]\npath = \"/no/such/desk.jsonl\"\n[clients.a]\nurl = \"wss://h\"\ntls = { root_file = [\"/no/ca.pem\"] }\n";
    let early = argument(folder.file("early.toml", early));
    let (_, err, code) = run(&["check", &early]);
    let warnings = [
        format!("{early}: warning: recorder.path: the folder /no/such does not exist"),
        format!("{early}: warning: clients.a.tls: /no/ca.pem does not exist"),
    ];
    assert_eq!((err.lines().collect::<Vec<_>>(), code), (warnings.iter().map(String::as_str).collect(), Some(0)));
    let (out, _, code) = run(&["check", "--schema"]);
    assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok() && code == Some(0));
}

#[test]
fn lines_are_sent_messages_come_out_and_the_rest_goes_to_stderr() {
    let server = Server::echo().unwrap();
    let mut child = wsup(&["connect", &server.url(), "--wait", "60s"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    server.cut();
    server.wait_until(LONG, |records| records.iter().filter(|record| record.opened).count() == 2);
    stdin.write_all(b"three\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "three", "it reconnects by itself");
    drop(stdin);
    assert_eq!(terminate(&mut child), Some(0));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    for words in ["open, connection 1", "connection 1 ended", "open, connection 2"] {
        assert!(err.contains(words), "{err}");
    }
}

#[test]
fn a_signal_is_heard_whatever_stdin_and_stdout_are_doing() {
    // Lines that wait for a connection which does not come.
    let mut child = wsup(&["connect", "ws://127.0.0.1:9"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"a\nb\nc\nd\n").unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(errors.any(|line| line.unwrap().contains("attempt 2 failed")));
    assert!(terminate(&mut child).is_some());
    // A stdout that nobody reads.
    let flood = Script::silent().greet(|_| vec![Message::text("x".repeat(1000)); 20_000]);
    let server = Server::start(flood).unwrap();
    let folder = Folder::new("full");
    let file = argument(folder.file("desk.toml", &format!("[clients.a]\nurl = \"{}\"\n", server.url())));
    for arguments in [vec!["run", &file, "--messages"], vec!["connect", &server.url()]] {
        let mut child = wsup(&arguments).spawn().unwrap();
        assert!(server.wait_until(LONG, |records| records.iter().any(|record| record.opened && !record.ended)));
        std::thread::park_timeout(common::ms(300));
        assert!(terminate(&mut child).is_some(), "{arguments:?}");
    }
}

#[test]
fn what_can_not_be_reached_or_meant_has_an_exit_status_of_its_own() {
    let (out, err, code) = run(&["connect", "ws://127.0.0.1:9", "--for", "500ms"]);
    assert_eq!((out.as_str(), code), ("", Some(1)));
    assert!(err.contains("Connection refused"), "{err}");
    let refused = Server::start(Script::refuse(401)).unwrap();
    let (_, err, code) = run(&["connect", &refused.url(), "--for", "60s"]);
    assert!(err.contains("given up on: ") && err.contains("401") && code == Some(1), "{err}");
    for (wrong, words) in [
        (vec!["connect", "https://h"], "must have the scheme"),
        (vec!["connect", "ws://h", "--subscribe", "a"], "--venue"),
        (vec!["connect", "ws://h", "-H", "no colon"], "Name: value"),
        (vec!["connect", "ws://h", "-H", "A: ${NOT_SET_AT_ALL}"], "the environment has no `NOT_SET_AT_ALL`"),
        (vec!["replay", "/no/such/file"], "/no/such/file"),
        (vec!["top", "/no/such/socket"], "/no/such/socket"),
    ] {
        let (_, err, code) = run(&wrong);
        assert!(err.contains(words) && code == Some(1), "{wrong:?}: {err}");
    }
}

#[test]
fn what_is_recorded_is_served_again() {
    let folder = Folder::new("record");
    let greeting: Vec<_> = (0..200).map(|n| Message::text(format!("tick {n}"))).collect();
    let server = Server::start(Script::silent().greet(move |_| greeting.clone())).unwrap();
    let file = argument(folder.at("ticks.jsonl.zst"));
    let mut child = wsup(&["record", &server.url(), "-o", &file]).spawn().unwrap();
    assert!(server.wait_until(LONG, |records| records.iter().any(|record| record.served == 200)));
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(errors.any(|line| line.unwrap().contains("open, connection 1")));
    assert_eq!(terminate(&mut child), Some(0));
    assert!(Path::new(&file).exists());

    let mut child = wsup(&["replay", &file, "--pace", "0"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap();
    let client = Client::connect(ClientConfig::new(url).unwrap()).unwrap();
    eventually("all of it", || client.stats().received == 200);
    assert_eq!(terminate(&mut child), Some(0));
}

#[test]
fn a_desk_runs_from_its_file_and_says_how_it_ended() {
    let folder = Folder::new("run");
    let server = Server::echo().unwrap();
    let text = format!("[clients.one]\nurl = \"{0}\"\n[clients.two]\nurl = \"{0}\"\n", server.url());
    let file = argument(folder.file("desk.toml", &text));
    let socket = argument(folder.at("s.sock"));
    let mut child = wsup(&["run", &file, "--json", "--status", &socket]).spawn().unwrap();
    assert!(server.wait_until(LONG, |records| records.iter().filter(|record| record.opened).count() == 2));
    eventually("the status is served", || Path::new(&socket).exists());
    let (picture, err, code) = run(&["top", &socket, "--picture", "100x20"]);
    assert!(picture.starts_with("<svg") && picture.contains("one") && code == Some(0), "{err}");
    assert_eq!(terminate(&mut child), Some(0));
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (client, kind) in [("one", "open"), ("two", "open"), ("one", "closed"), ("two", "closed")] {
        assert!(lines.iter().any(|line| line["client"] == client && line["type"] == kind), "{client} {kind}: {out}");
    }

    let refused = Server::start(Script::refuse(403)).unwrap();
    let file = argument(folder.file("parked.toml", &format!("[clients.a]\nurl = \"{}\"\n", refused.url())));
    let mut child = wsup(&["run", &file]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("a ! parked")));
    assert_eq!(terminate(&mut child), Some(2));
}

#[test]
fn the_live_view_keeps_its_terminal_though_a_client_panics() {
    // `script` gives it a terminal; where that is not to be had there is nothing to see.
    let view = format!("stty rows 24 cols 80; exec {} top --demo", env!("CARGO_BIN_EXE_wsup"));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &view, "/dev/null"]).env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return };
    let mut out = child.stdout.take().unwrap();
    let (mut seen, mut some) = (String::new(), [0; 4096]);
    while !seen.contains("panicked") {
        let read = out.read(&mut some).unwrap();
        assert!(read > 0, "it ended: {seen}");
        seen += &String::from_utf8_lossy(&some[..read]);
    }
    // Read at once, without a line's end, and not echoed: the terminal is still the view's.
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    eventually("it has ended", || child.try_wait().unwrap().is_some());
}

#[test]
fn help_completions_and_the_manual_are_there() {
    let (help, _, code) = run(&["--help"]);
    for command in ["check", "run", "connect", "record", "replay", "top", "completions", "man"] {
        assert!(help.contains(command), "{help}");
        assert_eq!(run(&[command, "--help"]).2, Some(0));
    }
    assert_eq!(code, Some(0));
    assert!(run(&["completions", "bash"]).0.contains("_wsup"));
    assert!(run(&["man"]).0.contains(".TH wsup 1"));
}
