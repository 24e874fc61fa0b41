//! Where to: a URL, taken apart and checked, and the headers that go along.

use std::fmt;

use data_encoding::BASE64;
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use crate::error::ConfigError;

/// Where to: the URL, taken apart and checked.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    /// As the Host header wants it: with the port unless it is the scheme's own, IPv6 in brackets.
    pub(crate) authority: String,
    pub(crate) path_and_query: String,
    pub(crate) path: String,
    /// What the URL has before an `@`.
    pub(crate) credentials: Option<Credentials>,
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Credentials {
    /// As a URL has them, percent-encoded (RFC 3986 section 3.2.1); `None` where there is nothing.
    fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        (!text.is_empty()).then(|| Self { user: decoded(user), password: decoded(password) })
    }

    /// What stands before the host, and the rest.
    pub(crate) fn split(authority: &str) -> (Option<Self>, &str) {
        match authority.rsplit_once('@') {
            Some((credentials, host)) => (Self::parse(credentials), host),
            None => (None, authority),
        }
    }

    /// As a header has them (RFC 7617 section 2).
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", BASE64.encode(format!("{}:{}", self.user, self.password).as_bytes()))
    }
}

/// The host, without brackets, and the port; an error says what is wrong with them.
pub(crate) fn host_and_port(uri: &Uri, usual: u16) -> Result<(String, u16), &'static str> {
    let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("must name a host");
    }
    // Uri forgets a port that is out of range, so it is read here.
    let (_, authority) = Credentials::split(uri.authority().map_or("", |authority| authority.as_str()));
    let after_host = authority.rsplit(']').next().unwrap_or("");
    match after_host.split_once(':').map(|(_, port)| port.parse()) {
        None => Ok((host.to_owned(), usual)),
        Some(Ok(port)) if port > 0 => Ok((host.to_owned(), port)),
        Some(_) => Err("must have a port between 1 and 65535, or none"),
    }
}

/// A host as others know it: an address's zone is this machine's own name for a link (RFC 6874).
pub(crate) fn without_zone(host: &str) -> &str {
    host.split('%').next().unwrap_or_default()
}

/// A host as it stands before a port: an IPv6 address has colons of its own.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// What is not ASCII goes over the wire as the bytes of its UTF-8, in hexadecimal (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        0..128 => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("url", rule));
        if url.contains('#') {
            return refuse("must have no fragment (`#…`): RFC 6455 section 3 forbids it");
        }
        let after_scheme = url.find("://").map_or(0, |at| at + 3);
        let path_at = url[after_scheme..].find(['/', '?']).map_or(url.len(), |at| after_scheme + at);
        let (scheme, path) = (&url[..after_scheme], encoded(&url[path_at..]));
        let authority = &url[after_scheme..path_at];
        let (credentials, host) = Credentials::split(authority);
        let Some(host) = in_ascii(host) else {
            return refuse(
                "must name the host in ASCII (an internationalized name begins with `xn--`; the feature `idn` writes it)",
            );
        };
        let url = format!("{scheme}{host}{path}");
        let Ok(uri) = url.parse::<Uri>() else {
            return refuse("must be a URL such as `wss://host:port/path?query`");
        };
        let scheme = uri.scheme_str().map(str::to_ascii_lowercase);
        let tls = match scheme.as_deref() {
            Some("ws") => false,
            Some("wss") => true,
            Some(_) => return refuse("must have the scheme `ws` or `wss`"),
            None => return refuse("must begin with `ws://` or `wss://`"),
        };
        let usual = if tls { 443 } else { 80 };
        let (host, port) = host_and_port(&uri, usual).map_err(|rule| ConfigError::new("url", rule))?;
        // RFC 6874: the zone of an address is this machine's own business, and its `%` is written `%25`.
        let bracketed = if host.contains(':') { bracketed(without_zone(&host)) } else { host.clone() };
        let host = if host.contains(':') { host.replacen("%25", "%", 1) } else { host };
        let authority = if port == usual { bracketed } else { format!("{bracketed}:{port}") };
        let path_and_query = uri.path_and_query().map_or("/", |p| p.as_str());
        let path_and_query =
            if path_and_query.starts_with('/') { path_and_query.into() } else { format!("/{path_and_query}") };
        let path = uri.path();
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { host, port, tls, authority, path_and_query, path: path.to_owned(), credentials })
    }

    /// Where a redirect points to from here (RFC 3986 section 5.2): never from an encrypted connection to one that is not, and
    /// without the credentials unless it is the same host.
    pub(crate) fn redirected(&self, location: &str) -> Result<Self, ConfigError> {
        let location = location.split('#').next().unwrap_or_default().trim();
        let before_path = &location[..location.find(['/', '?']).unwrap_or(location.len())];
        let to = if let Some(scheme) = before_path.strip_suffix(':') {
            // Servers write it as HTTP's, which a WebSocket's upgrade is.
            let scheme = scheme.to_ascii_lowercase().replace("http", "ws");
            format!("{scheme}{}", &location[before_path.len() - 1..])
        } else if location.starts_with("//") {
            format!("{}:{location}", self.scheme())
        } else {
            let (path, query) = location.find('?').map_or((location, ""), |at| location.split_at(at));
            let path = match path {
                "" => self.path.clone(),
                path if path.starts_with('/') => without_dots(path),
                path => without_dots(&format!("{}{path}", &self.path[..=self.path.rfind('/').unwrap_or(0)])),
            };
            format!("{}://{}{path}{query}", self.scheme(), self.authority)
        };
        let mut target = Self::parse(&to)?;
        if self.tls && !target.tls {
            return Err(ConfigError::new("redirects", "a redirect must not lead from `wss` to `ws`"));
        }
        if target.is_same_host(self) && target.credentials.is_none() {
            target.credentials = self.credentials.clone();
        }
        Ok(target)
    }

    pub(crate) fn is_same_host(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host) && self.port == other.port
    }
}

/// A path without the segments that lead back or nowhere (RFC 3986 section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let ends_in_folder = matches!(path.rsplit('/').next(), Some("." | ".."));
    format!("/{}{}", kept.join("/"), if ends_in_folder && !kept.is_empty() { "/" } else { "" })
}

/// The host and its port, the name as DNS has it.
#[cfg(feature = "idn")]
fn in_ascii(host: &str) -> Option<String> {
    if host.is_ascii() {
        return Some(host.to_owned());
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let name = idna::domain_to_ascii_strict(name).ok()?;
    Some(port.map_or(name.clone(), |port| format!("{name}:{port}")))
}

#[cfg(not(feature = "idn"))]
fn in_ascii(host: &str) -> Option<String> {
    host.is_ascii().then(|| host.to_owned())
}

impl Target {
    /// Without the query.
    pub(crate) fn base_url(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.path)
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "wss" } else { "ws" }
    }
}

impl fmt::Display for Target {
    /// For logs: without path and query, in which there may be a token or a listen key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.path_and_query == "/" { "" } else { "/…" };
        write!(f, "{}://{}{more}", self.scheme(), self.authority)
    }
}

/// A header that goes along with the upgrade, its name as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) name: Box<str>,
    pub(crate) value: HeaderValue,
}

pub(crate) fn parse_header(name: &str, value: &str) -> Result<Header, ConfigError> {
    const OURS: [&str; 8] = [
        "host",
        "connection",
        "upgrade",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "content-length",
    ];
    let refuse = |rule: String| Err(ConfigError::new("header", rule));
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        return refuse(format!("`{}` must be a header name: letters, digits and `-`", name.escape_debug()));
    };
    if OURS.contains(&parsed.as_str()) {
        let hint = if parsed == "sec-websocket-protocol" { ": use `subprotocol`" } else { "" };
        return refuse(format!("`{parsed}` is set by the handshake itself{hint}"));
    }
    match HeaderValue::from_str(value) {
        Ok(value) => Ok(Header { name: name.into(), value }),
        Err(_) => refuse(format!("the value of `{parsed}` must be visible ASCII characters on one line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let t = Target::parse("wss://[::1]:8443/a?b=c").unwrap();
        assert_eq!((t.host.as_str(), t.port, t.tls), ("::1", 8443, true));
        assert_eq!((t.authority.as_str(), t.path_and_query.as_str()), ("[::1]:8443", "/a?b=c"));
        let t = Target::parse("ws://host?x=1").unwrap();
        assert_eq!((t.authority.as_str(), t.path_and_query.as_str(), t.port), ("host", "/?x=1", 80));
        let t = Target::parse("WSS://Host/ws/币usdt?a=ü").unwrap();
        assert_eq!((t.tls, t.path_and_query.as_str()), (true, "/ws/%E5%B8%81usdt?a=%C3%BC"));
        let t = Target::parse("ws://[fe80::1%25lo]:9/").unwrap();
        assert_eq!((t.host.as_str(), t.authority.as_str()), ("fe80::1%lo", "[fe80::1]:9"));
    }

    #[test]
    fn credentials_are_for_a_header() {
        let t = Target::parse("ws://us%40er:p%C3%A4ss@host:1/").unwrap();
        assert_eq!(t.credentials.as_ref().unwrap().basic(), "Basic dXNAZXI6cMOkc3M=");
        assert_eq!((t.authority.as_str(), t.base_url().as_str()), ("host:1", "ws://host:1/"));
    }

    #[test]
    fn redirects_lead_on_but_never_to_a_weaker_scheme() {
        let from = Target::parse("wss://u:p@a.example/ws/v1?token=1").unwrap();
        let to = |location: &str| {
            from.redirected(location).map(|t| (t.tls, t.authority, t.path_and_query, t.credentials.is_some()))
        };
        let expected = |authority: &str, path: &str, same| Ok((true, authority.to_owned(), path.to_owned(), same));
        assert_eq!(to("/ws/v2?x=1"), expected("a.example", "/ws/v2?x=1", true));
        assert_eq!(to("v2"), expected("a.example", "/ws/v2", true));
        assert_eq!(to("https://b.example/#top"), expected("b.example", "/", false));
        assert_eq!(to("wss://b.example:8443/x"), expected("b.example:8443", "/x", false));
        assert_eq!(to("//b.example/x"), expected("b.example", "/x", false));
        assert_eq!(to("?x=2"), expected("a.example", "/ws/v1?x=2", true));
        assert_eq!(to(""), expected("a.example", "/ws/v1", true));
        assert_eq!(to("../v2"), expected("a.example", "/v2", true));
        assert_eq!(to("./v2/./a/..?u=http://x/"), expected("a.example", "/ws/v2/?u=http://x/", true));
        assert_eq!(to("/login?next=https://a/"), expected("a.example", "/login?next=https://a/", true));
        assert!(to("http://a.example/").is_err() && to("ws://a.example/").is_err() && to("ftp://a/").is_err());
    }

    #[cfg(feature = "idn")]
    #[test]
    fn internationalized_names_are_written_as_dns_has_them() {
        let t = Target::parse("ws://bücher.example:7/ü").unwrap();
        assert_eq!((t.host.as_str(), t.authority.as_str()), ("xn--bcher-kva.example", "xn--bcher-kva.example:7"));
        assert_eq!(t.path_and_query, "/%C3%BC");
    }

    #[test]
    fn what_may_be_a_secret_is_not_printed() {
        let t = Target::parse("wss://host/ws/LISTENKEY?token=x").unwrap();
        assert_eq!(t.to_string(), "wss://host/…");
        assert_eq!(t.base_url(), "wss://host/ws/LISTENKEY");
    }

    #[test]
    fn urls_that_cannot_be_meant_are_refused() {
        let bad = [
            "",
            "host",
            "http://h",
            "ws://",
            "ws://:80",
            "wss:///p",
            "ws://h:0",
            "ws://h:99999",
            "ws://h:",
            "ws://h/#f",
            "ws://h h",
            "ftp://h/",
            "ws://a b.ü/",
        ];
        for url in bad {
            let error = Target::parse(url).err().expect(url);
            assert_eq!(error.option(), "url", "{url}");
        }
    }
}
