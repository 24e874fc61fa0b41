//! What an open connection has to see to by itself: a token that expires, an age at which it is replaced, channels that a
//! rate limit holds up.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deadline::later;
use crate::request::Request;

/// What must be asked before something expires, for example a new token.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use ws_supervisor::{Request, venue::Renewal};
///
/// let token = Request::new("public/auth", [("grant_type", "refresh_token"), ("refresh_token", "…")]);
/// let renewal = Renewal::new(Duration::from_secs(720), token);
/// // One that says when it was sent, or is signed, is made then.
/// let signed = Renewal::new(Duration::from_secs(720), || Request::new("logon", [("at", SystemTime::now())]));
/// # let _ = (renewal, signed);
/// ```
#[derive(Clone)]
pub struct Renewal {
    pub(crate) after: Duration,
    pub(crate) request: Arc<MakeRequest>,
}

type MakeRequest = dyn Fn() -> Request + Send + Sync;

/// A [`Request`], or a function that makes one when it is needed.
pub trait IntoRenewal {
    /// The function.
    fn into_renewal(self) -> Box<dyn Fn() -> Request + Send + Sync>;
}

impl IntoRenewal for Request {
    fn into_renewal(self) -> Box<dyn Fn() -> Request + Send + Sync> {
        Box::new(move || self.clone())
    }
}

impl<F: Fn() -> Request + Send + Sync + 'static> IntoRenewal for F {
    fn into_renewal(self) -> Box<dyn Fn() -> Request + Send + Sync> {
        Box::new(self)
    }
}

impl Renewal {
    /// Sends `request` once this much time has passed: one that is made now, or by a function on the client's thread when
    /// it is sent. Like a heartbeat it does not wait for a rate limit. At most five times a second, whatever `after` says.
    pub fn new(after: Duration, request: impl IntoRenewal) -> Self {
        Self { after, request: Arc::from(request.into_renewal()) }
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").field("after", &self.after).finish_non_exhaustive()
    }
}

/// Nothing is renewed more often, whatever the venue says of its tokens.
const LEAST_RENEWAL: Duration = Duration::from_millis(200);

/// A connection that is to be replaced waits so long for the answers to its requests.
const ROTATION_WAITS: Duration = Duration::from_secs(10);

/// While it waits, how often it looks.
const ROTATION_LOOKS: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    renewal: Option<(Instant, Renewal)>,
    /// The one that is being asked for.
    renewing: Option<Renewal>,
    /// When the connection is to be replaced: once nothing is pending, or at the latest.
    rotation: Option<(Instant, Instant)>,
    /// When to ask again for channels that are wanted.
    ask_at: Option<Instant>,
    /// Until then it is a rate limit that holds them up.
    held_up: bool,
}

impl Upkeep {
    /// The connection is open, and is to be replaced at this age.
    pub(crate) fn opened(&mut self, now: Instant, max_age: Option<Duration>) {
        let at = max_age.and_then(|age| now.checked_add(age));
        self.rotation = at.map(|at| (at, later(at, ROTATION_WAITS)));
    }

    pub(crate) fn renew(&mut self, now: Instant, renewal: Option<Renewal>) {
        self.renewal = renewal.map(|renewal| (later(now, renewal.after.max(LEAST_RENEWAL)), renewal));
    }

    /// The venue could not renew it now, or was not asked after all: it is asked again.
    pub(crate) fn renew_again(&mut self, at: Instant) {
        self.renewal = self.renewing.take().map(|renewal| (at, renewal));
    }

    pub(crate) fn ask_for_channels_at(&mut self, at: Instant) {
        (self.ask_at, self.held_up) = (Some(at), false);
    }

    /// As `ask_for_channels_at`, and nothing is asked for before.
    pub(crate) fn hold_up_until(&mut self, at: Instant) {
        (self.ask_at, self.held_up) = (Some(at), true);
    }

    /// Whether nothing may be asked for now, whoever waits for it.
    pub(crate) fn is_held_up(&self) -> bool {
        self.ask_at.is_some() && self.held_up
    }

    /// Whether channels wait to be asked for.
    pub(crate) fn asks_later(&self) -> bool {
        self.ask_at.is_some()
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        let renewal = self.renewal.as_ref().map(|(at, _)| *at);
        [renewal, self.rotation.map(|(at, _)| at), self.ask_at].into_iter().flatten().min()
    }

    /// Whether to ask for channels now, given whether something changed. While a rate limit holds them up, to ask more
    /// often would only cost more of the account's tokens.
    pub(crate) fn take_asking(&mut self, now: Instant, changed: bool) -> bool {
        match self.ask_at {
            Some(at) if now < at => false,
            Some(_) => {
                self.ask_at = None;
                true
            }
            None => changed,
        }
    }

    pub(crate) fn take_renewal(&mut self, now: Instant) -> Option<Request> {
        let (_, renewal) = self.renewal.take_if(|(at, _)| now >= *at)?;
        Some((self.renewing.insert(renewal).request)())
    }

    /// Whether the connection has to be replaced now, with so many requests pending.
    pub(crate) fn is_too_old(&mut self, now: Instant, pending: impl FnOnce() -> usize) -> bool {
        let Some((_, latest)) = self.rotation.filter(|(at, _)| now >= *at) else { return false };
        if now >= latest || pending() == 0 {
            return true;
        }
        self.rotation = Some((later(now, ROTATION_LOOKS).min(latest), latest));
        false
    }
}
