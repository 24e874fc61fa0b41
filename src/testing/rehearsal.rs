//! A [`Context`] without a connection: for unit tests of a handler.

use std::fmt;
use std::time::Instant;

use crate::client_state::ClientState;
use crate::config::ClientConfig;
use crate::error::RequestError;
use crate::handed_back::HandedBack;
use crate::inbound::context::Context;
use crate::inbound::delivery::Handler;
use crate::lifecycle::StartError;
use crate::message::Message;
use crate::outbound::outbox::Outbox;
use crate::policy::rate_limit::Limits;
use crate::policy::requests::Claim;
use crate::policy::timers::Timers;
use crate::request::{Json, RequestId, RpcError};
use crate::response::Response;
use crate::state::ReadyState;

/// What a handler stands on in a unit test: a [`Context`] whose time you set and whose messages you are shown, with no
/// socket, thread or clock. Limits, capacities and the correlation are those of the configuration.
///
/// ```
/// use std::time::{Duration, Instant};
/// use ws_supervisor::{ClientConfig, Context, Handler, Message, MessageRef, testing::Rehearsal};
///
/// struct Quoter;
/// impl Handler for Quoter {
///     fn on_message(&mut self, context: &mut Context<'_>, _tick: MessageRef<'_>) {
///         context.schedule(context.now() + Duration::from_secs(1), 7);
///     }
///     fn on_timer(&mut self, context: &mut Context<'_>, _: u64) {
///         context.send("quote").expect("open");
///     }
/// }
///
/// let start = Instant::now();
/// let mut rehearsal = Rehearsal::new(ClientConfig::new("wss://venue.example")?)?;
/// rehearsal.open(1);
/// rehearsal.set_now(start);
/// Quoter.on_message(&mut rehearsal.context(), "tick".into());
/// assert!(rehearsal.take_sent().is_empty());
/// rehearsal.set_now(start + Duration::from_secs(1));
/// rehearsal.fire_timers(&mut Quoter);
/// assert_eq!(rehearsal.take_sent(), ["quote"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Rehearsal {
    state: ClientState,
    outbox: Outbox,
    timers: Timers,
    now: Instant,
    epoch: Option<u64>,
}

impl Rehearsal {
    /// Without a connection; its time is now.
    ///
    /// # Errors
    /// When the configuration breaks a rule.
    pub fn new(config: ClientConfig) -> Result<Self, StartError> {
        let settings = crate::client::resolve(&config)?;
        let state = ClientState::new(settings, false).map_err(|error| StartError::Os(error.to_string().into()))?;
        let outbox = Outbox::new(Limits::default(), Default::default());
        Ok(Self { state, outbox, timers: Timers::default(), now: Instant::now(), epoch: None })
    }

    /// From now on this connection is open.
    pub fn open(&mut self, epoch: u64) {
        self.epoch = Some(epoch);
        self.state.core.status.set(ReadyState::Open);
    }

    /// From now on there is no connection. What the end of one does to messages and requests happens here: those that
    /// [`take_sent`](Rehearsal::take_sent) has not taken were never written, and no answer comes. What your handler would be
    /// told of it is returned.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Request, RequestError, testing::Rehearsal};
    /// let mut rehearsal = Rehearsal::new(ClientConfig::new("wss://venue.example")?)?;
    /// rehearsal.open(1);
    /// rehearsal.context().request(Request::new("private/buy", ()))?;
    /// rehearsal.take_sent();
    /// rehearsal.context().send("an order")?;
    /// let handed_back = rehearsal.disconnect();
    /// assert_eq!(handed_back.unsent, ["an order"]);
    /// assert!(matches!(handed_back.responses[0].outcome, Err(RequestError::OutcomeUnknown { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn disconnect(&mut self) -> HandedBack {
        self.epoch = None;
        self.state.core.status.set(ReadyState::Backoff);
        let items = self.outbox.take_all(&self.state.core.mailbox.source.books);
        self.state.rehearse_the_end(items)
    }

    /// Answers a request, as the server would: what your handler is told, as
    /// [`Event::Response`](crate::Event::Response). `None`: no request with this id waits.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Json, Request, testing::Rehearsal};
    /// let mut rehearsal = Rehearsal::new(ClientConfig::new("wss://venue.example")?)?;
    /// rehearsal.open(1);
    /// let id = rehearsal.context().request(Request::new("private/buy", ()))?;
    /// let response = rehearsal.answer(&id, Ok(Json::from("true".to_owned()))).expect("it waits");
    /// assert!(response.outcome.is_ok() && rehearsal.disconnect().responses.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn answer(&mut self, id: &RequestId, outcome: Result<Json, RpcError>) -> Option<Response> {
        match self.state.core.asked.look(|table| table.claim(id, outcome.is_err())) {
            Claim::Pending(_, pending) => {
                let outcome = outcome.map_err(RequestError::Rpc);
                Some(Response { id: id.clone(), method: pending.method, outcome })
            }
            Claim::Late { .. } | Claim::Nobody => None,
        }
    }

    /// What your handler is told of the requests whose time is up.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use ws_supervisor::{ClientConfig, Request, RequestError, testing::Rehearsal};
    /// let mut rehearsal = Rehearsal::new(ClientConfig::new("wss://venue.example")?)?;
    /// let start = Instant::now();
    /// rehearsal.open(1);
    /// rehearsal.set_now(start);
    /// rehearsal.context().request(Request::new("private/buy", ()).timeout(Duration::from_secs(2)))?;
    /// rehearsal.take_sent();
    /// rehearsal.set_now(start + Duration::from_secs(2));
    /// let [response] = &rehearsal.time_out()[..] else { panic!() };
    /// assert!(matches!(response.outcome, Err(RequestError::OutcomeUnknown { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn time_out(&mut self) -> Vec<Response> {
        let now = self.now;
        let told = self.state.core.asked.look(|table| table.expire(now, true));
        told.into_iter().map(|(response, _)| response).collect()
    }

    /// What [`Context::now`] says from now on.
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// For one call of a handler's method.
    pub fn context(&mut self) -> Context<'_> {
        let Self { state, outbox, timers, now, epoch } = self;
        Context { core: &state.core, outbox, timers, epoch: *epoch, now: *now }
    }

    /// Calls the handler for every timer that is due, as the worker does.
    pub fn fire_timers(&mut self, handler: &mut impl Handler) {
        let mark = self.timers.mark();
        while let Some(token) = self.timers.due(self.now, mark) {
            handler.on_timer(&mut self.context(), token);
        }
    }

    /// A request has ended as the recording says.
    #[cfg(feature = "record")]
    pub(super) fn settle(&mut self, id: &RequestId) {
        drop(self.state.core.asked.look(|table| table.claim(id, false)));
    }

    /// Takes out the first timer that is due by `until` and wanted.
    #[cfg(feature = "record")]
    pub(super) fn take_timer(
        &mut self,
        wanted: impl Fn(Instant, u64) -> bool,
        until: Instant,
    ) -> Option<(Instant, u64)> {
        self.timers.take(wanted, until)
    }

    #[cfg(feature = "record")]
    pub(super) fn forget_timers(&mut self) {
        self.timers = Timers::default();
    }

    /// On this open connection, or without one, in this state.
    #[cfg(feature = "record")]
    pub(super) fn stand(&mut self, epoch: Option<u64>, otherwise: ReadyState) {
        self.epoch = epoch;
        self.state.core.status.replace(if epoch.is_some() { ReadyState::Open } else { otherwise });
    }

    /// The next request has this number.
    #[cfg(feature = "record")]
    pub(super) fn continue_ids_at(&mut self, id: u64) {
        self.state.core.asked.continue_at(id);
    }

    /// What the handler has sent since this was last called, requests among it.
    pub fn take_sent(&mut self) -> Vec<Message> {
        let books = &self.state.core.mailbox.source.books;
        let sent = self.outbox.take_all(books);
        sent.iter().for_each(|item| books.leave(item));
        sent.into_iter().map(|item| item.message).collect()
    }
}

impl fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehearsal").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
