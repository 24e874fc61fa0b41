//! [`Handshake`]: what was agreed on when a connection was made.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::error::Phase;

/// What was agreed on when a connection was made: how it was reached, what the server answered, how it is encrypted. Had
/// from [`Client::handshake`](crate::Client::handshake) and, while the session is opened,
/// [`Session::handshake`](crate::Session::handshake).
///
/// ```
/// use ws_supervisor::{Client, ClientConfig, testing::Server};
///
/// let server = Server::echo()?;
/// let client = Client::connect(ClientConfig::new(server.url())?)?;
/// let handshake = client.handshake().expect("it is open");
/// assert_eq!(handshake.header("Upgrade"), Some("websocket"));
/// assert!(handshake.peer.ip().is_loopback() && handshake.tls.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handshake {
    /// Where it went, without credentials and query: the configuration's URL, or what
    /// [`prepare`](crate::ClientConfig::prepare), a fallback or a redirect made of it. Its path may hold a key.
    pub url: Box<str>,
    /// The headers of the server's answer in the order in which they came. Their values are not printed by `Debug`.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// The subprotocol that the server chose, if it chose one.
    pub subprotocol: Option<Box<str>>,
    /// The extensions that were agreed on, as the server wrote them.
    pub extensions: Option<Box<str>>,
    /// The other end of the TCP connection: the server's, or the proxy's.
    pub peer: SocketAddr,
    /// This end.
    pub local: SocketAddr,
    /// The proxy in between, if there is one, without its password.
    pub proxy: Option<Box<str>>,
    /// How it is encrypted, if it is.
    pub tls: Option<TlsSession>,
    /// How long each step of the attempt took, in the order in which they happened, all addresses and redirects together.
    pub took: Vec<(Phase, Duration)>,
}

/// How a connection is encrypted, as far as the library that does it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsSession {
    /// The version; `None` over native-tls, which does not tell.
    pub version: Option<TlsVersion>,
    /// The cipher suite by its name in the standard; `None` over native-tls, which does not tell.
    pub cipher: Option<Box<str>>,
    /// The protocol that was chosen of those offered by [`Tls::alpn`](crate::Tls::alpn).
    pub alpn: Option<Box<str>>,
}

/// A version of TLS. Older ones are not offered (RFC 8996).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
pub enum TlsVersion {
    /// RFC 5246.
    #[cfg_attr(feature = "serde", serde(rename = "1.2"))]
    Tls12,
    /// RFC 8446.
    #[cfg_attr(feature = "serde", serde(rename = "1.3"))]
    Tls13,
}

/// What the server may answer to the subprotocols that it is offered (RFC 6455 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "snake_case")
)]
pub enum SubprotocolChoice {
    /// One of those offered.
    #[default]
    Required,
    /// One of those offered, or none: some servers leave out what they agree to.
    Optional,
    /// Anything, one that was not offered too. RFC 6455 has a client fail such a connection; some gateways insist.
    Any,
}

impl Handshake {
    /// The value of the first header of this name, in whatever case.
    ///
    /// ```
    /// # use ws_supervisor::{Client, ClientConfig, testing::Server};
    /// # let server = Server::echo()?;
    /// let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// assert!(client.handshake().unwrap().header("x-region").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Every `Set-Cookie` (RFC 6265 section 4.1): each a name, a value and attributes. Nobody sends them back: for a venue that
    /// wants it, keep them in [`on_open`](crate::ClientConfig::on_open), and set the header in
    /// [`prepare`](crate::ClientConfig::prepare).
    pub fn cookies(&self) -> impl Iterator<Item = &str> {
        self.all("set-cookie")
    }

    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Handshake")
            .field("headers", &names)
            .field("subprotocol", &self.subprotocol)
            .field("extensions", &self.extensions)
            .field("peer", &self.peer)
            .field("proxy", &self.proxy)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}
