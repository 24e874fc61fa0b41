//! What the tests share: short settings, and waiting for events with a generous deadline.
#![allow(dead_code, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Renewal, Venue};
use ws_supervisor::{Client, ClientConfig, Event, Heartbeat, Message, ReadyState, Request, Session, SessionError};

/// Far more than anything here takes, also on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Retries quickly and for ever.
pub fn config(server: &Server) -> ClientConfig {
    let config = ClientConfig::new(server.url()).unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX);
    match server.ca_pem() {
        pem if pem.is_empty() => config,
        pem => config.root_certificate(pem),
    }
}

/// The next event for which `pick` gives a result; others are passed over.
pub fn next<T>(client: &Client, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let events = client.events();
    let deadline = Instant::now() + LONG;
    let mut passed = vec![];
    loop {
        match events.recv_deadline(deadline) {
            Ok(event) => {
                passed.push(format!("{event:?}"));
                if let Some(result) = pick(event) {
                    return result;
                }
            }
            Err(error) => panic!("{error}: {client:?} gave only {passed:?}"),
        }
    }
}

pub fn next_text(client: &Client) -> String {
    next(client, |event| match event {
        Event::Message(message) => message.as_text().map(str::to_owned),
        _ => None,
    })
}

pub fn next_open(client: &Client) -> u64 {
    next(client, |event| match event {
        Event::Open { epoch, .. } => Some(epoch),
        _ => None,
    })
}

/// Waits until `condition` holds, looking often; panics when it never does.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::park_timeout(ms(1));
    }
}

pub fn wait_for_state(client: &Client, state: ReadyState) {
    eventually(&format!("{state}"), || client.ready_state() == state);
}

/// What Linux says of a thread of this process, by its name: the value of a field of its status.
pub fn thread_status(thread: &str, field: &str) -> Option<String> {
    let status = fs::read_to_string(task(thread)?.join("status")).ok()?;
    let line = status.lines().find(|line| line.split(':').next() == Some(field))?;
    line.split_whitespace().last().map(str::to_owned)
}

/// A thread's scheduling policy and real-time priority, by Linux's numbers (proc(5), fields 41 and 40).
pub fn thread_schedule(thread: &str) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(task(thread)?.join("stat")).ok()?;
    // The name before it may have spaces in it; the third field is the first one after.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(38)?.parse().ok()?, fields.get(37)?.parse().ok()?))
}

fn task(thread: &str) -> Option<PathBuf> {
    let tasks = Path::new("/proc/self/task").read_dir().ok()?;
    let is_it = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread);
    tasks.flatten().map(|task| task.path()).find(is_it)
}

/// A text message as JSON.
pub fn json_of(message: &Message) -> Value {
    serde_json::from_str(message.as_text().unwrap()).unwrap()
}

/// A server that answers JSON-RPC requests by this function; `None` leaves one unanswered.
pub fn rpc(answer: impl Fn(&str, &Value) -> Option<Result<Value, i64>> + Send + Sync + 'static) -> Script {
    Script::reply(move |_, message| {
        let request = json_of(message);
        let (id, method) = (&request["id"], request["method"].as_str().unwrap_or_default());
        let reply = match answer(method, &request["params"]) {
            None => return vec![],
            Some(Ok(result)) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Some(Err(code)) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": "refused"}}),
        };
        vec![reply.to_string().into()]
    })
}

/// The methods that a connection was asked for, in order.
pub fn methods(server: &Server, index: usize) -> Vec<String> {
    let method = |message: &Message| json_of(message)["method"].as_str().unwrap_or_default().to_owned();
    server.records()[index].received.iter().map(method).collect()
}

/// A plain dialect; may renew something after a time, may forget to ask.
#[derive(Default)]
pub struct Plain {
    pub renews: Option<Duration>,
    pub forgets: bool,
    pub one_by_one: bool,
}

impl Venue for Plain {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::disabled()
    }
    fn authenticate(&self, _: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
        Ok(self.renews.map(|after| Renewal::new(after, Request::new("renew", ()))))
    }
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        match self.forgets {
            true => vec![],
            false => {
                let some = if self.one_by_one { 1 } else { channels.len() };
                channels.chunks(some).map(|some| Batch::new(Request::new("subscribe", some), some)).collect()
            }
        }
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
        vec![Batch::new(Request::new("unsubscribe", channels), channels)]
    }
}
