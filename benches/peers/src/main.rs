//! ws-supervisor beside other WebSocket clients: the yardstick first, then each peer, interleaved in one run.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml` prints a table; `-- --rounds N` takes the medians of so
//! many rounds (default 5), `-- --only TEXT` leaves out rows whose key does not begin so, `-- --json` ends with one JSON
//! object. Every client runs on the second core, the server, which is a bare socket (or one of native-tls), on the
//! first. boomnet has one TLS library at a time: `--no-default-features --features boomnet-rustls` takes the other.

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

use peers::{CLIENT_FRAME, FLOOD_SIZE, Job, PEERS, Peer, SIZE, TLS_PEERS};
use rig::{BoxStream, Contender, Note, Times, Wire, server_frame};
use table::Table;

const SAMPLES: usize = 3000;
const MESSAGES: usize = 400_000;

/// How the server writes a flood.
#[derive(Clone, Copy, PartialEq)]
enum Writes {
    /// As much as fits: full records under TLS.
    Packed,
    /// Each message in a record of its own.
    Records,
}

fn main() {
    let (mut json, mut only, mut rounds) = (false, String::new(), 5);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--only" => only = args.next().expect("`--only` needs a text"),
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).expect("`--rounds` needs a number"),
            other => panic!("`{other}` is not an option: try --json, --only TEXT, --rounds N"),
        }
    }
    rig::remember_cores();
    let (plain, tls) = (Wire::plain(), Wire::tls());
    let mut table = Table::new(only);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        std::thread::scope(|scope| {
            // A thread of its own, so that those it starts are not pinned with it.
            scope.spawn(|| {
                rig::pin(rig::first_core());
                measure(&plain, &mut table);
                measure_tls(&tls, &mut table);
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
        let raw = || trade(raw_server(wire, spin, |stream, payload| stream.write_all(payload).is_ok()), SIZE, true);
        latencies(table, "tick_to_trade", (against, &raw), peers(), |peer| {
            trade(start(wire, peer, Job::Answer), CLIENT_FRAME, false)
        });
        let raw = || {
            let note = Note::new();
            let noted = note.clone();
            let put = move |_: &mut BoxStream, _: &[u8]| {
                noted.put();
                true
            };
            one_way(raw_server(wire, spin, put), &note, true)
        };
        latencies(table, "server_to_handler", (against, &raw), peers(), |peer| {
            let note = Note::new();
            one_way(start(wire, peer, Job::Note(note.clone())), &note, false)
        });
    }
    floods(table, wire, "flood", PEERS, "tungstenite", Writes::Packed);
}

fn measure_tls(wire: &Wire, table: &mut Table) {
    for spin in [false, true] {
        let yardstick = if spin { "raw_openssl_spinning" } else { "raw_openssl" };
        let raw = || trade(start(wire, named(TLS_PEERS, yardstick), Job::Answer), CLIENT_FRAME, false);
        let peers = TLS_PEERS.iter().filter(|peer| peer.spins == spin && peer.name != yardstick);
        latencies(table, "tls_tick_to_trade", (yardstick, &raw), peers, |peer| {
            trade(start(wire, peer, Job::Answer), CLIENT_FRAME, false)
        });
    }
    floods(table, wire, "tls_flood", TLS_PEERS, "tungstenite", Writes::Packed);
    floods(table, wire, "tls_records", TLS_PEERS, "tungstenite", Writes::Records);
}

fn named(peers: &'static [Peer], name: &str) -> &'static Peer {
    peers.iter().find(|peer| peer.name == name).expect("a yardstick")
}

/// A row for each peer. The yardstick is measured again beside each of them, so that what the machine does meanwhile hits
/// both.
fn latencies<'a>(
    table: &mut Table,
    what: &str,
    (against, yardstick): (&'static str, &dyn Fn() -> Times),
    peers: impl Iterator<Item = &'a Peer>,
    measure: impl Fn(&Peer) -> Times,
) {
    for peer in peers {
        let key = format!("{what}_{}", peer.name);
        if table.wants(&key) {
            eprintln!("  {key}");
            let (other, ours) = (yardstick(), measure(peer));
            table.latency(&key, against, &other, &ours);
        }
    }
}

fn floods(table: &mut Table, wire: &Wire, what: &str, peers: &'static [Peer], yardstick: &'static str, writes: Writes) {
    for peer in peers.iter().filter(|peer| peer.name != yardstick) {
        let key = format!("{what}_{}", peer.name);
        if table.wants(&key) {
            eprintln!("  {key}");
            let (other, ours) = (flood(wire, named(peers, yardstick), writes), flood(wire, peer, writes));
            table.rate(&key, yardstick, other, ours);
        }
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
    let (is_over, wire_of_client) = (over.clone(), wire.clone());
    let on_second_core = move |url| {
        std::thread::spawn(move || {
            rig::pin(rig::second_core());
            run(&wire_of_client, url, job, &is_over);
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

fn flood(wire: &Wire, peer: &Peer, writes: Writes) -> f64 {
    let frames = if writes == Writes::Packed { (256 << 10) / FLOOD_SIZE } else { 1 };
    let chunk = server_frame(FLOOD_SIZE).repeat(frames);
    let messages = MESSAGES.div_ceil(frames) * frames;
    let (sender, done) = channel();
    let mut served = start(wire, peer, Job::Count { left: messages, done: sender });
    let server = served.server();
    // A record for each costs its maker more than its reader: they are made beforehand.
    if writes == Writes::Records {
        server.hold();
        (0..messages).for_each(|_| server.write_all(&chunk).expect("a record"));
    }
    let begun = Instant::now();
    match writes {
        Writes::Records => server.release(),
        Writes::Packed => (0..messages / frames).for_each(|_| server.write_all(&chunk).expect("a flood")),
    }
    done.recv().expect("all of it");
    messages as f64 / begun.elapsed().as_secs_f64()
}
