//! What a worker does with nothing to do.

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IdleStrategy {
    /// Sleep in the kernel until bytes arrive, a deadline passes or a caller sends. The default.
    #[default]
    Park,
    /// Never sleep while a connection is open: look at the socket and at the callers in turn. Takes a whole core, so
    /// pin the client to one of its own ([`ClientConfig::pin_to`](crate::ClientConfig::pin_to)). Without a connection it sleeps as `Park` does.
    BusySpin,
    /// Spin for so many turns, then yield to other threads for so many, then sleep as `Park` does; begin anew whenever
    /// there was something to do.
    Backoff {
        /// Turns that spin, each about a microsecond.
        spins: u32,
        /// Turns after those that yield.
        yields: u32,
    },
}

/// What to do for one turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Spin,
    Yield,
    Park,
}

impl IdleStrategy {
    /// After so many turns without work.
    pub(crate) fn rest(self, idle_turns: u32) -> Rest {
        match self {
            Self::Park => Rest::Park,
            Self::BusySpin => Rest::Spin,
            Self::Backoff { spins, .. } if idle_turns < spins => Rest::Spin,
            Self::Backoff { spins, yields } if idle_turns - spins < yields => Rest::Yield,
            Self::Backoff { .. } => Rest::Park,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_spins_then_yields_then_parks() {
        let backoff = IdleStrategy::Backoff { spins: 2, yields: 1 };
        let rests: Vec<_> = (0..5).map(|turns| backoff.rest(turns)).collect();
        assert_eq!(rests, [Rest::Spin, Rest::Spin, Rest::Yield, Rest::Park, Rest::Park]);
        let ever = IdleStrategy::Backoff { spins: u32::MAX, yields: u32::MAX };
        assert_eq!(ever.rest(u32::MAX), Rest::Yield);
    }
}
