//! Where one attempt goes and what it brings along: what [`ClientConfig::prepare`] may change.

use std::fmt;
use std::time::Instant;

use crate::error::{ConfigError, ConnectError, SessionError};
use crate::target::{Header, Target, parse_header};

/// One attempt to connect, before it is made: given to [`ClientConfig::prepare`](crate::ClientConfig::prepare). Every
/// attempt begins with the configuration's URL and headers.
///
/// ```
/// use ws_supervisor::{Client, ClientConfig, testing::Server};
///
/// let server = Server::echo()?;
/// let config = ClientConfig::new(server.url())?.prepare(move |dial| {
///     let url = format!("{}?listenKey={}", dial.base_url(), dial.attempt());
///     dial.url(url)?;
///     Ok(())
/// });
/// Client::connect(config)?;
/// assert_eq!(server.records()[0].target, "/?listenKey=1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Dial {
    pub(crate) target: Target,
    pub(crate) headers: Vec<Header>,
    attempt: u32,
    last_error: Option<ConnectError>,
    deadline: Instant,
    /// A redirect leads to another host than the configured one.
    pub(crate) was_redirected_away: bool,
}

impl Dial {
    pub(crate) fn new(
        target: Target,
        headers: Vec<Header>,
        attempt: u32,
        last_error: Option<ConnectError>,
        deadline: Instant,
    ) -> Self {
        Self { target, headers, attempt, last_error, deadline, was_redirected_away: false }
    }

    /// Goes to this URL instead.
    ///
    /// # Errors
    /// As [`ClientConfig::new`](crate::ClientConfig::new). With `?` in `prepare` it parks the client.
    pub fn url(&mut self, url: impl AsRef<str>) -> Result<(), ConfigError> {
        let target = Target::parse(url.as_ref())?;
        // What the configuration's URL says of a user holds for the same host.
        let credentials = self.target.credentials.take().filter(|_| target.is_same_host(&self.target));
        self.target = Target { credentials: target.credentials.clone().or(credentials), ..target };
        Ok(())
    }

    /// The same, to where a redirect points: what tells who we are stays with the host it was meant for.
    pub(crate) fn redirected(&self, location: &str) -> Result<Self, ConfigError> {
        let target = self.target.redirected(location)?;
        let mut headers = self.headers.clone();
        if !target.is_same_host(&self.target) {
            // Any other may be a key.
            headers.retain(|header| ["origin", "user-agent"].contains(&header.name.to_ascii_lowercase().as_str()));
        }
        let was_redirected_away = self.was_redirected_away || !target.is_same_host(&self.target);
        Ok(Self { target, headers, last_error: None, was_redirected_away, ..*self })
    }

    /// The URL as it is now, without its query.
    pub fn base_url(&self) -> String {
        self.target.base_url()
    }

    /// Sends this header, in place of any of the same name.
    ///
    /// # Errors
    /// When the name or the value is not one, or the handshake sets this header itself.
    pub fn header(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<(), ConfigError> {
        let header = parse_header(&name.into(), &value.into())?;
        self.headers.retain(|other| !other.name.eq_ignore_ascii_case(&header.name));
        self.headers.push(header);
        Ok(())
    }

    /// Which attempt this is since a connection last was stable, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Why the attempt before this one failed, if it did: a token that was refused is to be replaced.
    pub fn last_error(&self) -> Option<&ConnectError> {
        self.last_error.as_ref()
    }

    /// When the attempt must be over: `connect_timeout` after it began.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl fmt::Debug for Dial {
    /// Without the query and the headers' values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|header| &header.name).collect();
        let url = self.target.to_string();
        f.debug_struct("Dial").field("url", &url).field("headers", &names).finish_non_exhaustive()
    }
}

/// An address that cannot be meant does not get better by itself.
impl From<ConfigError> for SessionError {
    fn from(error: ConfigError) -> Self {
        Self::fatal(error)
    }
}
