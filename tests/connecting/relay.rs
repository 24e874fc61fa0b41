//! A proxy that takes what it never passes on: what is lost in it is told as uncertain, not as written.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

use crate::common::{config, eventually, ms, next, read_head};

/// Passes everything on until it is told to swallow what the client says, and to die.
struct Relay {
    address: SocketAddr,
    swallows: Arc<AtomicBool>,
    dies: Arc<AtomicBool>,
}

fn relay() -> Relay {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (swallows, dies) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let flags = (swallows.clone(), dies.clone());
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (swallows, dies) = (flags.0.clone(), flags.1.clone());
            std::thread::spawn(move || pass_on(client, &swallows, &dies));
        }
    });
    Relay { address, swallows, dies }
}

fn pass_on(mut client: TcpStream, swallows: &AtomicBool, dies: &AtomicBool) {
    let head = read_head(&mut client);
    let to = head.split_whitespace().nth(1).unwrap_or_default();
    let Ok(mut server) = TcpStream::connect(to) else { return };
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (mut from_server, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let down = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    client.set_read_timeout(Some(ms(5))).unwrap();
    let mut chunk = [0; 4096];
    while !dies.load(Ordering::Relaxed) {
        match client.read(&mut chunk) {
            Ok(0) => break,
            Ok(_) if swallows.load(Ordering::Relaxed) => {}
            Ok(read) if server.write_all(&chunk[..read]).is_ok() => {}
            Ok(_) => break,
            Err(_) => {}
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    down.join().unwrap();
}

fn through(relay: &Relay, server: &Server, interval: u64) -> Client {
    let proxy = Proxy::new(format!("http://{}", relay.address)).unwrap();
    let config = config(server).heartbeat(Heartbeat::ping_pong(ms(interval))).proxy(proxy);
    Client::connect(config).unwrap()
}

#[test]
fn what_a_proxy_took_and_never_passed_on_is_uncertain() {
    for tls in [false, true] {
        let script = Script::silent();
        let server = if tls { Server::start_tls(script) } else { Server::start(script) }.unwrap();
        let relay = relay();
        let client = through(&relay, &server, 20);
        (0..100).for_each(|n| client.send(n.to_string()).unwrap());
        eventually("all have arrived, and pongs say so", || {
            server.records()[0].received.len() == 100 && client.stats().heartbeats > 3
        });
        let proven = client.stats().heartbeats;
        eventually("a ping behind them was answered", || client.stats().heartbeats > proven + 1);
        relay.swallows.store(true, Ordering::Relaxed);
        (100..200).for_each(|n| client.send(n.to_string()).unwrap());
        eventually("all are written", || client.stats().sent - client.stats().uncertain == 200);
        relay.dies.store(true, Ordering::Relaxed);
        let (unsent, uncertain) = next(&client, |event| match event {
            Event::Disconnected { unsent, uncertain, .. } => Some((unsent, uncertain)),
            _ => None,
        });
        let has: HashSet<String> =
            server.records()[0].received.iter().map(|one| one.as_text().unwrap().to_owned()).collect();
        let told: HashSet<String> =
            unsent.iter().chain(&uncertain).map(|one| one.as_text().unwrap().to_owned()).collect();
        let lost: Vec<_> = (0..200).map(|n| n.to_string()).filter(|n| !has.contains(n) && !told.contains(n)).collect();
        assert!(lost.is_empty(), "tls {tls}: told as written, and not there: {lost:?}");
        assert!(
            told.is_disjoint(&(0..100).map(|n| n.to_string()).collect()),
            "tls {tls}: what was proven is not in doubt"
        );
        let stats = client.stats();
        assert_eq!(((stats.sent - stats.uncertain), stats.uncertain), (100, 100), "tls {tls}");
    }
}

#[test]
fn a_close_that_the_venue_answers_leaves_nothing_uncertain() {
    let server = Server::start(Script::silent()).unwrap();
    let relay = relay();
    let client = through(&relay, &server, 60_000);
    (0..100).for_each(|n| client.send(n.to_string()).unwrap());
    let events = client.events();
    client.close().unwrap();
    let last = events.iter().last().unwrap();
    let Event::Closed { unsent, uncertain, .. } = last else { panic!("{last:?}") };
    assert_eq!((unsent.len(), uncertain.len()), (0, 0));
    assert_eq!(server.records()[0].received.len(), 100);
}

#[test]
fn what_is_kept_of_a_venue_that_proves_nothing_is_bounded() {
    let server = Server::start(Script::silent()).unwrap();
    let relay = relay();
    let proxy = Proxy::new(format!("http://{}", relay.address)).unwrap();
    let config = config(&server).heartbeat(Heartbeat::disabled()).proxy(proxy).send_capacity(50);
    let client = Client::connect(config).unwrap();
    let mut sent = 0;
    eventually("a thousand are written", || {
        sent += u64::from(client.send("x").is_ok());
        sent > 1_000 && client.stats().sent - client.stats().uncertain == sent
    });
    relay.dies.store(true, Ordering::Relaxed);
    let uncertain = next(&client, |event| match event {
        Event::Disconnected { uncertain, .. } => Some(uncertain.len()),
        _ => None,
    });
    assert!((1..=150).contains(&uncertain), "{uncertain}");
}
