//! Tick to trade: the server writes a tick of 64 bytes, the client answers with an order of 64 bytes, the server
//! measures from one to the other. The server is raw TCP in every case; what differs is who answers.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ws_supervisor::{Client, ClientConfig, Context, Delivery, Handler, Heartbeat, IdleStrategy, Message};

const TICKS: usize = 4000;
const SIZE: usize = 64;
/// A server's frame: two bytes before the payload. A client's: four more, of the mask (RFC 6455 section 5.2).
const SERVER_HEADER: [u8; 2] = [0x81, SIZE as u8];
const CLIENT_FRAME: usize = 6 + SIZE;

/// Round trips in µs, sorted.
pub struct Times(Vec<f64>);

impl Times {
    pub fn percentile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}

fn ticks(mut tcp: TcpStream, tick: &[u8], answer: usize) -> Times {
    tcp.set_nodelay(true).expect("nodelay");
    let mut buffer = vec![0; answer];
    let mut times = Vec::with_capacity(TICKS);
    for n in 0..TICKS + TICKS / 10 {
        let begun = Instant::now();
        tcp.write_all(tick).expect("a tick");
        tcp.read_exact(&mut buffer).expect("an order");
        // The first ones warm up.
        if n >= TICKS / 10 {
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let quiet = Instant::now();
        while quiet.elapsed() < Duration::from_micros(40) {
            std::hint::spin_loop();
        }
    }
    times.sort_by(f64::total_cmp);
    Times(times)
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

fn framed() -> Vec<u8> {
    [&SERVER_HEADER[..], &[b't'; SIZE]].concat()
}

pub fn raw(spin: bool) -> Times {
    let (listener, address) = listen();
    let client = std::thread::spawn(move || {
        let mut tcp = TcpStream::connect(address).expect("a connection");
        tcp.set_nodelay(true).expect("nodelay");
        tcp.set_nonblocking(spin).expect("non-blocking");
        let mut buffer = [0; SIZE];
        loop {
            match tcp.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => tcp.write_all(&buffer).expect("an order"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(_) => return,
            }
        }
    });
    let times = ticks(listener.accept().expect("the client").0, &[b't'; SIZE], SIZE);
    client.join().expect("the client's thread");
    times
}

pub fn bare() -> Times {
    let (listener, address) = listen();
    let client = std::thread::spawn(move || {
        let tcp = TcpStream::connect(&address).expect("a connection");
        tcp.set_nodelay(true).expect("nodelay");
        let (mut socket, _) = tungstenite::client(format!("ws://{address}/"), tcp).expect("an upgrade");
        while let Ok(message) = socket.read() {
            if message.is_text() && socket.send(message).is_err() {
                return;
            }
        }
    });
    let server = tungstenite::accept(listener.accept().expect("the client").0).expect("an upgrade");
    let times = ticks(server.into_inner(), &framed(), CLIENT_FRAME);
    client.join().expect("the client's thread");
    times
}

struct Trader;

impl Handler for Trader {
    fn on_message(&mut self, context: &mut Context<'_>, tick: Message) {
        context.send(tick).expect("an open connection");
    }
}

pub fn ours(idle: IdleStrategy) -> Times {
    let (listener, address) = listen();
    let config = ClientConfig::new(format!("ws://{address}/")).expect("a URL");
    let config = config.heartbeat(Heartbeat::disabled()).idle_strategy(idle).delivery(Delivery::inline(|| Trader));
    let client = std::thread::spawn(move || Client::connect(config).expect("a connection"));
    let server = tungstenite::accept(listener.accept().expect("the client").0).expect("an upgrade");
    let client = client.join().expect("the connecting thread");
    let times = ticks(server.into_inner(), &framed(), CLIENT_FRAME);
    drop(client);
    times
}
