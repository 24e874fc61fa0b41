//! What every measurement stands on: two cores, a server that is a bare socket on the first, and contenders whose
//! client runs on the second. Frames are made beforehand, so that the server costs every contender the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use native_tls::{Certificate, Identity, TlsAcceptor, TlsConnector};
use tungstenite::WebSocket;
use ws_supervisor::{ClientConfig, Heartbeat, IdleStrategy, Tls, TlsBackend};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// A socket without any protocol.
    Raw {
        spin: bool,
    },
    /// tungstenite on a socket of its own, in a loop of its own.
    Bare {
        spin: bool,
    },
    Ours(IdleStrategy),
}

/// Plain TCP, or TLS with a certificate for localhost.
#[derive(Clone)]
pub struct Wire {
    tls: Option<(TlsAcceptor, String)>,
    /// Who encrypts for ours; the others' client and every server are native-tls's.
    backend: TlsBackend,
    /// Who records for ours.
    #[cfg(feature = "record")]
    recorder: Option<ws_supervisor::record::Recorder>,
}

/// A byte stream, encrypted or not.
pub trait Stream: Read + Write + Send {
    fn tcp(&self) -> &TcpStream;

    /// From now on what is written is kept, as it would go out.
    fn hold(&mut self) {}

    /// Writes what was kept.
    fn release(&mut self) {}
}

/// What TLS on the server's side writes to.
#[derive(Debug)]
pub struct Holding {
    tcp: TcpStream,
    held: Option<Vec<u8>>,
}

impl Read for Holding {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for Holding {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.held {
            Some(held) => held.write(bytes),
            None => self.tcp.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Stream for native_tls::TlsStream<Holding> {
    fn tcp(&self) -> &TcpStream {
        &self.get_ref().tcp
    }

    fn hold(&mut self) {
        self.get_mut().held = Some(Vec::new());
    }

    fn release(&mut self) {
        let Holding { tcp, held } = self.get_mut();
        tcp.write_all(&held.take().unwrap_or_default()).expect("what was kept");
    }
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for native_tls::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

pub type BoxStream = Box<dyn Stream>;

impl Wire {
    pub fn plain() -> Self {
        Self {
            tls: None,
            backend: TlsBackend::NativeTls,
            #[cfg(feature = "record")]
            recorder: None,
        }
    }

    /// As `plain`, and all that ours receives and sends is recorded.
    #[cfg(feature = "record")]
    pub fn recorded(path: &std::path::Path) -> Self {
        let recorder = ws_supervisor::record::Recorder::start(path).expect("a file");
        Self { recorder: Some(recorder), ..Self::plain() }
    }

    pub fn tls() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let (cert, key) = (made.cert.pem(), made.key_pair.serialize_pem());
        let identity = Identity::from_pkcs8(cert.as_bytes(), key.as_bytes()).expect("an identity");
        let tls = Some((TlsAcceptor::new(identity).expect("an acceptor"), cert));
        Self { tls, ..Self::plain() }
    }

    pub fn rustls() -> Self {
        Self::tls().with(TlsBackend::Rustls)
    }

    pub fn with(self, backend: TlsBackend) -> Self {
        Self { backend, ..self }
    }

    fn url(&self, listener: &TcpListener) -> String {
        let port = listener.local_addr().expect("an address").port();
        match self.tls {
            None => format!("ws://127.0.0.1:{port}/"),
            Some(_) => format!("wss://localhost:{port}/"),
        }
    }

    fn accept(&self, listener: &TcpListener) -> BoxStream {
        let (tcp, _) = listener.accept().expect("the client");
        tcp.set_nodelay(true).expect("nodelay");
        match &self.tls {
            None => Box::new(tcp),
            Some((acceptor, _)) => Box::new(acceptor.accept(Holding { tcp, held: None }).expect("a handshake")),
        }
    }

    /// The certificate to trust, in PEM, where there is TLS.
    pub fn pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|(_, pem)| pem.as_str())
    }

    /// A client's stream that is not ours.
    pub fn connect(&self, url: &str) -> BoxStream {
        let address = url.split('/').nth(2).expect("an authority").replace("localhost", "127.0.0.1");
        let tcp = TcpStream::connect(address).expect("a connection");
        tcp.set_nodelay(true).expect("nodelay");
        let Some((_, pem)) = &self.tls else { return Box::new(tcp) };
        let root = Certificate::from_pem(pem.as_bytes()).expect("a certificate");
        let connector = TlsConnector::builder().add_root_certificate(root).build().expect("a connector");
        Box::new(connector.connect("localhost", tcp).expect("a handshake"))
    }

    /// The server's end after the upgrade, and what `start` gave for the URL. `start` must not wait for the upgrade.
    pub fn upgraded<C>(&self, start: impl FnOnce(String) -> C) -> (BoxStream, C) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = start(self.url(&listener));
        let server = tungstenite::accept(self.accept(&listener)).expect("an upgrade");
        (server.into_inner(), client)
    }

    /// Both ends of a raw or bare connection.
    pub fn pair(&self, contender: Contender) -> (BoxStream, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = self.url(&listener);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let stream = self.accept(&listener);
                match contender {
                    Contender::Raw { .. } => stream,
                    _ => tungstenite::accept(stream).expect("an upgrade").into_inner(),
                }
            });
            let stream = self.connect(&url);
            let (spin, mut peer) = match contender {
                Contender::Raw { spin } => (spin, Peer::Raw(stream)),
                Contender::Bare { spin } => {
                    let (socket, _) = tungstenite::client(url.replace("wss:", "ws:"), stream).expect("an upgrade");
                    (spin, Peer::Bare(Box::new(socket)))
                }
                Contender::Ours(_) => unreachable!("ours connects by itself"),
            };
            peer.tcp().set_nonblocking(spin).expect("non-blocking");
            (server.join().expect("the server's side"), peer)
        })
    }

    /// The server's end of a raw or bare connection, and the client's thread, which runs `talk` on the second core.
    pub fn served(
        &self,
        contender: Contender,
        talk: impl FnOnce(Peer) + Send + 'static,
    ) -> (BoxStream, JoinHandle<()>) {
        let (server, peer) = self.pair(contender);
        let client = std::thread::spawn(move || {
            pin(second_core());
            talk(peer);
        });
        (server, client)
    }

    /// Our configuration for `url`: on the second core, no heartbeat in the way.
    pub fn config(&self, url: &str, idle: IdleStrategy) -> ClientConfig {
        let config = ClientConfig::new(url).expect("a URL");
        let config = config.heartbeat(Heartbeat::disabled()).idle_strategy(idle).pin_to(second_core());
        #[cfg(feature = "record")]
        let config = match &self.recorder {
            Some(recorder) => config.record(recorder),
            None => config,
        };
        match &self.tls {
            None => config,
            Some((_, pem)) => config.root_certificate(pem.as_bytes()).tls(Tls::new().backend(self.backend)),
        }
    }
}

/// The client's end of a connection that is not ours.
pub enum Peer {
    Raw(BoxStream),
    Bare(Box<WebSocket<BoxStream>>),
}

impl Peer {
    fn tcp(&mut self) -> &TcpStream {
        match self {
            Self::Raw(stream) => stream.tcp(),
            Self::Bare(socket) => socket.get_ref().tcp(),
        }
    }

    /// As many bytes as a raw read brings.
    pub fn read(&mut self, scratch: &mut [u8]) -> usize {
        match self {
            Self::Raw(stream) => stream.read(scratch).expect("bytes"),
            Self::Bare(_) => unreachable!("it tells messages apart"),
        }
    }

    /// Waits for the next message, spinning if the socket does not block; `None` at the end of the connection.
    pub fn receive(&mut self, scratch: &mut [u8]) -> Option<tungstenite::Message> {
        loop {
            let result = match self {
                Self::Raw(stream) => match stream.read(scratch) {
                    Ok(0) => return None,
                    Ok(_) => return Some(tungstenite::Message::text("")),
                    Err(error) => Err(error),
                },
                Self::Bare(socket) => match socket.read() {
                    Ok(message) if message.is_text() => return Some(message),
                    Ok(_) => continue,
                    Err(tungstenite::Error::Io(error)) => Err(error),
                    Err(_) => return None,
                },
            };
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(_) => return None,
                Ok(()) => {}
            }
        }
    }

    /// Answers what was received; a raw one with the bytes in `scratch`.
    pub fn answer(&mut self, message: tungstenite::Message, scratch: &[u8]) {
        match self {
            Self::Raw(stream) => stream.write_all(scratch).expect("an answer"),
            Self::Bare(socket) => socket.send(message).expect("an answer"),
        }
    }
}

/// The cores as they were before any thread was pinned: a pinned thread sees only its own.
fn cores() -> (usize, usize) {
    static CORES: OnceLock<(usize, usize)> = OnceLock::new();
    *CORES.get_or_init(|| {
        let all = core_affinity::get_core_ids().unwrap_or_default();
        (all.first().map_or(0, |core| core.id), all.last().map_or(0, |core| core.id))
    })
}

pub fn remember_cores() {
    cores();
}

pub fn first_core() -> usize {
    cores().0
}

pub fn second_core() -> usize {
    cores().1
}

pub fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

/// A server's frame of text.
pub fn server_frame(size: usize) -> Vec<u8> {
    // The length has one byte up to 125, else a marker and two (RFC 6455 section 5.2).
    let mut frame = vec![0x81];
    match u8::try_from(size) {
        Ok(short) if short < 126 => frame.push(short),
        _ => {
            frame.push(126);
            frame.extend_from_slice(&u16::try_from(size).expect("up to 64 KiB").to_be_bytes());
        }
    }
    frame.resize(frame.len() + size, b't');
    frame
}

/// Where a client notes when it had a message, for the server's thread to see.
#[derive(Clone)]
pub struct Note {
    epoch: Instant,
    at: Arc<AtomicU64>,
}

impl Note {
    pub fn new() -> Self {
        Self { epoch: Instant::now(), at: Arc::default() }
    }

    pub fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    pub fn put(&self) {
        self.at.store(self.now(), Ordering::Release);
    }

    /// Spins until something is noted, and takes it.
    pub fn take(&self) -> u64 {
        loop {
            match self.at.swap(0, Ordering::Acquire) {
                0 => std::hint::spin_loop(),
                at => return at,
            }
        }
    }
}

/// Times in µs, sorted.
pub struct Times(Vec<f64>);

impl Times {
    /// `samples` times of `once`, each after a silence in which a client that parks falls asleep. The first tenth
    /// warms up and does not count.
    pub fn measure(samples: usize, mut once: impl FnMut() -> f64) -> Self {
        let mut times = Vec::with_capacity(samples);
        for n in 0..samples + samples / 10 {
            let time = once();
            if n >= samples / 10 {
                times.push(time);
            }
            let quiet = Instant::now();
            while quiet.elapsed() < Duration::from_micros(50) {
                std::hint::spin_loop();
            }
        }
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    pub fn percentile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}
