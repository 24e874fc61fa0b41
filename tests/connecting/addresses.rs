//! A host with several addresses, URLs with fallbacks, a limit on dialling that clients share, and the socket's options.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

use crate::common::{LONG, eventually, ms, never_answers, next_open};

/// The venue, at these addresses.
fn at(addresses: Vec<SocketAddr>) -> ClientConfig {
    let config = ClientConfig::new("ws://venue.example/").unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX);
    config.resolver(move |_, _| Ok(addresses.clone()))
}

#[test]
fn an_address_that_never_answers_does_not_hold_up_the_next_and_is_not_asked_again() {
    let (listener, filled, dead) = never_answers();
    let server = Server::echo().unwrap();
    let config = at(vec![dead, server.address()]).connect_timeout(10 * LONG);
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    // The attempt has minutes, and the address would use them all.
    client.wait_until_open(LONG).unwrap();
    assert_eq!(client.handshake().unwrap().peer, server.address());
    // Now it would answer, and nobody asks it.
    listener.set_nonblocking(true).unwrap();
    eventually("those that wait are taken", || {
        while listener.accept().is_ok() {}
        filled.iter().all(|one| one.peer_addr().is_ok())
    });
    for epoch in 2..5 {
        client.reconnect();
        eventually("a new connection", || client.epoch() == epoch);
    }
    assert_eq!(server.accepts(), 4);
    assert_eq!(client.stats().failed_attempts, 0);
}

#[test]
fn one_that_is_mute_after_tcp_or_has_an_error_of_its_own_leaves_time_for_the_next() {
    let quiet = TcpListener::bind("127.0.0.1:0").unwrap();
    let broken = Server::start(Script::refuse(502)).unwrap();
    let server = Server::echo().unwrap();
    let addresses = vec![quiet.local_addr().unwrap(), broken.address(), server.address()];
    let client = Client::connect(at(addresses).connect_timeout(ms(3_000))).unwrap();
    assert_eq!(client.handshake().unwrap().peer, server.address());
    assert_eq!((broken.accepts(), server.accepts(), client.stats().failed_attempts), (1, 1, 0));
}

#[test]
fn what_the_venue_says_for_all_its_addresses_is_not_asked_of_each() {
    for status in [418, 429] {
        let (one, other) = (Server::start(Script::refuse(status)).unwrap(), Server::echo().unwrap());
        let Err(StartError::Connect(error)) = Client::connect(at(vec![one.address(), other.address()])) else {
            panic!()
        };
        assert!(matches!(&error, ConnectError::Refused(refusal) if refusal.status == status), "{error}");
        assert_eq!((one.accepts(), other.accepts()), (1, 0));
    }
}

#[test]
fn a_fallback_url_is_taken_when_the_first_does_not_open_and_kept_while_it_does() {
    let (first, second) = (Server::start(Script::refuse(503)).unwrap(), Server::echo().unwrap());
    let config = crate::common::config(&first).fallback_url(second.url()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    assert_eq!(next_open(&client), 1);
    assert_eq!((first.accepts(), second.accepts()), (1, 1));
    first.set_script(Script::echo());
    second.cut();
    assert_eq!(next_open(&client), 2);
    assert_eq!((first.accepts(), second.accepts()), (1, 2), "it stays where it was");
    second.set_script(Script::refuse(503));
    second.cut();
    assert_eq!(next_open(&client), 3);
    assert_eq!((first.accepts(), second.accepts()), (2, 3), "and goes round when that ends");
}

#[test]
fn nothing_is_given_up_before_each_url_was_tried() {
    let (first, second) = (Server::start(Script::refuse(403)).unwrap(), Server::echo().unwrap());
    let config = || crate::common::config(&first).fallback_url(second.url()).unwrap();
    let client = Client::connect(config()).unwrap();
    assert_eq!(client.handshake().unwrap().peer, second.address());
    second.set_script(Script::refuse(404));
    let Err(StartError::Connect(error)) = Client::connect(config()) else { panic!() };
    assert!(error.to_string().contains("404"), "{error}");
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config()).unwrap();
    crate::common::wait_for_state(&client, ReadyState::Parked);
    assert_eq!((first.accepts(), second.accepts()), (3, 3));
}

#[test]
fn the_ninth_of_nine_addresses_is_found_though_none_before_it_answers() {
    let dead: Vec<_> = (0..8).map(|_| never_answers()).collect();
    let server = Server::echo().unwrap();
    let mut addresses: Vec<_> = dead.iter().map(|(_, _, address)| *address).collect();
    addresses.push(server.address());
    let client = Client::connect(at(addresses).connect_timeout(LONG)).unwrap();
    assert_eq!(client.handshake().unwrap().peer, server.address());
}

#[test]
fn an_address_that_served_and_goes_bad_is_left_for_another() {
    // Not every fault is one's own alone, for which an attempt goes on by itself.
    for bad in [Script::refuse(404), Script::raw_answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")] {
        let (one, other) = (Server::echo().unwrap(), Server::echo().unwrap());
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(at(vec![one.address(), other.address()]).park_on([])).unwrap();
        client.wait_until_open(LONG).unwrap();
        assert_eq!(client.handshake().unwrap().peer, one.address());
        one.set_script(bad);
        one.cut();
        eventually("the other serves", || other.accepts() == 1 && client.epoch() == 2);
    }
}

#[test]
fn an_address_and_a_url_whose_feed_falls_silent_are_left_for_others() {
    let (mute, flowing) =
        (Server::start(Script::silent()).unwrap(), Script::silent().every(ms(20), |_| vec!["tick".into()]));
    let flowing = Server::start(flowing).unwrap();
    let by_address = at(vec![mute.address(), flowing.address()]);
    let by_url = crate::common::config(&mute).fallback_url(flowing.url()).unwrap();
    for config in [by_address, by_url] {
        let before = flowing.accepts();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config.stale_after(ms(500))).unwrap();
        eventually("the other is asked", || flowing.accepts() > before);
        eventually("it delivers", || client.stats().received > 50);
        assert_eq!(client.handshake().unwrap().peer, flowing.address());
    }
}

#[test]
fn a_venue_that_is_slow_at_all_its_addresses_is_reached() {
    let slow: Vec<_> = (0..4).map(|_| Server::start(Script::echo().delay_upgrade(ms(700))).unwrap()).collect();
    let config = at(slow.iter().map(Server::address).collect()).connect_timeout(ms(4_000));
    Client::connect(config).unwrap();
    assert_eq!(slow.iter().map(Server::accepts).sum::<usize>(), 1);
}

#[test]
fn what_was_refused_is_tried_again_when_someone_resumes_the_client() {
    let (first, second) = (Server::start(Script::refuse(401)).unwrap(), Server::start(Script::refuse(401)).unwrap());
    let supervisor = Supervisor::start().unwrap();
    let config = crate::common::config(&first).fallback_url(second.url()).unwrap();
    let client = supervisor.spawn_client(config).unwrap();
    crate::common::wait_for_state(&client, ReadyState::Parked);
    second.set_script(Script::echo());
    supervisor.resume_client(client.id()).unwrap();
    client.wait_until_open(LONG).unwrap();
}

/// A venue that counts connections: at most so many in so much time.
#[test]
fn forty_clients_that_share_a_limit_on_dialling_never_exceed_it() {
    const MOST: usize = 20;
    const PERIOD: Duration = Duration::from_secs(2);
    let accepts = Arc::new(Mutex::new(Vec::new()));
    let seen = accepts.clone();
    let server = Server::scripted(move |_| {
        let mut all = seen.lock();
        let now = Instant::now();
        all.push(now);
        let lately = all.iter().filter(|at| now.duration_since(**at) < PERIOD).count();
        if lately > MOST { Script::refuse(429) } else { Script::silent() }
    })
    .unwrap();
    let limit = RateLimit::window(u32::try_from(MOST).unwrap(), PERIOD).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let open = || -> Vec<_> {
        let config = || crate::common::config(&server).dial_limit(limit.clone());
        (0..40).map(|_| supervisor.spawn_client(config()).unwrap()).collect()
    };
    let clients = open();
    clients.iter().for_each(|client| client.wait_until_open(LONG).unwrap());
    assert_eq!(accepts.lock().len(), 40);
    assert!(clients.iter().all(|client| client.stats().failed_attempts == 0), "no 429");
    drop(clients);
}

#[test]
fn the_socket_is_set_up_as_it_was_asked_for() {
    let server = Server::echo().unwrap();
    let options = SocketOptions::new()
        .local_address([127, 0, 0, 7].into())
        .keepalive(Duration::from_secs(20), Duration::from_secs(5), 3)
        .receive_buffer(64 << 10)
        .send_buffer(64 << 10)
        .dscp(46);
    let options = if cfg!(target_os = "linux") { options.user_timeout(Duration::from_secs(10)) } else { options };
    let config = crate::common::config(&server).socket(options.clone());
    let client = Client::connect(config).unwrap();
    let handshake = client.handshake().unwrap();
    assert_eq!((handshake.local.ip().to_string().as_str(), handshake.peer), ("127.0.0.7", server.address()));
    // A name with no address of that family.
    let six = at(vec!["[::1]:9".parse().unwrap()]).socket(options);
    let Err(StartError::Connect(error)) = Client::connect(six) else { panic!() };
    assert!(error.to_string().contains("local_address"), "{error}");
    if cfg!(target_os = "linux") {
        let config = crate::common::config(&server).socket(SocketOptions::new().interface("no-such-card"));
        let Err(StartError::Connect(error)) = Client::connect(config) else { panic!() };
        assert!(error.to_string().contains("option `interface`"), "{error}");
    }
}
