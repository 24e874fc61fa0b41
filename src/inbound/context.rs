//! What a [`Handler`](crate::Handler) may do with its client: the [`Context`].

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::command::CommandKind;
use crate::core::Core;
use crate::deadline::later;
use crate::error::{RequestError, SendError, SubscribeError};
use crate::lifecycle::StopError;
use crate::message::Message;
use crate::outbound::accepted::Accepted;
use crate::outbound::outbox::Outbox;
use crate::policy::admission::{Charge, Door};
use crate::policy::requests::{Pending, Whom};
use crate::policy::subscriptions::{SubscriptionStatus, names};
use crate::policy::timers::Timers;
use crate::receipt::Receipt;
use crate::request::{Request, RequestId};
use crate::state::{ClientId, ReadyState};
use crate::wanted::Wish;

/// A handler's access to its own client, on the worker's thread.
///
/// ```
/// use ws_supervisor::{Context, Handler, Message, MessageRef};
///
/// struct Echo;
/// impl Handler for Echo {
///     fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
///         if let Err(refused) = context.send(message) {
///             eprintln!("{}: {refused}", context.name());
///         }
///     }
/// }
/// ```
pub struct Context<'a> {
    pub(crate) core: &'a Core,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) timers: &'a mut Timers,
    /// The open connection, if there is one.
    pub(crate) epoch: Option<u64>,
    pub(crate) now: Instant,
}

impl Context<'_> {
    /// Sends on the open connection: no channel, no lock, no wake. It is written when the handler returns, and is
    /// accounted for like any other.
    ///
    /// # Errors
    /// When there is no open connection (in `on_event` after a disconnect), when `send_capacity` messages wait
    /// already, or when the message is larger than `max_message_size`. The message is handed back.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), SendError> {
        let (mailbox, message) = (&self.core.mailbox, message.into());
        let mut price = mailbox.admission.price(&message);
        let message = mailbox.accept_here(message, self.open(), Charge::Now(&price), self.now)?;
        price.is_paid(Instant::now);
        self.outbox.push(Accepted::paid(message, self.epoch, None, price));
        Ok(())
    }

    fn open(&self) -> Result<(), ReadyState> {
        self.epoch.map(drop).ok_or_else(|| self.core.status.get().unless_open())
    }

    /// Sends a request; what becomes of it comes as [`Event::Response`](crate::Event::Response) to
    /// [`Handler::on_event`](crate::Handler::on_event), on this thread, once: the answer, the end of its time, or the end
    /// of the connection.
    ///
    /// # Errors
    /// When it is not accepted: as for [`send`](Context::send), when its id is taken, or when its parameters cannot be
    /// written as JSON.
    ///
    /// ```
    /// use ws_supervisor::{Context, Event, Handler, Message, MessageRef, Request};
    ///
    /// struct Buyer;
    /// impl Handler for Buyer {
    ///     fn on_message(&mut self, context: &mut Context<'_>, _tick: MessageRef<'_>) {
    ///         let order = Request::new("private/buy", [("instrument_name", "BTC-PERPETUAL")]);
    ///         if let Err(refused) = context.request(order) {
    ///             eprintln!("{refused}");
    ///         }
    ///     }
    ///     fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
    ///         if let Event::Response(response) = event {
    ///             println!("{}: {:?}", response.method, response.outcome);
    ///         }
    ///     }
    /// }
    /// ```
    pub fn request(&mut self, request: Request) -> Result<RequestId, RequestError> {
        let core = self.core;
        let id = core.asked.id_for(request.id.as_ref())?;
        if let (Some(tap), None) = (core.tap(), &request.id) {
            tap.request(&id, self.now);
        }
        request.params.as_ref().map_err(|text| RequestError::Params(text.clone()))?;
        self.open().map_err(|state| SendError::NotOpen { message: request.draft(&id), state })?;
        let mailbox = &core.mailbox;
        let door = Door { queued: mailbox.queued(), ..Door::WORKERS };
        let written = mailbox.admission.write(door, false, || self.now, &|| core.correlation.encode(&request, &id));
        let (message, mut price) = written.map_err(|unwritten| unwritten.refuse(&request, &id))?;
        let accepted = mailbox.accept_here(message, Ok(()), Charge::Paid, self.now);
        let message = accepted.inspect_err(|_| mailbox.admission.limits.refund(&mut price))?;
        let receipt = Arc::new(Receipt::request(id.clone()));
        let pending = Pending {
            method: request.method,
            message: message.clone(),
            asked_at: self.now,
            deadline: later(self.now, request.timeout.unwrap_or(core.request_timeout)),
            receipt: receipt.clone(),
            whom: Whom::Consumer,
        };
        if let Err(barred) = core.asked.look(|table| table.register(id.clone(), pending)) {
            mailbox.withdraw_here(message.len(), &mut price);
            return Err(barred.error(&id, &message));
        }
        self.outbox.push(Accepted::paid(message, self.epoch, Some(receipt), price));
        Ok(id)
    }

    /// Wants these channels from now on, as [`Client::subscribe`](crate::Client::subscribe) does, and does not wait: a
    /// refusal comes as [`Event::SubscriptionRefused`](crate::Event::SubscriptionRefused).
    ///
    /// # Errors
    /// [`SubscribeError::NoVenue`]: nobody knows how to subscribe.
    ///
    /// ```
    /// use ws_supervisor::{Context, Event, Handler, Message, MessageRef};
    ///
    /// struct Follower;
    /// impl Handler for Follower {
    ///     fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
    ///         if message.as_text().is_some_and(|text| text.contains("new_instrument")) {
    ///             context.subscribe(["book.ETH-PERPETUAL.raw"]).expect("a venue is configured");
    ///             context.unsubscribe(["book.BTC-PERPETUAL.raw"]).expect("a venue is configured");
    ///         }
    ///     }
    ///     fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
    ///         if let Event::SubscriptionRefused(refused) = event {
    ///             eprintln!("{}: {}; still there: {:?}", refused.channel, refused.error, context.subscriptions().active);
    ///         }
    ///     }
    /// }
    /// ```
    pub fn subscribe<C: AsRef<str>>(&mut self, channels: impl IntoIterator<Item = C>) -> Result<(), SubscribeError> {
        self.core.wanted.want(&names(channels), Wish::There)
    }

    /// Asks for these channels anew, as [`Client::resubscribe`](crate::Client::resubscribe) does, and does not wait: after a
    /// gap in a book, for example.
    ///
    /// # Errors
    /// [`SubscribeError::NoVenue`].
    pub fn resubscribe<C: AsRef<str>>(&mut self, channels: impl IntoIterator<Item = C>) -> Result<(), SubscribeError> {
        self.core.wanted.want(&names(channels), Wish::Anew)
    }

    /// Does not want these channels any more.
    ///
    /// # Errors
    /// [`SubscribeError::NoVenue`].
    pub fn unsubscribe<C: AsRef<str>>(&mut self, channels: impl IntoIterator<Item = C>) -> Result<(), SubscribeError> {
        self.core.wanted.want(&names(channels), Wish::Gone)
    }

    /// What is wanted and what the server has acknowledged.
    pub fn subscriptions(&self) -> SubscriptionStatus {
        self.core.wanted.status()
    }

    /// Closes the client once this method of the handler has returned, as [`Client::close`](crate::Client::close)
    /// does from outside.
    ///
    /// ```
    /// use ws_supervisor::{Context, Handler, Message, MessageRef};
    ///
    /// struct UntilHalted;
    /// impl Handler for UntilHalted {
    ///     fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
    ///         if message.as_text() == Some("halt") {
    ///             eprintln!("{} ({:?}), connection {:?}: closing", context.name(), context.id(), context.epoch());
    ///             context.close();
    ///         }
    ///     }
    /// }
    /// ```
    pub fn close(&mut self) {
        self.core.command(CommandKind::Close, self.core.close_timeout);
    }

    /// As [`close`](Context::close), with this code and reason in the close frame in place of 1000.
    ///
    /// # Errors
    /// [`StopError::InvalidCloseFrame`]: the code or the reason may not be sent. Nothing was done.
    pub fn close_with(&mut self, code: u16, reason: &str) -> Result<(), StopError> {
        self.core.set_close_frame(code, reason)?;
        self.close();
        Ok(())
    }

    /// Ends this connection in good order, once this method of the handler has returned, and makes the next at once: for
    /// a session that is no longer to be trusted. The handler stays.
    ///
    /// ```
    /// use ws_supervisor::{Context, Handler, Message, MessageRef};
    ///
    /// struct Checked {
    ///     next: u64,
    /// }
    /// impl Handler for Checked {
    ///     fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
    ///         let number = message.as_text().and_then(|text| text.parse().ok());
    ///         if number != Some(self.next) {
    ///             context.reconnect();
    ///         }
    ///         self.next += 1;
    ///     }
    /// }
    /// ```
    pub fn reconnect(&mut self) {
        self.core.command(CommandKind::Reconnect, self.core.close_timeout);
    }

    /// The open connection's number; `None` while there is none.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The time of what is being handled: when the message's bytes were read, when the timer was found due. Costs
    /// nothing, where `Instant::now()` reads the clock.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Calls [`Handler::on_timer`](crate::Handler::on_timer) with `token` once `at` has come: never before, after it
    /// as soon as the worker's thread is free, which under `IdleStrategy::Park` is when the kernel wakes it. Timers
    /// live as long as the handler: across reconnects, not across a restart. While an attempt to connect is under
    /// way they wait for its end.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{Context, Handler, Message, MessageRef};
    ///
    /// const REQUOTE: u64 = 1;
    ///
    /// struct Quoter;
    /// impl Handler for Quoter {
    ///     fn on_message(&mut self, context: &mut Context<'_>, _tick: MessageRef<'_>) {
    ///         context.cancel(REQUOTE);
    ///         context.schedule(context.now() + Duration::from_millis(250), REQUOTE);
    ///     }
    ///     fn on_timer(&mut self, context: &mut Context<'_>, token: u64) {
    ///         if token == REQUOTE && context.epoch().is_some() {
    ///             let _ = context.send("quote");
    ///         }
    ///     }
    /// }
    /// ```
    pub fn schedule(&mut self, at: Instant, token: u64) {
        self.core.tap().iter().for_each(|tap| tap.schedule(token, at, self.now));
        self.timers.schedule(at, token);
    }

    /// Forgets every timer with this token that has not fired; false when there was none.
    pub fn cancel(&mut self, token: u64) -> bool {
        self.timers.cancel(token)
    }

    /// The client's id.
    pub fn id(&self) -> ClientId {
        self.core.tag.id
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.core.tag.name
    }

    /// Messages that wait for the next connection.
    pub fn queued(&self) -> usize {
        self.core.mailbox.queued()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("name", &self.name()).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
