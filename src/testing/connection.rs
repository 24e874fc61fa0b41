//! One connection of the scripted server, on a thread of its own: TLS, upgrade, then messages as the script says.
//!
//! Over 400 lines: one connection of the server, with all the faults that it can be told to have.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use rustix::event::PollFlags;
use rustls::ServerConnection;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;

use super::script::{Answer, Conduct, Peer, Say, Script};
use super::{Acceptor, Inner};
use crate::message::{CloseFrame, Message};
use crate::outbound::accepted::{Accepted, Bound, Load};
use crate::outbound::outbox::{Books, Outbox};
use crate::policy::rate_limit::Price;
use crate::transport::{Incoming, Layer, Outgoing, Rustls, Socket, Transport, Wire, wait};
use crate::wake::Wake;

/// What one read may bring.
const BUFFER: usize = 16 << 10;

/// The outside's end of a connection.
pub(super) struct Line {
    tcp: Arc<TcpStream>,
    wake: Wake,
    commands: (Sender<Command>, Receiver<Command>),
    cut: AtomicBool,
}

enum Command {
    Push(Message),
    Ping(Bytes),
    Close(CloseFrame),
    Raw(Vec<u8>),
    Mute,
    Deafen(bool),
}

impl Line {
    pub(super) fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        let commands = crossbeam_channel::unbounded();
        Ok(Self { tcp: Arc::new(tcp), wake: Wake::new()?, commands, cut: AtomicBool::new(false) })
    }

    fn tell(&self, command: Command) {
        let _ = self.commands.0.send(command);
        self.wake.wake();
    }

    pub(super) fn push(&self, message: Message) {
        self.tell(Command::Push(message));
    }

    pub(super) fn ping(&self, payload: &[u8]) {
        self.tell(Command::Ping(Bytes::copy_from_slice(payload)));
    }

    pub(super) fn close(&self, frame: CloseFrame) {
        self.tell(Command::Close(frame));
    }

    pub(super) fn raw(&self, bytes: &[u8]) {
        self.tell(Command::Raw(bytes.to_vec()));
    }

    pub(super) fn mute(&self) {
        self.tell(Command::Mute);
    }

    pub(super) fn deafen(&self, deaf: bool) {
        self.tell(Command::Deafen(deaf));
    }

    pub(super) fn cut(&self, reset: bool) {
        if reset {
            let _ = socket2::SockRef::from(&*self.tcp).set_linger(Some(Duration::ZERO));
        } else {
            let _ = self.tcp.shutdown(Shutdown::Both);
        }
        self.cut.store(true, Ordering::Release);
        self.wake.wake();
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Waits for the socket, a command or the deadline. False when the connection was cut.
    fn wait(&self, interest: Option<PollFlags>, until: Option<Instant>) -> bool {
        let socket = interest.map(|interest| (self.tcp.as_fd(), interest));
        let look = || self.is_cut() || !self.commands.1.is_empty();
        let _ = wait(socket, &self.wake, until, look);
        !self.is_cut()
    }

    /// Lets time pass.
    fn pass(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.is_cut() {
                return false;
            }
            let _ = wait(None, &self.wake, Some(until), || self.is_cut());
        }
        true
    }
}

pub(super) fn serve(inner: &Inner, index: usize, line: &Arc<Line>, script: &Script, acceptor: Acceptor) {
    let socket = Socket::new(line.tcp.clone(), if acceptor.is_some() { BUFFER } else { 0 });
    // Whatever the result: the record says how far it came.
    let _ = serve_on(inner, index, line, script, acceptor, socket);
    if !line.is_cut() {
        let _ = line.tcp.shutdown(Shutdown::Both);
    }
}

fn serve_on(
    inner: &Inner,
    index: usize,
    line: &Arc<Line>,
    script: &Script,
    acceptor: Acceptor,
    socket: Socket,
) -> Option<()> {
    if script.hold_tls {
        return hold(line);
    }
    let mut wire = match acceptor {
        None => Wire::plain(socket),
        Some(acceptor) => {
            if !line.pass(script.tls_delay) {
                return None;
            }
            let mut stream = Rustls::new(ServerConnection::new(acceptor).ok()?, socket);
            loop {
                match stream.handshake() {
                    Ok(()) => break Wire::encrypted(Box::new(stream)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let socket = stream.socket_mut();
                        socket.take_write_error().is_none().then_some(())?;
                        line.wait(Some(socket.interest()), None).then_some(())?;
                        socket.refresh();
                    }
                    Err(_) => return None,
                }
            }
        }
    };
    let (target, headers) = read_request(line, &mut wire)?;
    let key = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
    if let (None, Some(http)) = (key, &script.http) {
        let (status, body) = http(&target).map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        write_all(line, &mut wire, answer.as_bytes())?;
        return None;
    }
    let accept = derive_accept_key(key.map_or("", |(_, key)| key).as_bytes());
    inner.note(index, |record| (record.target, record.headers) = (target.clone(), headers));
    if !line.pass(script.upgrade_delay) {
        return None;
    }
    let accept = match &script.answer {
        Answer::Hold => return hold(line),
        Answer::Raw(bytes) => {
            write_all(line, &mut wire, bytes)?;
            return None;
        }
        Answer::Refuse { status, headers, body } => {
            let extra: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} Refused\r\n{extra}Content-Length: {length}\r\n\r\n{body}");
            write_all(line, &mut wire, answer.as_bytes())?;
            return None;
        }
        Answer::WrongKey => "AAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
        Answer::Accept => accept,
    };
    let extra: String = script.extra_headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{extra}\r\n"
    );
    // Open from the server's point of view before the client can know it: what is pushed then is not lost.
    inner.note(index, |record| record.opened = true);
    write_all(line, &mut wire, answer.as_bytes())?;
    let transport = Transport::new(wire, Vec::new(), Role::Server, BUFFER, 64 << 20, usize::MAX, script.extensions());
    let peer = Peer { index, target };
    let conduct = script.conduct.as_ref().map(|conduct| conduct(&peer));
    let (mut outbox, books) = (Outbox::default(), Books::default());
    // The server has no session to open.
    outbox.open(0);
    Talk { inner, line, script, peer, transport, outbox, books, conduct }.run()
}

/// Says nothing until the connection is cut or the client gives up.
fn hold(line: &Line) -> Option<()> {
    let mut scratch = [0; 1024];
    loop {
        match (&*line.tcp).read(&mut scratch) {
            Ok(0) => return None,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return None,
            _ => line.wait(Some(PollFlags::IN), None).then_some(())?,
        }
    }
}

fn read_request(line: &Line, wire: &mut Wire) -> Option<(String, Vec<(String, String)>)> {
    let mut head = Vec::new();
    let mut chunk = [0; 2048];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 64 << 10 {
        // A client may not speak again before it is answered, so nothing comes after the head.
        match wire.read(&mut chunk) {
            Ok(0) => return None,
            Ok(read) => head.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                line.wait(Some(wire.socket().interest()), None).then_some(())?;
                wire.socket_mut().refresh();
            }
            Err(_) => return None,
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&head).ok()?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = request.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect();
    Some((request.path?.to_owned(), headers))
}

fn write_all(line: &Line, wire: &mut Wire, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        match wire.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wire.socket_mut().take_write_error().is_none().then_some(())?;
                line.wait(Some(PollFlags::OUT), None).then_some(())?;
            }
            Err(_) => return None,
        }
    }
    Some(())
}

/// An open connection.
struct Talk<'a> {
    inner: &'a Inner,
    line: &'a Line,
    script: &'a Script,
    peer: Peer,
    transport: Transport,
    outbox: Outbox,
    books: Books,
    conduct: Option<Box<dyn Conduct>>,
}

impl Talk<'_> {
    fn run(&mut self) -> Option<()> {
        if let Some(greeting) = &self.script.greeting {
            self.say(greeting(&self.peer));
        }
        self.flush()?;
        if !self.script.then_raw.is_empty() {
            self.transport.write_raw(&self.script.then_raw).ok()?;
        }
        if let Some(frame) = self.script.then_close.clone() {
            self.outbox.push_urgent(Outgoing::Close(frame));
        }
        if self.script.then_cut {
            return None;
        }
        let mut mute = self.script.then_mute;
        let mut deaf = self.script.then_deaf;
        let mut next = self.script.every.as_ref().map(|(interval, _)| Instant::now() + *interval);
        let mut next_ping = self.script.ping_every.map(|interval| Instant::now() + interval);
        loop {
            if self.line.is_cut() {
                return None;
            }
            for command in self.line.commands.1.try_iter().take(256) {
                match command {
                    Command::Push(message) => self.push(message),
                    Command::Ping(payload) => self.outbox.push_urgent(Outgoing::Ping(payload)),
                    Command::Close(frame) => self.outbox.push_urgent(Outgoing::Close(frame)),
                    Command::Raw(bytes) => self.transport.write_raw(&bytes).ok()?,
                    Command::Mute => mute = true,
                    Command::Deafen(yes) => deaf = yes,
                }
            }
            if mute {
                self.transport.discard().then_some(())?;
                self.line.wait(Some(PollFlags::IN), None).then_some(())?;
                continue;
            }
            let now = Instant::now();
            if let (Some(at), Some((interval, messages))) = (next, &self.script.every) {
                if now >= at {
                    next = Some(at + *interval);
                    self.say(messages(&self.peer));
                }
            }
            if let (Some(at), Some(interval)) = (next_ping, self.script.ping_every) {
                if now >= at {
                    next_ping = Some(at + interval);
                    self.outbox.push_urgent(Outgoing::Ping(Bytes::from_static(b"ping")));
                }
            }
            if let Some(conduct) = self.conduct.as_mut().filter(|conduct| conduct.due().is_some_and(|due| now >= due)) {
                let words = conduct.tick(now);
                self.speak(words);
            }
            self.flush()?;
            if !deaf && self.read()? {
                continue;
            }
            let interest = match (deaf, self.transport.wants_to_write()) {
                (true, false) => None,
                (true, true) => Some(PollFlags::OUT),
                (false, _) => Some(self.transport.interest()),
            };
            let due = self.conduct.as_ref().and_then(|conduct| conduct.due());
            let until = [next, next_ping, due].into_iter().flatten().min();
            self.line.wait(interest, until).then_some(())?;
            self.transport.refresh();
        }
    }

    fn speak(&mut self, words: Vec<Say>) {
        for word in words {
            match word {
                Say::Message(message) => self.push(message),
                Say::Close(frame) => {
                    // After what was said before it.
                    let _ = self.flush();
                    self.outbox.push_urgent(Outgoing::Close(frame));
                }
            }
        }
    }

    fn push(&mut self, message: Message) {
        self.books.queued.enter(message.len(), Bound { messages: Load::MAX_MESSAGES, bytes: Load::MAX_BYTES });
        self.outbox.push(Accepted::paid(message, None, None, Price::default()));
    }

    fn say(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.push(message);
        }
    }

    fn flush(&mut self) -> Option<()> {
        let before = self.books.tally.sent.get();
        let result = self.outbox.write_out(&mut self.transport, &self.books, Instant::now, usize::MAX, false);
        let served = self.books.tally.sent.get();
        if served != before {
            self.inner.note(self.peer.index, |record| record.served = served);
        }
        result.ok().map(drop)
    }

    /// Reads what came, but not for ever: a client that floods must not keep the script from its turn. True when
    /// there may be more.
    fn read(&mut self) -> Option<bool> {
        let index = self.peer.index;
        for _ in 0..64 {
            match self.transport.read() {
                Ok(Incoming::Message) => {
                    let message = self.transport.take_message().ok()?;
                    self.inner.note(index, |record| record.received.push(message.clone()));
                    if let Some(conduct) = &mut self.conduct {
                        let words = conduct.message(&message);
                        self.speak(words);
                        self.flush()?;
                        continue;
                    }
                    let replies = (self.script.reply)(&self.peer, &message);
                    if !replies.is_empty() && !self.script.reply_delay.is_zero() {
                        self.line.pass(self.script.reply_delay).then_some(())?;
                    }
                    self.say(replies);
                    self.flush()?;
                }
                Ok(Incoming::Ping) => {
                    self.flush()?;
                    self.inner.note(index, |record| record.pings += 1);
                }
                Ok(Incoming::Pong) => self.inner.note(index, |record| record.pongs += 1),
                Ok(Incoming::Close(frame)) => {
                    self.inner.note(index, |record| record.close_code = frame.map(|frame| frame.code));
                    let _ = self.flush();
                    return None;
                }
                Ok(Incoming::Part) => {}
                Ok(Incoming::Nothing) => return Some(false),
                Ok(Incoming::Ended) | Err(_) => return None,
            }
        }
        Some(true)
    }
}
