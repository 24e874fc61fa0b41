//! The small pieces, each alone, with criterion: what a caller pays to send, what waking a worker takes, what a message
//! costs from the socket to the handler. `cargo bench --bench micro`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use crossbeam_channel::{Sender, bounded};
use ws_supervisor::{Client, ClientConfig, Context, Delivery, Handler, Heartbeat, IdleStrategy, Message, MessageRef};

const STRATEGIES: [(&str, IdleStrategy); 2] = [("park", IdleStrategy::Park), ("busy_spin", IdleStrategy::BusySpin)];
const BURST: u64 = 1000;

/// An open client, and the server's end of its connection after the upgrade.
fn connect(idle: IdleStrategy, delivery: Delivery) -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}/", listener.local_addr().expect("an address"));
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (tcp, _) = listener.accept().expect("the client");
            tcp.set_nodelay(true).expect("nodelay");
            tungstenite::accept(tcp).expect("an upgrade").into_inner()
        });
        let config = ClientConfig::new(url).expect("a URL").heartbeat(Heartbeat::disabled()).idle_strategy(idle);
        let client = Client::connect(config.delivery(delivery)).expect("a connection");
        (client, server.join().expect("the server"))
    })
}

/// Reads whatever comes until the connection ends.
fn drain(mut server: TcpStream) {
    std::thread::spawn(move || {
        let mut scratch = [0; 64 << 10];
        while server.read(&mut scratch).is_ok_and(|read| read > 0) {}
    });
}

/// The caller's own time: with a parked worker the write is in it, with a spinning one only the enqueueing.
fn send(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send");
    for (name, idle) in STRATEGIES {
        let (client, server) = connect(idle, Delivery::channel());
        drain(server);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let message = Message::text("t".repeat(64));
                    let begun = Instant::now();
                    let refused = client.send(message);
                    spent += begun.elapsed();
                    if refused.is_err() {
                        // The queue is full: it is emptied outside the measurement.
                        client.send_confirmed("barrier", Duration::from_secs(10)).ok();
                    }
                }
                spent
            });
        });
    }
    group.finish();
}

/// From a caller to the kernel and back to the caller.
fn confirm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send_confirmed");
    for (name, idle) in STRATEGIES {
        let (client, server) = connect(idle, Delivery::channel());
        drain(server);
        let message = Message::text("t".repeat(64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| client.send_confirmed(message.clone(), Duration::from_secs(10)).expect("open"));
        });
    }
    group.finish();
}

struct Counter {
    received: u64,
    done: Sender<()>,
}

impl Handler for Counter {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.received += 1;
        if self.received % BURST == 0 {
            let _ = self.done.send(());
        }
    }
}

/// A burst of messages of 64 bytes, written in one go, until the handler has had them all.
fn dispatch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(BURST));
    for (name, idle) in STRATEGIES {
        let (done, all) = bounded(1);
        let handler = Delivery::inline(move || Counter { received: 0, done: done.clone() });
        let (_client, mut server) = connect(idle, handler);
        let mut tick = vec![0x81, 64];
        tick.extend([b't'; 64]);
        let burst = tick.repeat(BURST as usize);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                server.write_all(&burst).expect("a burst");
                all.recv().expect("the handler");
            });
        });
    }
    group.finish();
}

/// What monitoring costs: it may be asked for on a hot path.
fn observe(criterion: &mut Criterion) {
    let (client, server) = connect(IdleStrategy::Park, Delivery::channel());
    drain(server);
    criterion.bench_function("ready_state", |bencher| bencher.iter(|| client.ready_state()));
    criterion.bench_function("stats", |bencher| bencher.iter(|| client.stats()));
    criterion.bench_function("heartbeat_health", |bencher| bencher.iter(|| client.heartbeat_health()));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for measure in [send, confirm, dispatch, observe] {
        measure(&mut criterion);
    }
    criterion.final_summary();
}
