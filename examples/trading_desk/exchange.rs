//! The embedded exchange: two servers that speak Deribit's heartbeat and subscribe, one Binance-like feed that pings.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{Client, Message, ReadyState};

/// A message of a recorded session, and when it came, from the first on.
pub struct Recorded {
    pub at: Duration,
    pub message: Message,
}

pub type Recording = Arc<Vec<Recorded>>;

/// Reads the venue's messages of a recorded session.
pub fn read_recording(file: &Path) -> Result<Vec<Recorded>, Box<dyn Error>> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut recording = vec![];
    let mut first = None;
    for (number, line) in text.lines().enumerate() {
        let bad = |what: &str| format!("{}:{}: {what}", file.display(), number + 1);
        let record: Value = serde_json::from_str(line).map_err(|error| bad(&error.to_string()))?;
        let data = record["data"].as_str().ok_or_else(|| bad("no data"))?;
        let at = record["ts"].as_str().and_then(time_of_day).ok_or_else(|| bad("no time"))?;
        if record["dir"] != "in" {
            continue;
        }
        let message = match record["binary"] == true {
            true => Message::binary(data_encoding::BASE64.decode(data.as_bytes())?),
            false => Message::text(data),
        };
        let since = at.saturating_sub(*first.get_or_insert(at));
        recording.push(Recorded { at: since, message });
    }
    match recording.is_empty() {
        true => Err(format!("{}: holds no message from the venue", file.display()).into()),
        false => Ok(recording),
    }
}

/// Of `2021-07-22T22:42:03.714522Z` the time since midnight; a session of half a minute needs no more.
fn time_of_day(stamp: &str) -> Option<Duration> {
    let mut parts = stamp.split_once('T')?.1.trim_end_matches('Z').split(':');
    let (hours, minutes): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(Duration::from_secs(hours * 3600 + minutes * 60) + Duration::from_secs_f64(seconds))
}

pub struct Exchange {
    pub deribit_prod: Server,
    pub deribit_test: Server,
    pub binance: Server,
    refusals: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Exchange {
    pub fn open(recording: Option<Recording>, flat_out: bool) -> io::Result<Self> {
        let refusals = Arc::new(AtomicUsize::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let feed = || Feed::new(recording.clone(), flat_out, stopped.clone());
        let deribit_prod = {
            let (script, refusals) = (deribit(feed()), refusals.clone());
            let refuse =
                move || refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
            Server::scripted(move |_| if refuse() { Script::refuse(503) } else { script.clone() })?
        };
        let deribit_test = Server::start(deribit(feed()))?;
        let binance = Server::start(binance(feed()))?;
        Ok(Self { deribit_prod, deribit_test, binance, refusals, stopped })
    }

    pub fn refuse_next(&self, upgrades: usize) {
        self.refusals.store(upgrades, Ordering::Relaxed);
    }

    /// From now on no feed sends anything.
    pub fn stop_feeds(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub fn servers(&self) -> [&Server; 3] {
        [&self.deribit_prod, &self.deribit_test, &self.binance]
    }

    /// Messages that the exchange wrote on a client's present connection.
    pub fn served_now(&self, index: usize) -> u64 {
        self.servers()[index].records().iter().rfind(|record| record.opened).map_or(0, |record| record.served)
    }

    /// Waits until all that was written on open connections has arrived and no more comes; false when it does not.
    pub fn settle(&self, clients: &[Client; 3], patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut calm_since = None;
        let mut last = 0;
        while Instant::now() < deadline {
            let arrived = clients.iter().enumerate().all(|(index, client)| {
                client.ready_state() == ReadyState::Open && client.stats().received_this_epoch == self.served_now(index)
            });
            let total = clients.iter().map(|client| client.stats().received).sum();
            if !arrived || total != last {
                calm_since = None;
            }
            last = total;
            if arrived && calm_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(100) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// What is played on each connection, from when it subscribed.
struct Feed {
    recording: Option<Recording>,
    flat_out: bool,
    stopped: Arc<AtomicBool>,
    playing: Mutex<HashMap<usize, Playing>>,
}

struct Playing {
    since: Instant,
    next: usize,
    beats: u32,
}

impl Feed {
    fn new(recording: Option<Recording>, flat_out: bool, stopped: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self { recording, flat_out, stopped, playing: Mutex::default() })
    }

    fn begin(&self, connection: usize) {
        let playing = Playing { since: Instant::now(), next: 0, beats: 0 };
        self.playing.lock().unwrap().insert(connection, playing);
    }

    /// What is due on a connection now; `tick` makes one when nothing is recorded.
    fn due(&self, connection: usize, tick: impl FnOnce(usize) -> Value) -> Vec<Message> {
        if self.stopped.load(Ordering::Relaxed) {
            return vec![];
        }
        let mut playing = self.playing.lock().unwrap();
        let Some(playing) = playing.get_mut(&connection) else { return vec![] };
        let Some(recording) = &self.recording else {
            playing.next += 1;
            return vec![tick(playing.next).to_string().into()];
        };
        let elapsed = playing.since.elapsed();
        let rest = recording[playing.next..].iter();
        let due: Vec<_> = if self.flat_out {
            rest.take(1000).map(|recorded| recorded.message.clone()).collect()
        } else {
            rest.take_while(|recorded| recorded.at <= elapsed).map(|recorded| recorded.message.clone()).collect()
        };
        playing.next += due.len();
        due
    }

    /// Whether the venue's own heartbeat is due: every half second, and which number it has.
    fn heartbeat(&self, connection: usize) -> Option<u32> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let mut playing = self.playing.lock().unwrap();
        let playing = playing.get_mut(&connection)?;
        if playing.since.elapsed() < Duration::from_millis(500) * (playing.beats + 1) {
            return None;
        }
        playing.beats += 1;
        Some(playing.beats)
    }
}

/// Deribit's dialect, as far as the desk speaks it: heartbeat on request, subscribe, and an answer to anything else.
fn deribit(feed: Arc<Feed>) -> Script {
    let answering = feed.clone();
    let answer = move |peer: &ws_supervisor::testing::Peer, message: &Message| {
        let Some(Ok(request)) = message.as_text().map(serde_json::from_str::<Value>) else { return vec![] };
        let result = match request["method"].as_str() {
            Some("public/subscribe") => {
                answering.begin(peer.index);
                request["params"]["channels"].clone()
            }
            Some("public/test") => json!({ "version": "1.2.26" }),
            _ => json!("ok"),
        };
        vec![json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }).to_string().into()]
    };
    Script::reply(answer).every(Duration::from_millis(5), move |peer| {
        let mut messages = feed.due(peer.index, |n| {
            let data = json!({ "change_id": n, "instrument_name": "BTC-PERPETUAL", "bids": [], "asks": [] });
            let params = json!({ "channel": "book.BTC-PERPETUAL.raw", "data": data });
            json!({ "jsonrpc": "2.0", "method": "subscription", "params": params })
        });
        if let Some(beat) = feed.heartbeat(peer.index) {
            let kind = if beat % 2 == 0 { "test_request" } else { "heartbeat" };
            let heartbeat = json!({ "jsonrpc": "2.0", "method": "heartbeat", "params": { "type": kind } });
            messages.push(heartbeat.to_string().into());
        }
        messages
    })
}

/// A stream that begins at the open, from a venue that pings.
fn binance(feed: Arc<Feed>) -> Script {
    let greeting = feed.clone();
    Script::silent()
        .greet(move |peer| {
            greeting.begin(peer.index);
            vec![]
        })
        .ping_every(Duration::from_millis(250))
        .every(Duration::from_millis(5), move |peer| {
            feed.due(peer.index, |n| json!({ "stream": "btcusdt@bookTicker", "data": { "u": n, "s": "BTCUSDT" } }))
        })
}
