//! What the library costs on the way: ours beside raw TCP and bare tungstenite, interleaved in one run, as ratios.
//!
//! `cargo bench --bench latency` prints a table; with `-- --json` the last line is one JSON object with a key for each
//! row. `--only TEXT` measures the rows whose key begins so, `--rounds N` takes the medians of so many rounds
//! (default 5), `--clients N` is the number of idle clients (default 5000; 0 leaves out all rows of many clients, which
//! take a minute and need Linux). The exit status is 1 when a caller's send to a sleeping worker costs more than 4 times a bare write.

#[cfg(target_os = "linux")] // epoll, and the process's figures in /proc
mod fleet;
#[cfg(target_os = "linux")]
mod fleet_server;
mod flood;
mod one_way;
mod recovery;
#[allow(dead_code)] // the benchmark of the peers shares it
mod rig;
mod round_trip;
mod table;

use rig::{Contender, Times, Wire};
use table::Table;
use ws_supervisor::IdleStrategy;

use crate::flood::{Counts, Flood, Writes};

const SAMPLES: usize = 3000;
const MESSAGES: usize = 400_000;
const SEND_BOUND: f64 = 4.0;
const RECOVERIES: usize = 300;

const PARK: Contender = Contender::Ours(IdleStrategy::Park);
const SPIN: Contender = Contender::Ours(IdleStrategy::BusySpin);

type OneWay = fn(&Wire, Contender, usize) -> Times;

fn main() {
    let (mut json, mut only, mut rounds, mut clients) = (false, String::new(), 5, 5000);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--only" => only = args.next().expect("`--only` needs a text"),
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).expect("`--rounds` needs a number"),
            "--clients" => clients = args.next().and_then(|n| n.parse().ok()).expect("`--clients` needs a number"),
            #[cfg(target_os = "linux")]
            "--serve" => {
                let port = args.next().and_then(|n| n.parse().ok()).expect("`--serve` needs a port");
                return fleet_server::serve(port);
            }
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => panic!("`{other}` is not an option: try --json, --only TEXT, --rounds N, --clients N"),
        }
    }
    rig::remember_cores();
    let mut table = Table::new(only);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        measure(&mut table);
    }
    #[cfg(not(target_os = "linux"))]
    eprintln!("the rows of {clients} clients need Linux: left out");
    #[cfg(target_os = "linux")]
    if clients > 0 {
        fleet::idle(&mut table, clients);
        fleet::punctuality(&mut table, clients);
    }
    println!("medians of {rounds} interleaved rounds; 64 bytes of text on loopback where no size is given");
    table.print();
    if json {
        println!("{}", table.json());
    }
    let send = table.ratio("caller_to_server_park");
    std::process::exit(i32::from(send.is_some_and(|ratio| ratio > SEND_BOUND)));
}

fn measure(table: &mut Table) {
    let plain = Wire::plain();
    let raw = |spin| (Contender::Raw { spin }, "raw TCP");
    let bare = |spin| (Contender::Bare { spin }, "tungstenite");
    let latencies: [(&str, OneWay, Contender, (Contender, &str)); 9] = [
        ("tick_to_trade_park", round_trip::tick_to_trade, PARK, raw(false)),
        ("tick_to_trade_busy_spin", round_trip::tick_to_trade, SPIN, raw(true)),
        ("tick_to_trade_tungstenite", round_trip::tick_to_trade, bare(false).0, raw(false)),
        ("server_to_handler_park", one_way::to_handler, PARK, raw(false)),
        ("server_to_handler_busy_spin", one_way::to_handler, SPIN, raw(true)),
        ("server_to_caller_park", one_way::to_caller, PARK, raw(false)),
        ("server_to_caller_busy_spin", one_way::to_caller, SPIN, raw(true)),
        ("caller_to_server_park", one_way::to_server, PARK, bare(false)),
        ("caller_to_server_busy_spin", one_way::to_server, SPIN, bare(false)),
    ];
    for (key, way, ours, against) in latencies {
        latency(table, key, &plain, way, ours, against);
    }
    let packed = |counts, size| Flood { counts, size, writes: Writes::Packed };
    for (key, flood) in [
        ("flood_128_inline", packed(Counts::Handler, 128)),
        ("flood_128_kept", packed(Counts::Keeper, 128)),
        ("flood_1024_inline", packed(Counts::Handler, 1024)),
        ("flood_128_channel", packed(Counts::Caller, 128)),
        ("flood_128_batches", packed(Counts::CallerOfBatches, 128)),
    ] {
        rate(table, key, &plain, flood, bare(false));
    }
    let key = "flood_128_channel_alone";
    if table.wants(key) {
        eprintln!("  {key}");
        let ours = flood::flood(&plain, PARK, packed(Counts::Caller, 128), MESSAGES);
        table.rate(key, "crossbeam", flood::channel_alone(128, MESSAGES), ours);
    }
    rate(table, "flood_128_raw", &plain, packed(Counts::Handler, 128), raw(false));
    rate(table, "flood_1024_raw", &plain, packed(Counts::Handler, 1024), raw(false));
    #[cfg(feature = "record")]
    recorded(table, &plain);
    let key = "panic_to_open";
    if table.wants(key) {
        eprintln!("  {key}");
        let (bare, ours) = (recovery::bare(RECOVERIES), recovery::ours(RECOVERIES));
        table.latency(key, "connect", &bare, &ours);
    }
    let tls = Wire::tls();
    let latencies: [(&str, OneWay, Contender, (Contender, &str)); 8] = [
        ("tls_tick_to_trade_park", round_trip::tick_to_trade, PARK, bare(false)),
        ("tls_tick_to_trade_busy_spin", round_trip::tick_to_trade, SPIN, bare(true)),
        ("tls_server_to_handler_park", one_way::to_handler, PARK, bare(false)),
        ("tls_server_to_handler_busy_spin", one_way::to_handler, SPIN, bare(true)),
        ("tls_server_to_caller_park", one_way::to_caller, PARK, bare(false)),
        ("tls_server_to_caller_busy_spin", one_way::to_caller, SPIN, bare(true)),
        ("tls_caller_to_server_park", one_way::to_server, PARK, bare(false)),
        ("tls_caller_to_server_busy_spin", one_way::to_server, SPIN, bare(false)),
    ];
    for (key, way, ours, against) in latencies {
        latency(table, key, &tls, way, ours, against);
    }
    for (key, flood) in [
        ("tls_flood_128_inline", packed(Counts::Handler, 128)),
        ("tls_flood_1024_inline", packed(Counts::Handler, 1024)),
        ("tls_flood_128_channel", packed(Counts::Caller, 128)),
        ("tls_flood_128_batches", packed(Counts::CallerOfBatches, 128)),
    ] {
        rate(table, key, &tls, flood, bare(false));
    }
    // Most venues send each message in a record of its own.
    let one_by_one = Flood { counts: Counts::Handler, size: 128, writes: Writes::OneByOne };
    rate(table, "tls_flood_128_records", &tls, one_by_one, (Contender::Raw { spin: false }, "raw read"));
    let rustls = Wire::rustls();
    for (key, ours, spin) in
        [("rustls_tick_to_trade_park", PARK, false), ("rustls_tick_to_trade_busy_spin", SPIN, true)]
    {
        let over_openssl = (Contender::Bare { spin }, "tungstenite");
        latency(table, key, &rustls, round_trip::tick_to_trade, ours, over_openssl);
    }
    rate(table, "rustls_flood_128_inline", &rustls, packed(Counts::Handler, 128), bare(false));
    rate(table, "rustls_flood_128_records", &rustls, one_by_one, bare(false));
}

/// The two contenders in slices of one another's time, so that what the machine does meanwhile hits both.
fn latency(
    table: &mut Table,
    key: &'static str,
    wire: &Wire,
    way: OneWay,
    ours: Contender,
    against: (Contender, &'static str),
) {
    if table.wants(key) {
        eprintln!("  {key}");
        let on_first_core = |contender| {
            std::thread::scope(|scope| {
                let measured = scope.spawn(|| {
                    rig::pin(rig::first_core());
                    way(wire, contender, SAMPLES)
                });
                measured.join().expect("a measurement")
            })
        };
        let (other, ours) = (on_first_core(against.0), on_first_core(ours));
        table.latency(key, against.1, &other, &ours);
    }
}

/// Ours with a recorder against ours without.
#[cfg(feature = "record")]
fn recorded(table: &mut Table, plain: &Wire) {
    let path = std::env::temp_dir().join(format!("ws-bench-{}.jsonl", std::process::id()));
    let wire = Wire::recorded(&path);
    for (key, contender) in [("recorded_tick_to_trade_park", PARK), ("recorded_tick_to_trade_busy_spin", SPIN)] {
        if table.wants(key) {
            eprintln!("  {key}");
            let (without, with) = (
                round_trip::tick_to_trade(plain, contender, SAMPLES),
                round_trip::tick_to_trade(&wire, contender, SAMPLES),
            );
            table.latency(key, "unrecorded", &without, &with);
        }
    }
    let flood = Flood { counts: Counts::Handler, size: 128, writes: Writes::Packed };
    let key = "recorded_flood_128_inline";
    if table.wants(key) {
        eprintln!("  {key}");
        let (without, with) = (flood::flood(plain, PARK, flood, MESSAGES), flood::flood(&wire, PARK, flood, MESSAGES));
        table.rate(key, "unrecorded", without, with);
    }
    drop(wire);
    let _ = std::fs::remove_file(path);
}

fn rate(table: &mut Table, key: &'static str, wire: &Wire, flood: Flood, against: (Contender, &'static str)) {
    if table.wants(key) {
        eprintln!("  {key}");
        let other = flood::flood(wire, against.0, flood, MESSAGES);
        let ours = flood::flood(wire, PARK, flood, MESSAGES);
        table.rate(key, against.1, other, ours);
    }
}
