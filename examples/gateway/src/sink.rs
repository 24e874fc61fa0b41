//! From a client's thread to a stream: numbered there, queued in memory, written by a thread of its own. The client waits for
//! nobody. What a full queue, a full spool or Redis itself loses leaves a gap in the numbers, and each gap is told in the stream.
//!
//! To put the same on Kafka, NATS or Aeron, replace `Writer`: an idempotent producer (Kafka), a message id in a window of
//! deduplication (NATS JetStream) or the position (Aeron's archive) takes the place of the entry's own id.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use redis::{Connection, Pipeline, RedisResult};

use crate::spool::Spool;
use crate::stream::{connect, last_number};

/// A message on its way.
#[derive(Debug)]
pub struct Item {
    pub number: u64,
    pub epoch: u64,
    /// Nanoseconds since 1970 at which it was received.
    pub received: u64,
    pub client: Box<str>,
    pub data: Vec<u8>,
}

impl Item {
    pub fn write(&self, to: &mut Vec<u8>) {
        for number in [self.number, self.epoch, self.received, self.client.len() as u64, self.data.len() as u64] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        to.extend_from_slice(self.client.as_bytes());
        to.extend_from_slice(&self.data);
    }

    pub fn read(from: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = from.split_at_checked(40)?;
        let number = |at: usize| Some(u64::from_le_bytes(head.get(8 * at..8 * at + 8)?.try_into().ok()?));
        let (client, rest) = rest.split_at_checked(number(3)? as usize)?;
        let (data, rest) = rest.split_at_checked(number(4)? as usize)?;
        let client = String::from_utf8_lossy(client).into();
        let (number, epoch, received) = (number(0)?, number(1)?, number(2)?);
        Some((Self { number, epoch, received, client, data: data.to_vec() }, rest))
    }
}

/// In memory; then the spool has it, or it is lost.
const QUEUE: usize = 65_536;
const BATCH: usize = 1_000;
const AGAIN: Duration = Duration::from_millis(200);

/// Entries that the stream keeps, about.
const KEPT: usize = 10_000_000;

/// The client's end. Clones number together.
#[derive(Clone)]
pub struct Sink {
    queue: Sender<Item>,
    numbers: Arc<AtomicU64>,
}

impl Sink {
    pub fn start(url: &str, stream: &'static str, spool_bytes: u64) -> Result<(Self, JoinHandle<u64>), Box<dyn std::error::Error>> {
        // It goes on where an earlier run ended.
        let mut connection = connect(url)?;
        let last = last_number(&mut connection, stream)?;
        let (queue, items) = bounded(QUEUE);
        let spool = Spool::new(stream, spool_bytes)?;
        let writer = Writer { url: url.to_owned(), stream, connection: Some(connection), last, spool, items };
        let thread = std::thread::Builder::new().name("redis".into()).spawn(move || writer.run())?;
        Ok((Self { queue, numbers: Arc::new(AtomicU64::new(last)) }, thread))
    }

    /// Never waits.
    pub fn put(&self, client: &str, epoch: u64, data: &[u8]) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let item = Item { number, epoch, received: now.as_nanos() as u64, client: client.into(), data: data.to_vec() };
        // A full queue loses it, and the gap tells.
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
    /// The last number that the stream has, or has been told to be lost.
    last: u64,
    spool: Spool,
    items: Receiver<Item>,
}

impl Writer {
    /// Until the last sink is gone and all is written. Returns the last number written.
    fn run(mut self) -> u64 {
        let mut ended = false;
        loop {
            let mut batch = Vec::new();
            match self.items.recv_timeout(AGAIN) {
                Ok(item) => batch.push(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => ended = true,
            }
            batch.extend(self.items.try_iter().take(BATCH - 1));
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
            if ended && self.spool.is_empty() {
                return self.last;
            }
            if self.connection.is_none() {
                std::thread::sleep(AGAIN / 4);
            }
        }
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
        match self.try_write(items) {
            Ok(()) => true,
            Err(error) => {
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
            let has = last_number(&mut connection, self.stream)?;
            eprintln!("gateway: Redis is there again and has up to number {has}; {} was the last confirmed", self.last);
            (self.connection, self.last) = (Some(connection), has);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let mut pipeline = Pipeline::new();
        let mut last = self.last;
        for item in items.iter().filter(|item| item.number > self.last) {
            if item.number > last + 1 {
                let (from, to) = (last + 1, item.number - 1);
                let id = format!("{to}-1");
                pipeline.cmd("XADD").arg(self.stream).arg(id).arg("kind").arg("lost").arg("from").arg(from).arg("to").arg(to).ignore();
            }
            let command = pipeline.cmd("XADD").arg(self.stream).arg("MAXLEN").arg("~").arg(KEPT).arg(format!("{}-0", item.number));
            command.arg("kind").arg("message").arg("client").arg(&*item.client).arg("epoch").arg(item.epoch);
            command.arg("received").arg(item.received).arg("data").arg(&item.data[..]).ignore();
            last = item.number;
        }
        // Of a batch that broke off all may be there already.
        if last > self.last {
            pipeline.query::<()>(connection)?;
        }
        self.last = last.max(self.last);
        Ok(())
    }
}
