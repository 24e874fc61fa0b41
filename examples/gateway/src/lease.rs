//! Which gateway writes, reads orders and places them: the one that has the lease. Each lease has a number that rises (a fencing
//! token): every script and every write is refused by Redis when a later lease was given, so that a gateway that was stopped for a
//! while, or cut off, changes nothing when it goes on.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Connection, RedisError, RedisResult, Script};

use crate::stream::connect;

/// The key that holds the number of the lease while it lasts, and the one that holds the highest number given.
pub const HOLDER: &str = "ws:gateway:lease";
const FENCE: &str = "ws:gateway:fence";

/// How long a gateway that is gone keeps the others out.
const LASTS: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// By its own clock a gateway has no lease any more so long before Redis gives it to another.
const MARGIN: Duration = Duration::from_secs(1);

/// How long a standby waits for the lease.
const PATIENCE: Duration = Duration::from_secs(10);

const TAKE: &str = "
if redis.call('exists', KEYS[1]) == 1 then return 0 end
local token = redis.call('incr', KEYS[2])
redis.call('set', KEYS[1], token, 'PX', ARGV[1])
return token";

/// Also renews where the key is gone, or Redis was restored from an older snapshot, as long as no later lease was given.
const RENEW: &str = "
local mine = tonumber(ARGV[1])
local holder = tonumber(redis.call('get', KEYS[1]) or '0')
local fence = tonumber(redis.call('get', KEYS[2]) or '0')
if holder > mine or fence > mine then return 0 end
redis.call('set', KEYS[2], ARGV[1])
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

const GIVE_BACK: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end";

pub struct Lease {
    token: u64,
    began: Instant,
    /// Milliseconds after `began` until which the lease is held for sure.
    held_until: AtomicU64,
    is_lost: AtomicBool,
    ends: AtomicBool,
}

/// The error of a write that a later lease has overtaken.
pub fn overtaken() -> RedisError {
    (redis::ErrorKind::Client, "another gateway has taken over").into()
}

impl Lease {
    /// Takes the lease, waiting ten seconds for it, and renews it every second on a thread of its own.
    pub fn take(url: &str) -> Result<Arc<Self>, Box<dyn Error>> {
        let mut connection = connect(url)?;
        let began = Instant::now();
        let token = loop {
            let token: u64 =
                Script::new(TAKE).key(HOLDER).key(FENCE).arg(LASTS.as_millis() as u64).invoke(&mut connection)?;
            if token > 0 {
                break token;
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("another gateway has the lease (`GET {HOLDER}` is its number)").into());
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        let lease = Arc::new(Self { token, began, held_until: 0.into(), is_lost: false.into(), ends: false.into() });
        lease.renew(&mut connection)?;
        let (renewed, url) = (lease.clone(), url.to_owned());
        std::thread::Builder::new().name("lease".into()).spawn(move || renewed.keep(&url, connection))?;
        Ok(lease)
    }

    fn keep(&self, url: &str, connection: Connection) {
        let mut connection = Some(connection);
        while !self.ends.load(Ordering::Relaxed) && !self.is_lost() {
            std::thread::sleep(RENEW_EVERY);
            if connection.is_none() {
                connection = connect(url).ok();
            }
            if connection.as_mut().is_some_and(|connection| self.renew(connection).is_err()) {
                connection = None;
            }
        }
        if let Some(mut connection) = connection {
            let _ = Script::new(GIVE_BACK).key(HOLDER).arg(self.token).invoke::<()>(&mut connection);
        }
    }

    /// Renews the lease. An error when a later one was given.
    pub fn renew(&self, connection: &mut Connection) -> RedisResult<()> {
        let sent = self.began.elapsed();
        let script = Script::new(RENEW);
        let mut call = script.key(HOLDER);
        let held: u64 = call.key(FENCE).arg(self.token).arg(LASTS.as_millis() as u64).invoke(connection)?;
        if held == 0 {
            self.is_lost.store(true, Ordering::Relaxed);
            return Err(overtaken());
        }
        self.held_until.fetch_max((sent + LASTS - MARGIN).as_millis() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether no other gateway can have it now, by our own clock.
    pub fn is_held(&self) -> bool {
        !self.is_lost() && self.began.elapsed().as_millis() < u128::from(self.held_until.load(Ordering::Relaxed))
    }

    /// Whether another gateway was given a later one: nothing of ours is taken any more.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Gives it back within a second.
    pub fn give_back(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}
