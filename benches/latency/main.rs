//! What the library costs on the way: ours beside raw TCP and bare tungstenite, interleaved in one run, as ratios.
//!
//! `cargo bench --bench latency` prints a table; with `-- --json` the last line is one JSON object. The exit status is 1
//! when the median ratio of a caller's send to a sleeping worker is above 4.

mod round_trip;
mod to_server;

use serde_json::{Map, Value, json};
use ws_supervisor::IdleStrategy;

const ROUNDS: usize = 5;
const SEND_BOUND: f64 = 4.0;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One row: ours and what it is measured against, in µs, of each round.
struct Row {
    name: &'static str,
    against: &'static str,
    rounds: Vec<(f64, f64)>,
}

impl Row {
    fn new(name: &'static str, against: &'static str) -> Self {
        Self { name, against, rounds: vec![] }
    }

    fn ratio(&self) -> f64 {
        median(self.rounds.iter().map(|(other, ours)| ours / other).collect())
    }

    fn medians(&self) -> (f64, f64) {
        let (other, ours) = self.rounds.iter().copied().unzip();
        (median(other), median(ours))
    }

    fn print(&self) {
        let (other, ours) = self.medians();
        let (name, against, ratio) = (self.name, self.against, self.ratio());
        println!("{name:<42} {ours:7.1} µs   {against:<18} {other:7.1} µs   ratio {ratio:.2}");
    }

    fn json(&self) -> Value {
        let (other, ours) = self.medians();
        json!({ "ours_us": ours, "against": self.against, "against_us": other, "ratio": self.ratio() })
    }
}

fn main() {
    let mut send_park = Row::new("caller to server, Park, p50", "tungstenite write");
    let mut send_spin = Row::new("caller to server, BusySpin, p50", "tungstenite write");
    let mut trade_park = Row::new("tick to trade, inline, Park, p50", "raw blocking TCP");
    let mut trade_park_99 = Row::new("tick to trade, inline, Park, p99", "raw blocking TCP");
    let mut trade_bare = Row::new("tick to trade, bare tungstenite, p50", "raw blocking TCP");
    let mut trade_spin = Row::new("tick to trade, inline, BusySpin, p50", "raw spinning TCP");
    let mut trade_spin_99 = Row::new("tick to trade, inline, BusySpin, p99", "raw spinning TCP");
    for _ in 0..ROUNDS {
        let bare = to_server::bare();
        send_park.rounds.push((bare, to_server::ours(IdleStrategy::Park)));
        send_spin.rounds.push((bare, to_server::ours(IdleStrategy::BusySpin)));
        let (raw, ours) = (round_trip::raw(false), round_trip::ours(IdleStrategy::Park));
        trade_park.rounds.push((raw.percentile(50), ours.percentile(50)));
        trade_park_99.rounds.push((raw.percentile(99), ours.percentile(99)));
        trade_bare.rounds.push((raw.percentile(50), round_trip::bare().percentile(50)));
        let (raw, ours) = (round_trip::raw(true), round_trip::ours(IdleStrategy::BusySpin));
        trade_spin.rounds.push((raw.percentile(50), ours.percentile(50)));
        trade_spin_99.rounds.push((raw.percentile(99), ours.percentile(99)));
    }
    let rows = [
        ("caller_to_server_park", &send_park),
        ("caller_to_server_busy_spin", &send_spin),
        ("tick_to_trade_park", &trade_park),
        ("tick_to_trade_park_p99", &trade_park_99),
        ("tick_to_trade_tungstenite", &trade_bare),
        ("tick_to_trade_busy_spin", &trade_spin),
        ("tick_to_trade_busy_spin_p99", &trade_spin_99),
    ];
    println!("medians of {ROUNDS} interleaved rounds, 64 bytes of text on loopback");
    rows.iter().for_each(|(_, row)| row.print());
    if std::env::args().any(|arg| arg == "--json") {
        let all: Map<String, Value> = rows.iter().map(|(key, row)| ((*key).to_owned(), row.json())).collect();
        println!("{}", Value::Object(all));
    }
    std::process::exit(i32::from(send_park.ratio() > SEND_BOUND));
}
