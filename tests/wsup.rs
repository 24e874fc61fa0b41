//! The program `wsup`, as a shell sees it: what it prints, where, and its exit status.

#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Folder, LONG, eventually};
use rustix::process::{Pid, Signal};
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
    signal(child, Signal::TERM);
    child.wait().unwrap().code()
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// All that is left on its stderr.
fn errors(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// A file to which nothing can be written.
fn full() -> Option<File> {
    File::options().write(true).open("/dev/full").ok()
}

/// A pipe whose reader is gone.
fn broken_pipe() -> OwnedFd {
    rustix::pipe::pipe().unwrap().1
}

/// A file for one client of this server.
fn desk(folder: &Folder, server: &Server) -> String {
    argument(folder.file("desk.toml", &format!("[clients.a]\nurl = \"{}\"\n", server.url())))
}

/// A terminal: the side of who looks at it, and the program's.
fn terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&near).unwrap();
    unlockpt(&near).unwrap();
    let name = ptsname(&near, Vec::new()).unwrap().into_string().unwrap();
    let far = File::options().read(true).write(true).open(name).unwrap();
    let size = rustix::termios::Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&far, size).unwrap();
    (near.into(), far)
}

/// Starts it in a terminal.
fn in_terminal(arguments: &[&str], far: &File) -> Child {
    let stdio = || Stdio::from(far.try_clone().unwrap());
    wsup(arguments).stdin(stdio()).stdout(stdio()).env("TERM", "xterm").spawn().unwrap()
}

/// Reads what is written to a terminal until these words are there.
fn wait_for(near: &mut File, words: &str) -> String {
    let (mut seen, mut some) = (String::new(), [0; 4096]);
    while !seen.contains(words) {
        let read = near.read(&mut some).unwrap_or_default();
        assert!(read > 0, "it ended: {seen}");
        seen += &String::from_utf8_lossy(&some[..read]);
    }
    seen
}

/// Reads the rest: a program waits for a terminal that takes nothing.
fn read_on(mut near: File) {
    std::thread::spawn(move || near.read_to_end(&mut Vec::new()));
}

/// A server that opens connections and reads nothing on them.
fn deaf() -> (String, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in accepting.incoming().flatten() {
            let head = common::read_head(&mut stream);
            stream.write_all(format!("{}\r\n", common::upgrade_of(&head)).as_bytes()).unwrap();
            open.push(stream);
        }
    });
    (url, listener)
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
    assert!(err.contains("parked: ") && err.contains("401") && code == Some(1), "{err}");
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

#[test]
fn a_stdout_that_takes_nothing_ends_no_desk_and_is_no_success() {
    let Some(_) = full() else { return };
    let folder = Folder::new("full-disk");
    let server = Server::start(Script::silent().every(common::ms(5), |_| vec![Message::text("tick")])).unwrap();
    let file = desk(&folder, &server);
    for stdout in [Stdio::from(full().unwrap()), Stdio::from(broken_pipe())] {
        let before = server.records().len();
        let mut child = wsup(&["run", &file, "--messages"]).stdout(stdout).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("the desk runs on, and lines are lost")));
        let served = |records: &[ws_supervisor::testing::Record]| records.get(before).map_or(0, |record| record.served);
        let then = served(&server.records());
        assert!(server.wait_until(LONG, |records| served(records) > then + 20), "it goes on");
        assert_eq!(terminate(&mut child), Some(1));
        assert!(lines.any(|line| line.unwrap().contains("lines were not written to stdout")));
    }
    for arguments in [
        vec!["check", "--schema"],
        vec!["check", &file],
        vec!["completions", "bash"],
        vec!["man"],
        vec!["connect", &server.url()],
    ] {
        let output = wsup(&arguments).stdout(full().unwrap()).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && err.contains("No space left"), "{arguments:?}: {err}");
        // A reader that has read enough, as `head`, is no fault.
        let output = wsup(&arguments).stdout(broken_pipe()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    // Nor is a stderr that is gone, with the library's whole log on it.
    let before = server.records().len();
    let mut child = wsup(&["--verbose", "run", &file]).stderr(broken_pipe()).spawn().unwrap();
    assert!(server.wait_until(LONG, |records| records.len() > before));
    server.cut();
    assert!(server.wait_until(LONG, |records| records.len() > before + 1), "it comes back");
    assert_eq!(terminate(&mut child), Some(0));
}

#[test]
fn a_signal_that_is_ignored_stays_so_and_a_second_one_ends_at_once() {
    let folder = Folder::new("signals");
    let (url, _listener) = deaf();
    let text = format!("[clients.a]\nurl = \"{url}\"\nclose_timeout = \"60s\"\n");
    let file = argument(folder.file("desk.toml", &text));
    let line = format!("trap '' HUP; exec {} run {file}", env!("CARGO_BIN_EXE_wsup"));
    let mut command = Command::new("sh");
    let mut child = command.args(["-c", &line]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("open, connection 1")));
    signal(&child, Signal::HUP);
    std::thread::sleep(common::ms(300));
    assert!(child.try_wait().unwrap().is_none(), "as `nohup` wants it");
    // The server answers no close frame: the first signal waits for that.
    signal(&child, Signal::INT);
    std::thread::sleep(common::ms(300));
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_signal_or_a_lost_terminal_ends_the_live_view() {
    for ends in [Signal::TERM, Signal::HUP, Signal::INT] {
        let (mut near, far) = terminal();
        let before = rustix::termios::tcgetattr(&far).unwrap();
        let mut child = in_terminal(&["top", "--demo"], &far);
        wait_for(&mut near, "book");
        assert!(rustix::termios::tcgetattr(&far).unwrap().local_modes != before.local_modes, "raw");
        signal(&child, ends);
        wait_for(&mut near, "\u{1b}[?1049l");
        read_on(near);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{ends:?}");
        assert_eq!(rustix::termios::tcgetattr(&far).unwrap().local_modes, before.local_modes, "given back");
    }
    let (mut near, far) = terminal();
    let mut child = in_terminal(&["top", "--demo"], &far);
    drop(far);
    wait_for(&mut near, "book");
    drop(near);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let err = errors(&mut child);
    assert!(err.contains("wsup: "), "{err}");
}

#[test]
fn two_desks_at_one_path_and_a_reader_too_many_are_told_so() {
    let folder = Folder::new("taken");
    let server = Server::echo().unwrap();
    let file = desk(&folder, &server);
    let socket = argument(folder.at("s.sock"));
    // All at once: one of them serves.
    let start = || wsup(&["run", &file, "--status", &socket]).spawn().unwrap();
    let mut desks: Vec<Child> = (0..6).map(|_| start()).collect();
    eventually("five have ended", || desks.iter_mut().filter_map(|desk| desk.try_wait().unwrap()).count() == 5);
    let serving = desks.iter_mut().position(|desk| desk.try_wait().unwrap().is_none()).unwrap();
    let mut serving = desks.remove(serving);
    for mut desk in desks {
        assert_eq!(desk.wait().unwrap().code(), Some(1));
        let err = errors(&mut desk);
        assert!(err.contains("another desk serves its status here"), "{err}");
    }
    let readers: Vec<_> = (0..16).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for reader in &readers {
        assert_ne!(BufReader::new(reader).lines().next().unwrap().unwrap(), "");
    }
    let (_, err, code) = run(&["top", &socket, "--picture", "80x20"]);
    assert!(err.contains("16 others read this status already") && code == Some(1), "{err}");
    let (mut near, far) = terminal();
    let mut top = in_terminal(&["top", &socket], &far);
    wait_for(&mut near, "1049l");
    read_on(near);
    assert_eq!(top.wait().unwrap().code(), Some(1));
    let err = errors(&mut top);
    assert!(err.contains("16 others read this status already"), "{err}");
    drop(readers);
    assert_eq!(terminate(&mut serving), Some(0));
    assert!(!Path::new(&socket).exists() && !Path::new(&format!("{socket}.lock")).exists());
    // A socket that a killed desk left is taken over.
    let mut killed = start();
    eventually("it serves", || Path::new(&socket).exists());
    killed.kill().unwrap();
    killed.wait().unwrap();
    let mut next = start();
    eventually("the next serves", || UnixStream::connect(&socket).is_ok());
    assert_eq!(terminate(&mut next), Some(0));
}

#[test]
fn a_desk_of_another_version_is_shown_as_far_as_it_can_be() {
    let folder = Folder::new("skew");
    let socket = folder.at("s.sock");
    let client = serde_json::json!({ "name": "feed", "state": "open", "phase": "running", "epoch": 1 });
    let serve = |status: serde_json::Value| {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while writeln!(stream, "{status}").is_ok() {
                std::thread::sleep(common::ms(50));
            }
        });
    };
    let path = argument(socket.clone());
    serve(serde_json::json!({ "clients": [client], "new": {} }));
    let (out, err, code) = run(&["top", &path, "--picture", "100x24"]);
    assert!(out.contains("feed") && code == Some(0), "{err}");
    serve(serde_json::json!({ "clients": [{ "name": "feed", "received": "many" }] }));
    let (_, err, code) = run(&["top", &path, "--picture", "100x24"]);
    assert!(err.contains("the desk is of another version") && !err.contains("clients") && code == Some(1), "{err}");
}

#[test]
fn lines_of_stdin_that_did_not_arrive_are_counted_and_no_success() {
    let (url, _listener) = deaf();
    let mut child = wsup(&["connect", &url, "--for", "2s"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        let line = format!("{}\n", "x".repeat(4000));
        while stdin.write_all(line.as_bytes()).is_ok() {}
    });
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let err = errors(&mut child);
    let line = err.lines().find(|line| line.contains("lines were not sent, and")).expect(&err);
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > 0, "{line}");
    // Lines that arrive are a success.
    let server = Server::echo().unwrap();
    let mut child = wsup(&["connect", &server.url(), "--wait", "10ms"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let file = File::open("/").unwrap();
    let output = wsup(&["connect", &server.url()]).stdin(file).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && err.contains("stdin: "), "a stdin that can't be read: {err}");
}

#[test]
fn control_characters_of_a_server_do_not_reach_the_terminal_and_its_refusal_is_shown() {
    let evil = "\u{1b}]0;owned\u{7}\u{9b}31m\rtick";
    let server = Server::start(Script::silent().greet(move |_| vec![Message::text(evil)])).unwrap();
    let (mut near, far) = terminal();
    let mut child = wsup(&["connect", &server.url()]).stdout(Stdio::from(far)).spawn().unwrap();
    let seen = wait_for(&mut near, "tick");
    assert!(!seen.contains(['\u{1b}', '\u{7}', '\u{9b}']) && !seen.contains("\rtick"), "{seen:?}");
    assert!(seen.contains("\\u{1b}]0;owned"), "{seen:?}");
    server.close_all(1001, "bye \u{1b}[2J");
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.contains("bye")).unwrap();
    assert!(line.contains("\\u{1b}[2J"), "{line:?}");
    terminate(&mut child);
    // In a pipe they are as they came.
    let mut child = wsup(&["connect", &server.url()]).spawn().unwrap();
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    assert_eq!(line, evil);
    terminate(&mut child);

    let address = common::raw(|mut stream, _, _| {
        let body = "this key is for the test network\u{1b}[31m";
        let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(head.as_bytes());
    });
    let (_, err, code) = run(&["connect", &format!("ws://{address}/")]);
    assert!(err.contains("status 403: this key is for the test network\\u{1b}[31m") && code == Some(1), "{err}");
}

#[test]
fn a_recording_is_checked_for_secrets() {
    let folder = Folder::new("survey");
    let server = Server::echo().unwrap();
    let file = argument(folder.at("desk.jsonl"));
    let desk = argument(folder.file(
        "desk.toml",
        &format!("[recorder]\npath = \"{file}\"\nredact = [\"desk_pin\"]\n[clients.a]\nurl = \"{}\"\n", server.url()),
    ));
    let mut child = wsup(&["run", &desk]).spawn().unwrap();
    assert!(server.wait_until(LONG, |records| records.iter().any(|record| record.opened)));
    server.push(r#"{"token":"abc","desk_pin":"hidden","blob":"4cB9x2Lq81ZtRw0KpE7v"}"#);
    let recorded = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("blob"));
    eventually("it is recorded", recorded);
    assert_eq!(terminate(&mut child), Some(0));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("abc") && !text.contains("hidden"), "{text}");
    let (out, err, code) = run(&["check-recording", &file]);
    assert_eq!(code, Some(2), "{out} {err}");
    let line = |name: &str| out.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {out}"));
    assert!(line(" blob").contains("1 look like secrets") && line(" token").contains("1 redacted"), "{out}");
    assert!(!out.contains("4cB9x2Lq81ZtRw0KpE7v"), "not shown unless asked for");
    assert!(run(&["check-recording", &file, "--show"]).0.contains("4cB9x2Lq81ZtRw0KpE7v"));
    let clean = "{\"ts\":\"2026-01-01T00:00:00Z\",\"dir\":\"in\",\"type\":\"text\",\"data\":\"tick\"}\n";
    let clean = argument(folder.file("clean.jsonl", clean));
    assert_eq!(run(&["check-recording", &clean]).2, Some(0));
    std::fs::write(&clean, "{\"ts\":\n").unwrap();
    assert_eq!(run(&["check-recording", &clean]).2, Some(3));
    // The lines around a fault are played.
    let torn = "{\"ts\":\"2026-01-01T00:00:00Z\",\"dir\":\"in\",\"type\":\"text\",\"data\":\"tick\"}\n";
    let torn = argument(folder.file("torn.jsonl", &format!("{torn}{{\"ts\":}}\n{torn}")));
    let (_, err, code) = run(&["replay", &torn, "--for", "1ms"]);
    assert!(err.contains("torn.jsonl:2: ") && err.contains("2 messages") && code == Some(0), "{err}");
}
