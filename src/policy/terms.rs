//! The terms between a connection and whoever drives it: what it is given, what it may look at, what it wants done.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::admission::Unwritten;
use super::heartbeat::Heartbeat;
use super::rate_limit::Price;
use super::requests::{Requests, Told};
use super::staleness::StaleRules;
use super::subscriptions::{Batch, Subscriptions};
use super::upkeep::Renewal;
use crate::correlation::Correlation;
use crate::error::{RefusedChannel, SendError};
use crate::message::{Message, MessageRef};
use crate::receipt::Receipt;
use crate::request::{RequestId, RpcError};
use crate::response::Response;
use crate::state::DisconnectReason;

/// What a connection needs to know of a venue.
pub(crate) trait Dialect: Send + Sync {
    /// An error says what is wrong with one of them.
    fn subscribe(&self, channels: &[Arc<str>]) -> Result<Vec<Batch>, Box<str>>;
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Result<Vec<Batch>, Box<str>>;
    /// Whether a refusal is for the moment only.
    fn is_temporary(&self, error: &RpcError) -> bool;
    fn acknowledges(&self, channel: &str, result: &Value) -> bool;
    fn renewed(&self, result: &Value) -> Result<Option<Renewal>, Box<str>>;
    fn channel_of<'m>(&self, message: MessageRef<'m>) -> Option<Cow<'m, str>>;
}

/// What stays the same from one connection to the next.
pub(crate) struct Rules {
    pub(crate) heartbeat: Heartbeat,
    pub(crate) stale: StaleRules,
    pub(crate) correlation: Correlation,
    pub(crate) request_timeout: Duration,
    pub(crate) max_age: Option<Duration>,
    pub(crate) dialect: Option<Box<dyn Dialect>>,
}

/// The tables that a connection shares with the caller's threads: behind locks in a client, plain in a test. Each call is
/// one look at one table, and no code of the caller's (a venue's, a correlation's) runs inside it.
pub(crate) trait Tables {
    type Caller;
    fn requests<T>(&self, look: impl FnOnce(&mut Requests<Self::Caller>) -> T) -> T;
    fn subscriptions<T>(&self, look: impl FnOnce(&mut Subscriptions) -> T) -> T;
    /// Without a look: when a request is due at the earliest.
    fn requests_due(&self) -> Option<Instant>;
    /// Without a look: whether no message can be an answer.
    fn expects_no_answer(&self) -> bool;
    /// A request of a caller's was answered after so long.
    fn answered(&self, method: &str, took: Duration);
    fn next_id(&self) -> RequestId;
    /// The client's own numbers stay clear of this one.
    fn reserve(&self, id: &RequestId);
    /// It does not wait for the rate limits, but the venue counts it.
    fn admit_heartbeat(&self, message: Message, now: Instant) -> Result<Message, SendError>;
    /// Writes a message within the rate limits, or without waiting for them.
    fn write(
        &self,
        regardless: bool,
        now: Instant,
        write: &dyn Fn() -> Result<Message, Box<str>>,
    ) -> Result<(Message, Price), Unwritten>;
    /// What was paid for one that is not sent after all.
    fn refund(&self, price: &mut Price);
}

/// What the worker is to do.
#[derive(Debug)]
pub(crate) enum Action<C> {
    /// A sign of life came.
    Alive,
    Ping(Bytes),
    /// A heartbeat, or the answer to one: before all that waits, unless the peer takes nothing.
    Beat(Message),
    /// Before all that waits.
    SendFirst(Message),
    /// In its turn.
    Send {
        message: Message,
        receipt: Arc<Receipt>,
        price: Price,
    },
    Tell(Told<C>),
    /// The answer to what was given up on.
    TellLate(Response),
    Refused(RefusedChannel),
    /// No data has come for too long.
    Stale {
        channel: Option<Arc<str>>,
        lasted: Duration,
    },
    /// To the log.
    Warn(Box<str>),
    /// The connection has to end. `code` is what the server is told.
    End {
        reason: DisconnectReason,
        code: Option<u16>,
    },
}

/// What the worker knows when it asks what is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) now: Instant,
    /// All that came is read: while it is not, an answer may be waiting unread, and its absence counts for nothing.
    pub(crate) caught_up: bool,
    /// When bytes last came from the server, and whether they are the beginning of a message that is yet to come.
    pub(crate) heard_at: Instant,
    pub(crate) mid_frame: bool,
    /// Pings and heartbeats already wait to be written: a peer that takes nothing gets no heap of them.
    pub(crate) clogged: bool,
    /// What the caller wants to be subscribed to may have changed.
    pub(crate) wants_changed: bool,
}
