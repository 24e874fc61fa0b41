//! How a run ended, and what is to follow: decided once, by the thread that ends (by the supervisor, should that leave no
//! word), and taken along to whoever joins it.

use crate::client_state::ClientState;
use crate::lifecycle::ExitReason;
use crate::policy::restart::{Fate, fate};

#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) reason: ExitReason,
    pub(crate) fate: Fate,
}

impl Exit {
    pub(crate) fn new(state: &ClientState, reason: ExitReason) -> Self {
        let stop_given = state.core.commands.stop_given();
        Self { fate: fate(state.settings.restart, state.supervised, stop_given, &reason), reason }
    }
}
