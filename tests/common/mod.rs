//! What the tests share: short settings, and waiting for events with a generous deadline.
#![allow(dead_code, missing_docs)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::venue::{Batch, Renewal, Venue};
use ws_supervisor::{
    Client, ClientConfig, Event, Heartbeat, Message, ReadyState, Request, Session, SessionError, Tls, TlsBackend,
};

/// Far more than anything here takes, also on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Who encrypts: `TLS_BACKEND=rustls` has it done by rustls.
pub fn tls() -> Tls {
    Tls::new().backend(tls_backend())
}

pub fn tls_backend() -> TlsBackend {
    match std::env::var("TLS_BACKEND").as_deref() {
        Ok("rustls") => TlsBackend::Rustls,
        Ok(other) => panic!("TLS_BACKEND={other}: there is `rustls`, or the default"),
        Err(_) => TlsBackend::NativeTls,
    }
}

/// A folder of one test's own, gone with it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ws-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file there.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.at(name), text).unwrap();
        self.at(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Retries quickly and for ever.
pub fn config(server: &Server) -> ClientConfig {
    let config = ClientConfig::new(server.url()).unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX);
    match server.ca_pem() {
        pem if pem.is_empty() => config,
        pem => config.root_certificate(pem).tls(tls()),
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

/// Not a wait for a condition: somebody who takes so long.
pub fn takes(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::thread::park_timeout(ms(5));
    }
}

/// What a client asks of HTTP, up to the empty line, or as far as it comes.
pub fn read_head(stream: &mut impl Read) -> String {
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// The right answer to an upgrade, without the empty line.
pub fn upgrade_of(head: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap_or_default();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    )
}

/// A server of bare bytes: `serve` gets each connection, its number, and the right answer to its upgrade, to which it may
/// add headers before the empty line.
pub fn raw(serve: impl Fn(TcpStream, usize, String) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let answer = upgrade_of(&read_head(&mut stream));
            serve(stream, n, answer);
        }
    });
    address
}

pub type Encrypted = StreamOwned<ServerConnection, TcpStream>;

/// A server of bare TLS, with rustls as it is: `serve` gets each connection after its upgrade. Returns its address and its
/// certificate.
pub fn bare_tls(serve: impl Fn(Encrypted) + Send + Sync + 'static) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = PrivateKeyDer::try_from(made.key_pair.serialize_der()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let (config, serve) = (Arc::new(config), Arc::new(serve));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&listener).set_recv_buffer_size(16 << 10).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let (config, serve) = (config.clone(), serve.clone());
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp);
                let answer = upgrade_of(&read_head(&mut stream)) + "\r\n";
                if stream.write_all(answer.as_bytes()).is_ok() {
                    serve(stream);
                }
            });
        }
    });
    (address, made.cert.pem())
}

/// To a server of bare bytes.
pub fn to(address: SocketAddr) -> ClientConfig {
    ClientConfig::new(format!("ws://{address}/")).unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX)
}

/// A server's frame of less than 126 bytes.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80 | opcode, payload.len() as u8][..], payload].concat()
}

pub fn closing(code: u16, reason: &str) -> Vec<u8> {
    frame(8, &[&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

/// The text of a message.
pub fn text(message: &Message) -> String {
    message.as_text().unwrap().to_owned()
}

/// All that a server has received, on all connections.
pub fn received(server: &Server) -> Vec<String> {
    server.records().iter().flat_map(|record| record.received.iter().map(text).collect::<Vec<_>>()).collect()
}

/// A listener whose queue of connections is full: the next connect gets no answer.
pub fn never_answers() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut filled = vec![];
    for _ in 0..8 {
        match TcpStream::connect_timeout(&address, ms(200)) {
            Ok(tcp) => filled.push(tcp),
            Err(_) => return (listener, filled, address),
        }
    }
    panic!("the queue of a listener with a backlog of 0 does not fill up");
}
