//! Everything at once, against an independent ledger of both ends: clients with each way to receive, over ws and wss,
//! behind a proxy that delays, throttles, swallows, cuts and resets; handlers that panic, clients that are parked and
//! resumed, restarts, reconnects. No message comes twice, none on another connection than it was accepted for, none is both
//! received and handed back, none is missing without a word; every request ends once, truthfully; and threads, descriptors
//! and memory come back.
//!
//! `CHAOS_SECONDS` says for how long (10 by default, 60 in the gate), `SEED` where to begin.
#![allow(missing_docs)]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, eventually, ms, takes};
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

/// What the proxy does with the bytes of all its connections.
#[derive(Clone, Copy, Default)]
struct Weather {
    delay: u64,
    /// Bytes taken at a time; 0: as many as there are.
    throttle: usize,
    swallows: bool,
    holds: bool,
    /// Rises when all connections are to end; odd: by a reset.
    ends: u64,
}

struct Proxy {
    address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, over) = (Arc::new(Mutex::new(Weather::default())), Arc::new(AtomicBool::new(false)));
        let (of_all, is_over) = (weather.clone(), over.clone());
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(server)) else { continue };
                let pair = [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)];
                let began = of_all.lock().ends;
                for (from, to) in pair {
                    let (weather, over) = (of_all.clone(), is_over.clone());
                    std::thread::spawn(move || carry(from, to, began, &weather, &over));
                }
            }
        });
        Self { address, weather, over }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, began: u64, weather: &Mutex<Weather>, over: &AtomicBool) {
    from.set_read_timeout(Some(ms(5))).unwrap();
    to.set_write_timeout(Some(ms(500))).unwrap();
    let mut buffer = vec![0; 16 << 10];
    // What is swallowed once is a hole in the stream: nothing may follow it.
    let mut swallows = false;
    loop {
        let now = *weather.lock();
        if now.ends != began || over.load(Ordering::Relaxed) {
            if now.ends % 2 == 1 {
                let _ = socket2::SockRef::from(&to).set_linger(Some(Duration::ZERO));
            }
            break;
        }
        if now.holds {
            takes(ms(5));
            continue;
        }
        let most = if now.throttle > 0 { now.throttle } else { buffer.len() };
        match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(_) if swallows || now.swallows => swallows = true,
            Ok(read) => {
                if now.delay > 0 {
                    takes(ms(now.delay));
                }
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Panics when it is told to; hands on what it hears.
struct Fragile(Sender<Event>);

impl Handler for Fragile {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        let panics = message.as_text() == Some("panic");
        self.0.send(Event::Message(message.to_message())).unwrap();
        assert!(!panics, "told to");
    }
    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        self.0.send(event).unwrap();
    }
}

/// What one client's user knows at the end.
#[derive(Default)]
struct Ledger {
    /// Numbers accepted, with the connections that each may have been accepted for.
    sent: HashMap<u64, RangeInclusive<u64>>,
    posted: HashMap<RequestId, u64>,
    asked: Vec<(u64, PendingResponse)>,
}

#[derive(Default)]
struct Heard {
    unsent: Vec<Message>,
    uncertain: Vec<Message>,
    responses: Vec<Response>,
    ticks: HashMap<String, u64>,
}

impl Heard {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Message(message) => {
                let Some((peer, tick)) = message.as_text().and_then(|text| text.strip_prefix("t:")?.split_once(':'))
                else {
                    return;
                };
                let next = self.ticks.entry(peer.to_owned()).or_default();
                assert_eq!(tick.parse::<u64>().unwrap(), *next, "a tick of connection {peer} is missing or twice");
                *next += 1;
            }
            Event::Disconnected { unsent, uncertain, .. }
            | Event::Closed { unsent, uncertain, .. }
            | Event::Parked { unsent, uncertain, .. } => {
                self.unsent.extend(unsent);
                self.uncertain.extend(uncertain);
            }
            Event::Response(response) | Event::LateResponse(response) => self.responses.push(*response),
            Event::Lagged { .. } | Event::Collapsed { .. } => panic!("{event:?}"),
            _ => {}
        }
    }

    fn hear_back(&mut self, back: HandedBack) {
        assert_eq!(back.dropped, 0);
        self.unsent.extend(back.unsent);
        self.uncertain.extend(back.uncertain);
        self.responses.extend(back.responses);
    }
}

fn number(message: &Message) -> u64 {
    let value: Value = serde_json::from_str(message.as_text().unwrap()).unwrap();
    value["n"].as_u64().or(value["params"][0].as_u64()).unwrap()
}

/// Ticks numbered on each connection, and an answer to each request.
fn venue() -> Script {
    let ticks: Mutex<HashMap<usize, u64>> = Mutex::default();
    Script::reply(|_, message| {
        let value: Value = serde_json::from_str(message.as_text().unwrap()).unwrap();
        match value["id"].is_null() {
            true => vec![],
            false => vec![json!({"id": value["id"], "result": value["params"]}).to_string().into()],
        }
    })
    .every(ms(7), move |peer| {
        let mut ticks = ticks.lock();
        let next = ticks.entry(peer.index).or_default();
        *next += 1;
        vec![format!("t:{}:{}", peer.index, *next - 1).into()]
    })
}

struct Desk {
    client: Client,
    events: Receiver<Event>,
    heard: Heard,
    server: Arc<Server>,
}

fn act(dice: &mut fastrand::Rng, client: &Client, numbers: &AtomicU64, ledger: &mut Ledger) {
    let n = numbers.fetch_add(1, Ordering::Relaxed);
    let request = || Request::new("ask", [n]).timeout(ms(300));
    match dice.u8(0..10) {
        0..=5 => {
            let before = client.epoch();
            let pad = "x".repeat(dice.usize(0..2_000));
            if client.send(json!({"n": n, "pad": pad}).to_string()).is_ok() {
                ledger.sent.insert(n, before..=client.epoch());
            }
        }
        6..=7 => {
            if let Ok(id) = client.post(request()) {
                assert!(ledger.posted.insert(id, n).is_none(), "an id twice");
            }
        }
        8 => ledger.asked.extend(client.start_request(request()).ok().map(|pending| (n, pending))),
        _ => std::thread::park_timeout(ms(dice.u64(0..4))),
    }
}

fn descriptors_and_threads() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).map_or(0, Iterator::count);
    (count("/proc/self/fd"), count("/proc/self/task"))
}

fn chaos(seed: u64, lasts: Duration) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let (plain, tls) = (Arc::new(Server::start(venue()).unwrap()), Arc::new(Server::start_tls(venue()).unwrap()));
    let proxies = [Proxy::to(plain.address()), Proxy::to(tls.address())];
    let supervisor = Supervisor::builder().intensity(2, Duration::from_secs(2)).start().unwrap();
    let (shared, of_many) = Delivery::shared();
    let mut desks = vec![];
    let mut shared_desks = HashMap::new();
    for (server, proxy) in [(&plain, &proxies[0]), (&tls, &proxies[1])] {
        for way in 0..3 {
            let (heard, hears) = unbounded();
            let scheme = if server.ca_pem().is_empty() { "ws" } else { "wss" };
            let mut config = ClientConfig::new(format!("{scheme}://{}/", proxy.address)).unwrap();
            if scheme == "wss" {
                config = config.root_certificate(server.ca_pem()).tls(common::tls());
            }
            let tap = heard.clone();
            config = config
                .backoff(ms(5), ms(50))
                .connect_timeout(ms(800))
                .heartbeat(Heartbeat::ping_pong(ms(150)))
                .close_timeout(Duration::from_secs(3))
                .on_open(|session| session.send(json!({"epoch": session.epoch()}).to_string()))
                .delivery(match way {
                    0 => Delivery::channel(),
                    1 => shared.clone(),
                    _ => Delivery::inline(move || Fragile(tap.clone())),
                });
            let client = supervisor.spawn_client(config).unwrap();
            let events = if way == 0 { client.events() } else { hears };
            if way == 1 {
                shared_desks.insert(client.id(), heard);
            }
            desks.push(Desk { client, events, heard: Heard::default(), server: server.clone() });
        }
    }
    drop(shared);
    let sorter = std::thread::spawn(move || {
        for event in of_many {
            shared_desks[&event.client].send(event.event).unwrap();
        }
    });

    let (numbers, over) = (AtomicU64::new(1), AtomicBool::new(false));
    let mut ledgers: Vec<Ledger> = std::thread::scope(|scope| {
        let actors: Vec<_> = desks
            .iter()
            .map(|Desk { client, .. }| {
                let (numbers, over, client, mut dice) = (&numbers, &over, client.clone(), dice.fork());
                scope.spawn(move || {
                    let mut ledger = Ledger::default();
                    while !over.load(Ordering::Relaxed) {
                        act(&mut dice, &client, numbers, &mut ledger);
                    }
                    ledger
                })
            })
            .collect();
        let readers: Vec<_> = desks
            .iter_mut()
            .map(|Desk { events, heard, .. }| {
                let over = &over;
                let events = events.clone();
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        events.recv_timeout(ms(20)).into_iter().for_each(|event| heard.hear(event));
                    }
                })
            })
            .collect();
        let ends = Instant::now() + lasts;
        while Instant::now() < ends {
            std::thread::park_timeout(ms(dice.u64(5..60)));
            let proxy = &proxies[dice.usize(0..2)];
            let mut weather = proxy.weather.lock();
            match dice.u8(0..12) {
                0 => weather.ends += 1,
                1 => weather.ends += 2,
                2 => weather.swallows = dice.u8(0..3) == 0,
                3 => weather.holds = dice.u8(0..3) == 0,
                4 => weather.delay = dice.u64(0..8),
                5 => weather.throttle = if dice.bool() { dice.usize(1..400) } else { 0 },
                6 => {
                    [&plain, &tls][dice.usize(0..2)].push("panic");
                }
                7 => {
                    [&plain, &tls][dice.usize(0..2)].close_all(1001, "maintenance");
                }
                8..=9 => {
                    drop(weather);
                    for info in supervisor.list_clients() {
                        match dice.u8(0..8) {
                            _ if info.phase == ClientPhase::Parked => drop(supervisor.resume_client(info.id)),
                            0 => drop(supervisor.restart_client(info.id)),
                            1 => supervisor.client(&info.name).unwrap().reconnect(),
                            _ => {}
                        }
                    }
                }
                _ => *weather = Weather { ends: weather.ends, ..Weather::default() },
            }
        }
        over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        actors.into_iter().map(|actor| actor.join().unwrap()).collect()
    });

    // To rest: the sky is clear, and each client closes in good order. A line of which something was swallowed carries
    // nothing any more, though the client has yet to find that out: an answer says that this is not such a one.
    for proxy in &proxies {
        let mut weather = proxy.weather.lock();
        *weather = Weather { ends: weather.ends, ..Weather::default() };
    }
    let mut last_epochs = vec![];
    for Desk { client, .. } in &desks {
        eventually("open again, on a line that carries", || {
            let _ = supervisor.resume_client(client.id());
            let epoch = client.epoch();
            let asked = client.start_request(Request::new("ask", [0]).timeout(ms(300)));
            let answers =
                asked.is_ok_and(|asked| asked.receiver().recv_timeout(LONG).is_ok_and(|it| it.outcome.is_ok()));
            (answers && client.epoch() == epoch).then(|| last_epochs.push(epoch)).is_some()
        });
    }
    let alerts = supervisor.events();
    assert!(supervisor.shutdown(LONG).left_behind.is_empty());
    let mut by_client: HashMap<ClientId, usize> = HashMap::new();
    by_client.extend(desks.iter().enumerate().map(|(index, desk)| (desk.client.id(), index)));
    for event in alerts.try_iter() {
        if let SupervisorEvent::Parked { client, handed_back, .. }
        | SupervisorEvent::Closed { client, handed_back, .. } = event
        {
            desks[by_client[&client]].heard.hear_back(handed_back);
        }
    }
    sorter.join().unwrap();
    for (index, Desk { client, events, mut heard, server }) in desks.into_iter().enumerate() {
        events.try_iter().for_each(|event| heard.hear(event));
        let ledger = std::mem::take(&mut ledgers[index]);
        check(index, &client, heard, &server, ledger, last_epochs[index]);
    }
}

/// One client's account against what its server has.
fn check(index: usize, client: &Client, heard: Heard, server: &Server, ledger: Ledger, last_epoch: u64) {
    let Heard { unsent, uncertain, responses, .. } = heard;
    let stats = client.stats();
    assert_eq!(stats.accepted, stats.sent + stats.unsent, "{index}: {stats:?}");
    let (unsent, uncertain): (Vec<_>, Vec<_>) =
        (unsent.iter().map(number).collect(), uncertain.iter().map(number).collect());
    let back: HashSet<_> = unsent.iter().chain(&uncertain).copied().collect();
    assert_eq!(back.len(), unsent.len() + uncertain.len(), "{index}: handed back twice");
    let unsent: HashSet<_> = unsent.into_iter().collect();
    // Three clients share a server, and numbers are unlike: a connection is this one's if it brought one of its numbers.
    let mut came: BTreeMap<u64, u64> = BTreeMap::new();
    for record in server.records() {
        let mut messages = record.received.iter();
        let Some(first) = messages.next() else { continue };
        let first: Value = serde_json::from_str(first.as_text().unwrap()).unwrap();
        let epoch = first["epoch"].as_u64().expect("the first word on a connection");
        for message in messages {
            let n = number(message);
            let ours = ledger.sent.contains_key(&n);
            assert!(!ours || came.insert(n, epoch).is_none(), "{index}: {n} came twice");
        }
    }
    for (n, epochs) in &ledger.sent {
        match came.get(n) {
            Some(epoch) => {
                assert!(!unsent.contains(n), "{index}: {n} came and was handed back as unsent");
                assert!(epochs.contains(epoch), "{index}: {n} was accepted for {epochs:?} and came on {epoch}");
            }
            // Written, and lost with a connection that was cut on its way.
            None => {
                let told = back.contains(n);
                assert!(told || *epochs.start() < last_epoch, "{index}: {n} of the last connection vanished");
            }
        }
    }
    let mut ended: HashMap<RequestId, usize> = HashMap::new();
    let late = ledger.asked.iter().map(|(_, pending)| pending.id().clone()).collect::<HashSet<_>>();
    for response in responses {
        if let Ok(result) = &response.outcome {
            let told: Vec<u64> = result.clone().decode().unwrap();
            if let Some(n) = ledger.posted.get(&response.id) {
                assert_eq!(told, [*n], "{index}: another's answer");
            }
        }
        if !late.contains(&response.id) {
            *ended.entry(response.id).or_default() += 1;
        }
    }
    for id in ledger.posted.keys() {
        // A late answer may follow the end of its time.
        let times = ended.get(id).copied().unwrap_or_default();
        assert!((1..=2).contains(&times), "{index}: request {id} ended {times} times");
    }
    for (n, pending) in ledger.asked {
        let response = pending.receiver().recv_timeout(LONG).expect("a response");
        assert!(pending.receiver().try_recv().is_err(), "one response");
        if let Ok(result) = response.outcome {
            assert_eq!(result.decode::<Vec<u64>>().unwrap(), [n]);
        }
    }
}

#[test]
fn whatever_happens_every_message_and_request_has_an_account() {
    let setting = |name| std::env::var(name).ok().and_then(|value: String| value.parse().ok());
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    let lasts = Duration::from_secs(setting("CHAOS_SECONDS").unwrap_or(10));
    println!("SEED={seed}");
    let before = descriptors_and_threads();
    chaos(seed, lasts);
    eventually("threads and descriptors come back", || {
        let now = descriptors_and_threads();
        now.0 <= before.0 + 2 && now.1 <= before.1 + 2
    });
}
