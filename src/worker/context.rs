//! What a [`Handler`](crate::Handler) may do with its client: the [`Context`].

use crate::command::{OrderKind, Outbound};
use crate::error::SendError;
use crate::event::ClientId;
use crate::message::Message;
use crate::shared::Shared;
use crate::worker::outbox::Outbox;

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
    /// The open connection, if there is one.
    pub(crate) epoch: Option<u64>,
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
    pub fn close(&mut self) {
        self.shared.order(OrderKind::Close, self.shared.config.close_timeout);
    }

    /// The open connection's number; `None` while there is none.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
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
