//! [`SocketOptions`]: the TCP socket beneath a client.

use std::net::IpAddr;
use std::time::Duration;

use crate::error::ConfigError;

/// How a client's TCP socket is set up, before it connects. Every default is the system's.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, SocketOptions};
///
/// let socket = SocketOptions::new()
///     .local_address("127.0.0.1".parse()?)          // the second line, or the card that the colocation gave
///     .keepalive(Duration::from_secs(20), Duration::from_secs(5), 3)
///     .user_timeout(Duration::from_secs(10))
///     .receive_buffer(4 << 20);
/// let config = ClientConfig::new("wss://venue.example/ws")?.socket(socket);
/// # let _ = config;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "its methods return the changed value"]
pub struct SocketOptions {
    pub(crate) local_address: Option<IpAddr>,
    pub(crate) interface: Option<String>,
    pub(crate) keepalive: Option<(Duration, Duration, u32)>,
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) dscp: Option<u8>,
    pub(crate) busy_poll: Option<Duration>,
}

impl SocketOptions {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects from this address of the machine's, from a port of the system's choice. Addresses of the other family are
    /// then not tried.
    pub fn local_address(mut self, address: IpAddr) -> Self {
        self.local_address = Some(address);
        self
    }

    /// Connects through this interface (`SO_BINDTODEVICE`), whatever the routes say. Linux.
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.interface = Some(name.into());
        self
    }

    /// Has the kernel test a silent line: first after `idle`, then every `interval`, and ends it after `retries` without an
    /// answer (`SO_KEEPALIVE`; whole seconds). A [`Heartbeat`](crate::Heartbeat) tests the venue too.
    pub fn keepalive(mut self, idle: Duration, interval: Duration, retries: u32) -> Self {
        self.keepalive = Some((idle, interval, retries));
        self
    }

    /// Has the kernel end the connection when what was written stays unacknowledged for so long (`TCP_USER_TIMEOUT`, RFC
    /// 5482; milliseconds). Linux.
    pub fn user_timeout(mut self, time: Duration) -> Self {
        self.user_timeout = Some(time);
        self
    }

    /// Bytes that the kernel keeps of what was not read yet (`SO_RCVBUF`; Linux takes twice as many for its own books).
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Bytes that the kernel keeps of what it was given to send (`SO_SNDBUF`). What lies there is *written*, and a smaller
    /// buffer tells earlier that the peer takes nothing.
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// The class of traffic, 0 to 63 (DSCP, RFC 2474), as routers on a line of your own may heed it.
    pub fn dscp(mut self, class: u8) -> Self {
        self.dscp = Some(class);
        self
    }

    /// How long a read that finds nothing asks the network card itself before it sleeps (`SO_BUSY_POLL`; microseconds).
    /// Linux; it needs the capability `CAP_NET_ADMIN`.
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = Some(time);
        self
    }

    pub(crate) fn faults(&self) -> Vec<ConfigError> {
        let is_linux = cfg!(target_os = "linux");
        let whole = |time: Option<Duration>, unit: u128| {
            time.is_none_or(|time| (1..1 << 31).contains(&(time.as_nanos() / unit)))
        };
        let seconds = |time: Duration| (1..=32_767).contains(&time.as_secs());
        let bytes = |size: Option<usize>| size.is_none_or(|size| (1..1 << 30).contains(&size));
        let rules = [
            (is_linux || self.interface.is_none(), "`interface` needs Linux"),
            (is_linux || self.user_timeout.is_none(), "`user_timeout` needs Linux"),
            (is_linux || self.busy_poll.is_none(), "`busy_poll` needs Linux"),
            (
                self.interface.as_ref().is_none_or(|name| (1..16).contains(&name.len()) && !name.contains('\0')),
                "`interface` must be a name of 1 to 15 bytes",
            ),
            // What the kernel takes: milliseconds, microseconds and bytes in 31 bits; tcp(7) for the rest.
            (whole(self.user_timeout, 1_000_000), "`user_timeout` must be between a millisecond and 24 days"),
            (whole(self.busy_poll, 1_000), "`busy_poll` must be between a microsecond and 35 minutes"),
            (self.dscp.is_none_or(|class| class < 64), "`dscp` must be 0 to 63"),
            (bytes(self.receive_buffer) && bytes(self.send_buffer), "a buffer must be between 1 byte and 1 GiB"),
            (
                self.keepalive.is_none_or(|(idle, interval, retries)| {
                    seconds(idle) && seconds(interval) && (1..=127).contains(&retries)
                }),
                "`keepalive` must have times of 1 to 32,767 s and 1 to 127 retries",
            ),
        ];
        rules.into_iter().filter(|(holds, _)| !holds).map(|(_, rule)| ConfigError::new("socket", rule)).collect()
    }
}
