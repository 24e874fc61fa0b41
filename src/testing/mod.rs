//! A scripted WebSocket server for tests, ours and yours (feature `testing`).
//!
//! It is a real server on 127.0.0.1 with a port of its own, ws or wss, that does what its [`Script`] says, also what no
//! decent server does: refuse, hold the handshake, go mute, stop reading, send nonsense. It counts what clients do, and
//! waits for conditions instead of sleeping.
//!
//! ```
//! use std::time::Duration;
//! use ws_supervisor::{Client, ClientConfig, Message, testing::{Script, Server}};
//!
//! let script = Script::reply(|_peer, message| match message.as_text() {
//!     Some("ping") => vec![Message::text("pong")],
//!     _ => vec![],
//! });
//! let server = Server::start(script)?;
//! let client = Client::connect(ClientConfig::new(server.url())?)?;
//! client.send("ping")?;
//! assert!(server.wait_until(Duration::from_secs(5), |peers| peers[0].served == 1));
//! assert_eq!(server.accepts(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Over 400 lines since every call is documented here, with an example.

mod certificates;
mod connection;
#[cfg(feature = "deribit")]
mod deribit;
mod make;
mod rehearsal;
#[cfg(feature = "record")]
mod repeat;
#[cfg(feature = "record")]
mod replay;
mod script;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;
use rustls::ServerConfig;

use self::certificates::Certificates;
use self::connection::Line;
pub use self::make::{
    batch, client_closed, client_event, client_parked, closed, collapsed, connect_failed, disconnected, lagged,
    not_sent, opened, outcome_unknown, parked, received, response, restarted, subscription_refused,
};
pub use self::rehearsal::Rehearsal;
#[cfg(feature = "record")]
#[cfg_attr(docsrs, doc(cfg(feature = "record")))]
pub use self::repeat::{Replayed, replay};
#[cfg(feature = "record")]
#[cfg_attr(docsrs, doc(cfg(feature = "record")))]
pub use self::replay::Pace;
pub use self::script::{Peer, Script};
use crate::message::{CloseFrame, Message};
use crate::supervisor::Supervisor;
use crate::transport::wait;
use crate::wake::Wake;

#[cfg(feature = "deribit")]
#[cfg_attr(docsrs, doc(cfg(feature = "deribit")))]
pub use self::deribit::{DeribitServer, DeribitServerBuilder};

/// How long the server waits for anything before it says that it will not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server knows of one TCP connection that it accepted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Record {
    /// Its number in the order of the accepts, from 0.
    pub index: usize,
    /// The request's target, path and query; empty before the upgrade.
    pub target: String,
    /// The request's headers.
    pub headers: Vec<(String, String)>,
    /// Whether the upgrade is done.
    pub opened: bool,
    /// Whether the connection is over.
    pub ended: bool,
    /// Messages received from the client, in order.
    pub received: Vec<Message>,
    /// Messages of the server's that the kernel has in full.
    pub served: u64,
    /// Pings received from the client.
    pub pings: u64,
    /// Pongs received from the client.
    pub pongs: u64,
    /// The client's close code, if it sent one.
    pub close_code: Option<u16>,
}

/// A scripted server. Dropping it ends all its connections.
#[must_use = "dropping a server ends its connections"]
pub struct Server {
    inner: Arc<Inner>,
}

type Scripts = dyn Fn(usize) -> Script + Send + Sync;

struct Inner {
    address: SocketAddr,
    certificates: Option<Certificates>,
    scripts: Mutex<Arc<Scripts>>,
    book: Mutex<Book>,
    changed: Condvar,
    wake: Wake,
    ended: AtomicBool,
}

#[derive(Default)]
struct Book {
    records: Vec<Record>,
    /// How often the records have changed.
    changes: u64,
    /// `None` once the connection is over: the last to let go closes the descriptor, and only that sends a reset.
    lines: Vec<Option<Arc<Line>>>,
    /// Threads of connections that have not ended.
    running: usize,
    listener: Option<Arc<TcpListener>>,
}

impl Server {
    /// A ws server that sends every message back.
    ///
    /// # Errors
    /// When the operating system gives no port or thread; so for all that start a server.
    pub fn echo() -> io::Result<Self> {
        Self::start(Script::echo())
    }

    /// A ws server that follows one script on every connection.
    pub fn start(script: Script) -> io::Result<Self> {
        Self::scripted(move |_| script.clone())
    }

    /// A wss server that follows one script on every connection. Clients must trust [`ca_pem`](Server::ca_pem).
    pub fn start_tls(script: Script) -> io::Result<Self> {
        Self::launch(Arc::new(move |_| script.clone()), Some(Certificates::new("localhost")?))
    }

    /// A wss server whose certificate is for another host than the one it serves.
    pub fn start_tls_for(host: &str, script: Script) -> io::Result<Self> {
        Self::launch(Arc::new(move |_| script.clone()), Some(Certificates::new(host)?))
    }

    /// A ws server that follows a script of its own on each connection, by the connection's number from 0.
    ///
    /// ```
    /// use ws_supervisor::testing::{Script, Server};
    /// // The first two attempts are refused.
    /// let server = Server::scripted(|n| if n < 2 { Script::refuse(503) } else { Script::echo() })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn scripted(scripts: impl Fn(usize) -> Script + Send + Sync + 'static) -> io::Result<Self> {
        Self::launch(Arc::new(scripts), None)
    }

    fn launch(scripts: Arc<Scripts>, certificates: Option<Certificates>) -> io::Result<Self> {
        Self::launch_at((Ipv4Addr::LOCALHOST, 0).into(), scripts, certificates)
    }

    fn launch_at(address: SocketAddr, scripts: Arc<Scripts>, certificates: Option<Certificates>) -> io::Result<Self> {
        let listener = listen(address)?;
        let inner = Arc::new(Inner {
            address: listener.local_addr()?,
            certificates,
            scripts: Mutex::new(scripts),
            book: Mutex::new(Book { listener: Some(listener), ..Book::default() }),
            changed: Condvar::new(),
            wake: Wake::new()?,
            ended: AtomicBool::new(false),
        });
        let accepting = inner.clone();
        std::thread::Builder::new().name("test-server".into()).spawn(move || accepting.accept())?;
        Ok(Self { inner })
    }

    /// `ws://127.0.0.1:port/`, or `wss://127.0.0.1:port/`: no name that a bare machine might not know.
    pub fn url(&self) -> String {
        let port = self.inner.address.port();
        match self.inner.certificates {
            None => format!("ws://127.0.0.1:{port}/"),
            Some(_) => format!("wss://127.0.0.1:{port}/"),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// The certificate of the CA that signed this server's, made at its start. Empty for ws.
    pub fn ca_pem(&self) -> String {
        self.inner.certificates.as_ref().map(|certificates| certificates.ca_pem.clone()).unwrap_or_default()
    }

    /// From now on new connections follow this script.
    pub fn set_script(&self, script: Script) {
        *self.inner.scripts.lock() = Arc::new(move |_| script.clone());
    }

    /// Sends a message on every open connection; returns on how many.
    pub fn push(&self, message: impl Into<Message>) -> usize {
        let message = message.into();
        self.each_open(|line| line.push(message.clone()))
    }

    /// Sends a message on one connection.
    pub fn push_to(&self, index: usize, message: impl Into<Message>) {
        if let Some(Some(line)) = self.inner.book.lock().lines.get(index) {
            line.push(message.into());
        }
    }

    /// Sends a ping frame on every open connection.
    pub fn ping(&self, payload: &[u8]) -> usize {
        self.each_open(|line| line.ping(payload))
    }

    /// Closes every open connection with a close frame.
    pub fn close_all(&self, code: u16, reason: &str) -> usize {
        self.each_open(|line| line.close(CloseFrame { code, reason: reason.into() }))
    }

    /// Ends every TCP connection at once, without a close frame (FIN).
    pub fn cut(&self) -> usize {
        self.each(|line| line.cut(false))
    }

    /// Resets every TCP connection at once (RST).
    pub fn reset(&self) -> usize {
        self.each(|line| line.cut(true))
    }

    /// From now on every open connection accepts bytes and answers nothing: no reply, no pong, no close.
    pub fn mute(&self) -> usize {
        self.each_open(Line::mute)
    }

    /// Stops reading on every open connection, or starts again.
    pub fn deafen(&self, deaf: bool) -> usize {
        self.each_open(|line| line.deafen(deaf))
    }

    /// Writes these bytes as they are on every open connection.
    pub fn push_raw(&self, bytes: &[u8]) -> usize {
        self.each_open(|line| line.raw(bytes))
    }

    /// Goes down: nothing listens any more, and every connection is cut.
    pub fn pause(&self) {
        let mut book = self.inner.book.lock();
        let listener = book.listener.take();
        self.inner.wake.wake();
        if let Some(listener) = listener {
            // The thread that accepts holds it too, and only the last to let go gives the port back.
            let held = |_: &mut Book| Arc::strong_count(&listener) > 1;
            let _ = self.inner.changed.wait_while_for(&mut book, held, PATIENCE);
        }
        drop(book);
        self.cut();
    }

    /// Comes back on the same port.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub fn resume(&self) -> io::Result<()> {
        let listener = listen(self.inner.address)?;
        self.inner.book.lock().listener = Some(listener);
        self.inner.wake.wake();
        Ok(())
    }

    /// TCP connections accepted so far.
    pub fn accepts(&self) -> usize {
        self.inner.book.lock().records.len()
    }

    /// What is known of each connection.
    pub fn records(&self) -> Vec<Record> {
        self.inner.book.lock().records.clone()
    }

    /// Waits until `condition` holds for what is known, at most `timeout`; returns whether it does.
    pub fn wait_until(&self, timeout: Duration, mut condition: impl FnMut(&[Record]) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut timed_out = false;
        loop {
            // On a copy: the condition is the caller's, and may call the server.
            let begun = Instant::now();
            let (changes, records) = {
                let book = self.inner.book.lock();
                (book.changes, book.records.clone())
            };
            if condition(&records) {
                return true;
            }
            if timed_out {
                return false;
            }
            // Many records take long to copy: not after each message of a flood.
            let took = begun.elapsed();
            let mut book = self.inner.book.lock();
            while book.changes == changes && !timed_out {
                timed_out = self.inner.changed.wait_until(&mut book, deadline).timed_out();
            }
            drop(book);
            std::thread::sleep(took.min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// Waits for a message that `wanted` recognises, and returns it.
    ///
    /// # Panics
    /// When none has come after 30 s.
    pub fn wait_for_message(&self, mut wanted: impl FnMut(&Message) -> bool) -> Message {
        let mut found = None;
        self.wait_until(PATIENCE, |records| {
            let mut all = records.iter().flat_map(|record| &record.received);
            found = all.find(|message| wanted(message)).cloned();
            found.is_some()
        });
        found.expect("the message did not come within 30 s")
    }

    fn each(&self, act: impl Fn(&Line)) -> usize {
        let book = self.inner.book.lock();
        book.lines.iter().flatten().map(|line| act(line)).count()
    }

    fn each_open(&self, act: impl Fn(&Line)) -> usize {
        let book = self.inner.book.lock();
        let open = book.records.iter().zip(&book.lines).filter(|(record, _)| record.opened);
        open.filter_map(|(_, line)| line.as_ref()).map(|line| act(line)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.ended.store(true, Ordering::Release);
        self.pause();
        let deadline = Instant::now() + PATIENCE;
        let mut book = self.inner.book.lock();
        while book.running > 0 {
            if self.inner.changed.wait_until(&mut book, deadline).timed_out() {
                break;
            }
        }
    }
}

/// Makes the supervisor's own thread panic, to see that your alerts notice and its clients do not.
///
/// ```
/// use ws_supervisor::{Supervisor, SupervisorEvent, testing};
///
/// let supervisor = Supervisor::start()?;
/// let events = supervisor.events();
/// testing::panic_supervisor(&supervisor);
/// assert!(matches!(events.recv()?, SupervisorEvent::Recovered { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn panic_supervisor(supervisor: &Supervisor) {
    supervisor.panic_for_test();
}

fn listen(address: SocketAddr) -> io::Result<Arc<TcpListener>> {
    // SO_REUSEADDR is std's default on Unix, so a port with connections in TIME_WAIT can be taken again.
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Arc::new(listener))
}

impl Inner {
    fn accept(self: &Arc<Self>) {
        while !self.ended.load(Ordering::Acquire) {
            let listener = self.book.lock().listener.clone();
            let down = listener.is_none();
            let accepted = listener.as_ref().map(|listener| listener.accept());
            match accepted {
                Some(Ok((tcp, _))) => self.take_in(tcp),
                _ => {
                    let look = || self.ended.load(Ordering::Acquire) || self.book.lock().listener.is_none() != down;
                    let fd = listener.as_ref().map(|listener| (listener.as_fd(), PollFlags::IN));
                    let _ = wait(fd, &self.wake, None, look);
                }
            }
            // Under the lock, so that whoever waits for it hears of it.
            let book = self.book.lock();
            drop(listener);
            drop(book);
            self.changed.notify_all();
        }
    }

    fn take_in(self: &Arc<Self>, tcp: TcpStream) {
        let Ok(line) = Line::new(tcp) else { return };
        let line = Arc::new(line);
        let index = {
            let mut book = self.book.lock();
            if book.listener.is_none() {
                return;
            }
            let index = book.records.len();
            book.records.push(Record {
                index,
                target: String::new(),
                headers: Vec::new(),
                opened: false,
                ended: false,
                received: Vec::new(),
                served: 0,
                pings: 0,
                pongs: 0,
                close_code: None,
            });
            book.lines.push(Some(line.clone()));
            (book.running, book.changes) = (book.running + 1, book.changes + 1);
            index
        };
        self.changed.notify_all();
        let script = (self.scripts.lock().clone())(index);
        let acceptor = self.certificates.as_ref().map(|certificates| certificates.acceptor.clone());
        let serving = self.clone();
        let thread = std::thread::Builder::new().name(format!("test-peer-{index}"));
        let started = thread.spawn(move || {
            let _ended = EndOf { inner: &serving, index };
            connection::serve(&serving, index, &line, &script, acceptor);
        });
        if started.is_err() {
            self.end(index);
        }
    }

    fn end(&self, index: usize) {
        {
            let mut book = self.book.lock();
            book.records[index].ended = true;
            book.changes += 1;
            book.lines[index] = None;
            book.running -= 1;
        }
        self.changed.notify_all();
    }

    #[cfg(feature = "deribit")]
    fn push_to(&self, index: usize, message: Message) {
        if let Some(Some(line)) = self.book.lock().lines.get(index) {
            line.push(message);
        }
    }

    fn note(&self, index: usize, note: impl FnOnce(&mut Record)) {
        {
            let mut book = self.book.lock();
            note(&mut book.records[index]);
            book.changes += 1;
        }
        self.changed.notify_all();
    }
}

/// A reply function that panics ends its connection, not the account of it.
struct EndOf<'a> {
    inner: &'a Inner,
    index: usize,
}

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.inner.end(self.index);
    }
}

type Acceptor = Option<Arc<ServerConfig>>;

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("url", &self.url()).field("accepts", &self.accepts()).finish_non_exhaustive()
    }
}
