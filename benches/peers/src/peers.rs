//! The peers: each as its documentation has it, on the thread it is called on, until the connection ends. Where one
//! offers a runtime of several threads it gets the one of one thread, which is the faster for one connection.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use ws_supervisor::{Client, Context, Delivery, Handler, IdleStrategy, MessageRef, TlsBackend};

use crate::rig::{Note, Wire};

pub const SIZE: usize = 64;
/// A client's frame has two bytes before the payload and four of the mask (RFC 6455 section 5.2).
pub const CLIENT_FRAME: usize = 6 + SIZE;
pub const FLOOD_SIZE: usize = 128;
/// A server's frame of the flood: the length takes two bytes of its own from 126 on.
const FLOOD_FRAME: usize = 4 + FLOOD_SIZE;

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
    pub run: fn(&Wire, String, Job, &AtomicBool),
}

pub const PEERS: &[Peer] = &[
    Peer { name: "ours_park", spins: false, run: ours_parked },
    Peer { name: "tungstenite", spins: false, run: bare },
    Peer { name: "tokio_tungstenite", spins: false, run: on_tokio },
    Peer { name: "fastwebsockets", spins: false, run: fast },
    Peer { name: "ezsockets", spins: false, run: ez },
    Peer { name: "sockudo_ws", spins: false, run: sockudo },
    Peer { name: "nexus_web", spins: false, run: nexus },
    Peer { name: "s9_websocket", spins: false, run: s9_blocking },
    Peer { name: "ours_busy_spin", spins: true, run: ours_spinning },
    Peer { name: "boomnet_busy_spin", spins: true, run: boomnet },
    Peer { name: "s9_websocket_spinning", spins: true, run: s9_spinning },
];

pub const TLS_PEERS: &[Peer] = &[
    Peer { name: "raw_openssl", spins: false, run: raw_openssl },
    Peer { name: "raw_rustls", spins: false, run: raw_rustls },
    Peer { name: "ours_native_tls_park", spins: false, run: ours_parked },
    Peer { name: "ours_rustls_park", spins: false, run: ours_rustls_parked },
    Peer { name: "tungstenite", spins: false, run: bare },
    Peer { name: "tungstenite_rustls", spins: false, run: bare_rustls },
    Peer { name: "tokio_tungstenite", spins: false, run: on_tokio },
    Peer { name: "raw_openssl_spinning", spins: true, run: raw_openssl_spinning },
    Peer { name: "raw_rustls_spinning", spins: true, run: raw_rustls_spinning },
    Peer { name: "ours_native_tls_busy_spin", spins: true, run: ours_spinning },
    Peer { name: "ours_rustls_busy_spin", spins: true, run: ours_rustls_spinning },
    Peer { name: BOOMNET_OVER_TLS, spins: true, run: boomnet },
];

const BOOMNET_OVER_TLS: &str =
    if cfg!(feature = "boomnet-openssl") { "boomnet_openssl_busy_spin" } else { "boomnet_rustls_busy_spin" };

impl Handler for Job {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if self.wants_answer() {
            let _ = context.send(message);
        }
    }
}

fn ours_parked(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    ours(wire, url, job, IdleStrategy::Park);
}

fn ours_spinning(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    ours(wire, url, job, IdleStrategy::BusySpin);
}

fn ours_rustls_parked(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    ours(&wire.clone().with(TlsBackend::Rustls), url, job, IdleStrategy::Park);
}

fn ours_rustls_spinning(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    ours(&wire.clone().with(TlsBackend::Rustls), url, job, IdleStrategy::BusySpin);
}

fn ours(wire: &Wire, url: String, job: Job, idle: IdleStrategy) {
    // There is one run of the worker, so one handler.
    let job = Mutex::new(Some(job));
    let delivery = Delivery::inline(move || job.lock().expect("no panic").take().expect("one run"));
    let config = wire.config(&url, idle).delivery(delivery).max_retries(0);
    let client = Client::connect(config).expect("a connection");
    while client.ready_state() == ws_supervisor::ReadyState::Open {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn authority(url: &str) -> String {
    url.split('/').nth(2).expect("an authority").replace("localhost", "127.0.0.1")
}

/// What a client that makes no TLS of its own takes over a stream that has it.
fn without_tls(url: &str) -> String {
    url.replace("wss:", "ws:")
}

trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

fn over_rustls(wire: &Wire, url: &str, spin: bool) -> Box<dyn ReadWrite> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    let pem = wire.pem().expect("TLS");
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")).expect("a root");
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let mut tcp = TcpStream::connect(authority(url)).expect("a connection");
    tcp.set_nodelay(true).expect("nodelay");
    let name = "localhost".try_into().expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a connection");
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).expect("a handshake");
    }
    // The upgrade blocks all the same: it is retried until it is through.
    tcp.set_nonblocking(spin).expect("non-blocking");
    Box::new(rustls::StreamOwned::new(tls, tcp))
}

fn over_native_tls(wire: &Wire, url: &str, spin: bool) -> Box<dyn ReadWrite> {
    let stream = wire.connect(url);
    stream.tcp().set_nonblocking(spin).expect("non-blocking");
    Box::new(stream)
}

fn upgraded<S: Read + Write>(url: &str, stream: S) -> tungstenite::WebSocket<S> {
    let mut trial = tungstenite::client(without_tls(url), stream);
    loop {
        match trial {
            Ok((socket, _)) => return socket,
            Err(tungstenite::HandshakeError::Interrupted(again)) => trial = again.handshake(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Upgrades by hand, a byte at a time: what comes behind the answer is the first message.
fn upgrade(url: &str, stream: &mut Box<dyn ReadWrite>) {
    let key = tungstenite::handshake::client::generate_key();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n",
        authority(url)
    );
    stream.write_all(request.as_bytes()).expect("an upgrade");
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads, and knows from the number of bytes how many messages those are. The floor for everybody.
fn raw(url: &str, mut stream: Box<dyn ReadWrite>, mut job: Job) {
    upgrade(url, &mut stream);
    let (mut buffer, mut seen, mut told) = (vec![0; 64 << 10], 0, 0);
    let frame = if matches!(job, Job::Count { .. }) { FLOOD_FRAME } else { 2 + SIZE };
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => seen += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        while told < seen / frame {
            told += 1;
            if job.wants_answer() && stream.write_all(&[0; CLIENT_FRAME]).is_err() {
                return;
            }
        }
    }
}

fn raw_openssl(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    raw(&url, over_native_tls(wire, &url, false), job);
}

fn raw_openssl_spinning(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    raw(&url, over_native_tls(wire, &url, true), job);
}

fn raw_rustls(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    raw(&url, over_rustls(wire, &url, false), job);
}

fn raw_rustls_spinning(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    raw(&url, over_rustls(wire, &url, true), job);
}

fn bare(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    on_tungstenite(upgraded(&url, wire.connect(&url)), job);
}

fn bare_rustls(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    on_tungstenite(upgraded(&url, over_rustls(wire, &url, false)), job);
}

fn on_tungstenite(mut socket: tungstenite::WebSocket<impl Read + Write>, mut job: Job) {
    while let Ok(message) = socket.read() {
        if job.wants_answer() && socket.send(message).is_err() {
            return;
        }
    }
}

/// Made for one connection, as its documentation has it for a program's own socket.
fn nexus(_: &Wire, url: String, mut job: Job, _: &AtomicBool) {
    use nexus_web::ws::{Client, Message};
    let mut socket = Client::builder().disable_nagle().connect(&url).expect("a connection");
    loop {
        let answer = match socket.recv() {
            Ok(Some(Message::Text(text))) if job.wants_answer() => text.to_owned(),
            Ok(Some(Message::Text(_))) => continue,
            _ => return,
        };
        if socket.send_text(&answer).is_err() {
            return;
        }
    }
}

struct Silver(Job);

impl<C: SilverClient> s9_websocket::S9WebSocketClientHandler<C> for Silver {
    fn on_text_message(&mut self, client: &mut C, data: &[u8]) {
        if self.0.wants_answer() {
            client.answer(std::str::from_utf8(data).expect("text"));
        }
    }
}

trait SilverClient {
    fn answer(&mut self, text: &str);
}

impl SilverClient for s9_websocket::S9BlockingWebSocketClient {
    fn answer(&mut self, text: &str) {
        let _ = self.send_text_message(text);
    }
}

impl SilverClient for s9_websocket::S9NonBlockingWebSocketClient {
    fn answer(&mut self, text: &str) {
        let _ = self.send_text_message(text);
    }
}

fn s9_blocking(_: &Wire, url: String, job: Job, _: &AtomicBool) {
    let options = s9_websocket::BlockingOptions::new().nodelay(true);
    let mut client = s9_websocket::S9BlockingWebSocketClient::connect(&url, options).expect("a connection");
    client.run(&mut Silver(job));
}

fn s9_spinning(_: &Wire, url: String, job: Job, _: &AtomicBool) {
    let options = s9_websocket::NonBlockingOptions::new().nodelay(true);
    let mut client = s9_websocket::S9NonBlockingWebSocketClient::connect(&url, options).expect("a connection");
    client.run(&mut Silver(job));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn tcp(url: &str) -> tokio::net::TcpStream {
    let tcp = tokio::net::TcpStream::connect(authority(url)).await.expect("a connection");
    tcp.set_nodelay(true).expect("nodelay");
    tcp
}

fn on_tokio(wire: &Wire, url: String, job: Job, _: &AtomicBool) {
    runtime().block_on(async {
        let tcp = tcp(&url).await;
        let Some(pem) = wire.pem() else { return tokio_tungstenite_over(&url, tcp, job).await };
        let root = native_tls::Certificate::from_pem(pem.as_bytes()).expect("a certificate");
        let connector = native_tls::TlsConnector::builder().add_root_certificate(root).build().expect("a connector");
        let tls = tokio_native_tls::TlsConnector::from(connector).connect("localhost", tcp).await;
        tokio_tungstenite_over(&url, tls.expect("a handshake"), job).await;
    });
}

async fn tokio_tungstenite_over<S>(url: &str, stream: S, mut job: Job)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut socket, _) = tokio_tungstenite::client_async(without_tls(url), stream).await.expect("an upgrade");
    while let Some(Ok(message)) = socket.next().await {
        if job.wants_answer() && socket.send(message).await.is_err() {
            return;
        }
    }
}

fn sockudo(_: &Wire, url: String, mut job: Job, _: &AtomicBool) {
    use sockudo_ws::client::WebSocketClient;
    use sockudo_ws::{Config, Http1, Message};
    runtime().block_on(async {
        let client = WebSocketClient::<Http1>::new(Config::default());
        let socket = client.connect_raw(tcp(&url).await, &authority(&url), "/", None).await;
        let (mut socket, _) = socket.expect("an upgrade");
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Text(_)) && job.wants_answer() && socket.send(message).await.is_err() {
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

fn fast(_: &Wire, url: String, mut job: Job, _: &AtomicBool) {
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

fn ez(_: &Wire, url: String, job: Job, _: &AtomicBool) {
    runtime().block_on(async {
        let config = ezsockets::ClientConfig::new(url.as_str());
        let (_handle, ended) = ezsockets::connect(|handle| Ez { handle, job }, config).await;
        let _ = ended.await;
    });
}

fn boomnet(wire: &Wire, url: String, job: Job, over: &AtomicBool) {
    use boomnet::stream::ConnectionInfo;
    use boomnet::stream::buffer::IntoBufferedStream;
    use boomnet::stream::tls::{IntoTlsStream, TlsConfigExt};
    use boomnet::ws::IntoWebsocket;
    let authority = authority(&url);
    let (host, port) = authority.split_once(':').expect("a port");
    let stream = ConnectionInfo::new(host, port.parse().expect("a port")).into_tcp_stream().expect("a connection");
    // Without its buffer each frame takes several writes.
    if wire.pem().is_none() {
        return batches(stream.into_default_buffered_stream().into_websocket("/"), job, over);
    }
    let tls = stream.into_tls_stream_with_config(|config| {
        config.with_no_cert_verification();
        #[cfg(feature = "boomnet-openssl")]
        config.with_retained_buffers();
    });
    batches(tls.expect("a handshake").into_default_buffered_stream().into_websocket("/"), job, over);
}

fn batches<S>(mut socket: boomnet::ws::Websocket<S>, mut job: Job, over: &AtomicBool)
where
    S: Read + Write + boomnet::stream::ReadHint,
{
    use boomnet::ws::WebsocketFrame;
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
