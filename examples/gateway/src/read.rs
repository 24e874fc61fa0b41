//! A reader on another machine: shares the feed with the others of its group. It works on each entry once, though Redis may
//! hand it out again.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::{Duration, Instant};

use redis::streams::{StreamId, StreamReadOptions, StreamReadReply};
use redis::{Commands, RedisResult};
use serde_json::json;

use crate::Options;
use crate::stream::{FEED, READERS, connect, ensure_group, number};

/// An entry that its reader has had for so long without a word is another's.
const ABANDONED: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Seen {
    messages: BTreeSet<u64>,
    lost: Vec<(u64, u64)>,
    twice: u64,
    /// Worked on, and not surely acknowledged.
    unsettled: BTreeSet<String>,
}

impl Seen {
    fn work_on(&mut self, entry: &StreamId) {
        // Handed out again after Redis lost our word.
        if !self.unsettled.insert(entry.id.clone()) {
            return;
        }
        let kind: String = entry.get("kind").unwrap_or_default();
        if kind == "started" {
            // A gateway began anew: what the one before had not written is gone.
            self.messages.insert(number(&entry.id));
        } else if kind == "lost" {
            self.lost.push((entry.get("from").unwrap_or_default(), entry.get("to").unwrap_or_default()));
        } else if !self.messages.insert(number(&entry.id)) {
            self.twice += 1;
        }
    }
}

pub fn read(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut seen = Seen::default();
    let (until, mut latest) = (Instant::now() + options.seconds, None);
    while Instant::now() < until && !is_over(latest) {
        if let Err(error) = read_until_broken(options, &mut seen, until, &mut latest) {
            eprintln!("{}: {error}", options.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // Runs of numbers, so that the report stays short.
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in &seen.messages {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let report = json!({ "name": options.name, "messages": seen.messages.len(), "twice": seen.twice, "lost": seen.lost, "runs": runs });
    println!("{report}");
    Ok(())
}

/// Nothing has come for long, though something had: the gateway has ended.
const SILENCE: Duration = Duration::from_secs(8);

fn is_over(latest: Option<Instant>) -> bool {
    latest.is_some_and(|at| at.elapsed() > SILENCE)
}

fn read_until_broken(
    options: &Options,
    seen: &mut Seen,
    until: Instant,
    latest: &mut Option<Instant>,
) -> RedisResult<()> {
    let mut connection = connect(&options.redis)?;
    ensure_group(&mut connection, FEED, READERS)?;
    let read = StreamReadOptions::default().group(READERS, &options.name).count(2000).block(100);
    // First what was handed to us before and not acknowledged.
    let mut from = "0".to_owned();
    let mut claims_at = Instant::now();
    while Instant::now() < until && !is_over(*latest) {
        // Entries of a reader that is gone are ours after a while: it may have worked on them or not.
        if Instant::now() >= claims_at {
            claims_at = Instant::now() + ABANDONED;
            let idle = ABANDONED.as_millis() as u64;
            let claimed = redis::cmd("XAUTOCLAIM")
                .arg(FEED)
                .arg(READERS)
                .arg(&options.name)
                .arg(idle)
                .arg("0-0")
                .arg("COUNT")
                .arg(10_000)
                .arg("JUSTID")
                .to_owned();
            claimed.query::<redis::Value>(&mut connection)?;
            from = "0".to_owned();
        }
        let reply: StreamReadReply = connection.xread_options(&[FEED], &[&from], &read)?;
        let entries: Vec<_> = reply.keys.into_iter().flat_map(|key| key.ids).collect();
        entries.iter().for_each(|entry| seen.work_on(entry));
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
        if !ids.is_empty() {
            *latest = Some(Instant::now());
            connection.xack::<_, _, _, ()>(FEED, READERS, &ids)?;
        }
        if from != ">" && ids.is_empty() {
            from = ">".to_owned();
        }
    }
    Ok(())
}
