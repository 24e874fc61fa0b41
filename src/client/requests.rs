//! What a handle can ask of the server and wait for: requests, subscriptions, room under a rate limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Client;
use super::pending::PendingResponse;
use crate::asked::Caller;
use crate::core::Core;
use crate::deadline::later;
use crate::error::{RequestError, SendError, SubscribeError};
use crate::message::Message;
use crate::outbound::gate::Pass;
use crate::outbound::mailbox::Enlists;
use crate::policy::admission::{Door, Unwritten};
use crate::policy::rate_limit::Over;
use crate::policy::requests::{Pending, Whom};
use crate::policy::subscriptions::{SubscriptionStatus, names};
use crate::receipt::Receipt;
use crate::request::{Request, RequestId};
use crate::state::ReadyState;
use crate::wanted::Wish;

impl Client {
    /// Sends a request and waits for its answer: JSON-RPC 2.0, unless [`correlation`](crate::ClientConfig::correlation)
    /// or a [`venue`](crate::ClientConfig::venue) says otherwise. Blocks for at most
    /// [`request_timeout`](crate::ClientConfig::request_timeout). `()` stands for no parameters. A request is never
    /// queued for a later connection and never repeated.
    ///
    /// Answers are read in their turn among the messages: under
    /// [`Overflow::Backpressure`](crate::Overflow::Backpressure) a thread that should be reading events had better not
    /// wait here while they pile up.
    ///
    /// When it returns, every message that came before the answer is in the client's queue. For many requests in flight,
    /// their answers in order among the messages, there is [`post`](Client::post). At most 65,536 may be pending.
    ///
    /// # Errors
    /// Each variant of [`RequestError`] says whether the server may have acted on it. When the connection ends, a
    /// pending request fails at once.
    ///
    /// ```
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::start(Script::reply(|_, m| {
    /// #     let value: serde_json::Value = serde_json::from_str(m.as_text().unwrap()).unwrap();
    /// #     vec![serde_json::json!({"jsonrpc": "2.0", "id": value["id"], "result": {"best_bid_price": 50_000.5}}).to_string().into()]
    /// # }))?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// #[derive(serde::Deserialize)]
    /// struct Ticker {
    ///     best_bid_price: f64,
    /// }
    /// let ticker: Ticker = client.request("public/ticker", [("instrument_name", "BTC-PERPETUAL")])?;
    /// assert_eq!(ticker.best_bid_price, 50_000.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request<R: DeserializeOwned>(&self, method: &str, params: impl Serialize) -> Result<R, RequestError> {
        self.call(Request::new(method, params))
    }

    /// As [`request`](Client::request), with a request made before: one with a timeout or an id of its own, or a venue's.
    ///
    /// # Errors
    /// As [`request`](Client::request).
    pub fn call<R: DeserializeOwned>(&self, request: Request) -> Result<R, RequestError> {
        self.start_request(request)?.wait()
    }

    /// Sends a request and does not wait for its answer: [`PendingResponse`] does, by a call or in `select!`. Returns at
    /// once, unless [`wait_for_limit`](Request::wait_for_limit) says otherwise.
    ///
    /// # Errors
    /// When it is not accepted: as for [`send`](Client::send), when its id is taken, when its parameters cannot be
    /// written as JSON, or on the client's own thread (there it is [`Context::request`](crate::Context::request)).
    pub fn start_request(&self, request: Request) -> Result<PendingResponse, RequestError> {
        let (caller, response) = crossbeam_channel::bounded(1);
        let Started { id, deadline, receipt } = self.start(&request, Whom::Caller(caller), true)?;
        Ok(PendingResponse { id, deadline, response: Some(response), receipt, core: self.core.clone() })
    }

    /// Sends a request whose outcome comes as [`Event::Response`](crate::Event::Response) among the client's other events,
    /// in the order of the wire: a fill that came before the answer to a cancel is seen before it, a later one after it.
    /// Exactly one comes for each request that is accepted, of an answer or of why there is none; those that ended with
    /// the connection come before [`Event::Disconnected`](crate::Event::Disconnected). Returns at once, unless
    /// [`wait_for_limit`](Request::wait_for_limit) says otherwise.
    ///
    /// # Errors
    /// As [`start_request`](Client::start_request).
    ///
    /// ```
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::start(Script::reply(|_, m| {
    /// #     let id = serde_json::from_str::<serde_json::Value>(m.as_text().unwrap()).unwrap()["id"].clone();
    /// #     vec!["fill".into(), Message::text(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"cancelled"}}"#))]
    /// # }))?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// let cancel = client.post(Request::new("private/cancel", [("order_id", "7")]))?;
    /// let mut fills = 0;
    /// for event in client.events() {
    ///     match event {
    ///         Event::Message(message) if message.as_text() == Some("fill") => fills += 1,
    ///         Event::Response(response) if response.id == cancel => {
    ///             println!("{:?}, after {fills} fills", response.outcome);
    ///             break;
    ///         }
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// # assert_eq!(fills, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn post(&self, request: Request) -> Result<RequestId, RequestError> {
        let may_wait = request.limit_wait > Duration::ZERO;
        Ok(self.start(&request, Whom::Consumer, may_wait)?.id)
    }

    /// `waits`: the caller would wait for the worker, or for a limit.
    fn start(&self, request: &Request, whom: Whom<Caller>, waits: bool) -> Result<Started, RequestError> {
        let core = &self.core;
        // Before it costs anything.
        let id = core.asked.id_for(request.id.as_ref())?;
        request.params.as_ref().map_err(|text| RequestError::Params(text.clone()))?;
        if waits && core.is_own_thread() {
            return Err(SendError::OwnThread { message: request.draft(&id) }.into());
        }
        let waits_until = Instant::now().checked_add(request.limit_wait);
        let mut whom = Some(whom);
        loop {
            let (state, pass) = (core.status.get(), core.mailbox.gate.pass());
            let (ReadyState::Open, Pass::Open { epoch }) = (state, pass) else {
                let state = state.unless_open();
                return Err(SendError::NotOpen { message: request.draft(&id), state }.into());
            };
            let door = Door { queued: core.mailbox.queued(), ..Door::WORKERS };
            let write = || core.correlation.encode(request, &id);
            let (message, price) = match core.mailbox.admission.write(door, false, Instant::now, &write) {
                Ok(written) => written,
                Err(Unwritten::Over(Over::Wait(time), _)) if is_in_time(waits_until, time) => {
                    core.status.wait_until_closed(time);
                    continue;
                }
                Err(unwritten) => return Err(unwritten.refuse(request, &id)),
            };
            let deadline = later(Instant::now(), request.timeout.unwrap_or(core.request_timeout));
            let receipt = Arc::new(Receipt::request(id.clone()));
            let (mut sooner, mut is_stale) = (false, false);
            let registration = Registration {
                core,
                method: &request.method,
                id: &id,
                deadline,
                receipt: &receipt,
                epoch,
                whom: &mut whom,
                sooner: &mut sooner,
                is_stale: &mut is_stale,
            };
            match core.mailbox.accept_at(message, price, || core.status.get(), registration) {
                // What it paid was for a connection that has ended meanwhile.
                Err(_) if is_stale => continue,
                accepted => accepted?,
            }
            if sooner {
                // A worker that sleeps would sleep through the deadline.
                core.mailbox.wake.wake();
            }
            return Ok(Started { id, deadline, receipt });
        }
    }

    /// Sends a JSON-RPC 2.0 notification (section 4.1): a request without an id, which nobody answers. Accounted for like
    /// any message of [`send`](Client::send).
    ///
    /// # Errors
    /// As [`send`](Client::send), and when the parameters cannot be written as JSON.
    ///
    /// ```
    /// # let server = ws_supervisor::testing::Server::echo()?;
    /// # let client = ws_supervisor::Client::connect(ws_supervisor::ClientConfig::new(server.url())?)?;
    /// client.notify("trades/seen", [17, 18])?;
    /// # let sent = server.wait_for_message(|_| true);
    /// # assert_eq!(sent.as_text(), Some(r#"{"jsonrpc":"2.0","method":"trades/seen","params":[17,18]}"#));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn notify(&self, method: &str, params: impl Serialize) -> Result<(), RequestError> {
        let message = Request::new(method, params).encode_notification().map_err(RequestError::Params)?;
        Ok(self.send(message)?)
    }

    /// As [`send`](Client::send), and waits until the [rate limits](crate::RateLimit) let the message pass, blocking for
    /// at most `at_most`.
    ///
    /// # Errors
    /// As [`send`](Client::send); [`SendError::RateLimited`], at once, when there will be no room in time; on the
    /// client's own thread always, which must not sleep.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{Client, ClientConfig, RateLimit};
    /// # let server = ws_supervisor::testing::Server::echo()?;
    /// # let url = server.url();
    /// let limit = RateLimit::bucket(1, 100, Duration::from_secs(1))?;
    /// let client = Client::connect(ClientConfig::new(url)?.rate_limit(limit))?;
    /// for order in ["one", "two", "three"] {
    ///     client.send_when_allowed(order, Duration::from_secs(5))?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_when_allowed(&self, message: impl Into<Message>, at_most: Duration) -> Result<(), SendError> {
        let message = message.into();
        if self.core.is_own_thread() {
            return Err(SendError::OwnThread { message });
        }
        let until = Instant::now().checked_add(at_most);
        let mut message = message;
        loop {
            match self.send(message) {
                Err(SendError::RateLimited { message: over, retry_after }) if is_in_time(until, retry_after) => {
                    self.core.status.wait_until_closed(retry_after);
                    message = over;
                }
                result => return result,
            }
        }
    }

    /// Wants these channels from now on, over every reconnect and restart, and waits until the server has acknowledged
    /// each of them, for at most [`request_timeout`](crate::ClientConfig::request_timeout). Without a connection it waits
    /// for one.
    ///
    /// # Errors
    /// [`SubscribeError::Refused`] names the channels that the server refused, which are then not wanted any more;
    /// [`SubscribeError::Timeout`] those that it has not acknowledged, which still are.
    ///
    /// ```
    /// # use ws_supervisor::{*, testing::DeribitServer, venue::deribit::Deribit};
    /// # let server = DeribitServer::start()?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?.venue(Deribit::new()))?;
    /// client.subscribe(["ticker.BTC-PERPETUAL.100ms", "ticker.ETH-PERPETUAL.100ms"])?;
    /// client.unsubscribe(["ticker.ETH-PERPETUAL.100ms"])?;
    /// assert_eq!(client.subscriptions().active.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscribe<C: AsRef<str>>(&self, channels: impl IntoIterator<Item = C>) -> Result<(), SubscribeError> {
        self.want(&names(channels), Wish::There)
    }

    /// Asks for these channels anew, and waits until the server has acknowledged each of them: what is there of them is let
    /// go and asked for again, so that a book comes as a whole, as after a gap in its numbers. Other channels are not
    /// touched. As [`subscribe`](Client::subscribe) otherwise.
    ///
    /// # Errors
    /// As [`subscribe`](Client::subscribe).
    ///
    /// ```
    /// # use ws_supervisor::{*, testing::DeribitServer, venue::deribit::Deribit};
    /// # let server = DeribitServer::start()?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?.venue(Deribit::new()))?;
    /// client.subscribe(["book.BTC-PERPETUAL.100ms"])?;
    /// client.resubscribe(["book.BTC-PERPETUAL.100ms"])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resubscribe<C: AsRef<str>>(&self, channels: impl IntoIterator<Item = C>) -> Result<(), SubscribeError> {
        self.want(&names(channels), Wish::Anew)
    }

    /// Does not want these channels any more, and waits until the server has acknowledged that. Without a connection
    /// there is nothing to wait for: the next one does not have them.
    ///
    /// # Errors
    /// As [`subscribe`](Client::subscribe). A channel that the server refuses to let go goes on for as long as the
    /// connection, and is not asked for on the next.
    pub fn unsubscribe<C: AsRef<str>>(&self, channels: impl IntoIterator<Item = C>) -> Result<(), SubscribeError> {
        self.want(&names(channels), Wish::Gone)
    }

    /// What is wanted, and what the server has acknowledged.
    pub fn subscriptions(&self) -> SubscriptionStatus {
        self.core.wanted.status()
    }

    fn want(&self, channels: &[Arc<str>], wish: Wish) -> Result<(), SubscribeError> {
        let core = &self.core;
        if core.is_own_thread() {
            return Err(SubscribeError::OwnThread);
        }
        let deadline = later(Instant::now(), core.request_timeout);
        core.wanted.want_and_wait(channels, wish, deadline, || core.mailbox.wake.wake(), || core.status.get())
    }
}

/// A request that was accepted.
struct Started {
    id: RequestId,
    deadline: Instant,
    receipt: Arc<Receipt>,
}

/// A request on its way in: in the table before it can be written, so that no answer can be too quick.
struct Registration<'a> {
    core: &'a Core,
    method: &'a str,
    id: &'a RequestId,
    deadline: Instant,
    receipt: &'a Arc<Receipt>,
    /// The connection that it has paid for.
    epoch: u64,
    whom: &'a mut Option<Whom<Caller>>,
    sooner: &'a mut bool,
    is_stale: &'a mut bool,
}

impl Enlists for Registration<'_> {
    type Error = RequestError;

    fn enlist(&mut self, message: &Message, epoch: Option<u64>) -> Result<Option<Arc<Receipt>>, RequestError> {
        *self.is_stale = epoch != Some(self.epoch);
        let Some(whom) = self.whom.take_if(|_| epoch == Some(self.epoch)) else {
            let (message, state) = (message.clone(), self.core.status.get().unless_open());
            return Err(SendError::NotOpen { message, state }.into());
        };
        let pending = Pending {
            method: self.method.into(),
            message: message.clone(),
            asked_at: Instant::now(),
            deadline: self.deadline,
            receipt: self.receipt.clone(),
            whom,
        };
        let registered = self.core.asked.look(|table| table.register(self.id.clone(), pending));
        *self.sooner = registered.map_err(|barred| barred.error(self.id, message))?;
        Ok(Some(self.receipt.clone()))
    }
}

fn is_in_time(until: Option<Instant>, time: Duration) -> bool {
    until.is_none_or(|until| Instant::now() + time <= until)
}
