//! One order book, kept by Deribit's rule: a change's `prev_change_id` must be the last one's `change_id`.

use std::collections::BTreeMap;

use serde_json::Value;

#[derive(Default)]
pub struct Book {
    last: Option<u64>,
    /// By price in hundredths of a cent.
    bids: BTreeMap<i64, f64>,
    asks: BTreeMap<i64, f64>,
    changes: u64,
}

impl Book {
    /// A snapshot or a change. Without a snapshot before it a change is of no use, and is passed over.
    pub fn apply(&mut self, data: &Value) -> Result<(), String> {
        let change_id = data["change_id"].as_u64();
        if data["type"] == "snapshot" {
            self.forget();
        } else {
            let Some(last) = self.last else { return Ok(()) };
            let previous = data["prev_change_id"].as_u64();
            if previous != Some(last) {
                self.forget();
                return Err(format!("after change {last} comes one that follows {}", previous.unwrap_or_default()));
            }
            self.changes += 1;
        }
        self.last = change_id;
        for (side, name) in [(&mut self.bids, "bids"), (&mut self.asks, "asks")] {
            for level in data[name].as_array().into_iter().flatten() {
                let price = (level[1].as_f64().unwrap_or_default() * 1e4).round() as i64;
                match level[0].as_str() {
                    Some("delete") => side.remove(&price),
                    _ => side.insert(price, level[2].as_f64().unwrap_or_default()),
                };
            }
        }
        Ok(())
    }

    /// The connection or the chain is broken: only a snapshot helps.
    pub fn forget(&mut self) {
        self.last = None;
        self.bids.clear();
        self.asks.clear();
    }

    pub fn best_bid(&self) -> Option<f64> {
        self.bids.last_key_value().map(|(price, _)| *price as f64 / 1e4)
    }

    pub fn changes(&self) -> u64 {
        self.changes
    }
}
