//! What a worker does with nothing to do.

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IdleStrategy {
    /// Sleep in the kernel until bytes arrive, a deadline passes or a caller sends. The default.
    #[default]
    Park,
    /// Never sleep while a connection is open: look at the socket and at the callers in turn. Takes a whole core, so
    /// pin the client to one of its own ([`ClientConfig::pin_to`]). Without a connection it sleeps as `Park` does.
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

impl IdleStrategy {
    /// Whether to sleep after so many turns without work; otherwise rests for one turn.
    pub(crate) fn may_park(self, idle_turns: u32) -> bool {
        match self {
            Self::Park => true,
            Self::BusySpin => {
                std::hint::spin_loop();
                false
            }
            Self::Backoff { spins, .. } if idle_turns < spins => {
                std::hint::spin_loop();
                false
            }
            Self::Backoff { spins, yields } if idle_turns - spins < yields => {
                std::thread::yield_now();
                false
            }
            Self::Backoff { .. } => true,
        }
    }
}
