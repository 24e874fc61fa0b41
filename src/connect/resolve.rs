//! Names to addresses, on a thread that can be left alone: nothing here can be held up by `getaddrinfo`. A lookup
//! that is still under way is shared, so that a resolver that hangs costs one thread a name, not one an attempt.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::attempt::{Attempt, Halt};
use crate::error::ConnectError;
use crate::wake::Wake;

type Addresses = Result<Vec<SocketAddr>, Box<str>>;

/// Whose resolver (0: the system's), host, port.
type Key = (usize, String, u16);

struct Waiting {
    answer: Sender<Addresses>,
    wake: Arc<Wake>,
}

static UNDER_WAY: Mutex<Option<HashMap<Key, Vec<Waiting>>>> = Mutex::new(None);

pub(super) fn resolve(attempt: &Attempt<'_>, host: &str, port: u16) -> Result<Vec<SocketAddr>, Halt> {
    let failed = |message: Box<str>| Halt::Failed(ConnectError::Resolve { host: host.into(), message });
    if let (Ok(ip), None) = (host.parse::<IpAddr>(), attempt.resolver) {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (answer, answered) = crossbeam_channel::bounded(1);
    ask(attempt, host, port, answer).map_err(|error| failed(format!("no thread for the lookup: {error}").into()))?;
    attempt.wait_for(&[], attempt.deadline, || !answered.is_empty())?;
    match answered.try_recv() {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(failed("no address".into())),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(message)) => Err(failed(message)),
        Err(_) => Err(failed("the resolver ended without an answer".into())),
    }
}

fn ask(attempt: &Attempt<'_>, host: &str, port: u16, answer: Sender<Addresses>) -> io::Result<()> {
    let resolver = attempt.resolver.cloned();
    let whose = resolver.as_ref().map_or(0, |resolver| Arc::as_ptr(resolver).cast::<()>() as usize);
    let key: Key = (whose, host.to_owned(), port);
    let waiting = Waiting { answer, wake: attempt.wake.clone() };

    let mut under_way = UNDER_WAY.lock();
    let lookups = under_way.get_or_insert_default();
    if let Some(others) = lookups.get_mut(&key) {
        others.push(waiting);
        return Ok(());
    }
    let lookup = {
        let key = key.clone();
        move || {
            // However the lookup ends, those who wait are told.
            let mut ended = LookupEnd { key, answer: Err("the resolver panicked".into()) };
            let (_, host, port) = &ended.key;
            let result = match &resolver {
                Some(resolve) => resolve(host, *port),
                None => (host.as_str(), *port).to_socket_addrs().map(Iterator::collect),
            };
            ended.answer = result.map_err(|error| error.to_string().into());
        }
    };
    std::thread::Builder::new().name(format!("dns {host}")).spawn(lookup)?;
    lookups.insert(key, vec![waiting]);
    Ok(())
}

struct LookupEnd {
    key: Key,
    answer: Addresses,
}

impl Drop for LookupEnd {
    fn drop(&mut self) {
        let waiting = UNDER_WAY.lock().as_mut().and_then(|lookups| lookups.remove(&self.key));
        for waiting in waiting.unwrap_or_default() {
            let _ = waiting.answer.try_send(self.answer.clone());
            waiting.wake.wake();
        }
    }
}
