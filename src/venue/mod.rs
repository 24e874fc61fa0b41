//! What a venue's dialect needs: the [`Venue`] trait, and two venues that prove it.

pub mod binance;
#[cfg(feature = "deribit")]
#[cfg_attr(docsrs, doc(cfg(feature = "deribit")))]
pub mod deribit;
mod deribit_heartbeat;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::correlation::Correlation;
use crate::error::SessionError;
use crate::message::MessageRef;
use crate::policy::heartbeat::Heartbeat;
pub use crate::policy::heartbeat::{Classified, HeartbeatDialect};
use crate::policy::rate_limit::RateLimit;
pub use crate::policy::subscriptions::Batch;
use crate::policy::terms::Dialect;
pub use crate::policy::upkeep::{IntoRenewal, Renewal};
use crate::request::RpcError;
use crate::session::Session;

/// A venue's dialect: how it tells that a line is alive, how to sign in, how to subscribe. Set with
/// [`ClientConfig::venue`](crate::ClientConfig::venue). One value may serve many clients: what belongs to a connection
/// is passed along.
///
/// [`heartbeat`](Venue::heartbeat), [`correlation`](Venue::correlation), [`rate_limits`](Venue::rate_limits) and
/// [`max_age`](Venue::max_age) are asked when the client is configured. The rest runs on the client's thread; while it
/// runs, nothing else of the client does, but handles are not held up by it.
///
/// ```
/// use std::sync::Arc;
/// use ws_supervisor::{Request, venue::{Batch, Venue}};
///
/// /// Takes any number of channels at once and answers with those that it has.
/// struct Plain;
///
/// impl Venue for Plain {
///     fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
///         vec![Batch::new(Request::new("subscribe", channels), channels)]
///     }
///     fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch> {
///         vec![Batch::new(Request::new("unsubscribe", channels), channels)]
///     }
/// }
/// ```
pub trait Venue: Send + Sync + 'static {
    /// How the line's life is told. A ping every 20 s unless the venue says otherwise.
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::ping_pong(Duration::from_secs(20))
    }

    /// How answers find their requests. JSON-RPC 2.0 unless the venue says otherwise.
    fn correlation(&self) -> Correlation {
        Correlation::json_rpc()
    }

    /// One word for the venue, for labels and reports. By default none, and the host's name takes its place.
    fn name(&self) -> &str {
        ""
    }

    /// What the venue takes, and what each message costs there. Every message must pass all of them. None by default.
    fn rate_limits(&self) -> Vec<RateLimit> {
        Vec::new()
    }

    /// How old a connection may grow: before the venue ends it, the client replaces it. `None` by default.
    fn max_age(&self) -> Option<Duration> {
        None
    }

    /// Signs in, on the worker's thread, first thing after every handshake. Returns when and how to renew what expires.
    /// Nothing by default.
    ///
    /// # Errors
    /// Ends the attempt; with [`into_fatal`](SessionError::into_fatal), as for a wrong secret, parks the client.
    fn authenticate(&self, session: &mut Session<'_>) -> Result<Option<Renewal>, SessionError> {
        let _ = session;
        Ok(None)
    }

    /// The answer to a [`Renewal`]'s request; returns the next.
    ///
    /// # Errors
    /// The connection is given up and the next one signs in afresh.
    fn renewed(&self, result: &Value) -> Result<Option<Renewal>, SessionError> {
        let _ = result;
        Ok(None)
    }

    /// Requests that subscribe to these channels, in batches that the venue takes. Every channel must be in one batch.
    fn subscribe(&self, channels: &[Arc<str>]) -> Vec<Batch>;

    /// Requests that unsubscribe from these channels.
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Vec<Batch>;

    /// Whether a refusal is for the moment only, so that the channels are asked for again, all together, after a while. By
    /// default whatever says of itself that it is: too many requests, a rate limit, a server that is busy or not available.
    fn is_temporary(&self, error: &RpcError) -> bool {
        const FOR_NOW: [&str; 9] =
            ["temporar", "try again", "retry", "busy", "overload", "throttl", "frequen", "rate limit", "ratelimit"];
        // Of requests too many is for the moment. Of channels too many is for good: no connection takes more.
        const TOO_MANY: [&str; 4] = ["too many", "exceed", "limit", "too fast"];
        const OF_REQUESTS: [&str; 9] =
            ["request", "visit", "message", "msg", "rate", "call", "quer", "operation", "per second"];
        let message = error.message.to_lowercase().replace(['_', '-'], " ");
        let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
        error.code == 429 || says(&FOR_NOW) || (says(&TOO_MANY) && says(&OF_REQUESTS))
    }

    /// Whether the result of a batch says that this channel is subscribed to. By default the result is a list, and the
    /// channel must be in it.
    fn acknowledges(&self, channel: &str, result: &Value) -> bool {
        result.as_array().is_some_and(|names| names.iter().any(|name| name == channel))
    }

    /// Whether [`channel_of`](Venue::channel_of) names the channels of this venue's messages: else
    /// [`stale_channel_after`](crate::ClientConfig::stale_channel_after) is refused. False by default.
    fn names_channels(&self) -> bool {
        false
    }

    /// The channel that a message belongs to, by the name by which it is subscribed to; asked for every message where
    /// [`stale_channel_after`](crate::ClientConfig::stale_channel_after) is set. `None` by default.
    fn channel_of<'m>(&self, message: MessageRef<'m>) -> Option<Cow<'m, str>> {
        let _ = message;
        None
    }
}

/// A venue, as a connection sees it: one that panics at a channel is at fault at that channel, and nowhere else.
pub(crate) struct Spoken(pub(crate) Arc<dyn Venue>);

impl Spoken {
    fn say<T>(&self, say: impl FnOnce(&dyn Venue) -> T) -> Result<T, Box<str>> {
        let said = catch_unwind(AssertUnwindSafe(|| say(&*self.0)));
        said.map_err(|payload| {
            let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            // What was thrown is the venue's, and may throw again when it is dropped.
            catch_unwind(AssertUnwindSafe(|| drop(payload))).unwrap_or_else(std::mem::forget);
            format!("the venue's dialect panicked: {text}").into()
        })
    }
}

impl Dialect for Spoken {
    fn subscribe(&self, channels: &[Arc<str>]) -> Result<Vec<Batch>, Box<str>> {
        self.say(|venue| venue.subscribe(channels))
    }

    fn unsubscribe(&self, channels: &[Arc<str>]) -> Result<Vec<Batch>, Box<str>> {
        self.say(|venue| venue.unsubscribe(channels))
    }

    fn is_temporary(&self, error: &RpcError) -> bool {
        self.say(|venue| venue.is_temporary(error)).unwrap_or(false)
    }

    fn acknowledges(&self, channel: &str, result: &Value) -> bool {
        self.say(|venue| venue.acknowledges(channel, result)).unwrap_or(false)
    }

    fn renewed(&self, result: &Value) -> Result<Option<Renewal>, Box<str>> {
        self.say(|venue| venue.renewed(result))?.map_err(|error| error.to_string().into())
    }

    fn channel_of<'m>(&self, message: MessageRef<'m>) -> Option<Cow<'m, str>> {
        self.say(|venue| venue.channel_of(message)).unwrap_or(None)
    }
}
