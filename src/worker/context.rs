//! What a [`Handler`](crate::Handler) may do with its client: the [`Context`].

use std::time::Instant;

use crate::command::{OrderKind, Outbound};
use crate::error::SendError;
use crate::event::ClientId;
use crate::message::Message;
use crate::shared::Shared;
use crate::worker::outbox::Outbox;
use crate::worker::timers::Timers;

/// A handler's access to its own client, on the worker's thread.
///
/// ```
/// use ws_supervisor::{Context, Handler, Message};
///
/// struct Echo;
/// impl Handler for Echo {
///     fn on_message(&mut self, context: &mut Context<'_>, message: Message) {
///         if let Err(refused) = context.send(message) {
///             eprintln!("{}: {refused}", context.name());
///         }
///     }
/// }
/// ```
pub struct Context<'a> {
    pub(crate) shared: &'a Shared,
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
        let message = message.into();
        let config = &self.shared.config;
        if self.epoch.is_none() {
            return Err(SendError::NotOpen { message, state: self.shared.status.get() });
        }
        if message.len() > config.max_message_size {
            return Err(SendError::TooLarge { message, limit: config.max_message_size });
        }
        if self.outbox.waiting() >= config.send_capacity {
            return Err(SendError::Full { message });
        }
        self.outbox.push(Outbound { message, epoch: self.epoch, receipt: None, place: None });
        Ok(())
    }

    /// Closes the client once this method of the handler has returned, as [`Client::close`](crate::Client::close)
    /// does from outside.
    ///
    /// ```
    /// use ws_supervisor::{Context, Handler, Message};
    ///
    /// struct UntilHalted;
    /// impl Handler for UntilHalted {
    ///     fn on_message(&mut self, context: &mut Context<'_>, message: Message) {
    ///         if message.as_text() == Some("halt") {
    ///             eprintln!("{} ({:?}), connection {:?}: closing", context.name(), context.id(), context.epoch());
    ///             context.close();
    ///         }
    ///     }
    /// }
    /// ```
    pub fn close(&mut self) {
        self.shared.order(OrderKind::Close, self.shared.config.close_timeout);
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
    /// use ws_supervisor::{Context, Handler, Message};
    ///
    /// const REQUOTE: u64 = 1;
    ///
    /// struct Quoter;
    /// impl Handler for Quoter {
    ///     fn on_message(&mut self, context: &mut Context<'_>, _tick: Message) {
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
        self.timers.schedule(at, token);
    }

    /// Forgets every timer with this token that has not fired; false when there was none.
    pub fn cancel(&mut self, token: u64) -> bool {
        self.timers.cancel(token)
    }

    /// The client's id.
    pub fn id(&self) -> ClientId {
        self.shared.tag.id
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.shared.tag.name
    }

    /// Messages that wait for the next connection.
    pub fn queued(&self) -> usize {
        self.shared.places.taken()
    }
}
