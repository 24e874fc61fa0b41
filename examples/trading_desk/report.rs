//! What is shown: lines while it runs, a table and a JSON object at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ws_supervisor::{Client, Event, ReadyState, Stats, SupervisorEvent};

use crate::exchange::Exchange;
use crate::ledger::Ledger;

/// Prints lines with the time since the start; to stderr when stdout is for JSON.
#[derive(Clone)]
pub struct Screen {
    begun: Arc<Instant>,
    json: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Self { begun: Arc::new(Instant::now()), json }
    }

    pub fn wait_until(&self, time: Duration) {
        std::thread::sleep(time.saturating_sub(self.begun.elapsed()));
    }

    fn line(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    pub fn say(&self, who: &str, what: impl AsRef<str>) {
        let time = self.begun.elapsed().as_secs_f64();
        self.line(&format!("[{time:7.3}s] {who:<13} {}", what.as_ref()));
    }

    pub fn tell(&self, who: &str, event: &Event) {
        let what = match event {
            Event::Open { epoch, .. } => format!("open, connection {epoch}"),
            Event::Disconnected { epoch, reason, unsent, .. } => {
                format!("connection {epoch} ended: {reason}; {} messages handed back", unsent.len())
            }
            Event::ConnectFailed { error, retry_in: Some(wait), .. } => {
                format!("{error}; next attempt in {:.0} ms", wait.as_secs_f64() * 1e3)
            }
            Event::ConnectFailed { error, .. } => error.to_string(),
            Event::Restarted { reason, restarts, .. } => format!("restarted ({reason}), {restarts} in all"),
            Event::Lagged { dropped, .. } => format!("{dropped} messages dropped"),
            Event::Parked { reason, .. } => format!("parked: {reason}"),
            Event::Closed { reason, .. } => format!("closed: {reason}"),
            other => format!("{other:?}"),
        };
        self.say(who, what);
    }

    pub fn alert(&self, event: &SupervisorEvent) {
        let what = match event {
            SupervisorEvent::Restarted { name, reason, .. } => format!("restarted {name}: {reason}"),
            SupervisorEvent::Parked { name, reason, .. } => format!("gave up on {name}: {reason}"),
            other => format!("{other:?}"),
        };
        self.say("supervisor", what);
    }

    pub fn json(&self, value: &Value) {
        if self.json {
            println!("{value}");
        }
    }
}

pub struct FaultReport {
    pub kind: &'static str,
    pub client: String,
    pub recovered_in: Duration,
}

struct Row {
    name: String,
    state: ReadyState,
    stats: Stats,
}

impl Row {
    fn new(client: &Client) -> Self {
        Self { name: client.name().to_owned(), state: client.ready_state(), stats: client.stats() }
    }

    fn json(&self) -> Value {
        let stats = &self.stats;
        json!({
            "name": self.name, "state": self.state.to_string().to_lowercase(), "epoch": stats.epoch,
            "reconnects": stats.reconnects, "restarts": stats.restarts, "received": stats.received,
            "sent": stats.sent, "unsent": stats.unsent, "heartbeats": stats.heartbeats,
        })
    }
}

fn table(screen: &Screen, rows: &[Row]) {
    screen.line("");
    screen.line(&format!(
        "{:<13} {:<8} {:>6} {:>11} {:>9} {:>9} {:>6} {:>7} {:>11}",
        "client", "state", "epoch", "reconnects", "restarts", "received", "sent", "unsent", "heartbeats"
    ));
    for Row { name, state, stats } in rows {
        screen.line(&format!(
            "{name:<13} {:<8} {:>6} {:>11} {:>9} {:>9} {:>6} {:>7} {:>11}",
            state.to_string(),
            stats.epoch,
            stats.reconnects,
            stats.restarts,
            stats.received,
            stats.sent,
            stats.unsent,
            stats.heartbeats
        ));
    }
    screen.line("");
}

/// The end of a run against the embedded exchange.
pub struct Report {
    rows: Vec<Row>,
    faults: Vec<FaultReport>,
    served: u64,
    missing: u64,
    wrong: u64,
    unaccounted: u64,
}

impl Report {
    pub fn new(exchange: &Exchange, clients: &[Client; 3], ledgers: &[Ledger], faults: Vec<FaultReport>) -> Self {
        let rows: Vec<_> = clients.iter().map(Row::new).collect();
        let served = exchange.servers().iter().flat_map(|server| server.records()).map(|record| record.served).sum();
        let missing = |index: usize| exchange.served_now(index).abs_diff(rows[index].stats.received_this_epoch);
        // deribit-prod and deribit-test send; binance only listens.
        let unaccounted = (0..3).map(|index| {
            let stats = &rows[index].stats;
            ledgers[index].total_accepted().abs_diff(stats.sent + stats.unsent)
        });
        Self {
            served,
            missing: (0..3).map(missing).sum(),
            wrong: ledgers.iter().map(Ledger::wrong).sum(),
            unaccounted: unaccounted.sum(),
            rows,
            faults,
        }
    }

    pub fn is_clean(&self) -> bool {
        let open = self.rows.iter().all(|row| row.state == ReadyState::Open);
        open && self.missing == 0 && self.wrong == 0 && self.unaccounted == 0
    }

    pub fn print(&self, screen: &Screen) {
        table(screen, &self.rows);
        let received: u64 = self.rows.iter().map(|row| row.stats.received).sum();
        let (served, missing) = (self.served, self.missing);
        screen.line(&format!(
            "The exchange served {served} messages, {received} arrived; {} were lost with connections that were cut, \
             {missing} on connections that stayed open.",
            served.saturating_sub(received + missing)
        ));
        if self.wrong > 0 {
            screen.line(&format!("{} messages were not what the recording holds.", self.wrong));
        }
        if self.unaccounted > 0 {
            screen.line(&format!("{} accepted messages were neither sent nor handed back.", self.unaccounted));
        }
        let faults = self.faults.iter().map(|fault| {
            let recovered_in_ms = (fault.recovered_in.as_secs_f64() * 1e5).round() / 1e2;
            json!({ "kind": fault.kind, "client": fault.client, "recovered_in_ms": recovered_in_ms })
        });
        screen.json(&json!({
            "clients": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "faults": faults.collect::<Vec<_>>(),
            "served": served,
            "received": received,
            "missing_on_open_connections": missing,
        }));
    }
}

/// The end of a run against a real server, of which we only know our own side.
pub fn print_real(screen: &Screen, client: &Client) {
    let row = Row::new(client);
    screen.json(&json!({
        "clients": [row.json()], "faults": [], "served": null, "received": row.stats.received,
        "missing_on_open_connections": null,
    }));
    table(screen, &[row]);
}
