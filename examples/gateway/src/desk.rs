//! A venue in this process: a flood of ticks, and an answer to each order.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ws_supervisor::Message;
use ws_supervisor::testing::{Script, Server};

pub struct Venue {
    server: Server,
    stopped: Arc<AtomicBool>,
}

/// Serves until it is killed.
pub fn serve(rate: usize) -> Result<(), Box<dyn std::error::Error>> {
    let placed = |order: &Value| {
        let label = &order["params"]["label"];
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{label}").and_then(|()| out.flush());
    };
    let venue = Venue::start_with(rate, placed)?;
    println!("{}", venue.url());
    loop {
        std::thread::park();
    }
}

impl Venue {
    /// So many messages a second.
    pub fn start(rate: usize) -> io::Result<Self> {
        Self::start_with(rate, |_| ())
    }

    fn start_with(rate: usize, placed: impl Fn(&Value) + Send + Sync + 'static) -> io::Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let (begun, sent, stop) = (Instant::now(), AtomicUsize::new(0), stopped.clone());
        let reply = move |_: &_, message: &Message| {
            let Some(Ok(order)) = message.as_text().map(serde_json::from_str::<Value>) else { return vec![] };
            placed(&order);
            let result = json!({ "order_id": format!("v{}", order["id"]), "state": "open" });
            vec![json!({ "jsonrpc": "2.0", "id": order["id"], "result": result }).to_string().into()]
        };
        let script = Script::reply(reply).every(Duration::from_millis(1), move |_| {
            if stop.load(Ordering::Relaxed) {
                return vec![];
            }
            let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
            let some = due.saturating_sub(sent.load(Ordering::Relaxed)).min(1_000);
            let first = sent.fetch_add(some, Ordering::Relaxed);
            (first..first + some)
                .map(|n| Message::text(format!(r#"{{"tick":{n},"price":"64123.5","amount":"0.01"}}"#)))
                .collect()
        });
        Ok(Self { server: Server::start(script)?, stopped })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
