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
        let after_scheme = url.find("://").map_or(0, |at| at + 3);
        let path_at = url[after_scheme..].find(['/', '?']).map_or(url.len(), |at| after_scheme + at);
        let (before_path, path) = url.split_at(path_at);
        if !before_path.is_ascii() {
            return refuse("must name the host in ASCII (an internationalized name begins with `xn--`)");
        }
        // RFC 3986 section 2.1: what is not ASCII goes over the wire as the bytes of its UTF-8, in hexadecimal.
        let encode = |byte: u8| match byte {
            0..128 => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        let url = format!("{before_path}{}", path.bytes().map(encode).collect::<String>());
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
        // RFC 6874: the zone of an address is this machine's own business, and its `%` is written `%25`.
        let zoneless = host.split('%').next().unwrap_or_default();
        let bracketed = if host.contains(':') { format!("[{zoneless}]") } else { host.clone() };
        let host = if host.contains(':') { host.replacen("%25", "%", 1) } else { host };
        let authority = if port == usual { bracketed } else { format!("{bracketed}:{port}") };
        let path_and_query = uri.path_and_query().map_or("/", |p| p.as_str());
        let path_and_query =
            if path_and_query.starts_with('/') { path_and_query.into() } else { format!("/{path_and_query}") };
        let path = uri.path();
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { host, port, tls, authority, path_and_query, path: path.to_owned() })
    }
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
            "ws://u:p@h",
            "ws://h h",
            "ftp://h/",
            "ws://bücher.example/",
        ];
        for url in bad {
            let error = Target::parse(url).err().expect(url);
            assert_eq!(error.option(), "url", "{url}");
        }
    }
}
