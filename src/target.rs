//! Where to: a URL, taken apart and checked, and the headers that go along.

use std::fmt;

use http::{HeaderName, HeaderValue, Uri};

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
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, ConfigError> {
        let refuse = |rule: &str| Err(ConfigError::new("url", rule));
        if url.contains('#') {
            return refuse("must have no fragment (`#…`): RFC 6455 section 3 forbids it");
        }
        let Ok(uri) = url.parse::<Uri>() else {
            return refuse("must be a URL such as `wss://host:port/path?query`");
        };
        let tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            Some(_) => return refuse("must have the scheme `ws` or `wss`"),
            None => return refuse("must begin with `ws://` or `wss://`"),
        };
        let Some(authority) = uri.authority() else { return refuse("must name a host") };
        if authority.as_str().contains('@') {
            return refuse(
                "must not hold credentials (`user:password@`): send them with `header(\"Authorization\", …)`",
            );
        }
        let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return refuse("must name a host");
        }
        let usual = if tls { 443 } else { 80 };
        // Uri forgets a port that is out of range, so it is read here.
        let after_host = authority.as_str().rsplit(']').next().unwrap_or("");
        let port = match after_host.split_once(':').map(|(_, port)| port.parse()) {
            None => usual,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return refuse("must have a port between 1 and 65535, or none"),
        };
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let authority = if port == usual { bracketed } else { format!("{bracketed}:{port}") };
        let path_and_query = uri.path_and_query().map_or("/", |p| p.as_str());
        let path_and_query =
            if path_and_query.starts_with('/') { path_and_query.into() } else { format!("/{path_and_query}") };
        let path = uri.path();
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { host, port, tls, authority, path_and_query, path: path.to_owned() })
    }
}

impl fmt::Display for Target {
    /// Without the query: it may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "wss" } else { "ws" }, self.authority, self.path)
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
            "ws://u:p@h",
            "ws://h h",
            "ftp://h/",
        ];
        for url in bad {
            let error = Target::parse(url).err().expect(url);
            assert_eq!(error.option(), "url", "{url}");
        }
    }
}
