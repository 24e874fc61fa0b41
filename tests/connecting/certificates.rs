//! Certificates as they must not be, each refused by its name; and ours, shown to servers that want one.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

use crate::common::next_text;
use crate::daemon::{Daemon, Folder, start};

const BACKENDS: [TlsBackend; 2] = [TlsBackend::NativeTls, TlsBackend::Rustls];

struct Authority {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), key }
    }

    /// A certificate and its key, in PEM.
    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.into()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.certificate, &self.key).unwrap().pem(), key.serialize_pem())
    }
}

/// Speaks TLS of one version with this certificate, and goes no further.
fn presenting((certificate, key): &(String, String), version: &'static SupportedProtocolVersion) -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(ring).with_protocol_versions(&[version]).unwrap();
    let config = Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut connection = rustls::ServerConnection::new(config.clone()).unwrap();
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
                // What the client says next is read, so that the end is no reset.
                connection.send_close_notify();
                let _ = connection.complete_io(&mut stream);
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    address
}

fn refused(address: SocketAddr, tls: Tls) -> ConnectError {
    let config = ClientConfig::new(format!("wss://127.0.0.1:{}/", address.port())).unwrap().tls(tls);
    match Client::connect(config) {
        Err(StartError::Connect(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_way_in_which_a_certificate_can_be_wrong_has_its_name() {
    let authority = Authority::new("the desk's CA");
    let stranger = Authority::new("nobody's CA");
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let by_itself = (made.cert.pem(), made.key_pair.serialize_pem());
    let expired = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    };
    let to_come = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2099, 1, 1));
    };
    let cases = [
        (TlsFault::Expired, authority.issue("127.0.0.1", expired)),
        (TlsFault::NotYetValid, authority.issue("127.0.0.1", to_come)),
        (TlsFault::WrongHost, authority.issue("elsewhere.example", |_| {})),
        (TlsFault::UnknownIssuer, stranger.issue("127.0.0.1", |_| {})),
        (TlsFault::SelfSigned, by_itself),
    ];
    let trusted = authority.certificate.pem();
    for (expected, identity) in &cases {
        for version in [&TLS12, &TLS13] {
            let address = presenting(identity, version);
            for backend in BACKENDS {
                let error = refused(address, Tls::new().backend(backend).root_certificate(trusted.as_bytes()));
                let ConnectError::Tls { fault, presented, .. } = &error else { panic!("{error}") };
                assert_eq!(fault, expected, "{version:?}, {backend:?}: {error}");
                assert!(!error.is_retryable(), "{error}");
                // native-tls does not tell what it refused.
                assert_eq!(presented.is_some(), backend == TlsBackend::Rustls, "{error}");
            }
        }
    }
}

/// OpenSSL's own server, of one version.
fn s_server(version: &str, more: &[&str]) -> Option<Daemon> {
    start("openssl", |_, port| {
        let port = port.to_string();
        let first = ["s_server", version, "-www", "-accept", &port];
        first.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    })
}

#[test]
fn a_key_that_is_too_weak_is_refused_as_such() {
    let folder = Folder::new();
    let (certificate, key) = (folder.path().join("weak.pem"), folder.path().join("weak.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "30", "-subj", "/CN=weak"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-out"])
        .args([certificate.as_os_str(), "-keyout".as_ref(), key.as_os_str()])
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        return println!("not here, so passed over: openssl");
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let files = [certificate.display().to_string(), key.display().to_string()];
        let more = ["-cipher", "DEFAULT:@SECLEVEL=0", "-cert", &files[0], "-key", &files[1]];
        let daemon = s_server(version, &more);
        let address = SocketAddr::from(([127, 0, 0, 1], daemon.as_ref().unwrap().port));
        for backend in BACKENDS {
            let root = std::fs::read(&certificate).unwrap();
            let error = refused(address, Tls::new().backend(backend).root_certificate(root));
            assert!(
                matches!(error, ConnectError::Tls { fault: TlsFault::Weak, .. }),
                "{version}, {backend:?}: {error}"
            );
        }
    }
}

#[test]
fn no_version_in_common_is_no_fault_of_a_certificate() {
    let authority = Authority::new("the desk's CA");
    let identity = authority.issue("127.0.0.1", |_| {});
    let cases =
        [(&TLS12, Tls::new().min_version(TlsVersion::Tls13)), (&TLS13, Tls::new().max_version(TlsVersion::Tls12))];
    for (version, tls) in cases {
        let address = presenting(&identity, version);
        for backend in BACKENDS {
            let tls = tls.clone().backend(backend).root_certificate(authority.certificate.pem());
            let error = refused(address, tls);
            assert!(matches!(error, ConnectError::Tls { fault: TlsFault::Version, .. }), "{backend:?}: {error}");
            assert!(error.is_retryable());
        }
    }
}

/// Speaks to a server of ours with these settings, or says why not.
fn speaks(server: &Server, tls: Tls) -> Result<Option<TlsSession>, ConnectError> {
    let config = ClientConfig::new(server.url()).unwrap().tls(tls);
    match Client::connect(config) {
        Ok(client) => {
            client.send("hello").unwrap();
            assert_eq!(next_text(&client), "hello");
            Ok(client.handshake().unwrap().tls.clone())
        }
        Err(StartError::Connect(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn roots_may_be_ones_own_alone_in_files_and_in_der() {
    let server = Server::start_tls(Script::echo()).unwrap();
    let pem = server.ca_pem();
    let der = native_tls::Certificate::from_pem(pem.as_bytes()).unwrap().to_der().unwrap();
    let folder = Folder::new();
    let file = folder.put("bundle.pem", "");
    for backend in BACKENDS {
        let tls = || Tls::new().backend(backend);
        speaks(&server, tls().root_certificate(pem.as_bytes()).without_system_roots()).unwrap();
        speaks(&server, tls().root_certificate(der.clone())).unwrap();
        // Read anew at every attempt.
        let from_file = tls().root_file(&file).without_system_roots();
        for (text, expected) in [("", Some(TlsFault::Configuration)), (pem.as_str(), None)] {
            std::fs::write(&file, text).unwrap();
            let result = speaks(&server, from_file.clone());
            match (expected, result) {
                (None, Ok(_)) => {}
                (Some(expected), Err(error @ ConnectError::Tls { fault, .. })) => {
                    assert!(
                        fault == expected && error.is_retryable() && error.to_string().contains("bundle.pem"),
                        "{error}"
                    );
                }
                (_, other) => panic!("{other:?}"),
            }
        }
        std::fs::write(&file, "").unwrap();
    }
}

#[test]
fn pins_names_and_the_dangerous_switches() {
    use sha2::{Digest, Sha256};
    let made = rcgen::generate_simple_self_signed(vec!["elsewhere.example".into()]).unwrap();
    let (pem, der) = (made.cert.pem(), made.cert.der().to_vec());
    let identity = (pem.clone(), made.key_pair.serialize_pem());
    let address = presenting(&identity, &TLS13);
    let certificate = Pin::certificate(Sha256::digest(&der).into());
    let key = Pin::public_key(Sha256::digest(made.key_pair.public_key_der()).into());
    let wrong = Pin::public_key([7; 32]);
    for backend in BACKENDS {
        let tls = || Tls::new().backend(backend);
        let trusting = || tls().root_certificate(pem.as_bytes());
        // The server says nothing after its handshake: a client that got so far is in the upgrade.
        let gets_through = |tls| matches!(refused(address, tls), ConnectError::Lost { phase: Phase::Handshake, .. });
        let fault = |tls| match refused(address, tls) {
            ConnectError::Tls { fault, .. } => fault,
            error => panic!("{error}"),
        };
        assert_eq!(fault(trusting()), TlsFault::WrongHost);
        assert!(gets_through(trusting().server_name("elsewhere.example")));
        assert!(gets_through(trusting().server_name("elsewhere.example").without_sni()));
        assert!(gets_through(trusting().danger_accept_invalid_hostnames()));
        assert!(fault(tls().danger_accept_invalid_hostnames()).is_certificate());
        assert!(gets_through(tls().danger_accept_invalid_certificates()));
        for pin in [certificate, key] {
            assert!(gets_through(trusting().server_name("elsewhere.example").pin(wrong).pin(pin)));
            assert!(gets_through(tls().danger_accept_invalid_certificates().pin(pin)));
            assert_eq!(fault(trusting().pin(pin)), TlsFault::WrongHost, "a pin comes on top");
        }
        let error = refused(address, trusting().server_name("elsewhere.example").pin(wrong));
        let ConnectError::Tls { fault: TlsFault::Pin, presented: Some(presented), .. } = &error else {
            panic!("{error}")
        };
        assert!(presented.contains("rcgen"), "{presented}");
    }
}

#[test]
fn what_was_agreed_on_is_told() {
    let server = Server::start_tls(Script::echo()).unwrap();
    let tls = |backend| Tls::new().backend(backend).root_certificate(server.ca_pem()).alpn(["http/1.1"]);
    assert!(speaks(&server, tls(TlsBackend::NativeTls)).unwrap().is_some());
    let session = speaks(&server, tls(TlsBackend::Rustls).max_version(TlsVersion::Tls12)).unwrap().unwrap();
    assert_eq!(session.version, Some(TlsVersion::Tls12));
    assert!(session.cipher.unwrap().starts_with("TLS_ECDHE"));
}

/// nginx in front of a server of ours, in front of which it wants a certificate of our CA's.
#[test]
fn a_client_certificate_is_shown_to_a_server_that_wants_one() {
    let authority = Authority::new("the desk's CA");
    let (server_pem, server_key) = authority.issue("127.0.0.1", |_| {});
    let (client_pem, client_key) = authority.issue("desk", |_| {});
    let (other_pem, other_key) = Authority::new("nobody's CA").issue("desk", |_| {});
    let behind = Server::echo().unwrap();
    let nginx = start("nginx", |folder, port| {
        let path = folder.path().display();
        folder.put("server.pem", &server_pem);
        folder.put("server.key", &server_key);
        folder.put("ca.pem", authority.certificate.pem());
        let text = format!(
            "daemon off;\nmaster_process off;\npid {path}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
             access_log off;\nclient_body_temp_path {path}/a;\nproxy_temp_path {path}/b;\nfastcgi_temp_path {path}/c;\n\
             uwsgi_temp_path {path}/d;\nscgi_temp_path {path}/e;\nserver {{\nlisten 127.0.0.1:{port} ssl;\n\
             ssl_protocols TLSv1.2 TLSv1.3;\nssl_certificate {path}/server.pem;\nssl_certificate_key {path}/server.key;\n\
             ssl_client_certificate {path}/ca.pem;\nssl_verify_client on;\nlocation / {{\nproxy_pass http://{};\n\
             proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\nproxy_set_header Connection upgrade;\n}}\n}}\n}}\n",
            behind.address()
        );
        vec!["-c".into(), folder.put("nginx.conf", text).display().to_string(), "-p".into(), path.to_string()]
    });
    let Some(nginx) = nginx else { return };
    let folder = Folder::new();
    let (chain_file, key_file) = (folder.put("client.pem", &client_pem), folder.put("client.key", &client_key));
    let archive = folder.path().join("client.p12");
    let packed = Command::new("openssl")
        .args(["pkcs12", "-export", "-passout", "pass:secret", "-in"])
        .args([chain_file.as_os_str(), "-inkey".as_ref(), key_file.as_os_str(), "-out".as_ref(), archive.as_os_str()])
        .status();
    for backend in BACKENDS {
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            let tls = || {
                let tls = Tls::new().backend(backend).root_certificate(authority.certificate.pem());
                tls.min_version(version).max_version(version)
            };
            let mut right = vec![
                tls().identity_pem(client_pem.as_bytes(), client_key.as_bytes()),
                tls().identity_files(&chain_file, &key_file),
            ];
            if backend == TlsBackend::NativeTls && packed.as_ref().is_ok_and(|status| status.success()) {
                right.push(tls().identity_pkcs12(std::fs::read(&archive).unwrap(), "secret"));
            }
            for tls in right {
                let config = ClientConfig::new(format!("wss://127.0.0.1:{}/", nginx.port)).unwrap().tls(tls);
                let client =
                    Client::connect(config).unwrap_or_else(|error| panic!("{backend:?}, {version:?}: {error}"));
                client.send("hello").unwrap();
                assert_eq!(next_text(&client), "hello");
            }
            // nginx refuses in HTTP, after the handshake.
            for tls in [tls(), tls().identity_pem(other_pem.as_bytes(), other_key.as_bytes())] {
                let error = refused(SocketAddr::from(([127, 0, 0, 1], nginx.port)), tls);
                assert!(matches!(&error, ConnectError::Refused(refusal) if refusal.status == 400), "{error}");
            }
        }
    }
}

/// Venues' own CAs still issue them. The error must not blame the server.
#[test]
fn a_client_certificate_of_x509_version_1_is_refused_by_rustls_in_words_about_it() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, request, certificate) = (path("v1.key"), path("v1.csr"), path("v1.pem"));
    let openssl =
        |line: &str| Command::new("openssl").args(line.split(' ')).output().is_ok_and(|out| out.status.success());
    let is_made = openssl(&format!(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=desk -keyout {key} -out {request}"
    )) && openssl(&format!("x509 -req -in {request} -signkey {key} -out {certificate}"));
    let text = Command::new("openssl").args(["x509", "-noout", "-text", "-in", &certificate]).output();
    if !is_made || !String::from_utf8_lossy(&text.unwrap().stdout).contains("Version: 1 ") {
        eprintln!("no openssl, or one that makes no certificates of version 1");
        return;
    }
    let server = Server::start_tls(Script::echo()).unwrap();
    let tls = |backend| {
        let tls = Tls::new().backend(backend).root_certificate(server.ca_pem());
        tls.identity_pem(std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap())
    };
    let error = speaks(&server, tls(TlsBackend::Rustls)).unwrap_err();
    let ConnectError::Tls { fault: TlsFault::Configuration, .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains("X.509 version 1"), "{error}");
    speaks(&server, tls(TlsBackend::NativeTls)).unwrap();
}

/// Two files are never renewed at one instant.
#[test]
fn a_certificate_that_is_half_renewed_is_ours_to_wait_for_and_no_fault_of_the_server() {
    let server = Server::start_tls(Script::echo()).unwrap();
    let authority = Authority::new("the desk's CA");
    let ((old, old_key), (new, new_key)) = (authority.issue("desk", |_| {}), authority.issue("desk", |_| {}));
    let folder = Folder::new();
    let (chain, key) = (folder.put("client.pem", &old), folder.put("client.key", &old_key));
    for backend in BACKENDS {
        let tls = Tls::new().backend(backend).root_certificate(server.ca_pem()).identity_files(&chain, &key);
        speaks(&server, tls.clone()).unwrap();
        std::fs::write(&chain, &new).unwrap();
        let error = speaks(&server, tls.clone()).unwrap_err();
        let ConnectError::Tls { fault: TlsFault::Configuration, .. } = error else { panic!("{backend:?}: {error}") };
        assert!(error.is_retryable());
        std::fs::write(&key, &new_key).unwrap();
        speaks(&server, tls).unwrap();
        std::fs::write(&chain, &old).unwrap();
        std::fs::write(&key, &old_key).unwrap();
    }
}

/// OpenSSL's own server ends the handshake by an alert.
#[test]
fn a_server_that_ends_the_handshake_for_want_of_a_certificate_says_so() {
    let authority = Authority::new("the desk's CA");
    let (pem, key) = authority.issue("127.0.0.1", |_| {});
    for version in ["-tls1_2", "-tls1_3"] {
        let folder = Folder::new();
        let files = [("a.pem", &pem), ("a.key", &key), ("ca.pem", &authority.certificate.pem())];
        let files = files.map(|(name, text)| folder.put(name, text).display().to_string());
        let more =
            ["-cert", &files[0], "-key", &files[1], "-CAfile", &files[2], "-Verify", "1", "-verify_return_error"];
        let daemon = s_server(version, &more);
        let Some(daemon) = daemon else { return };
        let address = SocketAddr::from(([127, 0, 0, 1], daemon.port));
        for backend in BACKENDS {
            let error = refused(address, Tls::new().backend(backend).root_certificate(authority.certificate.pem()));
            let ConnectError::Tls { fault, .. } = &error else { panic!("{version}, {backend:?}: {error}") };
            assert!(fault.is_by_server(), "{version}, {backend:?}: {error}");
            let (mine, my_key) = authority.issue("desk", |_| {});
            let tls = Tls::new().backend(backend).root_certificate(authority.certificate.pem());
            let error = refused(address, tls.identity_pem(mine, my_key));
            assert!(matches!(&error, ConnectError::Refused(refusal) if refusal.status == 200), "{error}");
        }
    }
}
