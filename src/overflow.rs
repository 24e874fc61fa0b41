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
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum Overflow {
    /// Stop reading the socket until there is room; nothing is lost, and the server feels it through TCP. Sends and
    /// heartbeats go on; answers to heartbeats that wait unread are not counted as missing. The end of the connection is
    /// noticed (on Linux; elsewhere by what is written): what the kernel still has of it, at most the socket's receive
    /// buffer, is read behind the full queue, and the next connection is made without waiting for you. Only while you
    /// have not even caught up with the connection before does that wait. The default.
    #[default]
    Backpressure,
    /// Keep reading and drop the oldest messages not yet handed over. [`Event::Lagged`](crate::Event::Lagged) takes their place. Half of
    /// `event_capacity` is what is handed over already.
    DropOldest,
    /// Keep reading and drop what comes. [`Event::Lagged`](crate::Event::Lagged) takes its place.
    DropNewest,
    /// Give up the connection: a consumer that missed a message has to start afresh anyway.
    Disconnect,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its session is being opened: messages are kept, and answers among them are needed.
    Opening,
    Open,
    /// The caller asked for the end, so a full queue no longer holds it up.
    Closing,
    /// The connection is over: what the kernel still has of it is read, whether there is room or not.
    Over,
}

/// What happens to a message that is one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtLimit {
    /// It is kept: whoever reads asks for room before it reads.
    Keep,
    DropOldest,
    DropNewest,
    /// It ends the connection, or the attempt.
    Overrun,
}

impl Overflow {
    /// The one place that decides it.
    pub(crate) fn at_limit(self, stage: Stage) -> AtLimit {
        match (self, stage) {
            (Self::DropOldest, _) => AtLimit::DropOldest,
            (Self::DropNewest, _) => AtLimit::DropNewest,
            (Self::Backpressure, Stage::Open | Stage::Closing | Stage::Over) => AtLimit::Keep,
            (Self::Disconnect, Stage::Closing | Stage::Over) => AtLimit::DropNewest,
            (Self::Backpressure, Stage::Opening) | (Self::Disconnect, _) => AtLimit::Overrun,
        }
    }
}
