//! The [`Session`]: a connection that is not open to callers yet, in the hands of code that makes it ready. Straight
//! lines, blocking, on the worker's thread.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::correlation::Correlation;
use crate::error::{RequestError, SessionError};
use crate::handshake::Handshake;
use crate::message::Message;
use crate::request::{Request, RequestId};
use crate::state::{ClientId, Tag};

/// A connection between its handshake and [`Event::Open`](crate::Event::Open): given to
/// [`on_open`](crate::ClientConfig::on_open), to [`reconcile`](crate::ClientConfig::reconcile) and to a
/// [`Venue`](crate::venue::Venue). Its calls block the client's thread, never longer than
/// [`deadline`](Session::deadline); while they do, pings and heartbeats are answered. Messages that nobody here asks
/// for are kept and delivered, in order, after the open event.
///
/// ```
/// # use ws_supervisor::{*, testing::{Script, Server}};
/// # let server = Server::start(Script::reply(|_, message| match message.as_text() {
/// #     Some("login") => vec!["tick 1".into(), "welcome".into()],
/// #     _ => vec![],
/// # }))?;
/// # let url = server.url();
/// let config = ClientConfig::new(url)?.on_open(|session| {
///     session.send("login")?;
///     session.recv_until(|message| message.as_text() == Some("welcome"))?;
///     Ok(())
/// });
/// let client = Client::connect(config)?;
/// # let mut events = client.events().into_iter();
/// # assert!(matches!(events.next(), Some(Event::Open { .. })));
/// # assert!(matches!(events.next(), Some(Event::Message(tick)) if tick.as_text() == Some("tick 1")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Session<'a> {
    opening: &'a mut dyn Opening,
}

/// What a session stands on: a connection that is being opened.
pub(crate) trait Opening {
    fn tag(&self) -> &Tag;
    fn correlation(&self) -> &Correlation;
    /// An id that no other request of this client has.
    fn next_id(&self) -> RequestId;
    /// The client's own numbers stay clear of this one.
    fn reserve(&self, id: &RequestId);
    /// The number that the connection will have.
    fn epoch(&self) -> u64;
    fn handshake(&self) -> Arc<Handshake>;
    fn deadline(&self) -> Instant;
    /// Sends what is written once the rate limits let it pass. `request`: its id and method, if it is one.
    fn put(
        &mut self,
        write: &dyn Fn() -> Result<Message, Box<str>>,
        request: Option<(&RequestId, &str)>,
    ) -> Result<(), SessionError>;
    /// The request with this id was answered.
    fn answered(&mut self, id: &RequestId);
    /// The next message that is no heartbeat.
    /// `limit` is the caller's own, where that is shorter than the attempt's.
    fn next(&mut self, until: Instant, waiting_for: &str, limit: Option<Duration>) -> Result<Message, SessionError>;
    /// Keeps a message for later.
    fn keep(&mut self, message: Message) -> Result<(), SessionError>;
    /// Takes the first of the kept messages that is wanted.
    fn take_kept(&mut self, wanted: &mut dyn FnMut(&Message) -> bool) -> Option<Message>;
}

impl<'a> Session<'a> {
    pub(crate) fn new(opening: &'a mut dyn Opening) -> Self {
        Self { opening }
    }

    /// Sends a message, waiting for a rate limit if there is one. Ok says that it was accepted, not that it has arrived. When the
    /// attempt fails, or the connection ends before the peer's kernel has acknowledged it, a message sent in
    /// [`reconcile`](crate::ClientConfig::reconcile) is in the next [`Unsettled`](crate::Unsettled), as `uncertain`, and not as
    /// `unsent` any more if it was. Messages sent elsewhere are in no account: the next connection's session sends its own.
    ///
    /// # Errors
    /// When the connection ends, the time runs out, the message is larger than `max_message_size` or costs more than a
    /// rate limit ever gives, or the client is being stopped.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), SessionError> {
        let message = message.into();
        self.opening.put(&|| Ok(message.clone()), None)
    }

    /// Sends a request and waits for its answer. An answer that comes after the error for its timeout is delivered as any other
    /// message: by [`recv_until`](Session::recv_until), or to the consumer after `Open`.
    ///
    /// # Errors
    /// When the server refuses it ([`SessionError::Rpc`]), its result does not fit `R`, it is not answered in time, or
    /// the connection ends.
    ///
    /// ```
    /// use serde_json::json;
    /// use ws_supervisor::ClientConfig;
    ///
    /// let config = ClientConfig::new("wss://venue.example")?.on_open(|session| {
    ///     let _: serde_json::Value = session.request("public/hello", json!({"client_name": "desk"}))?;
    ///     Ok(())
    /// });
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn request<R: DeserializeOwned>(&mut self, method: &str, params: impl Serialize) -> Result<R, SessionError> {
        self.call(Request::new(method, params))
    }

    /// As [`request`](Session::request), with a request made before. Its [`timeout`](Request::timeout) counts, if it is
    /// shorter than what is left.
    ///
    /// # Errors
    /// As [`request`](Session::request).
    pub fn call<R: DeserializeOwned>(&mut self, request: Request) -> Result<R, SessionError> {
        let method = &request.method;
        let malformed = |message| SessionError::Malformed { method: method.clone(), message };
        let until = request.timeout.map_or(self.opening.deadline(), |time| self.until(time));
        let limit = request.timeout.filter(|_| until < self.opening.deadline());
        let id = self.begin(&request)?;
        let waiting_for = format!("answer to `{method}`");
        loop {
            let message = self.opening.next(until, &waiting_for, limit)?;
            let answer = self.opening.correlation().read(message.view()).filter(|answer| answer.id == id);
            if answer.is_some() {
                self.opening.answered(&id);
            }
            match answer.map(|answer| answer.outcome) {
                None => self.opening.keep(message)?,
                Some(Err(error)) => return Err(SessionError::Rpc { method: method.clone(), error }),
                Some(Ok(result)) => {
                    return result.decode().map_err(|error| match error {
                        RequestError::Undecodable { message, .. } => malformed(message),
                        other => SessionError::retryable(other),
                    });
                }
            }
        }
    }

    /// Sends a request and does not wait; returns its id, for [`recv_until`](Session::recv_until).
    fn begin(&mut self, request: &Request) -> Result<RequestId, SessionError> {
        let id = request.id.clone().unwrap_or_else(|| self.opening.next_id());
        self.opening.reserve(&id);
        if let Err(message) = &request.params {
            return Err(SessionError::Malformed { method: request.method.clone(), message: message.clone() });
        }
        let correlation = self.opening.correlation().clone();
        self.opening.put(&|| correlation.encode(request, &id), Some((&id, &request.method)))?;
        Ok(id)
    }

    /// Waits for a message that `wanted` recognises, and returns it. Looks at those first that came while something
    /// else was waited for; the others stay in order.
    ///
    /// # Errors
    /// When none came by the [`deadline`](Session::deadline), or the connection ends.
    pub fn recv_until(&mut self, mut wanted: impl FnMut(&Message) -> bool) -> Result<Message, SessionError> {
        if let Some(message) = self.opening.take_kept(&mut wanted) {
            return Ok(message);
        }
        loop {
            let message = self.opening.next(self.opening.deadline(), "message that was waited for", None)?;
            let is_wanted = catch_unwind(AssertUnwindSafe(|| wanted(&message)));
            if let Ok(true) = is_wanted {
                return Ok(message);
            }
            // Where `wanted` panicked the message is counted as dropped with those that were kept.
            let kept = self.opening.keep(message);
            is_wanted.unwrap_or_else(|panic| resume_unwind(panic));
            kept?;
        }
    }

    /// The number that this connection will have once it is open.
    pub fn epoch(&self) -> u64 {
        self.opening.epoch()
    }

    /// What was agreed on when this connection was made: the headers of the server's answer, the subprotocol, the address.
    pub fn handshake(&self) -> Arc<Handshake> {
        self.opening.handshake()
    }

    /// When the session must be ready: `connect_timeout` after the attempt began.
    pub fn deadline(&self) -> Instant {
        self.opening.deadline()
    }

    fn until(&self, time: Duration) -> Instant {
        let deadline = self.opening.deadline();
        Instant::now().checked_add(time).map_or(deadline, |until| until.min(deadline))
    }

    /// The client's id.
    pub fn id(&self) -> ClientId {
        self.opening.tag().id
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.opening.tag().name
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("name", &self.name()).field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}
