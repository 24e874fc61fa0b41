//! What a scripted server does on a connection: the [`Script`].

use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "compression")]
use crate::connect::compression::Agreed;
use crate::message::{CloseFrame, Message};
use crate::transport::Extensions;

/// The client at the other end, as far as the upgrade told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Peer {
    /// The connection's number in the order of the accepts, from 0.
    pub index: usize,
    /// The request's target, path and query.
    pub target: String,
}

/// What a connection says besides answering.
#[cfg_attr(not(feature = "deribit"), allow(dead_code))]
pub(super) enum Say {
    Message(Message),
    Close(CloseFrame),
}

/// A connection that remembers: for a server with sessions. Dropped when the connection is over.
pub(super) trait Conduct: Send {
    fn message(&mut self, message: &Message) -> Vec<Say>;
    /// When `tick` has something to do.
    fn due(&self) -> Option<Instant>;
    fn tick(&mut self, now: Instant) -> Vec<Say>;
}

type Conducts = dyn Fn(&Peer) -> Box<dyn Conduct> + Send + Sync;
type Http = dyn Fn(&str) -> Option<String> + Send + Sync;
type Reply = dyn Fn(&Peer, &Message) -> Vec<Message> + Send + Sync;
type Greeting = dyn Fn(&Peer) -> Vec<Message> + Send + Sync;

/// What the server answers to the upgrade.
#[derive(Clone)]
pub(super) enum Answer {
    Accept,
    Refuse { status: u16, headers: Vec<(String, String)>, body: String },
    Raw(Vec<u8>),
    WrongKey,
    Hold,
}

/// What a server does on one connection. Begin with one of the constructors and add to it.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{Message, testing::Script};
///
/// let feed = Script::silent()
///     .greet(|_peer| vec![Message::text("welcome")])
///     .every(Duration::from_millis(20), |_peer| vec![Message::text("tick")])
///     .ping_every(Duration::from_secs(20));
/// let slow = Script::echo().delay_upgrade(Duration::from_secs(1)).delay_replies(Duration::from_millis(5));
/// let rude = Script::echo().then_close(1001, "go away");
/// # let _ = (feed, slow, rude);
/// ```
#[derive(Clone)]
#[must_use = "a script does nothing until a server is started with it"]
pub struct Script {
    pub(super) answer: Answer,
    pub(super) extra_headers: Vec<(String, String)>,
    #[cfg(feature = "compression")]
    pub(super) compression: Option<String>,
    pub(super) reply: Arc<Reply>,
    pub(super) greeting: Option<Arc<Greeting>>,
    pub(super) every: Option<(Duration, Arc<Greeting>)>,
    pub(super) ping_every: Option<Duration>,
    pub(super) tls_delay: Duration,
    pub(super) upgrade_delay: Duration,
    pub(super) reply_delay: Duration,
    pub(super) hold_tls: bool,
    pub(super) then_close: Option<CloseFrame>,
    pub(super) then_cut: bool,
    pub(super) then_mute: bool,
    pub(super) then_deaf: bool,
    pub(super) then_raw: Vec<u8>,
    pub(super) conduct: Option<Arc<Conducts>>,
    pub(super) http: Option<Arc<Http>>,
}

impl Script {
    /// Accepts and answers each message by this function, which runs on the connection's thread.
    pub fn reply(reply: impl Fn(&Peer, &Message) -> Vec<Message> + Send + Sync + 'static) -> Self {
        Self {
            answer: Answer::Accept,
            extra_headers: Vec::new(),
            #[cfg(feature = "compression")]
            compression: None,
            reply: Arc::new(reply),
            greeting: None,
            every: None,
            ping_every: None,
            tls_delay: Duration::ZERO,
            upgrade_delay: Duration::ZERO,
            reply_delay: Duration::ZERO,
            hold_tls: false,
            then_close: None,
            then_cut: false,
            then_mute: false,
            then_deaf: false,
            then_raw: Vec::new(),
            conduct: None,
            http: None,
        }
    }

    /// Accepts, and has each connection conducted by a value of its own. What is no upgrade is answered by `http`, by its
    /// target, with JSON.
    #[cfg(feature = "deribit")]
    pub(super) fn conducted(
        conduct: impl Fn(&Peer) -> Box<dyn Conduct> + Send + Sync + 'static,
        http: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let mut script = Self::silent();
        script.conduct = Some(Arc::new(conduct));
        script.http = Some(Arc::new(http));
        script
    }

    /// Answers the upgrade with this `Sec-WebSocket-Extensions`, and compresses accordingly, every message whatever its size.
    /// It does so unasked too, which a client must refuse.
    ///
    /// ```
    /// use ws_supervisor::{Client, ClientConfig, Compression, testing::{Script, Server}};
    ///
    /// let server = Server::start(Script::echo().compression("permessage-deflate; server_no_context_takeover"))?;
    /// let client = Client::connect(ClientConfig::new(server.url())?.compression(Compression::deflate().above(0)))?;
    /// client.send("hello hello hello")?;
    /// server.wait_for_message(|message| message.as_text() == Some("hello hello hello"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "compression")]
    #[cfg_attr(docsrs, doc(cfg(feature = "compression")))]
    pub fn compression(mut self, answer: impl Into<String>) -> Self {
        let answer = answer.into();
        self.extra_headers.push(("Sec-WebSocket-Extensions".into(), answer.clone()));
        self.compression = Some(answer);
        self
    }

    /// What its connections do about compression.
    pub(super) fn extensions(&self) -> Extensions {
        #[cfg(feature = "compression")]
        if let Some(agreed) = self.compression.as_ref().and_then(|answer| Agreed::read(answer).ok()) {
            return agreed.for_server();
        }
        Extensions::default()
    }

    /// Accepts and sends every message back.
    pub fn echo() -> Self {
        Self::reply(|_, message| vec![message.clone()])
    }

    /// Accepts and never sends a message of its own accord. Pings and closes are answered.
    pub fn silent() -> Self {
        Self::reply(|_, _| vec![])
    }

    /// Answers the upgrade with this status.
    pub fn refuse(status: u16) -> Self {
        let mut script = Self::silent();
        script.answer = Answer::Refuse { status, headers: Vec::new(), body: String::new() };
        script
    }

    /// Answers the upgrade with these bytes, whatever they are, and ends the connection.
    pub fn raw_answer(bytes: impl Into<Vec<u8>>) -> Self {
        let mut script = Self::silent();
        script.answer = Answer::Raw(bytes.into());
        script
    }

    /// Accepts the upgrade with an accept key that answers no one's.
    pub fn wrong_accept_key() -> Self {
        let mut script = Self::silent();
        script.answer = Answer::WrongKey;
        script
    }

    /// Never answers the upgrade.
    pub fn hold_upgrade() -> Self {
        let mut script = Self::silent();
        script.answer = Answer::Hold;
        script
    }

    /// Accepts the TCP connection and never says a word, not in TLS either.
    pub fn hold_tls() -> Self {
        let mut script = Self::silent();
        script.hold_tls = true;
        script
    }

    /// Adds a header to the answer to the upgrade, be it an acceptance or a refusal.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self.answer {
            Answer::Refuse { headers, .. } => headers.push((name.into(), value.into())),
            _ => self.extra_headers.push((name.into(), value.into())),
        }
        self
    }

    /// The body of a refusal.
    pub fn body(mut self, text: &str) -> Self {
        if let Answer::Refuse { body, .. } = &mut self.answer {
            *body = text.into();
        }
        self
    }

    /// Sends these first, as soon as the connection is open.
    pub fn greet(mut self, greeting: impl Fn(&Peer) -> Vec<Message> + Send + Sync + 'static) -> Self {
        self.greeting = Some(Arc::new(greeting));
        self
    }

    /// Sends what this function gives, once an interval.
    pub fn every(
        mut self,
        interval: Duration,
        messages: impl Fn(&Peer) -> Vec<Message> + Send + Sync + 'static,
    ) -> Self {
        self.every = Some((interval, Arc::new(messages)));
        self
    }

    /// Sends a ping frame once an interval.
    pub fn ping_every(mut self, interval: Duration) -> Self {
        self.ping_every = Some(interval);
        self
    }

    /// Waits before the TLS handshake.
    pub fn delay_tls(mut self, time: Duration) -> Self {
        self.tls_delay = time;
        self
    }

    /// Waits before answering the upgrade.
    pub fn delay_upgrade(mut self, time: Duration) -> Self {
        self.upgrade_delay = time;
        self
    }

    /// Waits before each reply.
    pub fn delay_replies(mut self, time: Duration) -> Self {
        self.reply_delay = time;
        self
    }

    /// Once open (and after the greeting), closes with this code.
    pub fn then_close(mut self, code: u16, reason: &str) -> Self {
        self.then_close = Some(CloseFrame { code, reason: reason.into() });
        self
    }

    /// Once open (and after the greeting), ends the TCP connection without a close frame.
    pub fn then_cut(mut self) -> Self {
        self.then_cut = true;
        self
    }

    /// Once open, accepts bytes and answers nothing.
    pub fn then_mute(mut self) -> Self {
        self.then_mute = true;
        self
    }

    /// Once open, never reads.
    pub fn then_deaf(mut self) -> Self {
        self.then_deaf = true;
        self
    }

    /// Once open, writes these bytes as they are, whatever they are.
    pub fn then_raw(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.then_raw = bytes.into();
        self
    }
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").finish_non_exhaustive()
    }
}
