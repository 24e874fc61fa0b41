//! The peers: each as its documentation has it, on the thread it is called on, until the connection ends. Where one
//! offers a runtime of several threads it gets the one of one thread, which is the faster for one connection.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use futures_util::{SinkExt, StreamExt};
use ws_supervisor::{Client, ClientConfig, Context, Delivery, Handler, Heartbeat, IdleStrategy, MessageRef};

use crate::rig::Note;

/// What a peer does with each message.
pub enum Job {
    Answer,
    Note(Note),
    Count { left: usize, done: Sender<()> },
}

impl Job {
    /// Whether the message is to be answered.
    fn wants_answer(&mut self) -> bool {
        match self {
            Self::Answer => return true,
            Self::Note(note) => note.put(),
            Self::Count { left, done } => {
                *left -= 1;
                if *left == 0 {
                    let _ = done.send(());
                }
            }
        }
        false
    }
}

pub struct Peer {
    pub name: &'static str,
    pub spins: bool,
    /// Until the connection ends, or the flag says that it has.
    pub run: fn(String, Job, &AtomicBool),
}

pub const PEERS: &[Peer] = &[
    Peer { name: "ours_park", spins: false, run: ours_parked },
    Peer { name: "tungstenite", spins: false, run: bare },
    Peer { name: "tokio_tungstenite", spins: false, run: on_tokio },
    Peer { name: "fastwebsockets", spins: false, run: fast },
    Peer { name: "ezsockets", spins: false, run: ez },
    Peer { name: "ours_busy_spin", spins: true, run: ours_spinning },
    Peer { name: "boomnet_busy_spin", spins: true, run: boomnet },
];

impl Handler for Job {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if self.wants_answer() {
            let _ = context.send(message);
        }
    }
}

fn ours_parked(url: String, job: Job, _: &AtomicBool) {
    ours(url, job, IdleStrategy::Park);
}

fn ours_spinning(url: String, job: Job, _: &AtomicBool) {
    ours(url, job, IdleStrategy::BusySpin);
}

fn ours(url: String, job: Job, idle: IdleStrategy) {
    // There is one run of the worker, so one handler.
    let job = Mutex::new(Some(job));
    let delivery = Delivery::inline(move || job.lock().expect("no panic").take().expect("one run"));
    let config = ClientConfig::new(url).expect("a URL").delivery(delivery).idle_strategy(idle);
    let config = config.heartbeat(Heartbeat::disabled()).max_retries(0).pin_to(crate::rig::second_core());
    let client = Client::connect(config).expect("a connection");
    while client.ready_state() == ws_supervisor::ReadyState::Open {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn authority(url: &str) -> &str {
    url.split('/').nth(2).expect("an authority")
}

fn bare(url: String, mut job: Job, _: &AtomicBool) {
    let tcp = TcpStream::connect(authority(&url)).expect("a connection");
    tcp.set_nodelay(true).expect("nodelay");
    let (mut socket, _) = tungstenite::client(url.as_str(), tcp).expect("an upgrade");
    while let Ok(message) = socket.read() {
        if job.wants_answer() && socket.send(message).is_err() {
            return;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn tcp(url: &str) -> tokio::net::TcpStream {
    let tcp = tokio::net::TcpStream::connect(authority(url)).await.expect("a connection");
    tcp.set_nodelay(true).expect("nodelay");
    tcp
}

fn on_tokio(url: String, mut job: Job, _: &AtomicBool) {
    runtime().block_on(async {
        let (mut socket, _) = tokio_tungstenite::client_async(url.as_str(), tcp(&url).await).await.expect("an upgrade");
        while let Some(Ok(message)) = socket.next().await {
            if job.wants_answer() && socket.send(message).await.is_err() {
                return;
            }
        }
    });
}

/// hyper spawns through this.
struct Executor;

impl<F: Future<Output: Send + 'static> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

fn fast(url: String, mut job: Job, _: &AtomicBool) {
    use hyper::header::{CONNECTION, HOST, UPGRADE};
    runtime().block_on(async {
        let request = hyper::Request::get(&url)
            .header(HOST, authority(&url))
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "upgrade")
            .header("Sec-WebSocket-Key", fastwebsockets::handshake::generate_key())
            .header("Sec-WebSocket-Version", "13")
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .expect("a request");
        let (mut socket, _) =
            fastwebsockets::handshake::client(&Executor, request, tcp(&url).await).await.expect("an upgrade");
        while let Ok(frame) = socket.read_frame().await {
            if frame.opcode == fastwebsockets::OpCode::Close {
                return;
            }
            if job.wants_answer() {
                let answer = fastwebsockets::Frame::text(frame.payload);
                if socket.write_frame(answer).await.is_err() {
                    return;
                }
            }
        }
    });
}

struct Ez {
    handle: ezsockets::Client<Ez>,
    job: Job,
}

#[async_trait::async_trait]
impl ezsockets::ClientExt for Ez {
    type Call = ();

    async fn on_text(&mut self, text: ezsockets::Utf8Bytes) -> Result<(), ezsockets::Error> {
        if self.job.wants_answer() {
            self.handle.text(text)?;
        }
        Ok(())
    }

    async fn on_binary(&mut self, _: ezsockets::Bytes) -> Result<(), ezsockets::Error> {
        Ok(())
    }

    async fn on_call(&mut self, (): Self::Call) -> Result<(), ezsockets::Error> {
        Ok(())
    }

    async fn on_disconnect(&mut self) -> Result<ezsockets::client::ClientCloseMode, ezsockets::Error> {
        Ok(ezsockets::client::ClientCloseMode::Close)
    }
}

fn ez(url: String, job: Job, _: &AtomicBool) {
    runtime().block_on(async {
        let config = ezsockets::ClientConfig::new(url.as_str());
        let (_handle, ended) = ezsockets::connect(|handle| Ez { handle, job }, config).await;
        let _ = ended.await;
    });
}

fn boomnet(url: String, mut job: Job, over: &AtomicBool) {
    use boomnet::stream::ConnectionInfo;
    use boomnet::stream::buffer::IntoBufferedStream;
    use boomnet::ws::{IntoWebsocket, WebsocketFrame};
    let (host, port) = authority(&url).split_once(':').expect("a port");
    let stream = ConnectionInfo::new(host, port.parse().expect("a port")).into_tcp_stream().expect("a connection");
    // Without its buffer each frame takes several writes.
    let mut socket = stream.into_default_buffered_stream().into_websocket("/");
    let mut answer = Vec::new();
    // It does not notice the end of a connection by reading.
    while !over.load(Ordering::Relaxed) {
        let mut answers = false;
        let Ok(batch) = socket.read_batch() else { return };
        for frame in batch {
            match frame {
                Ok(WebsocketFrame::Text(_, body)) => {
                    answers = job.wants_answer();
                    if answers {
                        answer.clear();
                        answer.extend_from_slice(body);
                    }
                }
                Ok(_) => {}
                Err(boomnet::ws::Error::IO(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
        if answers && socket.send_text(true, Some(&answer)).is_err() {
            return;
        }
    }
}
