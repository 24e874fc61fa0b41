//! What happens to messages when nobody takes them as fast as they come.

/// What happens to a client's messages when its event queue is full.
///
/// ```
/// use ws_supervisor::{ClientConfig, Overflow};
/// // For a consumer that wants the latest prices and can live with gaps.
/// let config = ClientConfig::new("wss://venue.example")?.overflow(Overflow::DropOldest).event_capacity(64);
/// # let _ = config;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// Stop reading the socket until there is room; nothing is lost, and the server feels it through TCP. Sends and
    /// heartbeats go on; answers to heartbeats that wait unread are not counted as missing. Until reading goes on, the
    /// end of the connection is noticed by what is written only. The default.
    #[default]
    Backpressure,
    /// Keep reading and drop the oldest messages not yet handed over. [`Event::Lagged`] takes their place. Half of
    /// `event_capacity` is what is handed over already.
    DropOldest,
    /// Keep reading and drop what comes. [`Event::Lagged`] takes its place.
    DropNewest,
    /// Give up the connection: a consumer that missed a message has to start afresh anyway.
    Disconnect,
}
