//! From the caller to the server, while the line is silent: a caller's thread sends, the server's notes the age.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ws_supervisor::{Client, ClientConfig, Heartbeat, IdleStrategy};

use crate::median;

const MESSAGES: u64 = 2000;

/// A blocking tungstenite server that notes how old each message is when it has it.
struct Sink {
    url: String,
    received: Arc<AtomicU64>,
    ages: Arc<Mutex<Vec<u64>>>,
    thread: JoinHandle<()>,
}

impl Sink {
    fn start(epoch: Instant) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("ws://{}/", listener.local_addr()?);
        let (received, ages) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(vec![])));
        let (count, noted) = (received.clone(), ages.clone());
        let thread = std::thread::spawn(move || {
            let (tcp, _) = listener.accept().expect("a connection");
            let mut server = tungstenite::accept(tcp).expect("an upgrade");
            while let Ok(message) = server.read() {
                let now = epoch.elapsed().as_nanos() as u64;
                if let Some(sent) = message.to_text().ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                    noted.lock().unwrap().push(now.saturating_sub(sent));
                    count.fetch_add(1, Ordering::Release);
                }
            }
        });
        Ok(Self { url, received, ages, thread })
    }

    /// Sends one message after another, each into silence, and returns the median age at the server in µs.
    fn measure(self, epoch: Instant, mut send: impl FnMut(String)) -> f64 {
        for n in 1..=MESSAGES {
            let sent = epoch.elapsed().as_nanos() as u64;
            send(format!("{sent:<64}"));
            while self.received.load(Ordering::Acquire) < n {
                std::hint::spin_loop();
            }
            // Long enough for every thread but this one to sleep again.
            let quiet = Instant::now();
            while quiet.elapsed() < Duration::from_micros(60) {
                std::hint::spin_loop();
            }
        }
        let ages = std::mem::take(&mut *self.ages.lock().unwrap());
        drop(send);
        self.thread.join().expect("the server's thread");
        median(ages.into_iter().map(|age| age as f64 / 1e3).collect())
    }
}

pub fn bare() -> f64 {
    let epoch = Instant::now();
    let sink = Sink::start(epoch).expect("a server");
    let tcp = TcpStream::connect(sink.url.trim_start_matches("ws://").trim_end_matches('/')).expect("a connection");
    tcp.set_nodelay(true).expect("nodelay");
    let (mut socket, _) = tungstenite::client(sink.url.as_str(), tcp).expect("an upgrade");
    sink.measure(epoch, move |text| socket.send(tungstenite::Message::text(text)).expect("a write"))
}

pub fn ours(idle: IdleStrategy) -> f64 {
    let epoch = Instant::now();
    let sink = Sink::start(epoch).expect("a server");
    let config = ClientConfig::new(&sink.url).expect("a URL").heartbeat(Heartbeat::disabled()).idle_strategy(idle);
    let client = Client::connect(config).expect("a connection");
    sink.measure(epoch, move |text| client.send(text).expect("accepted"))
}
