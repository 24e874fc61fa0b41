//! A fault, a wait or a hang of one endpoint concerns that endpoint: the client goes to the others.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

use crate::common::{LONG, config, eventually, ms, read_head, wait_for_state};

/// The venue, at these addresses.
fn at(addresses: Vec<SocketAddr>) -> ClientConfig {
    let config = ClientConfig::new("ws://venue.example/").unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX);
    config.resolver(move |_, _| Ok(addresses.clone()))
}

/// An outage of the resolver: the first lookup hangs, later ones answer.
#[test]
fn a_lookup_that_hangs_is_not_joined_by_the_next_attempt() {
    let server = Server::echo().unwrap();
    let (address, lookups) = (server.address(), AtomicUsize::new(0));
    let (hang_up, hangs) = crossbeam_channel::bounded::<()>(0);
    let config =
        ClientConfig::new("ws://venue.example/").unwrap().connect_timeout(ms(300)).backoff(ms(5), ms(20)).resolver(
            move |_, _| {
                if lookups.fetch_add(1, Ordering::SeqCst) == 0 {
                    let _ = hangs.recv_timeout(Duration::from_secs(120));
                }
                Ok(vec![address])
            },
        );
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    assert_eq!(client.stats().failed_attempts, 1);
    drop(hang_up);
}

#[test]
fn a_server_that_asks_for_an_hour_keeps_the_client_from_itself_alone() {
    let asks = |status| Server::start(Script::refuse(status).header("Retry-After", "3600")).unwrap();
    let busy = || asks(503);
    let supervisor = Supervisor::start().unwrap();
    // The second address of the same name: after a 503 in the same attempt, otherwise in the next.
    for (status, failed) in [(503, 0), (429, 1), (418, 1)] {
        let (first, second) = (asks(status), Server::echo().unwrap());
        let config = at(vec![first.address(), second.address()]).name(format!("after {status}"));
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        assert_eq!(client.handshake().unwrap().peer, second.address());
        assert_eq!((first.accepts(), client.stats().failed_attempts), (1, failed), "{status}");
        client.reconnect();
        eventually("again", || client.epoch() == 2);
        assert_eq!(client.handshake().unwrap().peer, second.address(), "the address that served is first");
    }
    // Each address asks for it: then the client waits.
    for status in [503, 429] {
        let (first, second) = (asks(status), asks(status));
        let config = at(vec![first.address(), second.address()]).name(format!("each {status}"));
        let client = supervisor.spawn_client(config).unwrap();
        let wait = || supervisor.list_clients().last().unwrap().next_attempt.map(|at| at - Instant::now());
        eventually("waits for an hour", || wait().is_some_and(|wait| wait > Duration::from_secs(3000)));
        assert_eq!((first.accepts(), second.accepts()), (1, 1), "{status}");
        supervisor.stop_client(client.id()).unwrap();
    }
    let (first, second) = (busy(), Server::echo().unwrap());
    let client = supervisor.spawn_client(config(&first).fallback_url(second.url()).unwrap()).unwrap();
    client.wait_until_open(LONG).unwrap();
    second.cut();
    eventually("again", || client.epoch() == 2 && client.ready_state() == ReadyState::Open);
    assert_eq!(first.accepts(), 1, "it asked to be left alone for an hour");
    // Each asks for it: then the client waits.
    let (first, second) = (busy(), busy());
    let client = supervisor.spawn_client(config(&first).fallback_url(second.url()).unwrap()).unwrap();
    eventually("waits", || client.ready_state() == ReadyState::Backoff && client.stats().failed_attempts == 2);
    let wait = supervisor.list_clients().last().unwrap().next_attempt.unwrap() - Instant::now();
    assert!(wait > Duration::from_secs(3000) && wait <= Duration::from_secs(3600), "{wait:?}");
}

#[test]
fn a_refusal_of_one_address_parks_nobody_and_of_all_it_does() {
    for status in [401, 403, 404] {
        let (bad, good) = (Server::start(Script::refuse(status)).unwrap(), Server::echo().unwrap());
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(at(vec![bad.address(), good.address()])).unwrap();
        client.wait_until_open(LONG).unwrap();
        assert_eq!((bad.accepts(), client.handshake().unwrap().peer), (1, good.address()));
        good.set_script(Script::refuse(status));
        good.cut();
        wait_for_state(&client, ReadyState::Parked);
        let (one, other) = (bad.accepts(), good.accepts());
        assert_eq!((one, other), (2, 2), "each was asked once more");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = supervisor.spawn_client(at(vec![bad.address(), gone]).name(format!("{status}"))).unwrap();
        eventually(&format!("goes on: {:?}", supervisor.list_clients().last()), || client.stats().failed_attempts > 3);
        assert_ne!(client.ready_state(), ReadyState::Parked, "the other may come back");
    }
}

#[test]
fn a_certificate_that_is_not_accepted_is_tried_again_on_request() {
    let server = Server::start_tls(Script::echo()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = || ClientConfig::new(server.url()).unwrap().backoff(ms(5), ms(20)).tls(crate::common::tls());
    let parked = supervisor.spawn_client(config().name("parks")).unwrap();
    wait_for_state(&parked, ReadyState::Parked);
    let client = supervisor.spawn_client(config().name("tries").certificate_retry(ms(50))).unwrap();
    eventually("it tries on", || client.stats().failed_attempts > 3);
    assert_ne!(client.ready_state(), ReadyState::Parked);
}

/// They lose their connections at the same moment.
#[test]
fn clients_of_a_server_that_restarts_come_back_one_by_one() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let clients: Vec<_> = (0..20)
        .map(|n| {
            let config = config(&server).name(n.to_string()).backoff(Duration::from_secs(2), Duration::from_secs(2));
            supervisor.spawn_client(config).unwrap()
        })
        .collect();
    clients.iter().for_each(|client| client.wait_until_open(LONG).unwrap());
    for code in [1012, 1013] {
        let epoch = clients[0].epoch();
        server.close_all(code, "restart");
        let mut waits = BTreeMap::new();
        eventually("each has waited", || {
            let listed = supervisor.list_clients();
            waits.extend(listed.into_iter().filter_map(|client| Some((client.name, client.next_attempt?))));
            clients.iter().all(|client| client.epoch() > epoch || waits.contains_key(client.name()))
        });
        let spread = *waits.values().max().unwrap() - *waits.values().min().unwrap();
        assert!(spread > ms(300), "{code}: all within {spread:?}");
        eventually("all are back", || clients.iter().all(|client| client.epoch() > epoch));
        clients.iter().for_each(|client| client.wait_until_open(LONG).unwrap());
    }
}

/// One server of several may have an old certificate: the others serve.
#[test]
fn a_certificate_that_is_not_accepted_at_one_address_parks_nobody() {
    for backend in [TlsBackend::NativeTls, TlsBackend::Rustls] {
        let (bad, good) = (Server::start_tls(Script::echo()).unwrap(), Server::start_tls(Script::echo()).unwrap());
        let all = vec![bad.address(), good.address()];
        let config = ClientConfig::new("wss://localhost/").unwrap().resolver(move |_, _| Ok(all.clone()));
        let config = config.tls(Tls::new().backend(backend)).root_certificate(good.ca_pem());
        let client = Client::connect(config).unwrap();
        assert_eq!(client.handshake().unwrap().peer, good.address(), "{backend:?}");
    }
}

/// Their heads say that no body follows, so the connection's end is not waited for. Six waits would take twelve seconds.
#[test]
fn a_refusal_without_a_body_is_reported_at_once() {
    let began = Instant::now();
    for head in [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
        "HTTP/1.1 500 x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nno",
    ] {
        for _ in 0..2 {
            let Err(StartError::Connect(error)) = Client::connect(crate::common::to(answers(head).0)) else {
                panic!("{head}")
            };
            assert!(matches!(&error, ConnectError::Refused(refusal) if head.contains(&refusal.status.to_string())));
        }
    }
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

/// Some proxies answer the password with the version of SOCKS in place of its own (RFC 1929 section 2); curl takes both.
#[test]
fn a_socks_proxy_may_answer_the_password_with_either_version() {
    for version in [1, 5] {
        let server = Server::echo().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, goal) = (listener.local_addr().unwrap(), server.address());
        std::thread::spawn(move || {
            let mut near = listener.accept().unwrap().0;
            let mut bytes = [0; 262];
            let _ = near.read(&mut bytes);
            near.write_all(&[5, 2]).unwrap();
            let _ = near.read(&mut bytes);
            near.write_all(&[version, 0]).unwrap();
            let _ = near.read(&mut bytes);
            near.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            let mut far = TcpStream::connect(goal).unwrap();
            let (mut back, mut forth) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back, &mut forth));
            let _ = std::io::copy(&mut near, &mut far);
        });
        let proxy = Proxy::new(format!("socks5://desk:secret@{address}")).unwrap();
        let client = Client::connect(config(&server).proxy(proxy)).unwrap();
        client.send("through").unwrap();
        assert_eq!(crate::common::next_text(&client), "through", "version {version}");
    }
}

#[test]
fn a_proxy_that_does_not_speak_socks_is_said_not_to() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[4, 0], &[5, 0, 5, 0, 9, 9, 9, 9, 9, 9, 9, 9]] {
        let address = greets(answer);
        let proxy = Proxy::new(format!("socks5://{address}")).unwrap();
        let Err(StartError::Connect(error)) =
            Client::connect(ClientConfig::new("ws://localhost/").unwrap().proxy(proxy))
        else {
            panic!("it was let in")
        };
        assert!(error.to_string().contains("it does not speak SOCKS5"), "{error}");
    }
}

#[test]
fn a_proxy_of_endless_interim_answers_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            while near.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_ok() {}
        }
    });
    let proxy = Proxy::new(format!("http://{address}")).unwrap();
    let Err(StartError::Connect(error)) = Client::connect(ClientConfig::new("ws://localhost/").unwrap().proxy(proxy))
    else {
        panic!("it was let in")
    };
    assert!(error.to_string().contains("more than 1000 interim answers"), "{error}");
}

#[test]
fn of_addresses_that_all_ask_to_be_left_alone_the_one_that_is_free_first_is_waited_for() {
    let [long, short] = [
        "HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n",
    ];
    for order in [[long, short], [short, long]] {
        let addresses = order.map(|head| answers(head).0);
        let config = ClientConfig::new("ws://venue.example/").unwrap().resolver(move |_, _| Ok(addresses.to_vec()));
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config).unwrap();
        let wait = |client: &Client| {
            crate::common::next(client, |event| match event {
                Event::ConnectFailed { retry_in, .. } => retry_in,
                _ => None,
            })
        };
        // An attempt is one address; when both have asked, the shorter wait counts.
        let waits = [wait(&client), wait(&client)];
        assert!(waits.iter().all(|wait| *wait < Duration::from_secs(60)), "{order:?}: {waits:?}");
    }
}

#[test]
fn a_socks_proxy_that_wants_a_password_says_so_to_a_client_that_has_none() {
    let address = greets(&[5, 0xff]);
    for (url, expected) in [
        (format!("socks5://{address}"), "it wants a user and password: `socks5://user:password@host:port`"),
        (format!("socks5://desk:secret@{address}"), "it does not accept this user and password"),
    ] {
        let config = ClientConfig::new("ws://localhost/").unwrap().proxy(Proxy::new(url).unwrap());
        let Err(StartError::Connect(error)) = Client::connect(config) else { panic!("it was let in") };
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.to_string().contains("secret") && !error.is_retryable(), "{error}");
    }
}

/// A proxy that answers each SOCKS greeting by these bytes and ends the connection.
fn greets(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            let _ = near.read(&mut [0; 262]);
            let _ = near.write_all(answer);
        }
    });
    address
}

/// A server, or a proxy, that answers each request by this head and then waits.
fn answers(head: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut tcp in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            read_head(&mut tcp);
            let _ = tcp.write_all(head.as_bytes());
            let _ = tcp.read(&mut [0]);
        }
    });
    (address, asked)
}

#[test]
fn a_proxys_answer_is_parsed_as_a_servers_and_its_wait_is_honoured() {
    let through = |address: SocketAddr| {
        let config = ClientConfig::new("ws://venue.example/").unwrap().backoff(ms(5), ms(20)).connect_timeout(LONG);
        config.proxy(Proxy::new(format!("http://{address}")).unwrap())
    };
    let text = |head| match Client::connect(through(answers(head).0)) {
        Err(StartError::Connect(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let digest = "HTTP/1.1 407 x\r\nProxy-Authenticate: Digest realm=\"a, basic b\",\r\n nonce=\"1\"\r\n\r\n";
    assert!(text(digest).contains("Digest"), "{}", text(digest));
    let both = "HTTP/1.1 407 x\r\nX-Odd : y\r\nProxy-Authenticate: Digest realm=\"a\", Basic realm=\"b\"\r\n\r\n";
    assert!(text(both).contains("user and password"), "{}", text(both));
    let (address, asked) = answers("HTTP/1.1 503 busy\r\nX-Folded: a\r\n b\r\nRetry-After: 600\r\n\r\n");
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(through(address)).unwrap();
    eventually("waits", || client.ready_state() == ReadyState::Backoff);
    let wait = supervisor.list_clients()[0].next_attempt.unwrap() - Instant::now();
    assert!(wait > Duration::from_secs(500) && asked.load(Ordering::SeqCst) == 1, "{wait:?}");
}

/// Where our clock is wrong, the server's is right.
#[test]
fn a_date_to_retry_after_is_compared_with_the_servers_own_clock() {
    let script = Script::refuse(503)
        .header("Date", "Sun, 06 Nov 1994 08:49:37 GMT")
        .header("Retry-After", "Sun, 06 Nov 1994 08:59:37 GMT");
    let server = Server::start(script).unwrap();
    let Err(StartError::Connect(error)) = Client::connect(config(&server)) else { panic!() };
    assert_eq!(error.retry_after(), Some(Duration::from_secs(600)));
}

#[test]
fn a_subprotocol_which_may_be_a_token_does_not_go_along_to_another_host() {
    let goal = Server::echo().unwrap();
    let elsewhere = goal.url().replace("127.0.0.1", "localhost").replace("ws:", "http:");
    let start = Server::start(Script::refuse(307).header("Location", &elsewhere)).unwrap();
    let address = goal.address();
    let config = config(&start)
        .subprotocol("token-secret")
        .subprotocol_choice(SubprotocolChoice::Optional)
        .redirects(1)
        .resolver(move |host, port| {
            Ok(vec![if host == "localhost" { address } else { ([127, 0, 0, 1], port).into() }])
        });
    Client::connect(config).unwrap();
    let offered = |server: &Server| {
        let records = server.records();
        records[0].headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-protocol"))
    };
    assert_eq!((offered(&start), offered(&goal)), (true, false));
}
