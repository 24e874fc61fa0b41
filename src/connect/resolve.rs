//! Names to addresses, on a thread that can be abandoned, since `getaddrinfo` has no timeout. Attempts share a lookup that is
//! under way. A lookup during which an attempt has timed out hangs: the next attempt starts another, so that an outage of the
//! resolver does not outlast itself.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::attempt::{Attempt, Halt};
use crate::config::ResolveFn;
use crate::error::ConnectError;
use crate::wake::Wake;

type Addresses = Result<Vec<SocketAddr>, Box<str>>;

/// Whose resolver (0: the system's), host, port.
type Key = (usize, String, u16);

struct Waiting {
    answer: Sender<Addresses>,
    wake: Arc<Wake>,
}

/// The lookups of one name that are under way.
#[derive(Default)]
struct Lookups {
    /// Threads that have not come back.
    threads: usize,
    /// An attempt has timed out while it waited for the latest of them.
    latest_hangs: bool,
    /// Attempts that wait. The first answer, from any thread, is for all of them.
    waiting: Vec<Waiting>,
}

/// Threads that may hang in the lookup of one name.
const MAX_THREADS: usize = 4;

static UNDER_WAY: Mutex<Option<HashMap<Key, Lookups>>> = Mutex::new(None);

pub(super) fn resolve(attempt: &Attempt<'_>, host: &str, port: u16) -> Result<Vec<SocketAddr>, Halt> {
    let failed = |message: Box<str>| Halt::Failed(ConnectError::Resolve { host: host.into(), message });
    if let (Ok(ip), None) = (host.parse::<IpAddr>(), attempt.resolver) {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let resolver = attempt.resolver.cloned();
    let whose = resolver.as_ref().map_or(0, |resolver| Arc::as_ptr(resolver).cast::<()>() as usize);
    let key: Key = (whose, host.to_owned(), port);
    let (answer, answered) = crossbeam_channel::bounded(1);
    let waiting = Waiting { answer, wake: attempt.wake.clone() };
    ask(&key, resolver, waiting).map_err(|error| failed(format!("no thread for the lookup: {error}").into()))?;
    let waited = attempt.wait_for(&[], attempt.deadline, || !answered.is_empty());
    if matches!(waited, Err(Halt::Failed(_))) {
        if let Some(lookups) = UNDER_WAY.lock().as_mut().and_then(|all| all.get_mut(&key)) {
            lookups.latest_hangs = true;
        }
    }
    waited?;
    match answered.try_recv() {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(failed("no address".into())),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(message)) => Err(failed(message)),
        Err(_) => Err(failed("the resolver ended without an answer".into())),
    }
}

/// Joins the lookup that is under way, or starts one.
fn ask(key: &Key, resolver: Option<Arc<ResolveFn>>, waiting: Waiting) -> io::Result<()> {
    let mut under_way = UNDER_WAY.lock();
    let all = under_way.get_or_insert_default();
    let lookups = all.entry(key.clone()).or_default();
    let joins = lookups.threads > 0 && (!lookups.latest_hangs || lookups.threads >= MAX_THREADS);
    if !joins {
        let started = start(key.clone(), resolver);
        if let (Err(_), 0) = (&started, lookups.threads) {
            all.remove(key);
            return started;
        }
        if started.is_ok() {
            (lookups.threads, lookups.latest_hangs) = (lookups.threads + 1, false);
        }
    }
    lookups.waiting.push(waiting);
    Ok(())
}

fn start(key: Key, resolver: Option<Arc<ResolveFn>>) -> io::Result<()> {
    let name = format!("dns {}", key.1);
    let lookup = move || {
        // Attempts that wait get an answer however the lookup ends.
        let mut ended = LookupEnd { key, answer: Err("the resolver panicked".into()) };
        let (_, host, port) = &ended.key;
        let result = match &resolver {
            Some(resolve) => resolve(host, *port),
            None => (host.as_str(), *port).to_socket_addrs().map(Iterator::collect),
        };
        ended.answer = result.map_err(|error| error.to_string().into());
    };
    std::thread::Builder::new().name(name).spawn(lookup).map(drop)
}

struct LookupEnd {
    key: Key,
    answer: Addresses,
}

impl Drop for LookupEnd {
    fn drop(&mut self) {
        let mut under_way = UNDER_WAY.lock();
        let Some(all) = under_way.as_mut() else { return };
        let Some(lookups) = all.get_mut(&self.key) else { return };
        lookups.threads -= 1;
        let waiting = std::mem::take(&mut lookups.waiting);
        if lookups.threads == 0 {
            all.remove(&self.key);
        }
        drop(under_way);
        for waiting in waiting {
            let _ = waiting.answer.try_send(self.answer.clone());
            waiting.wake.wake();
        }
    }
}
