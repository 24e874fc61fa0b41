//! Recordings: what went over the wire is in them, whatever the disk does, and a replay repeats it.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Folder, eventually, ms};
use ws_supervisor::record::{Direction, Entry, Frame, Recorded, Recorder, Recording};
use ws_supervisor::testing::{self, DeribitServer, Pace, Script, Server};
use ws_supervisor::venue::deribit::Deribit;
use ws_supervisor::{
    Client, ClientConfig, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, Overflow, Supervisor,
};

const LONG: Duration = Duration::from_secs(60);

fn read(path: &Path) -> Vec<Entry> {
    Recording::open(path).unwrap().map(Result::unwrap).collect()
}

/// Frames that went this way, but for those of the connection's own.
fn messages(entries: &[Entry], way: Direction) -> Vec<Message> {
    let frames = entries.iter().filter_map(|entry| match &entry.what {
        Recorded::Frame { direction, frame: Frame::Message(message), own: false, .. } if *direction == way => {
            Some(message.clone())
        }
        _ => None,
    });
    frames.collect()
}

/// Text that can't be made much smaller.
fn noise(len: usize) -> String {
    (0..len).map(|_| fastrand::alphanumeric()).collect()
}

fn kinds(entries: &[Entry]) -> Vec<&str> {
    let events = entries.iter().filter_map(|entry| match &entry.what {
        Recorded::Event { kind, .. } => Some(&**kind),
        _ => None,
    });
    events.collect()
}

fn quiet(server: &Server, name: &str) -> ClientConfig {
    let config = ClientConfig::new(server.url()).unwrap().name(name).event_capacity(100_000);
    config.heartbeat(Heartbeat::disabled())
}

#[test]
fn venues_recordings_come_through_record_replay_and_record_unchanged() {
    let Ok(found) = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data")) else { return };
    let folder = Folder::new("venues");
    for path in found.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "jsonl")) {
        let original = read(&path);
        let (came, went) = (messages(&original, Direction::In), messages(&original, Direction::Out));
        assert!(came.len() > 100, "{}", path.display());
        let (mut served, mut passed) = (original.clone(), path.clone());
        for round in ["once.jsonl", "twice.jsonl.zst"] {
            let name = path.file_stem().unwrap().to_string_lossy();
            let copy = folder.at(&format!("{name}.{round}"));
            let recorder = Recorder::builder(&copy);
            let recorder = if round.ends_with("zst") { recorder.zstd(3) } else { recorder }.start().unwrap();
            let server = Server::replay(served, Pace::FlatOut).unwrap();
            let client = Client::connect(quiet(&server, "venue").record(&recorder)).unwrap();
            for message in &went {
                client.send_confirmed(message.clone(), LONG).unwrap();
            }
            eventually("all came", || client.stats().received == came.len() as u64);
            client.close().unwrap();
            assert!(recorder.flush(LONG));
            let entries = read(&copy);
            assert!(messages(&entries, Direction::In) == came, "{} after {}", copy.display(), passed.display());
            assert!(messages(&entries, Direction::Out) == went, "{}", copy.display());
            assert_eq!(recorder.status().dropped, 0);
            (served, passed) = (entries, copy);
        }
    }
}

#[test]
fn a_recording_has_control_frames_own_messages_events_and_no_secret() {
    let folder = Folder::new("all");
    let server = DeribitServer::builder().account("desk", "very-secret").start().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let run = |name: &str, recorder: &Recorder| {
        let venue = Deribit::new().client_credentials("desk", "very-secret");
        let config = ClientConfig::new(server.url()).unwrap().name(name).venue(venue);
        let config = config.subscribe(["trades.BTC-PERPETUAL.raw"]);
        let client = supervisor.spawn_client(config.heartbeat(Heartbeat::ping_pong(ms(20))).record(recorder)).unwrap();
        client.wait_until_open(LONG).unwrap();
        eventually("pings are answered", || client.stats().heartbeats > 2);
        let _: serde_json::Value = client.request("public/test", serde_json::json!({})).unwrap();
        server.server().cut();
        eventually("open again", || client.epoch() == 2);
        supervisor.stop_client(client.id()).unwrap();
        assert!(recorder.flush(LONG));
    };
    let path = folder.at("desk.jsonl");
    let recorder = Recorder::start(&path).unwrap();
    run("careful", &recorder);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("very-secret") && text.contains("public/auth"));
    assert!(text.contains(r#"\"access_token\":\"[redacted]\""#), "an answer to a sign-in holds one too");
    let entries = read(&path);
    let kinds = kinds(&entries);
    assert_eq!(kinds.iter().filter(|kind| **kind == "open").count(), 2, "{kinds:?}");
    assert!(kinds.contains(&"disconnected") && kinds.last() == Some(&"closed"), "{kinds:?}");
    for wanted in ["ping", "pong"] {
        let (to, from) = (format!(r#""dir":"out","type":"{wanted}""#), format!(r#""dir":"in","type":"{wanted}""#));
        assert!(text.contains(&to) || text.contains(&from), "{wanted}");
    }
    let own = |entry: &Entry| match &entry.what {
        Recorded::Frame { frame: Frame::Message(message), own: true, .. } => message.as_text().map(str::to_owned),
        _ => None,
    };
    let subscribed = entries.iter().filter_map(own).any(|text| text.contains("trades.BTC-PERPETUAL.raw"));
    assert!(subscribed, "what the connection asks for by itself");
    assert!(entries.iter().all(|entry| &*entry.client == "careful" && entry.since.is_some()));
    assert!(entries.windows(2).all(|pair| pair[0].since <= pair[1].since), "in the order of time");
    assert!(entries.iter().any(|entry| entry.epoch == 2));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let last = entries.last().unwrap().at.duration_since(UNIX_EPOCH).unwrap();
    assert!(now.abs_diff(last) < LONG, "by the wall's clock");

    let open = folder.at("open.jsonl");
    let recorder = Recorder::builder(&open).with_secrets().start().unwrap();
    run("open", &recorder);
    assert!(fs::read_to_string(&open).unwrap().contains("access_token"));
    assert!(!fs::read_to_string(&open).unwrap().contains("[redacted]"));
}

#[test]
fn a_disk_that_takes_nothing_stops_no_client_and_is_told() {
    let missing = Recorder::start("/no/such/folder/desk.jsonl").unwrap_err();
    assert!(missing.to_string().starts_with("/no/such/folder/desk.jsonl: "), "{missing}");
    if !Path::new("/dev/full").exists() {
        return;
    }
    let recorder = Recorder::start("/dev/full").unwrap();
    let server = Server::echo().unwrap();
    let client = Client::connect(quiet(&server, "full").record(&recorder)).unwrap();
    for round in 1..=100 {
        client.send("x").unwrap();
        eventually("echoed", || client.stats().received == round);
    }
    assert!(recorder.flush(LONG));
    let status = recorder.status();
    assert!(status.fault.as_ref().is_some_and(|fault| fault.contains("space")), "{status:?}");
    assert!(status.written == 0 && status.dropped >= 200, "{status:?}");
}

#[test]
fn what_has_no_room_in_memory_is_dropped_and_counted() {
    let folder = Folder::new("small");
    let path = folder.at("small.jsonl");
    let recorder = Recorder::builder(&path).buffer(1 << 10).start().unwrap();
    let server = Server::start(Script::silent().greet(|_| vec![Message::text("x".repeat(400)); 5000])).unwrap();
    let client = Client::connect(quiet(&server, "small").record(&recorder)).unwrap();
    eventually("all came", || client.stats().received == 5000);
    assert!(recorder.flush(LONG));
    let status = recorder.status();
    assert!(status.dropped > 0 && status.fault.is_none(), "{status:?}");
    let entries = read(&path);
    assert_eq!(entries.len() as u64, status.written);
    // The recording itself says how many are missing.
    let lost = |entry: &Entry| match &entry.what {
        Recorded::Event { kind, data, .. } if &**kind == "lost" => data["entries"].as_u64(),
        _ => None,
    };
    let told: Vec<_> = entries.iter().filter_map(lost).collect();
    // 5,000 messages, `connected` and `open`; the last that are lost have no entry after them that says so.
    assert_eq!(status.written - told.len() as u64 + status.dropped, 5002);
    assert!(told.iter().sum::<u64>() <= status.dropped && !told.is_empty(), "{told:?} {status:?}");
}

#[test]
fn rotated_files_are_read_as_one_and_a_torn_tail_up_to_the_tear() {
    let folder = Folder::new("rotated");
    for (name, level) in [("plain.jsonl", None), ("packed.jsonl.zst", Some(1))] {
        let path = folder.at(name);
        let mut sent = 0;
        for run in 1..=2 {
            let recorder = Recorder::builder(&path).rotate_bytes(60_000);
            let recorder = level.map_or(recorder.clone(), |level| recorder.zstd(level)).start().unwrap();
            let server = Server::start(Script::silent()).unwrap();
            let client = Client::connect(quiet(&server, "r").record(&recorder)).unwrap();
            for round in 0..10 {
                for _ in 0..50 {
                    client.send_confirmed(format!("{run} {round} {}", noise(100)), LONG).unwrap();
                    sent += 1;
                }
                assert!(recorder.flush(LONG));
            }
        }
        let entries = read(&path);
        assert_eq!(messages(&entries, Direction::Out).len(), sent, "{name}: an earlier run is gone on from");
        let mut files: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.file_name().unwrap().to_string_lossy().starts_with(name.split('.').next().unwrap()));
        assert!(files.len() >= 3, "{files:?}");

        // Cut anywhere: what is before the cut is read.
        let whole = fs::read(&path).unwrap();
        let alone = folder.at(&format!("torn-{name}"));
        let mut last = usize::MAX;
        for cut in (0..10).map(|tenths| whole.len() - whole.len() * tenths / 10) {
            fs::write(&alone, &whole[..cut]).unwrap();
            let mut recording = Recording::open(&alone).unwrap();
            let found = recording.by_ref().filter(|entry| entry.is_ok()).count();
            assert!(found <= last && (found > 0 || cut < whole.len() / 2), "{name} at {cut}: {found}");
            last = found;
        }
    }
}

#[test]
fn a_recorder_that_can_not_write_lets_go_and_two_do_not_share_a_file() {
    let folder = Folder::new("hung");
    let path = folder.at("one.jsonl");
    let first = Recorder::start(&path).unwrap();
    let second = Recorder::start(&path).unwrap_err();
    assert!(second.to_string().contains("another recorder"), "{second}");
    drop(first);
    drop(Recorder::start(&path).unwrap());
    // A pipe that nobody reads takes some and then hangs, as a dead network disk does.
    let pipe = folder.at("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let recorder = Recorder::start(&pipe).unwrap();
    let server = Server::echo().unwrap();
    let client = Client::connect(quiet(&server, "hung").record(&recorder)).unwrap();
    for round in 1..=20 {
        client.send("x".repeat(50_000)).unwrap();
        eventually("trading goes on", || client.stats().received == round);
    }
    assert!(!recorder.flush(ms(50)));
    let begun = std::time::Instant::now();
    drop((client, recorder));
    assert!(begun.elapsed() < LONG, "nobody waits for a disk for ever");
}

#[test]
fn time_goes_on_in_a_recording_that_another_recorder_went_on_with_and_requests_end() {
    let line = |second: u32, mono: u64, rest: &str| {
        format!(r#"{{"ts":"2026-01-01T00:{:02}:{:02}.000000Z",{rest},"mono":{mono}}}"#, second / 60, second % 60)
    };
    let tick = r#""dir":"in","type":"text","data":"tick""#;
    let text =
        [line(0, 0, tick), line(600, 600_000_000_000, tick), line(700, 0, tick), line(750, 50_000_000_000, tick)];
    struct Clock(Arc<Mutex<(Vec<u64>, Option<std::time::Instant>)>>);
    impl Handler for Clock {
        fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
            let mut clock = self.0.lock().unwrap();
            let began = *clock.1.get_or_insert(context.now());
            clock.0.push((context.now() - began).as_secs());
            for _ in 0..20_000 {
                if context.request(ws_supervisor::Request::new("m", ())).is_err() {
                    clock.0.push(u64::MAX);
                }
            }
        }
    }
    let recording = Recording::read(std::io::Cursor::new(text.join("\n"))).map(Result::unwrap);
    // Requests wait for no more than there may be pending at once; those that are answered make room.
    let answered = r#""dir":"event","type":"response","data":{"id":ID,"method":"m","outcome":{"Ok":"1"}}"#;
    let answers = (1..=80_000u32).map(|id| {
        let text = line(600, 600_000_000_000, &answered.replace("ID", &id.to_string()));
        Recording::read(std::io::Cursor::new(text)).next().unwrap().unwrap()
    });
    let entries: Vec<_> = recording.collect();
    let all = entries[..2].iter().cloned().chain(answers).chain(entries[2..].iter().cloned());
    let clock = Arc::new(Mutex::new((vec![], None)));
    let config = ClientConfig::new("wss://venue.example").unwrap().send_capacity(1 << 20);
    testing::replay(all, config, || Clock(clock.clone())).unwrap();
    assert_eq!(clock.lock().unwrap().0, [0, 600, 700, 750]);
    for pace in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Server::replay(entries.clone(), Pace::Times(pace)).is_err(), "{pace}");
    }
}

#[test]
fn what_is_no_recording_is_said_to_be_none() {
    for wrong in ["a,b,c\n1,2,3\n", "[1]\n", "{}\n"] {
        let mut recording = Recording::read(wrong.as_bytes());
        assert!(recording.next().unwrap().is_err() && !recording.is_torn(), "{wrong}");
    }
    let bom = "\u{feff}{\"ts\":\"2026-01-01T00:00:00Z\",\"dir\":\"in\",\"type\":\"text\",\"data\":\"x\"}\r\n";
    assert_eq!(Recording::read(std::io::Cursor::new(bom.to_owned())).map(Result::unwrap).count(), 1);
}

/// Sends on every third tick, and from a timer that it sets at each.
#[derive(Default)]
struct Strategy {
    ticks: u64,
    began: Option<std::time::Instant>,
}

impl Handler for Strategy {
    fn on_open(&mut self, context: &mut Context<'_>) {
        self.began.get_or_insert(context.now());
        context.send(format!("hello {}", context.epoch().unwrap())).unwrap();
    }

    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        self.ticks += 1;
        if self.ticks % 3 == 0 {
            context.send(format!("order {} for {}", self.ticks, message.as_text().unwrap())).unwrap();
        }
        context.schedule(context.now() + ms(3), self.ticks);
    }

    fn on_timer(&mut self, context: &mut Context<'_>, token: u64) {
        let age = context.now() - self.began.unwrap();
        // To the microsecond, as proof of the recorded time.
        let _ = context.send(format!("timer {token} {}", age.as_micros()));
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Disconnected { .. } = event {
            self.ticks += 100;
        }
    }
}

#[test]
fn a_strategys_run_is_repeated_exactly_from_its_recording() {
    let folder = Folder::new("strategy");
    let path = folder.at("strategy.jsonl");
    let recorder = Recorder::start(&path).unwrap();
    let ticks = Script::silent().every(ms(2), |_| vec![Message::text("tick")]);
    let server = Server::start(ticks).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = quiet(&server, "strategy").delivery(Delivery::inline(Strategy::default)).record(&recorder);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    eventually("ticks", || client.stats().received > 50);
    server.cut();
    eventually("more, on another connection", || client.epoch() == 2 && client.stats().received_this_epoch > 50);
    supervisor.stop_client(client.id()).unwrap();
    assert!(recorder.flush(LONG));

    let entries = read(&path);
    let replay = || {
        let config = ClientConfig::new("wss://venue.example").unwrap();
        testing::replay(entries.clone(), config, Strategy::default).unwrap()
    };
    let run = replay();
    assert_eq!(run, replay(), "byte for byte");
    let lines = |messages: &[Message], kind: &str| -> Vec<String> {
        let texts = messages.iter().filter_map(Message::as_text).filter(|text| text.starts_with(kind));
        texts.map(str::to_owned).collect()
    };
    let (live, again): (Vec<_>, Vec<_>) =
        (messages(&entries, Direction::Out), run.iter().map(|one| one.sent.clone()).collect());
    assert!(lines(&again, "timer").len() > 50);
    for kind in ["hello", "order"] {
        let (live, again) = (lines(&live, kind), lines(&again, kind));
        // The last may have been on a connection that was cut before it was written.
        let lost = again.iter().filter(|text| !live.contains(text)).count();
        assert!(!live.is_empty() && lost <= 2, "{kind}: {live:?} {again:?}");
        assert!(live.iter().all(|text| again.contains(text)), "{kind}: {live:?} {again:?}");
    }
}

/// Run again by the next test, as a process that is killed.
#[test]
fn a_flood_that_is_recorded_until_it_is_killed() {
    let Ok(path) = std::env::var("RECORD_UNTIL_KILLED") else { return };
    let recorder = Recorder::start(path).unwrap();
    let server = Server::start(Script::silent().every(ms(1), |_| vec![Message::text("x".repeat(128)); 20])).unwrap();
    let client = Client::connect(quiet(&server, "flood").record(&recorder)).unwrap();
    std::thread::spawn({
        let client = client.clone();
        move || client.events().iter().for_each(drop)
    });
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        println!("\nreceived {} {now}", client.stats().received);
        std::thread::sleep(ms(20));
    }
}

#[test]
fn a_kill_in_a_flood_loses_no_more_than_the_last_second() {
    use std::io::{BufRead, BufReader};
    let folder = Folder::new("killed");
    let path = folder.at("flood.jsonl");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["a_flood_that_is_recorded_until_it_is_killed", "--exact", "--nocapture"])
        .env("RECORD_UNTIL_KILLED", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said: Vec<(u64, u64)> = vec![];
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let mut words = line.split(' ');
        if words.next() != Some("received") {
            continue;
        }
        said.push((words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap()));
        let (first, last) = (said[0].1, said[said.len() - 1].1);
        if last - first > 2500 && said[said.len() - 1].0 > 1000 {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = said.last().unwrap().1;
    let surely = said.iter().rfind(|(_, at)| at + 1000 <= killed).unwrap().0;
    let recording = Recording::open(&path).unwrap();
    let found = recording.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.message().is_some())).count() as u64;
    assert!(surely > 100 && found >= surely, "{found} of at least {surely} are there");
}

fn line(n: u64) -> String {
    let text = serde_json::json!({ "id": n, "params": { "data": [{ "x": { "y": 1 } }] } }).to_string();
    let entry = serde_json::json!({
        "ts": format!("2026-01-01T00:00:{n:02}.000000Z"), "dir": "in", "type": "text", "data": text, "client": "feed",
        "epoch": 1, "mono": n * 1_000_000_000,
    });
    format!("{entry}\n")
}

#[test]
fn a_line_torn_at_any_place_is_reported_and_the_lines_around_it_are_read() {
    let whole = line(2);
    for cut in 1..whole.len() - 1 {
        let text = format!("{}{}\n{}", line(1), &whole[..cut], line(3));
        let read: Vec<_> = Recording::read(std::io::Cursor::new(text)).collect();
        assert_eq!(read.len(), 3, "cut at {cut}");
        assert!(read[0].is_ok() && read[2].is_ok(), "cut at {cut}");
        let fault = read[1].as_ref().unwrap_err();
        assert_eq!(fault.line, 2, "{fault}");
    }
}

#[test]
fn a_recording_whose_old_files_are_archived_is_read_and_gone_on_with() {
    let folder = Folder::new("archived");
    let path = folder.at("feed.jsonl");
    let run = || {
        let recorder = Recorder::builder(&path).rotate_bytes(1).start().unwrap();
        let server = Server::echo().unwrap();
        let client = Client::connect(quiet(&server, "feed").record(&recorder)).unwrap();
        for round in 1..=3 {
            client.send("tick").unwrap();
            eventually("echoed", || client.stats().received == round);
            assert!(recorder.flush(LONG));
        }
        client.close().unwrap();
        let recorded = || {
            assert!(recorder.flush(LONG));
            fs::read_to_string(recorder.status().file).unwrap()
        };
        eventually("its end is recorded", || recorded().contains("\"closed\""));
        recorder.status().file
    };
    let last = run();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    };
    let count = |path: &Path| Recording::open(path).unwrap().filter(Result::is_ok).count();
    let (all, before) = (count(&path), names());
    assert!(before.len() >= 4, "{before:?}");
    // A hole in the middle is reported, and what follows it is read.
    let hole = folder.at("feed.1.jsonl");
    let in_the_hole = fs::read_to_string(&hole).unwrap().lines().count();
    fs::remove_file(&hole).unwrap();
    let read: Vec<_> = Recording::open(&path).unwrap().collect();
    let faults: Vec<_> = read.iter().filter_map(|entry| entry.as_ref().err().map(ToString::to_string)).collect();
    assert!(faults.len() == 1 && faults[0].contains("1 files before this one are missing"), "{faults:?}");
    assert_eq!(read.len() - 1, all - in_the_hole);
    // Without the oldest ones it begins later; the next recorder goes on behind the last.
    fs::remove_file(&path).unwrap();
    let rest = count(&path);
    assert!(rest > 0 && rest < all);
    assert!(Recording::open(&path).unwrap().all(|entry| entry.is_ok()));
    assert!(run() > last || names().len() > before.len(), "{last:?} {:?}", names());
    assert!(!path.exists(), "nothing begins at the first number again");
    assert!(count(&path) > rest);
    let times: Vec<_> = Recording::open(&path).unwrap().map(|entry| entry.unwrap().at).collect();
    assert!(times.is_sorted(), "in the order in which it happened");
}

#[test]
fn a_recording_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("mode");
    let path = folder.at("desk.jsonl");
    drop(Recorder::start(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The machine's clock was set forward by an hour while this was recorded.
#[test]
fn a_server_plays_at_the_pace_of_the_monotonic_clock() {
    let text: String = (0..5u64)
        .map(|n| {
            let hour = if n < 2 { 0 } else { 1 };
            format!(
                "{{\"ts\":\"2026-01-01T0{hour}:00:00.{n}00000Z\",\"dir\":\"in\",\"type\":\"text\",\"data\":\"tick {n}\",\"mono\":{}}}\n",
                n * 50_000_000
            )
        })
        .collect();
    let entries = Recording::read(std::io::Cursor::new(text)).map(Result::unwrap);
    let server = Server::replay(entries, Pace::Recorded).unwrap();
    let client = Client::connect(quiet(&server, "stepped")).unwrap();
    eventually("all come", || client.stats().received == 5);
}

/// Bytes of memory that this process has, or had at most.
fn memory(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Run again by the next test, in a process of its own.
#[test]
fn messages_that_are_six_times_as_long_in_json_are_recorded() {
    let Ok(path) = std::env::var("RECORD_CONTROL_CHARACTERS") else { return };
    let before = memory("VmRSS:").unwrap();
    let recorder = Recorder::builder(path).buffer(ROOM).start().unwrap();
    let server = Server::start(Script::silent()).unwrap();
    let config = quiet(&server, "memory").overflow(Overflow::DropOldest).event_capacity(1);
    let client = Client::connect(config.record(&recorder)).unwrap();
    let text = "\u{1}".repeat(1 << 20);
    for round in 1..=48 {
        server.push(Message::text(text.clone()));
        eventually("received", || client.stats().received == round);
    }
    assert!(recorder.flush(LONG));
    let status = recorder.status();
    assert!(status.bytes > 6 << 20, "{status:?}");
    println!("\ngrown {}", memory("VmHWM:").unwrap() - before);
}

const ROOM: usize = 16 << 20;

#[test]
fn the_memory_of_a_recorder_is_bounded_in_bytes() {
    if memory("VmHWM:").is_none() {
        return;
    }
    let folder = Folder::new("memory");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["messages_that_are_six_times_as_long_in_json_are_recorded", "--exact", "--nocapture"])
        .env("RECORD_CONTROL_CHARACTERS", folder.at("a.jsonl"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let grown: usize = text.lines().find_map(|line| line.strip_prefix("grown ")).expect(&text).parse().unwrap();
    // Beside what waits: one line of 6 MiB as it is made, the messages on both ends of the line, and so on.
    assert!(grown < 4 * ROOM, "{} MiB more for {} MiB of room", grown >> 20, ROOM >> 20);
}
