//! The server of the fleet, in its own process: one thread, any number of connections, every ping answered and timed.

use std::collections::HashMap;
use std::io::{BufRead, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use socket2::{Domain, Socket, Type};
use tungstenite::WebSocket;
use tungstenite::protocol::WebSocketConfig;

const LISTENER: u64 = u64::MAX;

struct Connection {
    socket: WebSocket<TcpStream>,
    pinged: Option<Instant>,
}

/// Serves until standard input ends. A line there is an interval in µs, and is answered with how much later than that
/// the 99th percentile of pings came since the last line, in µs.
pub fn serve(port: u16) {
    let listener = listen(port);
    println!("{}", listener.local_addr().expect("an address").port());
    let gaps = Arc::new(Mutex::new(Vec::new()));
    let connections = gaps.clone();
    std::thread::spawn(move || serve_all(&listener, &connections));
    for line in std::io::stdin().lock().lines() {
        let interval: u64 = line.expect("a line").trim().parse().expect("an interval");
        let mut gaps = std::mem::take(&mut *gaps.lock().expect("no panic"));
        gaps.sort_unstable();
        let p99 = gaps.get(gaps.len() * 99 / 100).copied().unwrap_or(interval);
        println!("{}", p99.saturating_sub(interval));
    }
}

/// With room for thousands that come at once, on a port that was in use a moment ago.
fn listen(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()).expect("the port");
    socket.listen(8192).expect("a listener");
    socket.into()
}

fn serve_all(listener: &TcpListener, gaps: &Mutex<Vec<u64>>) {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let watch = |fd: &dyn std::os::fd::AsFd, key| {
        epoll::add(&poll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN).expect("watched");
    };
    watch(listener, LISTENER);
    let mut connections = HashMap::new();
    let mut events = Vec::with_capacity(1024);
    loop {
        events.clear();
        let _ = epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None);
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                if let Some(connection) = accept(listener) {
                    let key = connection.socket.get_ref().as_raw_fd() as u64;
                    watch(connection.socket.get_ref(), key);
                    connections.insert(key, connection);
                }
            } else if !connections.get_mut(&key).is_some_and(|connection| read(connection, gaps)) {
                connections.remove(&key);
            }
        }
    }
}

fn accept(listener: &TcpListener) -> Option<Connection> {
    let (tcp, _) = listener.accept().ok()?;
    tcp.set_nodelay(true).ok()?;
    tcp.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let config = WebSocketConfig::default().read_buffer_size(1 << 10);
    let socket = tungstenite::accept_with_config(tcp, Some(config)).ok()?;
    socket.get_ref().set_nonblocking(true).ok()?;
    Some(Connection { socket, pinged: None })
}

/// Reads what came; false when the connection is over.
fn read(connection: &mut Connection, gaps: &Mutex<Vec<u64>>) -> bool {
    loop {
        match connection.socket.read() {
            Ok(message) if message.is_ping() => {
                let now = Instant::now();
                if let Some(last) = connection.pinged.replace(now) {
                    gaps.lock().expect("no panic").push(now.duration_since(last).as_micros() as u64);
                }
                let _ = connection.socket.flush();
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
}
