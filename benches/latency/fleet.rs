//! Many clients at once: what idle ones cost, how soon they are back after their server is, how punctual their pings
//! are. The server is this program once more, in a process of its own, so that what is measured is the clients.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use ws_supervisor::{ClientConfig, ClientEvent, Delivery, Event, Heartbeat, Supervisor};

use crate::table::Table;

/// Clients in the row of late pings: one server thread answers so many in time.
const PUNCTUAL: usize = 1000;

/// The bounds that the rows are compared with.
const RESIDENT_KIB: f64 = 48.0;
const CORE_PERCENT: f64 = 3.0;
const REOPEN_SECONDS: f64 = 5.0;
const LATE_MS: f64 = 5.0;

/// A whole interval of their pings.
const IDLE_FOR: Duration = Duration::from_secs(30);
const OUTAGE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// Every client has a socket and an eventfd; the rest is ours.
const SPARE_DESCRIPTORS: u64 = 200;

/// The server's process. It ends when its standard input does.
struct Server {
    child: Child,
    answers: BufReader<ChildStdout>,
    port: u16,
}

impl Server {
    /// On any port when `port` is 0.
    fn start(port: u16) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--serve", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server's process");
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        let mut server = Self { child, answers, port };
        server.port = server.answer();
        server
    }

    fn answer<T: std::str::FromStr>(&mut self) -> T {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the server's answer");
        line.trim().parse().ok().unwrap_or_else(|| panic!("the server said {line:?}"))
    }

    /// How late the pings came since this was last asked: the 99th percentile in µs, against their interval.
    fn late_p99(&mut self, interval: Duration) -> f64 {
        let ask = self.child.stdin.as_mut().expect("its input");
        writeln!(ask, "{}", interval.as_micros()).expect("a question");
        self.answer()
    }

    fn kill(mut self) -> u16 {
        self.child.kill().expect("the server killed");
        self.child.wait().expect("the server's end");
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn idle(table: &mut Table, clients: usize) {
    let keys = ["resident", "core", "reopen"].map(|what| format!("idle_{clients}_{what}"));
    if !keys.iter().any(|key| table.wants(key)) || !has_descriptors(clients) {
        return;
    }
    eprintln!("  {clients} idle clients");
    let server = Server::start(0);
    let (supervisor, before) = (supervisor(), resident_kib());
    let events = open(&supervisor, server.port, clients, Duration::ZERO, |config| config.many_clients());
    let (busy, begun) = (cpu_time(), Instant::now());
    std::thread::sleep(IDLE_FOR);
    let core = (cpu_time() - busy).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
    let resident = (resident_kib() - before) / clients as f64;
    let port = server.kill();
    std::thread::sleep(OUTAGE);
    let begun = Instant::now();
    let server = Server::start(port);
    await_open(&events, clients);
    let reopen = begun.elapsed().as_secs_f64();
    for (key, unit, limit, ours) in [
        (&keys[0], "KiB", RESIDENT_KIB, resident),
        (&keys[1], "%", CORE_PERCENT, core),
        (&keys[2], "s", REOPEN_SECONDS, reopen),
    ] {
        table.bound(key, unit, limit, ours);
    }
    supervisor.shutdown(PATIENCE);
    drop(server);
}

pub fn punctuality(table: &mut Table, clients: usize) {
    let clients = clients.min(PUNCTUAL);
    let key = format!("heartbeat_{clients}_late_p99");
    if !table.wants(&key) || !has_descriptors(clients) {
        return;
    }
    eprintln!("  the pings of {clients} clients");
    let interval = Duration::from_secs(1);
    let (mut server, supervisor) = (Server::start(0), supervisor());
    let heartbeat = Heartbeat::ping_pong(interval);
    let with_pings = |config: ClientConfig| config.many_clients().heartbeat(heartbeat.clone());
    // One after another over the interval, so that no ping waits for the server to read a thousand others.
    let _events = open(&supervisor, server.port, clients, interval / clients as u32, with_pings);
    std::thread::sleep(2 * interval);
    server.late_p99(interval);
    std::thread::sleep(10 * interval);
    table.bound(&key, "ms", LATE_MS, server.late_p99(interval) / 1e3);
    supervisor.shutdown(PATIENCE);
}

fn supervisor() -> Supervisor {
    Supervisor::start().expect("a supervisor")
}

/// Starts the clients, with a pause after each, and reads their events meanwhile, until all are open.
fn open(
    supervisor: &Supervisor,
    port: u16,
    clients: usize,
    pause: Duration,
    configure: impl Fn(ClientConfig) -> ClientConfig + Sync,
) -> Receiver<ClientEvent> {
    let (delivery, events) = Delivery::shared();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..clients {
                let config = ClientConfig::new(format!("ws://127.0.0.1:{port}/")).expect("a URL");
                supervisor.spawn_client(configure(config).delivery(delivery.clone())).expect("a client");
                std::thread::sleep(pause);
            }
        });
        await_open(&events, clients);
    });
    events
}

fn await_open(events: &Receiver<ClientEvent>, clients: usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut open = HashSet::new();
    while open.len() < clients {
        let event = events.recv_deadline(deadline).expect("all of them open");
        match event.event {
            Event::Open { .. } => open.insert(event.client),
            Event::Disconnected { .. } => open.remove(&event.client),
            _ => false,
        };
    }
}

/// Raises the limit of open files as far as it goes.
fn has_descriptors(clients: usize) -> bool {
    let needed = 2 * clients as u64 + SPARE_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return true;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok();
    let enough = raised && limit.maximum.is_none_or(|maximum| maximum >= needed);
    if !enough {
        eprintln!("  {clients} clients need {needed} open files, and the limit is {:?}: left out", limit.maximum);
    }
    enough
}

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(f64::NAN)
}

/// Of this process, all threads.
fn cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
