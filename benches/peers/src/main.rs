//! ws-supervisor beside other WebSocket clients: raw TCP first, then each peer, interleaved in one run.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml` prints a table; `-- --rounds N` takes the medians of so
//! many rounds (default 5), `-- --json` ends with one JSON object. Every client runs on the second core, the server,
//! which is a bare socket, on the first.

#[allow(dead_code)]
#[path = "../../latency/rig.rs"]
mod rig;
#[allow(dead_code)]
#[path = "../../latency/table.rs"]
mod table;

mod peers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Instant;

use peers::{Job, PEERS, Peer};
use rig::{BoxStream, Contender, Note, Times, Wire, server_frame};
use table::Table;

const SIZE: usize = 64;
/// A client's frame has two bytes before the payload and four of the mask (RFC 6455 section 5.2).
const CLIENT_FRAME: usize = 6 + SIZE;
const FLOOD_SIZE: usize = 128;
const SAMPLES: usize = 3000;
const MESSAGES: usize = 400_000;

fn main() {
    let (mut json, mut rounds) = (false, 5);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).expect("`--rounds` needs a number"),
            other => panic!("`{other}` is not an option: try --json, --rounds N"),
        }
    }
    rig::remember_cores();
    let wire = Wire::plain();
    let mut table = Table::new(String::new());
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        std::thread::scope(|scope| {
            // A thread of its own, so that those it starts are not pinned with it.
            scope.spawn(|| {
                rig::pin(rig::first_core());
                measure(&wire, &mut table);
            });
        });
    }
    println!("medians of {rounds} interleaved rounds on loopback; {SIZE} bytes of text, the flood {FLOOD_SIZE}");
    table.print();
    if json {
        println!("{}", table.json());
    }
}

fn measure(wire: &Wire, table: &mut Table) {
    for spin in [false, true] {
        let against = if spin { "raw, spinning" } else { "raw, blocking" };
        let peers = || PEERS.iter().filter(move |peer| peer.spins == spin);
        let raw = trade(raw_server(wire, spin, |stream, payload| stream.write_all(payload).is_ok()), SIZE, true);
        for peer in peers() {
            let ours = trade(start(wire, peer, Job::Answer), CLIENT_FRAME, false);
            table.latency(&format!("tick_to_trade_{}", peer.name), against, &raw, &ours);
        }
        let note = Note::new();
        let noted = note.clone();
        let raw_noter = raw_server(wire, spin, move |_, _| {
            noted.put();
            true
        });
        let raw = one_way(raw_noter, &note, true);
        for peer in peers() {
            let note = Note::new();
            let ours = one_way(start(wire, peer, Job::Note(note.clone())), &note, false);
            table.latency(&format!("server_to_handler_{}", peer.name), against, &raw, &ours);
        }
    }
    let bare = PEERS.iter().find(|peer| peer.name == "tungstenite").expect("the yardstick");
    let bare = flood(wire, bare);
    for peer in PEERS.iter().filter(|peer| peer.name != "tungstenite") {
        table.rate(&format!("flood_{}", peer.name), "tungstenite", bare, flood(wire, peer));
    }
}

/// The server's end of a connection, and the thread of the client's. Dropping it ends both.
struct Served {
    server: Option<BoxStream>,
    over: Arc<AtomicBool>,
    client: Option<JoinHandle<()>>,
}

impl Served {
    fn server(&mut self) -> &mut BoxStream {
        self.server.as_mut().expect("until it is dropped")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server = None;
        self.over.store(true, Ordering::Relaxed);
        let _ = self.client.take().map(JoinHandle::join);
    }
}

/// Connected to `peer` on the second core.
fn start(wire: &Wire, peer: &Peer, job: Job) -> Served {
    let (run, over) = (peer.run, Arc::new(AtomicBool::new(false)));
    let is_over = over.clone();
    let on_second_core = move |url| {
        std::thread::spawn(move || {
            rig::pin(rig::second_core());
            run(url, job, &is_over);
        })
    };
    let (server, client) = wire.upgraded(on_second_core);
    Served { server: Some(server), over, client: Some(client) }
}

fn raw_server(wire: &Wire, spin: bool, mut job: impl FnMut(&mut BoxStream, &[u8]) -> bool + Send + 'static) -> Served {
    let talk = move |peer| {
        let rig::Peer::Raw(mut stream) = peer else { unreachable!("it is raw") };
        let mut buffer = [0; SIZE];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) if !job(&mut stream, &buffer[..read]) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    };
    let (server, client) = wire.served(Contender::Raw { spin }, talk);
    Served { server: Some(server), over: Arc::default(), client: Some(client) }
}

fn tick(raw: bool) -> Vec<u8> {
    if raw { vec![b't'; SIZE] } else { server_frame(SIZE) }
}

fn trade(mut served: Served, answer: usize, raw: bool) -> Times {
    let (tick, mut buffer, server) = (tick(raw), vec![0; answer], served.server());
    Times::measure(SAMPLES, || {
        let begun = Instant::now();
        server.write_all(&tick).expect("a tick");
        server.read_exact(&mut buffer).expect("an order");
        begun.elapsed().as_secs_f64() * 1e6
    })
}

fn one_way(mut served: Served, note: &Note, raw: bool) -> Times {
    let (tick, server) = (tick(raw), served.server());
    Times::measure(SAMPLES, || {
        let begun = note.now();
        server.write_all(&tick).expect("a tick");
        (note.take() - begun) as f64 / 1e3
    })
}

fn flood(wire: &Wire, peer: &Peer) -> f64 {
    let frames = (256 << 10) / FLOOD_SIZE;
    let chunk = server_frame(FLOOD_SIZE).repeat(frames);
    let messages = MESSAGES.div_ceil(frames) * frames;
    let (sender, done) = channel();
    let mut served = start(wire, peer, Job::Count { left: messages, done: sender });
    let (server, begun) = (served.server(), Instant::now());
    for _ in 0..messages / frames {
        server.write_all(&chunk).expect("a flood");
    }
    done.recv().expect("all of it");
    messages as f64 / begun.elapsed().as_secs_f64()
}
