//! The options of connecting: where to, through what, as whom, and how long that may take.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::ClientConfig;
use super::proxy::Proxy;
use super::socket::SocketOptions;
use super::tls::Tls;
use crate::error::ConfigError;
use crate::handshake::SubprotocolChoice;
use crate::policy::rate_limit::RateLimit;
use crate::target::Target;

impl ClientConfig {
    /// Another URL of the same service, tried when the one before it does not open; call it again for more. A client stays
    /// with the one that opened last, unless that falls silent, and begins with the configuration's own. Waits, retries and `max_retries` are as with
    /// one; what parks a client does so when each of them was tried. Defaults to none.
    ///
    /// # Errors
    /// As [`new`](ClientConfig::new).
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://a.venue.example/ws")?.fallback_url("wss://b.venue.example/ws")?;
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn fallback_url(mut self, url: impl AsRef<str>) -> Result<Self, ConfigError> {
        let target = Target::parse(url.as_ref());
        self.fallbacks.push(target.map_err(|fault| ConfigError::new("fallback_url", fault.rule()))?);
        Ok(self)
    }

    /// Adds a header to the upgrade request; call it again for more. Values are never logged. Defaults to none.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Offers a subprotocol (RFC 6455 section 1.9), in order of preference; the server must then choose one of those
    /// offered, unless [`subprotocol_choice`](ClientConfig::subprotocol_choice) says otherwise. Defaults to none.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// Trusts these CA certificates (PEM, one or more) besides the system's. Defaults to none.
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// What the server may answer to the subprotocols that it is offered. Defaults to [`SubprotocolChoice::Required`]. What
    /// it chose is in [`Handshake`](crate::Handshake).
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, SubprotocolChoice};
    /// let config = ClientConfig::new("wss://venue.example")?.subprotocol("fix.v5").subprotocol_choice(SubprotocolChoice::Optional);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn subprotocol_choice(mut self, choice: SubprotocolChoice) -> Self {
        self.subprotocol_choice = choice;
        self
    }

    /// The `Host` that the upgrade names, in place of the URL's: for a gateway that tells venues apart by it. The name in
    /// TLS is [`Tls::server_name`]. Both hold for this URL's host, not for one that a fallback or a redirect leads to.
    pub fn host_header(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Leaves out the `User-Agent`, which names this crate and its version unless a [`header`](ClientConfig::header) of yours
    /// says something else.
    pub fn without_user_agent(mut self) -> Self {
        self.user_agent = false;
        self
    }

    /// Follows so many redirects of the upgrade (301, 302, 303, 307, 308) in one attempt, never from `wss` to `ws`; to another
    /// host neither the URL's credentials nor subprotocols go along, which may carry a token, and of your headers only `Origin`
    /// and `User-Agent`. Defaults to 0: a server that answers in the venue's place could send orders elsewhere.
    pub fn redirects(mut self, most: u32) -> Self {
        self.redirects = most;
        self
    }

    /// Tries again this often when the certificate of a server, or of a proxy, is not accepted, instead of parking the client.
    /// For programs that nobody watches: venues renew expired certificates, and this machine's clock may have been wrong before
    /// it was synchronized. No attempt sends anything before a certificate is accepted. Defaults to off.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.certificate_retry(Duration::from_secs(300));
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn certificate_retry(mut self, every: Duration) -> Self {
        self.certificate_retry = Some(every);
        self
    }

    /// How a `wss://` connection is encrypted: whom it trusts, and who it says it is. Defaults to [`Tls::new`].
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Tls};
    /// let tls = Tls::new().root_file("/etc/desk/venue-ca.pem").without_system_roots();
    /// let config = ClientConfig::new("wss://venue.example")?.tls(tls);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Connects through this proxy. Defaults to none; [`Proxy::from_environment`] asks the environment.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Proxy};
    /// let config = ClientConfig::new("wss://venue.example")?.proxy(Proxy::new("http://proxy.example:3128")?);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// How the TCP socket is set up. Defaults to the system's defaults.
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.socket = options;
        self
    }

    /// Attempts to connect wait for this limit, each costs one token: give clones to all clients of one venue that counts
    /// connections (`RateLimit::window(300, 5 minutes)`), and 40 clients that come back together spread themselves. The wait
    /// is no part of `connect_timeout`. Defaults to none; besides it, no client dials more than 20 times at once and 10 times
    /// a second.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::{ClientConfig, RateLimit};
    ///
    /// let dials = RateLimit::window(300, Duration::from_secs(300))?;
    /// let prices = ClientConfig::new("wss://venue.example/prices")?.dial_limit(dials.clone());
    /// let orders = ClientConfig::new("wss://venue.example/orders")?.dial_limit(dials);
    /// # let _ = (prices, orders);
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn dial_limit(mut self, limit: RateLimit) -> Self {
        self.dial_limit = Some(limit);
        self
    }

    /// The time for one attempt: resolving, TCP, proxy, TLS and upgrade, then signing in, `on_open`, restoring subscriptions and
    /// `reconcile`, all together. Defaults to 10 s.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Whether small writes leave at once (`TCP_NODELAY`). Defaults to true.
    pub fn tcp_nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Resolves names by this function instead of the system's resolver. It may block: it runs on a thread of its
    /// own, which is left alone when `connect_timeout` runs out or the client is stopped.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use ws_supervisor::ClientConfig;
    ///
    /// let pinned: SocketAddr = "127.0.0.1:443".parse()?;
    /// let config = ClientConfig::new("wss://venue.example/ws")?.resolver(move |_host, _port| Ok(vec![pinned]));
    /// # let _ = config;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resolver(
        mut self,
        resolve: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.resolver = Some(Arc::new(resolve));
        self
    }
}
