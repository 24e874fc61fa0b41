//! [`Compression`]: what is offered to a server as permessage-deflate (RFC 7692).

/// Compression of messages that the server is offered, permessage-deflate (RFC 7692): Kraken, Coinbase, Deribit and others
/// take it. A server that does not take it is talked to without (but some, as npm's `ws`, refuse an offer whose parameters
/// they can't meet: then ask for less). With the feature `compression`.
///
/// It saves bytes, not time: to decompress a message takes some microseconds for each kilobyte, and to compress one of ours
/// some milliseconds for each megabyte. A message of more than 64 KiB is compressed on the client's thread, which reads between
/// its parts; a shorter one on whichever thread writes it. What comes out is bounded by [`max_message_size`](crate::ClientConfig::max_message_size) while it comes out. A client then holds some 50 KiB
/// more for what comes, and 400 KiB from the first message on that it compresses itself.
///
/// ```
/// use ws_supervisor::{ClientConfig, Compression};
///
/// let config = ClientConfig::new("wss://venue.example")?.compression(Compression::deflate().above(4 << 10));
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compression {
    pub(crate) level: u32,
    pub(crate) above: usize,
    pub(crate) client_takeover: bool,
    pub(crate) server_takeover: bool,
    pub(crate) client_bits: u8,
    pub(crate) server_bits: u8,
}

impl Compression {
    /// Context takeover and windows of 32 KiB both ways; messages of more than 1 KiB are compressed, at level 1.
    pub fn deflate() -> Self {
        let (client_takeover, server_takeover) = (true, true);
        Self { level: 1, above: 1024, client_takeover, server_takeover, client_bits: 15, server_bits: 15 }
    }

    /// How hard to try on messages of ours, 1 (fastest) to 9. Defaults to 1.
    pub fn level(mut self, level: u32) -> Self {
        self.level = level;
        self
    }

    /// Messages of ours are compressed when they have more bytes than this. Defaults to 1,024: an order is smaller, and leaves
    /// as it is.
    pub fn above(mut self, bytes: usize) -> Self {
        self.above = bytes;
        self
    }

    /// Each message of ours is compressed by itself: larger, and the server keeps no window for us
    /// (`client_no_context_takeover`, RFC 7692 section 7.1.1.2).
    pub fn client_no_context_takeover(mut self) -> Self {
        self.client_takeover = false;
        self
    }

    /// Asks that the server compress each message by itself (`server_no_context_takeover`, section 7.1.1.1).
    pub fn server_no_context_takeover(mut self) -> Self {
        self.server_takeover = false;
        self
    }

    /// Our window is at most 2 to the power of this, in bytes, 9 to 15 (`client_max_window_bits`, section 7.1.2.2). Defaults
    /// to 15. A server may ask for less.
    pub fn client_max_window_bits(mut self, bits: u8) -> Self {
        self.client_bits = bits;
        self
    }

    /// Asks that the server's window be at most 2 to the power of this, in bytes, 9 to 15 (`server_max_window_bits`, section
    /// 7.1.2.1). Defaults to 15.
    pub fn server_max_window_bits(mut self, bits: u8) -> Self {
        self.server_bits = bits;
        self
    }

    /// What can't be meant of it.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let windows = [self.client_bits, self.server_bits];
        match self.level {
            1..=9 if windows.iter().all(|bits| (9..=15).contains(bits)) => None,
            1..=9 => Some("its windows must be 9 to 15 bits"),
            _ => Some("its level must be 1 to 9"),
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::deflate()
    }
}
