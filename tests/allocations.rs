//! What a received message costs in allocations: none, and one for many where they are kept.

use std::alloc::System;
use std::io::Write;
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use ws_supervisor::{ClientConfig, Context, Delivery, Event, Handler, IdleStrategy, MessageRef, Supervisor};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const LONG: Duration = Duration::from_secs(30);
/// Bursts before the count begins, and while it lasts.
const WARM_UP: usize = 100;
const COUNTED: usize = 200;
/// Buffers that grow once more, as they do on a busy machine, are not what a message costs: that would be hundreds.
const STRAY: usize = 8;

/// A server that allocates nothing once it is open: when asked for it, so many ticks of 64 bytes in one write.
fn server(ticks: usize, asked: Receiver<()>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let serve = move || {
        let ws = tungstenite::accept(listener.accept().unwrap().0).unwrap();
        let mut tcp = ws.get_ref();
        tcp.set_nodelay(true).unwrap();
        let mut tick = vec![0x81, 64];
        tick.extend([b't'; 64]);
        let burst = tick.repeat(ticks);
        while asked.recv().is_ok() {
            tcp.write_all(&burst).unwrap();
        }
    };
    (url, std::thread::spawn(serve))
}

/// Asks for the next burst when it has all of one, and counts what is allocated meanwhile.
struct Count {
    burst: usize,
    ask: Sender<()>,
    ticks: usize,
    region: Option<Region<'static, System>>,
}

impl Count {
    fn new(burst: usize, ask: Sender<()>) -> Self {
        Self { burst, ask, ticks: 0, region: None }
    }

    /// How many allocations there were, once that is known.
    fn tick(&mut self) -> Option<usize> {
        self.ticks += 1;
        if self.ticks % self.burst > 0 {
            return None;
        }
        let bursts = self.ticks / self.burst;
        if bursts == WARM_UP {
            self.region = Some(Region::new(ALLOCATOR));
        }
        if bursts == WARM_UP + COUNTED {
            let change = self.region.take()?.change();
            return Some(change.allocations + change.reallocations);
        }
        self.ask.send(()).unwrap();
        None
    }
}

struct Inline {
    count: Count,
    done: Sender<usize>,
}

impl Handler for Inline {
    fn on_open(&mut self, _: &mut Context<'_>) {
        self.count.ask.send(()).unwrap();
    }

    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        assert_eq!(message.len(), 64);
        if let Some(allocations) = self.count.tick() {
            self.done.send(allocations).unwrap();
        }
    }
}

fn ours(burst: usize, idle: IdleStrategy) -> usize {
    let (ask, asked) = bounded(1);
    let (url, _server) = server(burst, asked);
    let (done, counted) = bounded(1);
    let delivery = Delivery::inline(move || Inline { count: Count::new(burst, ask.clone()), done: done.clone() });
    let supervisor = supervisor();
    supervisor.spawn_client(ClientConfig::new(url).unwrap().idle_strategy(idle).delivery(delivery)).unwrap();
    let allocations = counted.recv_timeout(LONG).unwrap();
    // The server never answers a close.
    supervisor.shutdown(Duration::from_millis(50));
    allocations
}

/// As a caller gets them, and keeps all of a burst before it drops the first.
fn ours_kept(burst: usize) -> usize {
    let (ask, asked) = bounded(1);
    let (url, _server) = server(burst, asked);
    let supervisor = supervisor();
    let client = supervisor.spawn_client(ClientConfig::new(url).unwrap()).unwrap();
    client.wait_until_open(LONG).unwrap();
    let mut kept = Vec::with_capacity(burst);
    let mut count = Count::new(burst, ask.clone());
    ask.send(()).unwrap();
    loop {
        match client.events().recv_timeout(LONG).unwrap() {
            Event::Message(message) => kept.push(message),
            _ => continue,
        }
        if kept.len() == burst {
            kept.clear();
        }
        if let Some(allocations) = count.tick() {
            supervisor.shutdown(Duration::from_millis(50));
            return allocations;
        }
    }
}

/// A supervisor that publishes no metrics while allocations are counted, because publishing allocates.
fn supervisor() -> Supervisor {
    let builder = Supervisor::builder();
    #[cfg(feature = "metrics")]
    let builder = builder.metrics_interval(Duration::from_secs(3600));
    let supervisor = builder.start().unwrap();
    // The first publication is due with the first client; this one takes its place.
    #[cfg(feature = "metrics")]
    supervisor.publish_metrics();
    supervisor
}

/// What a caller who keeps small messages, one of each burst, holds of memory: bytes a message.
fn held_by_a_kept_message(burst: usize, bursts: usize) -> usize {
    let (ask, asked) = bounded(1);
    let (url, _server) = server(burst, asked);
    let supervisor = supervisor();
    let client = supervisor.spawn_client(ClientConfig::new(url).unwrap()).unwrap();
    client.wait_until_open(LONG).unwrap();
    let events = client.events();
    let next = || {
        ask.send(()).unwrap();
        let messages = events.iter().filter_map(|event| match event {
            Event::Message(message) => Some(message),
            _ => None,
        });
        messages.take(burst).last().unwrap()
    };
    for _ in 0..WARM_UP {
        next();
    }
    let mut kept = Vec::with_capacity(bursts);
    let region = Region::new(ALLOCATOR);
    kept.extend((0..bursts).map(|_| next()));
    let change = region.change();
    supervisor.shutdown(Duration::from_millis(50));
    change.bytes_allocated.saturating_sub(change.bytes_deallocated) / kept.len()
}

/// One test, because it counts what the whole process does.
#[test]
fn a_received_message_costs_no_allocation() {
    for burst in [1, 10, 500] {
        let ticks = COUNTED * burst;
        for idle in [IdleStrategy::Park, IdleStrategy::BusySpin] {
            let ours = ours(burst, idle);
            assert!(ours <= STRAY, "{ticks} ticks, {burst} at a time, {idle:?}: {ours} allocations");
        }
    }
    // Here the channel allocates a block for each 31 events, and two allocations hold 4 KiB of messages.
    let (burst, ticks) = (500, COUNTED * 500);
    let kept = ours_kept(burst);
    assert!(kept < ticks / 10, "{ticks} ticks, kept by the caller: {kept} allocations");

    // Of the messages that were read together one is kept; it must not keep all that they came in.
    for burst in [1, 30] {
        let held = held_by_a_kept_message(burst, 2000);
        assert!(held < 500, "one of {burst} messages of 64 bytes, kept, holds {held}");
    }
}
