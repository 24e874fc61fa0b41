//! Orders through a stream, and an answer for each: the venue's own, `not_sent`, or `unknown`.
//!
//! No order is placed twice. One gateway at a time reads orders (`lease`); in the same step as it reads one, Redis writes down
//! which lease has it, and that no other reads it again. Only the process that read an order places it, once, while its lease
//! holds and the order is young enough. The next gateway answers what an earlier one had and did not answer with `unknown`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{Commands, Connection, RedisResult, Script};
use serde_json::{Value, json};
use ws_supervisor::{Client, Context, Request, RequestError, RequestId, Response};

use crate::Options;
use crate::lease::{HOLDER, Lease, overtaken};
use crate::sink::Sink;
use crate::stream::{ANSWERS, OPEN, ORDERS, READ, connect, number};

/// An order: its entry's id, by which it is answered, its parameters, and since when it waits.
pub struct Order {
    pub id: String,
    pub params: Value,
    pub made: Instant,
}

fn say(answers: &Sink, id: &str, outcome: &Value) {
    answers.put("venue", 0, json!({ "order": id, "outcome": outcome }).to_string().as_bytes(), id);
}

/// On the client's thread: the last moment at which an order can be kept from the venue.
pub fn place(context: &mut Context<'_>, answers: &Sink, lease: &Lease, expiry: Duration, order: Order) {
    if !lease.is_held() {
        return say(answers, &order.id, &json!({ "not_sent": "the gateway's lease was not sure to hold" }));
    }
    let age = order.made.elapsed();
    if age >= expiry {
        let text =
            format!("expired: {:.1} s old, and orders are placed for {} s", age.as_secs_f64(), expiry.as_secs_f64());
        return say(answers, &order.id, &json!({ "not_sent": text }));
    }
    let request = Request::new("private/buy", &order.params).id(order.id.as_str());
    if let Err(refused) = context.request(request) {
        say(answers, &order.id, &json!({ "not_sent": refused.to_string() }));
    }
}

fn outcome(response: &Response) -> Value {
    match &response.outcome {
        Ok(result) => json!({ "done": result.as_str() }),
        Err(error @ RequestError::Rpc(_)) => json!({ "refused": error.to_string() }),
        Err(error @ RequestError::NotSent { .. }) => json!({ "not_sent": error.to_string() }),
        Err(error) => json!({ "unknown": error.to_string() }),
    }
}

/// Answers an order.
pub fn answer(answers: &Sink, response: &Response) {
    if let RequestId::Text(id) = &response.id {
        say(answers, id, &outcome(response));
    }
}

/// Publishes the venue's answer to an order whose time had run out and that was answered `unknown`.
pub fn answer_late(answers: &Sink, response: &Response) {
    if let RequestId::Text(id) = &response.id {
        let late = json!({ "order": id, "late": outcome(response) });
        answers.put("venue", 0, late.to_string().as_bytes(), "");
    }
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

/// An entry's id: milliseconds, and a number within them.
fn whole_id(id: &str) -> (u64, u64) {
    (number(id), id.split('-').nth(1).and_then(|number| number.parse().ok()).unwrap_or_default())
}

/// How long the reader rests when there is no order.
const REST: Duration = Duration::from_millis(5);

/// Reads up to 100 orders behind the mark, and writes down that this lease has them. Returns Redis' time in milliseconds, and of
/// each order its id and parameters; or 0 where the lease is another's, -1 where there is no mark.
const CLAIM: &str = "
if redis.call('get', KEYS[1]) ~= ARGV[1] then return {0, {}} end
local mark = redis.call('get', KEYS[3])
if not mark then return {-1, {}} end
local orders = {}
for _, entry in ipairs(redis.call('xrange', KEYS[2], '(' .. mark, '+', 'COUNT', 100)) do
    local params = ''
    for n = 1, #entry[2], 2 do
        if entry[2][n] == 'params' then params = entry[2][n + 1] end
    end
    redis.call('hset', KEYS[4], entry[1], ARGV[1])
    redis.call('set', KEYS[3], entry[1])
    orders[#orders + 1] = entry[1]
    orders[#orders + 1] = params
end
local now = redis.call('time')
return {now[1] * 1000 + math.floor(now[2] / 1000), orders}";

/// Sets the mark where there is none. The first gateway of all begins at the first order (`ARGV[2]`). A mark that was lost is set
/// behind the last order: orders up to there may have been placed. Returns their ids.
const SET_MARK: &str = "
if redis.call('get', KEYS[1]) ~= ARGV[1] then return {} end
if redis.call('exists', KEYS[3]) == 1 then return {} end
if ARGV[2] == '1' then
    redis.call('set', KEYS[3], '0-0')
    return {}
end
local ids = {}
redis.call('set', KEYS[3], '0-0')
for _, entry in ipairs(redis.call('xrange', KEYS[2], '-', '+')) do
    redis.call('hset', KEYS[4], entry[1], 'lost')
    redis.call('set', KEYS[3], entry[1])
    ids[#ids + 1] = entry[1]
end
return ids";

pub fn read(url: &str, client: Client, answers: Sink, lease: Arc<Lease>) -> Result<Reading, Box<dyn Error>> {
    let ends = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let (flag, url, counted) = (ends.clone(), url.to_owned(), count.clone());
    let thread = std::thread::Builder::new().name("orders".into()).spawn(move || {
        let mut reader = Reader { client, answers, lease, count: counted, latest: (0, 0) };
        while !flag.load(Ordering::Relaxed) && !reader.lease.is_lost() {
            if let Err(error) = reader.read_until_broken(&url, &flag) {
                eprintln!("gateway: orders: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    })?;
    Ok(Reading { ends, count, thread })
}

struct Reader {
    client: Client,
    answers: Sink,
    lease: Arc<Lease>,
    count: Arc<AtomicU64>,
    /// The id of the latest order that this process has read.
    latest: (u64, u64),
}

impl Reader {
    fn read_until_broken(&mut self, url: &str, ends: &AtomicBool) -> RedisResult<()> {
        let mut connection = connect(url)?;
        self.lease.renew(&mut connection)?;
        let lost: Vec<String> = self.call(SET_MARK, &mut connection)?;
        if !lost.is_empty() {
            eprintln!("gateway: orders: which were read is not known any more: {} are answered `unknown`", lost.len());
        }
        self.answer_for_others(&mut connection)?;
        while !ends.load(Ordering::Relaxed) {
            let (now, orders): (i64, Vec<String>) = self.call(CLAIM, &mut connection)?;
            match now {
                0 => return self.lease.renew(&mut connection).and(Err(overtaken())),
                // It is set when this is called again.
                -1 => return Err((redis::ErrorKind::Client, "the mark of what was read is gone").into()),
                _ => {}
            }
            for order in orders.chunks_exact(2) {
                self.count.fetch_add(1, Ordering::Relaxed);
                // By Redis' own clock, which made the id.
                let age = u64::try_from(now).unwrap_or_default().saturating_sub(number(&order[0]));
                let made = Instant::now().checked_sub(Duration::from_millis(age));
                if whole_id(&order[0]) <= self.latest {
                    // Redis was restored from an older copy, and has forgotten that this one was read.
                    say(&self.answers, &order[0], &json!({ "unknown": "it was read before: ask the venue" }));
                    continue;
                }
                self.latest = whole_id(&order[0]);
                self.hand_over(&order[0], &order[1], made);
            }
            if orders.is_empty() {
                std::thread::sleep(REST);
            }
        }
        Ok(())
    }

    fn call<T: redis::FromRedisValue>(&self, script: &str, connection: &mut Connection) -> RedisResult<T> {
        let script = Script::new(script);
        let mut call = script.key(HOLDER);
        let is_first = self.lease.token() == 1 && self.latest == (0, 0);
        call.key(ORDERS).key(READ).key(OPEN).arg(self.lease.token()).arg(u8::from(is_first)).invoke(connection)
    }

    /// Orders that an earlier gateway read and did not answer.
    fn answer_for_others(&self, connection: &mut Connection) -> RedisResult<()> {
        let open: BTreeMap<String, String> = connection.hgetall(OPEN)?;
        let own = self.lease.token().to_string();
        for (id, _) in open.iter().filter(|(_, token)| **token != own) {
            say(&self.answers, id, &json!({ "unknown": "the gateway that had it is gone: ask the venue" }));
        }
        // They are this gateway's to answer from now on, and once.
        let taken: Vec<(&String, &String)> = open.keys().filter(|id| open[*id] != own).map(|id| (id, &own)).collect();
        if taken.is_empty() { Ok(()) } else { connection.hset_multiple(OPEN, &taken) }
    }

    /// To the client's thread, which places it.
    fn hand_over(&self, id: &str, params: &str, made: Option<Instant>) {
        let params = serde_json::from_str::<Value>(params).ok().filter(Value::is_object);
        let refusal = match (params, made) {
            (None, _) => Some("`params` must be a JSON object"),
            (_, None) => Some("expired"),
            (Some(params), Some(made)) => {
                let order = Order { id: id.to_owned(), params, made };
                self.client.tell(order).err().map(|_| "the client has ended, or too many orders wait for it")
            }
        };
        if let Some(refusal) = refusal {
            say(&self.answers, id, &json!({ "not_sent": refusal }));
        }
    }
}

/// Another machine: places orders, and waits for an answer to each.
pub fn order(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut connection = connect(&options.redis)?;
    let mut waiting = BTreeMap::new();
    let (mut answered, mut twice, mut outcomes) = (BTreeMap::<String, u64>::new(), 0, BTreeMap::<String, u64>::new());
    // Answers to orders of others before are none of ours.
    let before: redis::streams::StreamRangeReply = connection.xrevrange_count(ANSWERS, "+", "-", 1)?;
    let mut last = before.ids.first().map_or("0-0".to_owned(), |entry| entry.id.clone());
    let (began, mut number) = (Instant::now(), 0);
    let patience = options.seconds + Duration::from_secs(30);
    while number < options.count || !waiting.is_empty() {
        if began.elapsed() > patience {
            break;
        }
        let due = began.elapsed().as_secs_f64() / options.seconds.as_secs_f64() * options.count as f64;
        if number < options.count && (number as f64) < due {
            let params = json!({ "instrument_name": "BTC-PERPETUAL", "amount": 10, "label": format!("{}-{number}", options.name) }).to_string();
            match connection.xadd::<_, _, _, _, String>(ORDERS, "*", &[("params", &params)]) {
                Ok(id) => {
                    waiting.insert(id, ());
                    number += 1;
                }
                // It may be in the stream or not: a desk would look. Here it is not counted.
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
            // The venue's word on an order that was answered already.
            if !answer["late"].is_null() {
                continue;
            }
            let id = answer["order"].as_str().unwrap_or_default().to_owned();
            if waiting.remove(&id).is_some() {
                let kind = answer["outcome"].as_object().and_then(|outcome| outcome.keys().next().cloned());
                *outcomes.entry(kind.unwrap_or_default()).or_default() += 1;
                answered.insert(id, 1);
            } else {
                twice += u64::from(answered.contains_key(&id));
            }
        }
    }
    let unanswered = waiting.len();
    println!(
        "{}",
        json!({ "orders": number, "unanswered": unanswered, "answered_twice": twice, "outcomes": outcomes })
    );
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
