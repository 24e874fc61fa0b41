//! [`Proxy`]: through whom a client connects, and for which hosts.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;

use http::Uri;

use super::tls::Tls;
use crate::error::ConfigError;
use crate::target::{Credentials, Target, bracketed, host_and_port, without_zone};

/// A proxy to connect through. One that cannot be used fails the attempt: there is never a direct connection in its place.
///
/// What a proxy's kernel acknowledges is only on its way, so through one only the venue's own answers prove that a message
/// arrived: when such a line breaks, all that was written since the last ping of ours that was answered is told as uncertain.
/// Ping often ([`Heartbeat::ping_pong`](crate::Heartbeat::ping_pong)), and there is little of it.
///
/// ```
/// use ws_supervisor::{ClientConfig, Proxy};
///
/// let proxy = Proxy::new("http://user:password@proxy.example:3128")?;
/// let config = ClientConfig::new("wss://venue.example/ws")?.proxy(proxy.bypass("localhost, .desk.example, 10.0.0.0/8"));
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone)]
#[must_use = "its methods return the changed value"]
pub struct Proxy {
    source: Source,
    bypass: Bypass,
    tls: Tls,
}

#[derive(Clone)]
enum Source {
    One(Server),
    Environment,
}

/// A proxy, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) speaks: Speaks,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// `CONNECT` (RFC 9110 section 9.3.6).
    Http,
    /// The same, over TLS to the proxy.
    Https,
    /// RFC 1928.
    #[cfg(feature = "socks")]
    Socks5,
}

impl Proxy {
    /// `http://[user:password@]host[:port]`, with `https` for TLS to the proxy itself, or `socks5` (also written `socks5h`;
    /// with the feature `socks`), by which names are always resolved at the proxy. The ports default to 80, 443 and 1080.
    ///
    /// # Errors
    /// When it is no such URL.
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Ok(Self { source: Source::One(Server::parse(url.as_ref())?), bypass: Bypass::default(), tls: Tls::default() })
    }

    /// The one that the environment names, looked up at every attempt: `https_proxy` for `wss`, `http_proxy` for `ws`, else
    /// `all_proxy`, each also in capitals (but `HTTP_PROXY`, which a CGI server fills from a request); direct for the hosts
    /// in `no_proxy`, and when none is set. A value that is no proxy's URL fails the attempt.
    pub fn from_environment() -> Self {
        Self { source: Source::Environment, bypass: Bypass::default(), tls: Tls::default() }
    }

    /// Connects directly to these hosts, separated by commas or spaces: a name stands for itself and all below it, with or without a
    /// dot before it, an address for itself, `10.0.0.0/8` for all in it; each may end in a port; `*` is everything. Defaults to
    /// none.
    pub fn bypass(mut self, hosts: impl AsRef<str>) -> Self {
        self.bypass.0.extend(Bypass::parse(hosts.as_ref()).0);
        self
    }

    /// How the connection to a proxy of the scheme `https` is encrypted. Defaults to [`Tls::new`]; the client's own
    /// [`tls`](crate::ClientConfig::tls) is between it and the venue.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Its URL without user and password; `None` where the environment says.
    #[cfg(feature = "serde")]
    pub(crate) fn shown(&self) -> Option<String> {
        match &self.source {
            Source::One(server) => Some(server.to_string()),
            Source::Environment => None,
        }
    }

    pub(crate) fn to_proxy(&self) -> &Tls {
        &self.tls
    }

    /// The proxy for this target, if there is to be one.
    pub(crate) fn choose(
        &self,
        target: &Target,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Server>, ConfigError> {
        if self.bypass.covers(&target.host, target.port) {
            return Ok(None);
        }
        let server = match &self.source {
            Source::One(server) => return Ok(Some(server.clone())),
            Source::Environment => {
                let first = |names: &[&str]| {
                    let set = names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
                    let refuse = |_| ConfigError::new("proxy", format!("the environment's {names:?} must be UTF-8"));
                    set.map(|value| value.into_string()).transpose().map_err(refuse)
                };
                let excluded = first(&["no_proxy", "NO_PROXY"])?.unwrap_or_default();
                if Bypass::parse(&excluded).covers(&target.host, target.port) {
                    return Ok(None);
                }
                let own: &[&str] = if target.tls { &["https_proxy", "HTTPS_PROXY"] } else { &["http_proxy"] };
                first(own)?.map_or_else(|| first(&["all_proxy", "ALL_PROXY"]), |url| Ok(Some(url)))?
            }
        };
        // Without a scheme it is HTTP's, as everywhere.
        let with_scheme = |url: String| if url.contains("://") { url } else { format!("http://{url}") };
        server.map(|url| Server::parse(&with_scheme(url))).transpose()
    }
}

impl Server {
    fn parse(url: &str) -> Result<Self, ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("proxy", rule));
        let Ok(uri) = url.trim_end_matches('/').parse::<Uri>() else {
            return refuse("must be a URL such as `http://user:password@host:port`");
        };
        let (speaks, usual) = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("http") => (Speaks::Http, 80),
            Some("https") => (Speaks::Https, 443),
            #[cfg(feature = "socks")]
            Some("socks5" | "socks5h") => (Speaks::Socks5, 1080),
            #[cfg(not(feature = "socks"))]
            Some("socks5" | "socks5h") => return refuse("needs the feature `socks` for the scheme `socks5`"),
            _ => return refuse("must have the scheme `http`, `https` or `socks5`"),
        };
        let (credentials, _) = Credentials::split(uri.authority().map_or("", |authority| authority.as_str()));
        let (host, port) = host_and_port(&uri, usual).map_err(|rule| ConfigError::new("proxy", rule))?;
        #[cfg(feature = "socks")]
        if let (Speaks::Socks5, Some(Credentials { user, password })) = (speaks, &credentials) {
            // RFC 1929 section 2.
            if ![user, password].into_iter().all(|part| (1..256).contains(&part.len())) {
                return refuse("must have a user and a password of 1 to 255 bytes each for SOCKS5, or neither");
            }
        }
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return refuse("must have no path");
        }
        Ok(Self { speaks, host, port, credentials })
    }
}

impl fmt::Display for Server {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.speaks {
            Speaks::Http => "http",
            Speaks::Https => "https",
            #[cfg(feature = "socks")]
            Speaks::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}:{}", bracketed(&self.host), self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::One(server) => write!(f, "Proxy({server})"),
            Source::Environment => f.write_str("Proxy(from the environment)"),
        }
    }
}

/// Hosts that are reached directly.
#[derive(Clone, Default)]
struct Bypass(Vec<Rule>);

#[derive(Clone)]
struct Rule {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone)]
enum Hosts {
    All,
    /// Those of which so many bits are these.
    Net(IpAddr, u32),
    /// This name and what is below it.
    Name(String),
}

impl Bypass {
    fn parse(list: &str) -> Self {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        Self(entries.map(Rule::parse).collect())
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        // The zone of an address and the dot that ends a name say nothing of where it is.
        let host = without_zone(host).trim_end_matches('.');
        self.0.iter().any(|rule| rule.port.is_none_or(|only| only == port) && rule.hosts.hold(host))
    }
}

impl Rule {
    fn parse(entry: &str) -> Self {
        // An IPv6 address has colons of its own, so its port comes after a bracket.
        let split = match entry.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                port.parse().ok().map(|port| (host, port))
            }
            _ => None,
        };
        let (host, port) = split.map_or((entry, None), |(host, port)| (host, Some(port)));
        let (address, bits) = host.split_once('/').map_or((host, None), |(address, bits)| (address, Some(bits)));
        let address = address.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        let hosts = match address.parse::<IpAddr>() {
            Ok(ip) => Hosts::Net(ip, bits.map_or(Some(u32::MAX), |bits| bits.parse().ok()).unwrap_or(u32::MAX)),
            Err(_) if address == "*" => Hosts::All,
            Err(_) => Hosts::Name(address.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase()),
        };
        Self { hosts, port }
    }
}

impl Hosts {
    fn hold(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Name(name) => {
                let host = host.to_ascii_lowercase();
                host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Net(net, bits) => match (net, host.parse()) {
                (IpAddr::V4(net), Ok(IpAddr::V4(ip))) => {
                    same_start(u128::from(net.to_bits()), u128::from(ip.to_bits()), 32, *bits)
                }
                (IpAddr::V6(net), Ok(IpAddr::V6(ip))) => same_start(net.to_bits(), ip.to_bits(), 128, *bits),
                _ => false,
            },
        }
    }
}

/// Whether the first `bits` of `width` are the same.
fn same_start(one: u128, other: u128, width: u32, bits: u32) -> bool {
    (one ^ other).checked_shr(width - bits.min(width)).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    fn chosen(url: &str, environment: &[(&str, &str)]) -> Result<Option<String>, ConfigError> {
        let variable =
            |name: &str| environment.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(*value));
        let proxy = Proxy::from_environment().choose(&target(url), variable)?;
        Ok(proxy.map(|server| server.to_string()))
    }

    #[test]
    fn proxies_are_taken_apart() {
        let server = Server::parse("https://us%40er:p%3Ass@[::1]:3129/").unwrap();
        assert_eq!((server.speaks, server.host.as_str(), server.port), (Speaks::Https, "::1", 3129));
        let credentials = server.credentials.clone().unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("us@er", "p:ss"));
        assert_eq!(server.to_string(), "https://[::1]:3129");
        assert_eq!(Server::parse("http://proxy").unwrap().port, 80);
        for bad in
            ["", "proxy:1", "ftp://proxy", "http://", "http://proxy:0", "http://proxy:99999", "http://proxy/path"]
        {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environment_names_a_proxy_a_scheme_and_the_exceptions() {
        let both = [("https_proxy", "http://s:1"), ("http_proxy", "p:2"), ("NO_PROXY", "localhost,.direct.example")];
        assert_eq!(chosen("wss://venue.example", &both).unwrap().as_deref(), Some("http://s:1"));
        assert_eq!(chosen("ws://venue.example", &both).unwrap().as_deref(), Some("http://p:2"));
        assert_eq!(chosen("wss://a.direct.example", &both).unwrap(), None);
        assert_eq!(chosen("ws://venue.example", &[("HTTP_PROXY", "http://evil:1")]).unwrap(), None);
        assert_eq!(
            chosen("ws://venue.example", &[("ALL_PROXY", "http://a:1")]).unwrap().as_deref(),
            Some("http://a:1")
        );
        assert!(chosen("ws://venue.example", &[("all_proxy", "gopher://a:1")]).is_err(), "never a direct connection");
    }

    #[test]
    fn hosts_that_are_reached_directly() {
        let covers = |list: &str, host: &str, port| Bypass::parse(list).covers(host, port);
        assert!(covers("*", "anything", 1));
        assert!(
            covers("example", "example", 1) && covers("example", "A.Example", 1) && !covers("example", "anexample", 1)
        );
        assert!(covers("*.example", "a.example", 1) && covers("example.", "a.example", 1) && covers("a b", "b.", 1));
        assert!(covers("[fd00::]/8", "fd00::1", 1) && covers("fe80::/10", "fe80::7%lo", 1));
        assert!(covers("a:8443", "a", 8443) && !covers("a:8443", "a", 443));
        assert!(covers("10.0.0.0/8", "10.1.2.3", 1) && !covers("10.0.0.0/8", "11.1.2.3", 1));
        assert!(covers("127.0.0.1", "127.0.0.1", 1) && !covers("127.0.0.1", "127.0.0.2", 1));
        assert!(covers("[::1]:9", "::1", 9) && !covers("[::1]:9", "::1", 8) && covers("fe80::/10", "fe80::7", 1));
        assert!(covers("0.0.0.0/0", "8.8.8.8", 1) && !covers("", "a", 1));
    }
}
