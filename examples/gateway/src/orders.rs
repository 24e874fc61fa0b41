//! Orders through a stream, and an answer for each: what the venue said, that it was never sent, or that nobody knows. Never
//! is one sent twice: one that a gateway had in its hands when it died is answered `unknown`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{Commands, Connection, RedisResult};
use serde_json::{Value, json};
use ws_supervisor::{Client, Context, Request, RequestError, RequestId, Response};

use crate::Options;
use crate::sink::Sink;
use crate::stream::{ANSWERS, GATEWAY, ORDERS, connect, ensure_group};

/// An order: its entry's id, by which it is answered, and its parameters.
pub struct Order {
    pub id: String,
    pub params: Value,
}

fn say(answers: &Sink, id: &str, outcome: &Value) {
    answers.put("venue", 0, json!({ "order": id, "outcome": outcome }).to_string().as_bytes(), id);
}

/// On the client's thread.
pub fn place(context: &mut Context<'_>, answers: &Sink, order: Order) {
    let request = Request::new("private/buy", &order.params).id(order.id.as_str());
    if let Err(refused) = context.request(request) {
        say(answers, &order.id, &json!({ "not_sent": refused.to_string() }));
    }
}

/// What became of one.
pub fn answer(answers: &Sink, response: &Response) {
    let RequestId::Text(id) = &response.id else { return };
    let outcome = match &response.outcome {
        Ok(result) => json!({ "done": result.as_str() }),
        Err(error @ RequestError::Rpc(_)) => json!({ "refused": error.to_string() }),
        Err(error @ RequestError::NotSent { .. }) => json!({ "not_sent": error.to_string() }),
        Err(error) => json!({ "unknown": error.to_string() }),
    };
    say(answers, id, &outcome);
}

/// Reads orders on a thread of its own.
pub struct Reading {
    ends: Arc<AtomicBool>,
    /// Orders read so far.
    count: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Reading {
    /// Waits until no order has come for so long.
    pub fn wait_for_silence(&self, time: Duration, at_most: Duration) {
        let until = Instant::now() + at_most;
        loop {
            let before = self.count.load(Ordering::Relaxed);
            std::thread::sleep(time);
            if self.count.load(Ordering::Relaxed) == before || Instant::now() > until {
                return;
            }
        }
    }

    pub fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

pub fn read(url: &str, client: Client, answers: Sink) -> Result<Reading, Box<dyn Error>> {
    let ends = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let (flag, url, counted) = (ends.clone(), url.to_owned(), count.clone());
    let thread = std::thread::Builder::new().name("orders".into()).spawn(move || {
        let mut placed = BTreeMap::new();
        // Those that an earlier gateway had read and not settled.
        let mut from_before = true;
        while !flag.load(Ordering::Relaxed) {
            let read = read_until_broken(&url, &client, &answers, &mut placed, &mut from_before, &flag);
            counted.store(placed.len() as u64, Ordering::Relaxed);
            if let Err(error) = read {
                eprintln!("gateway: orders: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    })?;
    Ok(Reading { ends, count, thread })
}

fn read_until_broken(
    url: &str,
    client: &Client,
    answers: &Sink,
    placed: &mut BTreeMap<String, ()>,
    from_before: &mut bool,
    ends: &AtomicBool,
) -> RedisResult<()> {
    let mut connection = connect(url)?;
    ensure_group(&mut connection, ORDERS, GATEWAY)?;
    let options = |block| StreamReadOptions::default().group(GATEWAY, "gateway").count(100).block(block);
    // What was read and not acknowledged: by an earlier gateway, or before this connection broke.
    let pending: StreamReadReply = connection.xread_options(&[ORDERS], &["0"], &options(1))?;
    for entry in pending.keys.iter().flat_map(|key| &key.ids) {
        if *from_before && placed.insert(entry.id.clone(), ()).is_none() {
            say(answers, &entry.id, &json!({ "unknown": "the gateway that had it is gone: ask the venue" }));
        }
        place_once(client, answers, placed, &entry.id, &entry.map);
    }
    *from_before = false;
    // Now and then it is counted how many there were.
    let until = Instant::now() + Duration::from_secs(1);
    while !ends.load(Ordering::Relaxed) && Instant::now() < until {
        let news: StreamReadReply = connection.xread_options(&[ORDERS], &[">"], &options(200))?;
        for entry in news.keys.iter().flat_map(|key| &key.ids) {
            place_once(client, answers, placed, &entry.id, &entry.map);
        }
    }
    Ok(())
}

/// Places an order unless that was done. It is acknowledged with its answer, by whoever writes that.
fn place_once(
    client: &Client,
    answers: &Sink,
    placed: &mut BTreeMap<String, ()>,
    id: &str,
    fields: &std::collections::HashMap<String, redis::Value>,
) {
    if placed.insert(id.to_owned(), ()).is_some() {
        return;
    }
    let text = fields.get("params").and_then(|value| redis::from_redis_value::<String>(value.clone()).ok());
    let params = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()).filter(Value::is_object);
    let refusal = match params {
        None => Some("`params` must be a JSON object"),
        Some(params) => client.tell(Order { id: id.to_owned(), params }).err().map(|_| "the client has ended"),
    };
    if let Some(refusal) = refusal {
        say(answers, id, &json!({ "not_sent": refusal }));
    }
}

/// Another machine: places orders, and waits for an answer to each.
pub fn order(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut connection = connect(&options.redis)?;
    let mut waiting = BTreeMap::new();
    let (mut answered, mut twice, mut last) = (BTreeMap::<String, u64>::new(), 0, "0-0".to_owned());
    let (began, mut number) = (Instant::now(), 0);
    let patience = options.seconds + Duration::from_secs(30);
    while number < options.count || !waiting.is_empty() {
        if began.elapsed() > patience {
            break;
        }
        let due = began.elapsed().as_secs_f64() / options.seconds.as_secs_f64() * options.count as f64;
        if number < options.count && (number as f64) < due {
            let params = json!({ "instrument_name": "BTC-PERPETUAL", "amount": 10, "label": number }).to_string();
            match connection.xadd::<_, _, _, _, String>(ORDERS, "*", &[("params", &params)]) {
                Ok(id) => {
                    waiting.insert(id, ());
                    number += 1;
                }
                // Whether it is there, nobody knows: a desk would look. Here it is counted as one without an answer.
                Err(_) => connection = again(&options.redis),
            }
        }
        let read = StreamReadOptions::default().count(1000).block(5);
        let news: StreamReadReply = match connection.xread_options(&[ANSWERS], &[&last], &read) {
            Ok(news) => news,
            Err(_) => {
                connection = again(&options.redis);
                continue;
            }
        };
        for entry in news.keys.into_iter().flat_map(|key| key.ids) {
            last = entry.id.clone();
            let data: String = entry.get("data").unwrap_or_default();
            let answer: Value = serde_json::from_str(&data).unwrap_or_default();
            let id = answer["order"].as_str().unwrap_or_default().to_owned();
            let times = answered.entry(id.clone()).or_default();
            *times += 1;
            twice += u64::from(*times > 1);
            waiting.remove(&id);
        }
    }
    let unanswered = waiting.len();
    println!("{}", json!({ "orders": number, "unanswered": unanswered, "answered_twice": twice }));
    Ok(())
}

fn again(url: &str) -> Connection {
    loop {
        if let Ok(connection) = connect(url) {
            return connection;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
