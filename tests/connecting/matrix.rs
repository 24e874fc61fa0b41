//! Plain and encrypted, direct and through every kind of proxy, over both TLS libraries.

use std::io;
use std::net::SocketAddr;

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

use crate::common::{self, next_text};
use crate::daemon::{Daemon, Folder, start};

const PASSWORD: &str = "p@ss:word";

pub fn tinyproxy(extra: &str) -> Option<Daemon> {
    start("tinyproxy", |folder, port| {
        let text = format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 100\nLogLevel Critical\n{extra}\n");
        vec!["-d".into(), "-c".into(), folder.put("tinyproxy.conf", text).display().to_string()]
    })
}

fn squid() -> Option<Daemon> {
    start("squid", |folder, port| {
        let path = folder.path().display();
        let text = format!(
            "http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\npid_filename {path}/squid.pid\n\
             access_log none\ncache_log {path}/cache.log\ncoredump_dir {path}\nshutdown_lifetime 0 seconds\n"
        );
        // It gives up root for a user of its own, who must be let in.
        use std::os::unix::fs::PermissionsExt;
        let _ = std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777));
        vec!["-N".into(), "-f".into(), folder.put("squid.conf", text).display().to_string()]
    })
}

fn dante() -> Option<Daemon> {
    start("danted", |folder, port| {
        let text = format!(
            "logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\nclientmethod: none\nsocksmethod: none\n\
             client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\nsocks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n"
        );
        vec!["-f".into(), folder.put("danted.conf", text).display().to_string()]
    })
}

fn microsocks(password: Option<&str>) -> Option<Daemon> {
    start("microsocks", |_, port| {
        let mut all: Vec<String> = vec!["-i".into(), "127.0.0.1".into(), "-p".into(), port.to_string()];
        if let Some(password) = password {
            all.extend(["-u".into(), "desk".into(), "-P".into(), password.into()]);
        }
        all
    })
}

/// haproxy ends TLS in front of another.
pub fn with_tls(behind: u16) -> Option<(Daemon, String)> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.key_pair.serialize_pem());
    let daemon = start("haproxy", |folder: &Folder, port| {
        let pem = folder.put("proxy.pem", format!("{certificate}{key}"));
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
             listen all\n  bind 127.0.0.1:{port} ssl crt {}\n  server one 127.0.0.1:{behind}\n",
            pem.display()
        );
        vec!["-db".into(), "-f".into(), folder.put("haproxy.cfg", text).display().to_string()]
    });
    daemon.map(|daemon| (daemon, certificate))
}

/// The name is resolved where the connection leaves for it: ours knows only the proxy.
fn only_numbers(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match host.parse() {
        Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
        Err(_) => Err(io::Error::other("this resolver must not be asked")),
    }
}

/// Says something and hears it again, over each library, plain and encrypted; `route` says what goes in between.
fn works(what: &str, route: impl Fn(ClientConfig) -> ClientConfig, through: Option<&str>) {
    let (plain, encrypted) = (Server::echo().unwrap(), Server::start_tls(Script::echo()).unwrap());
    for server in [&plain, &encrypted] {
        for backend in [TlsBackend::NativeTls, TlsBackend::Rustls] {
            let address = server.address();
            let host = if through.is_some() { "localhost" } else { "127.0.0.1" };
            let scheme = if server.ca_pem().is_empty() { "ws" } else { "wss" };
            let url = format!("{scheme}://{host}:{}/", address.port());
            let mut config = ClientConfig::new(url).unwrap().tls(Tls::new().backend(backend)).resolver(only_numbers);
            if scheme == "wss" {
                config = config.root_certificate(server.ca_pem());
            }
            let client =
                Client::connect(route(config)).unwrap_or_else(|error| panic!("{what}, {scheme}, {backend:?}: {error}"));
            // More than a record and a proxy's buffer hold, both ways.
            for text in ["hello".to_owned(), "x".repeat(300_000)] {
                client.send(text.as_str()).unwrap();
                assert!(next_text(&client) == text, "{what}, {scheme}, {backend:?}: {} bytes", text.len());
            }
            let handshake = client.handshake().unwrap();
            assert_eq!(handshake.proxy.as_deref().map(|proxy| proxy.split(':').next().unwrap()), through, "{what}");
            assert_eq!(handshake.tls.is_some(), scheme == "wss");
            client.close().unwrap();
        }
    }
}

fn through(url: String) -> impl Fn(ClientConfig) -> ClientConfig {
    move |config| config.proxy(Proxy::new(&url).unwrap())
}

#[test]
fn direct() {
    works("direct", |config| config, None);
}

#[test]
fn through_tinyproxy_with_and_without_a_password() {
    if let Some(proxy) = tinyproxy("") {
        works("tinyproxy", through(format!("http://127.0.0.1:{}", proxy.port)), Some("http"));
    }
    let Some(proxy) = tinyproxy("BasicAuth desk secret") else { return };
    works("tinyproxy, Basic", through(format!("http://desk:secret@127.0.0.1:{}", proxy.port)), Some("http"));
    for wrong in ["desk:wrong@", ""] {
        let config = ClientConfig::new("ws://127.0.0.1:9/").unwrap();
        let proxy = Proxy::new(format!("http://{wrong}127.0.0.1:{}", proxy.port)).unwrap();
        let Err(StartError::Connect(error)) = Client::connect(config.proxy(proxy)) else { panic!("{wrong}") };
        // tinyproxy says 401 to a wrong password.
        let ConnectError::Proxy { status: Some(401 | 407), .. } = error else { panic!("{wrong}: {error}") };
        assert!(!error.to_string().contains("wrong@") && !error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn through_squid() {
    let Some(proxy) = squid() else { return };
    works("squid", through(format!("http://127.0.0.1:{}", proxy.port)), Some("http"));
}

#[test]
fn through_a_proxy_that_is_reached_over_tls() {
    let Some(inner) = tinyproxy("") else { return };
    let Some((outer, certificate)) = with_tls(inner.port) else { return };
    for backend in [TlsBackend::NativeTls, TlsBackend::Rustls] {
        let url = format!("https://127.0.0.1:{}", outer.port);
        let certificate = certificate.clone();
        let route = move |config: ClientConfig| {
            let tls = Tls::new().backend(backend).root_certificate(certificate.as_bytes());
            config.proxy(Proxy::new(&url).unwrap().tls(tls))
        };
        works("TLS to the proxy", route, Some("https"));
    }
    // The proxy's certificate is looked at too, and no retry mends it.
    let config = ClientConfig::new("ws://127.0.0.1:9/").unwrap();
    let proxy = Proxy::new(format!("https://127.0.0.1:{}", outer.port)).unwrap();
    let Err(StartError::Connect(error)) = Client::connect(config.proxy(proxy)) else { panic!() };
    let ConnectError::Proxy { fault: Some(fault), .. } = &error else { panic!("{error}") };
    assert!(fault.is_certificate() && !error.is_retryable() && error.to_string().contains("Proxy::tls"), "{error}");
}

#[test]
fn through_socks_with_and_without_a_password() {
    if let Some(proxy) = microsocks(None) {
        works("microsocks", through(format!("socks5://127.0.0.1:{}", proxy.port)), Some("socks5"));
    }
    if let Some(proxy) = dante() {
        works("dante", through(format!("socks5h://127.0.0.1:{}", proxy.port)), Some("socks5"));
    }
    let Some(proxy) = microsocks(Some(PASSWORD)) else { return };
    let url = format!("socks5://desk:p%40ss%3Aword@127.0.0.1:{}", proxy.port);
    works("microsocks, a password", through(url), Some("socks5"));
    for wrong in ["desk:wrong@", ""] {
        let config = ClientConfig::new("ws://127.0.0.1:9/").unwrap();
        let proxy = Proxy::new(format!("socks5://{wrong}127.0.0.1:{}", proxy.port)).unwrap();
        let Err(StartError::Connect(error)) = Client::connect(config.proxy(proxy)) else { panic!("{wrong}") };
        assert!(matches!(error, ConnectError::Proxy { status: Some(407), .. }), "{wrong}: {error}");
        assert!(!error.is_retryable());
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_an_error_and_never_a_direct_connection() {
    let server = Server::echo().unwrap();
    let config = || ClientConfig::new(server.url()).unwrap();
    let nobody = crate::daemon::free_port();
    let mut unusable = vec![format!("http://127.0.0.1:{nobody}")];
    for answer in
        ["HTTP/1.1 503 Busy\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\n\r\nGIF89a", "\x05\x01\x00\x01"]
    {
        let address = common::raw(move |mut stream, _, _| {
            let _ = io::Write::write_all(&mut stream, answer.as_bytes());
        });
        unusable.push(format!("http://{address}"));
        unusable.push(format!("socks5://{address}"));
    }
    for url in unusable {
        let proxy = Proxy::new(&url).unwrap();
        let config = config().proxy(proxy).connect_timeout(common::ms(2_000));
        let Err(StartError::Connect(error)) = Client::connect(config) else { panic!("{url}") };
        let tells = match &error {
            ConnectError::Proxy { .. } => true,
            ConnectError::Lost { phase, .. } | ConnectError::Timeout { phase, .. } => *phase == Phase::Proxy,
            _ => false,
        };
        assert!(tells, "{url}: {error}");
    }
    assert_eq!(server.accepts(), 0);
    let direct = Proxy::new(format!("http://127.0.0.1:{nobody}")).unwrap().bypass("127.0.0.0/8");
    Client::connect(config().proxy(direct)).unwrap();
}
