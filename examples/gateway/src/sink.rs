//! From a client's thread to a stream: numbered there, queued in memory, written by a thread of its own. The client never
//! waits. Messages that a full queue, a full spool or Redis itself loses leave a gap in the numbers, and the stream names each gap.
//!
//! To put the same on Kafka, NATS or Aeron, replace `Writer`: an idempotent producer (Kafka), a message id in a window of
//! deduplication (NATS JetStream) or the position (Aeron's archive) takes the place of the entry's own id.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use redis::{Connection, Pipeline, RedisResult};

use crate::lease::{HOLDER, Lease, overtaken};
use crate::spool::Spool;
use crate::stream::{OPEN, connect, last_number};

/// A message on its way.
#[derive(Debug)]
pub struct Item {
    pub number: u64,
    pub epoch: u64,
    /// Nanoseconds since 1970 at which it was received.
    pub received: u64,
    pub client: Box<str>,
    pub data: Vec<u8>,
    /// The entry of `ws:orders` that this answers, and settles; empty for all else.
    pub settles: Box<str>,
}

impl Item {
    pub fn write(&self, to: &mut Vec<u8>) {
        let lengths = [self.client.len(), self.data.len(), self.settles.len()].map(|len| len as u64);
        for number in [self.number, self.epoch, self.received].into_iter().chain(lengths) {
            to.extend_from_slice(&number.to_le_bytes());
        }
        to.extend_from_slice(self.client.as_bytes());
        to.extend_from_slice(&self.data);
        to.extend_from_slice(self.settles.as_bytes());
    }

    pub fn read(from: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = from.split_at_checked(48)?;
        let number = |at: usize| Some(u64::from_le_bytes(head.get(8 * at..8 * at + 8)?.try_into().ok()?));
        let (client, rest) = rest.split_at_checked(number(3)? as usize)?;
        let (data, rest) = rest.split_at_checked(number(4)? as usize)?;
        let (settles, rest) = rest.split_at_checked(number(5)? as usize)?;
        let settles = String::from_utf8_lossy(settles).into();
        let client = String::from_utf8_lossy(client).into();
        let (number, epoch, received) = (number(0)?, number(1)?, number(2)?);
        Some((Self { number, epoch, received, client, data: data.to_vec(), settles }, rest))
    }
}

/// In memory; then the spool has it, or it is lost.
const QUEUE: usize = 65_536;
const BATCH: usize = 1_000;
const AGAIN: Duration = Duration::from_millis(200);

/// Entries that the stream keeps, about.
const KEPT: usize = 10_000_000;

/// How long Redis is left alone after a failure.
const AFTER: Duration = Duration::from_millis(500);

/// The client's end. Clones number together.
#[derive(Clone)]
pub struct Sink {
    queue: Sender<Item>,
    numbers: Arc<AtomicU64>,
}

impl Sink {
    pub fn start(
        url: &str,
        stream: &'static str,
        spool_bytes: u64,
        lease: Arc<Lease>,
    ) -> Result<(Self, JoinHandle<u64>), Box<dyn std::error::Error>> {
        // It goes on where an earlier run ended.
        let mut connection = connect(url)?;
        let last = last_number(&mut connection, stream)?;
        // The queue and the spool of an earlier gateway are gone: an entry says where it ended.
        let started =
            redis::cmd("XADD").arg(stream).arg(format!("{}-0", last + 1)).arg("kind").arg("started").to_owned();
        started.query::<()>(&mut connection)?;
        let last = last + 1;
        let (queue, items) = bounded(QUEUE);
        let spool = Spool::new(spool_bytes)?;
        let numbers = Arc::new(AtomicU64::new(last));
        let writer = Writer {
            url: url.to_owned(),
            stream,
            connection: Some(connection),
            last,
            spool,
            items,
            numbers: numbers.clone(),
            lease,
            retry_at: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("redis".into()).spawn(move || writer.run())?;
        Ok((Self { queue, numbers }, thread))
    }

    /// Never waits.
    pub fn put(&self, client: &str, epoch: u64, data: &[u8], settles: &str) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let item = Item {
            number,
            epoch,
            received: now.as_nanos() as u64,
            client: client.into(),
            data: data.to_vec(),
            settles: settles.into(),
        };
        // A full queue loses it, and leaves a gap.
        let _ = self.queue.try_send(item);
    }

    /// The number of the latest.
    pub fn number(&self) -> u64 {
        self.numbers.load(Ordering::Relaxed)
    }
}

struct Writer {
    url: String,
    stream: &'static str,
    connection: Option<Connection>,
    /// The last number that the stream has, or has named as lost.
    last: u64,
    spool: Spool,
    items: Receiver<Item>,
    numbers: Arc<AtomicU64>,
    lease: Arc<Lease>,
    /// While Redis does not answer it is not asked again before.
    retry_at: Instant,
}

impl Writer {
    /// Until the last sink is gone and all is written, or another gateway has taken over: then the rest is lost with this one.
    /// Returns the last number written.
    fn run(mut self) -> u64 {
        let mut ended = false;
        loop {
            if self.lease.is_lost() {
                return self.last;
            }
            let mut batch = Vec::new();
            match self.items.recv_timeout(AGAIN) {
                Ok(item) => batch.push(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => ended = true,
            }
            // While Redis is away all goes to the spool, so that the queue stays empty.
            let most = if self.connection.is_some() { BATCH - 1 } else { usize::MAX };
            batch.extend(self.items.try_iter().take(most));
            if self.spool.is_empty() && self.write(&batch) {
                batch.clear();
            }
            if !batch.is_empty() {
                // Behind what waits already, so that the order stays.
                if let Err(error) = self.spool.push(&batch) {
                    eprintln!("gateway: the spool is lost: {error}");
                }
            }
            self.drain_spool();
            if ended && self.spool.is_empty() && self.tell_tail() {
                return self.last;
            }
        }
    }

    /// Of what was lost last nothing follows that would show it.
    fn tell_tail(&mut self) -> bool {
        let numbers = self.numbers.load(Ordering::Relaxed);
        if self.last >= numbers {
            return true;
        }
        let (data, empty) = (Vec::new(), Box::<str>::default());
        let item = Item { number: numbers + 1, epoch: 0, received: 0, client: "".into(), data, settles: empty };
        self.write(&[item])
    }

    fn drain_spool(&mut self) {
        // A batch at a time: what comes meanwhile must not fill the queue.
        for _ in 0..4 {
            if self.spool.is_empty() {
                return;
            }
            match self.spool.peek(BATCH) {
                Ok((items, until)) => {
                    if !self.write(&items) {
                        return;
                    }
                    if let Err(error) = self.spool.done(until) {
                        eprintln!("gateway: the spool: {error}");
                    }
                }
                Err(error) => {
                    eprintln!("gateway: the spool can't be read: {error}");
                    return;
                }
            }
        }
    }

    /// True when all of it is in the stream.
    fn write(&mut self, items: &[Item]) -> bool {
        if items.is_empty() {
            return true;
        }
        if self.connection.is_none() && Instant::now() < self.retry_at {
            return false;
        }
        match self.try_write(items) {
            Ok(()) => true,
            Err(error) => {
                self.retry_at = Instant::now() + AFTER;
                if self.connection.take().is_some() {
                    eprintln!("gateway: Redis: {error}; spooled from number {} on", items[0].number);
                }
                false
            }
        }
    }

    fn try_write(&mut self, items: &[Item]) -> RedisResult<()> {
        if self.connection.is_none() {
            let mut connection = connect(&self.url)?;
            // What the stream has decides, not what we believe: of a batch that broke off some is there, and of what
            // Redis took some may be gone.
            self.lease.renew(&mut connection)?;
            let has = last_number(&mut connection, self.stream)?;
            eprintln!("gateway: Redis is there again and has up to number {has}; {} was the last confirmed", self.last);
            (self.connection, self.last) = (Some(connection), has);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let mut pipeline = Pipeline::new();
        pipeline.atomic();
        let mut last = self.last;
        for item in items.iter().filter(|item| item.number > self.last) {
            if item.number > last + 1 {
                let (from, to) = (last + 1, item.number - 1);
                let id = format!("{to}-1");
                pipeline
                    .cmd("XADD")
                    .arg(self.stream)
                    .arg(id)
                    .arg("kind")
                    .arg("lost")
                    .arg("from")
                    .arg(from)
                    .arg("to")
                    .arg(to)
                    .ignore();
            }
            let command = pipeline
                .cmd("XADD")
                .arg(self.stream)
                .arg("MAXLEN")
                .arg("~")
                .arg(KEPT)
                .arg(format!("{}-0", item.number));
            command.arg("kind").arg("message").arg("client").arg(&*item.client).arg("epoch").arg(item.epoch);
            command.arg("received").arg(item.received).arg("data").arg(&item.data[..]).ignore();
            // An order is settled when its answer is there, not before.
            if !item.settles.is_empty() {
                pipeline.cmd("HDEL").arg(OPEN).arg(&*item.settles).ignore();
            }
            last = item.number;
        }
        // Of a batch that broke off all may be there already.
        if last > self.last {
            fenced(&self.lease, connection, &pipeline)?;
        }
        self.last = last.max(self.last);
        Ok(())
    }
}

/// Attempts at one batch: the lease may be renewed in the middle of one.
const ATTEMPTS: usize = 5;

/// Has Redis carry out all of it, or nothing when this gateway's lease is not the one that holds.
fn fenced(lease: &Lease, connection: &mut Connection, pipeline: &Pipeline) -> RedisResult<()> {
    for _ in 0..ATTEMPTS {
        // A key that is watched and changes, or expires, ends the transaction (Redis 6.0.9 and later).
        redis::cmd("WATCH").arg(HOLDER).query::<()>(connection)?;
        let holder: Option<u64> = redis::cmd("GET").arg(HOLDER).query(connection)?;
        if holder != Some(lease.token()) {
            redis::cmd("UNWATCH").query::<()>(connection)?;
            lease.renew(connection)?;
            continue;
        }
        if pipeline.query::<Option<()>>(connection)?.is_some() {
            return Ok(());
        }
    }
    Err(overtaken())
}
