//! From a panic on the worker's thread until its client is open again, beside a bare connect and upgrade.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use ws_supervisor::{ClientConfig, Context, Delivery, Handler, Heartbeat, MessageRef, Supervisor};

use crate::rig::{Times, pin, second_core};

struct Fragile {
    panicked: Sender<Instant>,
    opened: Sender<Instant>,
}

impl Handler for Fragile {
    fn on_open(&mut self, _: &mut Context<'_>) {
        let _ = self.opened.send(Instant::now());
    }

    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        let _ = self.panicked.send(Instant::now());
        panic!("a panic that the benchmark asked for");
    }
}

/// Upgrades whatever comes, on the second core, and sends each a message.
fn server() -> (String, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        pin(second_core());
        let mut last = None;
        for tcp in listener.incoming().flatten() {
            let _ = tcp.set_nodelay(true);
            if let Ok(mut socket) = tungstenite::accept(tcp) {
                let _ = socket.send("panic".into());
                last = Some(socket);
            }
        }
        drop(last);
    });
    (format!("ws://127.0.0.1:{port}/"), port)
}

/// A connect and an upgrade on one thread, until the first message could be read.
pub fn bare(samples: usize) -> Times {
    let (url, port) = server();
    Times::measure(samples, || {
        let begun = Instant::now();
        let tcp = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        tcp.set_nodelay(true).expect("nodelay");
        let (mut socket, _) = tungstenite::client(&url, tcp).expect("an upgrade");
        let took = begun.elapsed().as_secs_f64() * 1e6;
        socket.read().expect("the message");
        took
    })
}

/// The server answers no close.
const SHORT: Duration = Duration::from_millis(20);

pub fn ours(samples: usize) -> Times {
    let (url, _) = server();
    // What a panic prints is not what recovery costs.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let supervisor = Supervisor::start().expect("a supervisor");
    // A client each time: only the first restart in a row is at once.
    let times = Times::measure(samples, || {
        let ((panicked, panics), (opened, opens)) = (unbounded(), unbounded());
        let delivery = Delivery::inline(move || Fragile { panicked: panicked.clone(), opened: opened.clone() });
        let config = ClientConfig::new(&url).expect("a URL").heartbeat(Heartbeat::disabled()).close_timeout(SHORT);
        let client = supervisor.spawn_client(config.delivery(delivery)).expect("a client");
        opens.recv().expect("open");
        let (begun, open) = (panics.recv().expect("a panic"), opens.recv().expect("open again"));
        let _ = supervisor.stop_client(client.id());
        open.duration_since(begun).as_secs_f64() * 1e6
    });
    supervisor.shutdown(Duration::ZERO);
    std::panic::set_hook(hook);
    times
}
