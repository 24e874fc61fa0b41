//! A replay is the run that it repeats: what a handler receives, when, what it is answered, and what it does.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::{Folder, LONG, ms};
use ws_supervisor::record::{Entry, Recorder, Recording};
use ws_supervisor::testing::{self, Script, Server};
use ws_supervisor::{
    ClientConfig, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, Overflow, Request, Supervisor,
};

/// All that handlers of one client received and did.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<(Vec<String>, Option<Instant>)>>);

impl Diary {
    fn note(&self, now: Instant, line: String) {
        let mut diary = self.0.lock().unwrap();
        let first = *diary.1.get_or_insert(now);
        let time = match now.checked_duration_since(first) {
            Some(after) => format!("{}", after.as_nanos()),
            None => format!("-{}", (first - now).as_nanos()),
        };
        diary.0.push(format!("{time} {line}"));
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().0.clone()
    }
}

/// Does something at each call that depends on what it received so far, and on nothing else.
struct Trader {
    diary: Diary,
    calls: u64,
}

impl Trader {
    fn new(diary: &Diary) -> Self {
        Self { diary: diary.clone(), calls: 0 }
    }

    fn note(&mut self, context: &mut Context<'_>, what: String) {
        self.calls += 1;
        let sent = match self.calls % 4 {
            0 => {
                context.send(format!("order {}", self.calls)).map_or_else(|error| error.to_string(), |()| "sent".into())
            }
            1 => context
                .request(Request::new("buy", [self.calls]))
                .map_or_else(|error| error.to_string(), |id| id.to_string()),
            2 => {
                context.schedule(context.now() + ms(self.calls % 7), self.calls % 3);
                "scheduled".into()
            }
            _ => match self.calls % 8 {
                3 => format!("cancelled {}", context.cancel(self.calls % 3)),
                _ => String::new(),
            },
        };
        let line = format!("{} {what}: {sent}, connection {:?}", self.calls, context.epoch());
        self.diary.note(context.now(), line);
    }
}

impl Handler for Trader {
    fn on_open(&mut self, context: &mut Context<'_>) {
        self.note(context, "open".into());
    }

    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        let text = String::from_utf8_lossy(message.as_bytes()).into_owned();
        self.note(context, format!("{text} of {:?}", message.epoch()));
        match &*text {
            "panic" => panic!("as it was asked to"),
            "close" => context.close(),
            "reconnect" => context.reconnect(),
            _ => {}
        }
    }

    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        let panics = matches!(&event, Event::Disconnected { .. }) && self.calls % 5 == 4;
        self.note(context, format!("{event:?}"));
        assert!(!panics, "at the end of a connection");
    }

    fn on_timer(&mut self, context: &mut Context<'_>, token: u64) {
        self.note(context, format!("timer {token}"));
    }
}

/// A venue that sends a snapshot before it says welcome, answers requests, and some of them never.
fn venue() -> Script {
    let script = Script::reply(|_, message| {
        let text = message.as_text().unwrap_or_default();
        let Ok(request) = serde_json::from_str::<serde_json::Value>(text) else { return vec![] };
        let answer = match request["id"].as_u64().unwrap_or_default() {
            id if id % 5 == 0 => return vec![],
            id if id % 5 == 1 => {
                serde_json::json!({ "id": id, "error": { "code": 7, "message": "no", "data": [1, "x"] } })
            }
            id => serde_json::json!({ "id": id, "result": { "filled": id, "text": "\u{e9}\"" } }),
        };
        vec![Message::text(answer.to_string())]
    });
    script.greet(|_| ["early", "snapshot", "welcome", "late", "later"].map(Message::text).into())
}

/// One run of a client whose line is cut, whose handler panics, and so on, in an order that the seed decides. Returns what its
/// handlers noted, live and in the replay.
fn run(seed: u64) -> [Vec<String>; 2] {
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = Folder::new(&format!("replay-{seed}"));
    let path = folder.at("desk.jsonl");
    let (live, replayed) = (Diary::default(), Diary::default());
    let server = Server::start(venue()).unwrap();
    {
        let recorder = Recorder::builder(&path).with_secrets().rotate_bytes(random.u64(2_000..50_000)).start().unwrap();
        let supervisor = Supervisor::builder().intensity(1_000, ms(1)).start().unwrap();
        let diary = live.clone();
        let mut config = ClientConfig::new(server.url())
            .unwrap()
            .name("desk")
            .record(&recorder)
            .backoff(ms(1), ms(3))
            .request_timeout(ms(random.u64(5..40)))
            .heartbeat(Heartbeat::disabled())
            .delivery(Delivery::inline(move || Trader::new(&diary)));
        if random.bool() {
            config = config.heartbeat(Heartbeat::ping_pong(ms(30))).max_retries(2);
        }
        if random.bool() {
            config = config.on_open(|session| session.recv_until(|message| message == "welcome").map(drop));
        }
        if random.bool() {
            config = config.reconcile(|session, _| {
                session.recv_until(|message| message == "early").map(drop)?;
                session.request::<serde_json::Value>("positions", ()).map(drop).or(Ok(()))
            });
        }
        match random.u32(0..3) {
            0 => config = config.overflow(Overflow::DropOldest).event_capacity(random.usize(1..4)),
            1 => config = config.overflow(Overflow::DropNewest).event_capacity(random.usize(1..4)),
            _ => {}
        }
        let client = supervisor.spawn_client(config).unwrap();
        let _ = client.wait_until_open(LONG);
        for step in 0..random.u32(5..25) {
            match random.u32(0..20) {
                0 => _ = server.cut(),
                1 => _ = server.close_all(1012, "restart"),
                2 => _ = server.push("panic"),
                3 => _ = server.push("reconnect"),
                4 => client.reconnect(),
                5 => drop(supervisor.restart_client(client.id())),
                6 => drop(client.send(format!("a caller's {step}"))),
                // The ids of the handler's own requests go on behind it.
                7 => drop(client.request::<serde_json::Value>("ticker", ())),
                8 => {
                    server.mute();
                    std::thread::sleep(ms(random.u64(0..120)));
                    let _ = server.cut();
                }
                12 => {
                    server.pause();
                    std::thread::sleep(ms(random.u64(0..5)));
                    server.resume().unwrap();
                }
                9 if random.u32(0..8) == 0 => _ = server.push("close"),
                10 | 11 => std::thread::sleep(ms(random.u64(0..10))),
                _ => (0..random.u32(1..6)).for_each(|n| _ = server.push(format!("tick {step} {n}"))),
            }
        }
        let _ = supervisor.stop_client(client.id());
        supervisor.shutdown(LONG);
        assert!(recorder.flush(LONG));
    }
    repeat(&path, &replayed);
    [live.lines(), replayed.lines()]
}

fn repeat(path: &Path, diary: &Diary) {
    let entries = Recording::open(path).unwrap().map(Result::unwrap);
    testing::replay(entries, ClientConfig::new("wss://venue.example").unwrap(), || Trader::new(diary)).unwrap();
}

/// Where the first difference is.
fn difference(live: &[String], replayed: &[String]) -> Option<String> {
    let same = live.iter().zip(replayed).take_while(|(live, replayed)| live == replayed).count();
    let part = |lines: &[String]| lines[same.saturating_sub(3)..(same + 3).min(lines.len())].join("\n  ");
    (live != replayed).then(|| format!("line {same}:\nlive:\n  {}\nreplay:\n  {}", part(live), part(replayed)))
}

/// What venues really sent, on two connections.
#[test]
fn a_replay_of_a_venues_messages_is_the_run_too() {
    let Ok(found) = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data")) else { return };
    let folder = Folder::new("replay-venues");
    for path in found.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "jsonl")) {
        let copy = folder.at(&path.file_name().unwrap().to_string_lossy());
        let entries: Vec<_> = Recording::open(&path).unwrap().map(Result::unwrap).collect();
        let messages: Vec<_> = entries.iter().filter_map(Entry::message).cloned().collect();
        assert!(messages.len() > 100, "{}", path.display());
        let (live, replayed) = (Diary::default(), Diary::default());
        let (first, second) = messages.split_at(messages.len() / 2);
        let parts = [first.to_vec(), second.to_vec()];
        let greets = parts.clone();
        let server =
            Server::start(venue().greet(move |peer| greets.get(peer.index).cloned().unwrap_or_default())).unwrap();
        let recorder = Recorder::builder(&copy).with_secrets().start().unwrap();
        let diary = live.clone();
        let config = ClientConfig::new(server.url()).unwrap().backoff(ms(1), ms(3)).heartbeat(Heartbeat::disabled());
        let delivery = Delivery::inline(move || Trader::new(&diary));
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config.delivery(delivery).record(&recorder)).unwrap();
        for (index, part) in parts.iter().enumerate() {
            let was_served =
                |records: &[testing::Record]| records.get(index).is_some_and(|r| r.served >= part.len() as u64);
            assert!(server.wait_until(LONG, was_served));
            server.close_all(1012, "restart");
        }
        client.close().unwrap();
        assert!(recorder.flush(LONG));
        repeat(&copy, &replayed);
        let (live, replayed) = (live.lines(), replayed.lines());
        assert!(live.len() > messages.len() / 2, "{}: {} of {}", path.display(), live.len(), messages.len());
        assert_eq!(difference(&live, &replayed), None, "{}", path.display());
    }
}

#[test]
fn what_a_handler_receives_and_does_in_a_replay_is_what_it_received_and_did() {
    // REPLAYS: how many random schedules; SEED: where they begin.
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |number| number.parse().unwrap());
    let (count, first) = (number("REPLAYS", 1000u64), number("SEED", 0));
    let next = AtomicU64::new(first);
    let different = Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let [live, replayed] = run(seed);
                    if let Some(text) = difference(&live, &replayed) {
                        let text = format!("seed {seed}, {text}");
                        different.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let different = different.into_inner().unwrap();
    assert!(different.is_empty(), "{} of {count}; the first: {}", different.len(), different[0]);
}
