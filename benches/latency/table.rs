//! The rows: what was measured in each round, and how it is shown.

use serde_json::{Map, Value, json};

use crate::rig::Times;

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Row {
    key: String,
    against: &'static str,
    unit: &'static str,
    /// What it is measured against, and ours, of each round.
    rounds: Vec<(f64, f64)>,
}

impl Row {
    fn ratio(&self) -> f64 {
        median(self.rounds.iter().map(|(other, ours)| ours / other).collect())
    }

    fn medians(&self) -> (f64, f64) {
        let (other, ours) = self.rounds.iter().copied().unzip();
        (median(other), median(ours))
    }
}

pub struct Table {
    only: String,
    rows: Vec<Row>,
}

impl Table {
    pub fn new(only: String) -> Self {
        Self { only, rows: vec![] }
    }

    pub fn wants(&self, key: &str) -> bool {
        key.starts_with(&self.only)
    }

    pub fn latency(&mut self, key: &str, against: &'static str, other: &Times, ours: &Times) {
        for (suffix, percent) in [("", 50), ("_p99", 99)] {
            self.add(&format!("{key}{suffix}"), against, "µs", other.percentile(percent), ours.percentile(percent));
        }
    }

    pub fn rate(&mut self, key: &str, against: &'static str, other: f64, ours: f64) {
        self.add(key, against, "M/s", other / 1e6, ours / 1e6);
    }

    /// A measure that has a limit and no contender.
    #[cfg(target_os = "linux")]
    pub fn bound(&mut self, key: &str, unit: &'static str, limit: f64, ours: f64) {
        self.add(key, "at most", unit, limit, ours);
    }

    fn add(&mut self, key: &str, against: &'static str, unit: &'static str, other: f64, ours: f64) {
        match self.rows.iter_mut().find(|row| row.key == key) {
            Some(row) => row.rounds.push((other, ours)),
            None => self.rows.push(Row { key: key.into(), against, unit, rounds: vec![(other, ours)] }),
        }
    }

    pub fn ratio(&self, key: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.key == key).map(Row::ratio)
    }

    pub fn print(&self) {
        for row in &self.rows {
            let ((other, ours), unit, ratio) = (row.medians(), row.unit, row.ratio());
            println!(
                "{:<42} {ours:8.2} {unit:<3}  {:<13} {other:8.2} {unit:<3}  ratio {ratio:.2}",
                row.key, row.against
            );
        }
    }

    pub fn json(&self) -> Value {
        let all: Map<String, Value> = self
            .rows
            .iter()
            .map(|row| {
                let (other, ours) = row.medians();
                let value = json!({
                    "ours": ours, "against": row.against, "theirs": other, "unit": row.unit, "ratio": row.ratio()
                });
                (row.key.clone(), value)
            })
            .collect();
        Value::Object(all)
    }
}
