//! What was accepted and has to be told of: [`HandedBack`].

use crate::message::Message;
use crate::response::Response;

/// Messages and requests of yours that ended with a connection, where no event of their own could tell of them: in
/// [`Event::Collapsed`](crate::Event::Collapsed), and in a [`SupervisorEvent`](crate::SupervisorEvent) when the handler
/// that should have heard of them is gone.
///
/// ```
/// use ws_supervisor::{Supervisor, SupervisorEvent};
///
/// fn alert(event: SupervisorEvent) {
///     if let SupervisorEvent::Parked { name, handed_back, .. } = event {
///         println!("{name}: {} never sent, {} perhaps lost", handed_back.unsent.len(), handed_back.uncertain.len());
///     }
/// }
/// # let supervisor = Supervisor::start()?;
/// # supervisor.events().try_iter().for_each(alert);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HandedBack {
    /// Messages that were accepted and not written.
    pub unsent: Vec<Message>,
    /// Messages that were written and that the peer's kernel never acknowledged.
    pub uncertain: Vec<Message>,
    /// What became of requests.
    pub responses: Vec<Response>,
    /// How many of all these were too many to keep; the latest are kept.
    pub dropped: u64,
}

impl HandedBack {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.uncertain.is_empty() && self.responses.is_empty() && self.dropped == 0
    }

    pub(crate) fn extend(&mut self, later: Self) {
        self.unsent.extend(later.unsent);
        self.uncertain.extend(later.uncertain);
        self.responses.extend(later.responses);
        self.dropped += later.dropped;
    }

    /// Adds what came later, and of each kind keeps the latest: so many, or all of what is added.
    pub(crate) fn add_latest(&mut self, later: Self, messages: usize, responses: usize) {
        fn add<T>(all: &mut Vec<T>, later: Vec<T>, limit: usize) -> u64 {
            let excess = (all.len() + later.len()).saturating_sub(limit).min(all.len());
            all.drain(..excess);
            all.extend(later);
            excess as u64
        }
        self.dropped += later.dropped
            + add(&mut self.unsent, later.unsent, messages)
            + add(&mut self.uncertain, later.uncertain, messages)
            + add(&mut self.responses, later.responses, responses);
    }
}
