//! Where reading meets what stands around it: the upgrade before it, writing beside it, a dial after it.
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, eventually, frame, ms, next, raw, takes, text, to};
use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;
use ws_supervisor::*;

type Heard = Arc<Mutex<Vec<String>>>;

/// Keeps what it hears; waits at "nap" until it is let go on, asks for another connection at "again".
struct Naps {
    heard: Heard,
    go: Receiver<()>,
}

impl Handler for Naps {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        self.heard.lock().push(message.as_text().unwrap().to_owned());
        match message.as_text() {
            Some("nap") => self.go.recv().unwrap(),
            Some("again") => context.reconnect(),
            // Beyond the time that a close is given.
            Some("slow") => takes(ms(1200)),
            _ => {}
        }
    }
}

fn spawn(supervisor: &Supervisor, config: ClientConfig) -> (Client, Heard, crossbeam_channel::Sender<()>) {
    let (heard, (go, wait)) = (Heard::default(), bounded(1));
    let handed = heard.clone();
    let delivery = Delivery::inline(move || Naps { heard: handed.clone(), go: wait.clone() });
    (supervisor.spawn_client(config.heartbeat(Heartbeat::disabled()).delivery(delivery)).unwrap(), heard, go)
}

/// Keeps a connection that has nothing more to say.
fn keep(mut stream: TcpStream) {
    std::thread::spawn(move || while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {});
}

/// Bytes that the peer of this port has written and the kernel could not deliver.
#[cfg(target_os = "linux")]
fn unread_by_us(peer: u16) -> u64 {
    let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = all.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = ours.filter(|line| line[1].ends_with(&format!(":{peer:04X}")) && line[3] == "01");
    ours.map(|line| u64::from_str_radix(line[4].split(':').next().unwrap(), 16).unwrap()).sum()
}

/// A peer that pings and reads nothing, until answers pile up here; then its last words, among pings, and a reset.
#[test]
#[cfg(target_os = "linux")]
fn answers_to_pings_that_can_not_be_written_hide_no_last_word() {
    let (napping, is_napping) = bounded(1);
    let address = raw(move |mut stream, n, head| {
        write!(stream, "{head}\r\n").unwrap();
        if n > 0 {
            return keep(stream);
        }
        let port = stream.peer_addr().unwrap().port();
        let ping = frame(9, &[7; 125]);
        let (mut before, mut same) = (0, 0);
        while same < 5 {
            stream.write_all(&ping.repeat(150)).unwrap();
            takes(ms(8));
            let now = unread_by_us(port);
            same = if now == before && now > 0 { same + 1 } else { 0 };
            before = now;
        }
        let last = (0..10).flat_map(|n| [frame(9, &[7; 125]), frame(1, format!("fill {n}").as_bytes())].concat());
        stream.write_all(&[frame(1, b"nap"), last.collect()].concat()).unwrap();
        // Dropped with our answers unread: a reset.
        is_napping_now(&napping);
    });
    let supervisor = Supervisor::start().unwrap();
    let (client, heard, go) = spawn(&supervisor, to(address));
    is_napping.recv_timeout(LONG).unwrap();
    eventually("the nap", || heard.lock().last().is_some_and(|last| last == "nap"));
    go.send(()).unwrap();
    eventually("another connection", || client.epoch() == 2);
    let heard = heard.lock().clone();
    assert_eq!((heard.len(), heard.last().unwrap().as_str()), (11, "fill 9"), "{heard:?}");
}

/// All that was written has arrived by then, on loopback.
#[cfg(target_os = "linux")]
fn is_napping_now(napping: &crossbeam_channel::Sender<()>) {
    takes(ms(200));
    napping.send(()).unwrap();
}

/// What came with the answer to the upgrade is more than the read buffer holds, and a slow handler uses up the time of the
/// close.
#[test]
fn what_came_with_the_upgrade_is_heard_though_we_end_the_connection() {
    for buffer in [1024, 128 << 10] {
        let address = raw(move |mut stream, n, head| {
            let word = |at| match at {
                0 => "again".to_owned(),
                255 => "slow".to_owned(),
                at => format!("{:02}", at % 100),
            };
            let all: Vec<u8> = (0..900).flat_map(|at| frame(1, word(at).as_bytes())).collect();
            let all = if n == 0 { all } else { vec![] };
            stream.write_all(&[format!("{head}\r\n").as_bytes(), &all].concat()).unwrap();
            keep(stream);
        });
        let supervisor = Supervisor::start().unwrap();
        let (client, heard, _go) = spawn(&supervisor, to(address).read_buffer(buffer).close_timeout(ms(400)));
        eventually("another connection", || client.epoch() == 2);
        assert_eq!((heard.lock().len(), client.stats().dropped), (900, 0), "a buffer of {buffer}");
    }
}

#[test]
fn a_rule_broken_while_the_session_is_opened_is_told_with_its_code() {
    for (fault, code) in [(vec![0x83, 0], 1002_u16), (frame(1, b"\xff"), 1007)] {
        let (said, codes) = bounded(1);
        let address = raw(move |mut stream, _, head| {
            stream.write_all(&[format!("{head}\r\n").as_bytes(), &fault].concat()).unwrap();
            let mut bytes = vec![];
            let _ = stream.read_to_end(&mut bytes);
            let _ = said.try_send(u16::from_be_bytes([bytes[6] ^ bytes[2], bytes[7] ^ bytes[3]]));
        });
        let config = to(address).on_open(|session| session.recv_until(|_| false).map(drop));
        let refused = Client::connect(config).unwrap_err().to_string();
        assert!(refused.contains("the server broke the protocol"), "{refused}");
        assert_eq!(codes.recv_timeout(LONG).unwrap(), code);
    }
}

/// The second dial hangs; meanwhile the reader has what the first connection brought.
#[test]
fn a_reader_that_is_behind_reads_on_while_the_client_dials() {
    let (hang, hangs) = bounded::<()>(0);
    let address = raw(move |mut stream, n, head| match n {
        0 => {
            let all: Vec<u8> = (0..600).flat_map(|n| frame(1, n.to_string().as_bytes())).collect();
            stream.write_all(&[format!("{head}\r\n").as_bytes(), &all].concat()).unwrap();
        }
        _ => drop(hangs.recv()),
    });
    let config = to(address).event_capacity(4).connect_timeout(Duration::from_secs(3600));
    let client = Client::connect(config).unwrap();
    let mut numbers = vec![];
    next(&client, |event| match event {
        Event::Message(message) => {
            numbers.push(text(&message));
            None
        }
        Event::Disconnected { .. } => Some(()),
        _ => None,
    });
    assert_eq!(numbers, (0..600).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(client.ready_state(), ReadyState::Connecting);
    drop(hang);
}
/// Behind a server's messages comes a record that is none, or the end of TLS without the end of TCP: all that came before it
/// is heard, and it is noticed, whoever decrypts.
#[test]
fn the_last_record_hides_none_of_those_before_it() {
    use TlsBackend::{NativeTls, Rustls};
    for (backend, says_goodbye) in [(NativeTls, false), (NativeTls, true), (Rustls, false), (Rustls, true)] {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (pem, key) = (made.cert.pem(), made.key_pair.serialize_pem());
        let identity = native_tls::Identity::from_pkcs8(pem.as_bytes(), key.as_bytes()).unwrap();
        let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (napping, is_napping) = bounded(1);
        std::thread::spawn(move || {
            let mut server = tungstenite::accept(acceptor.accept(listener.accept().unwrap().0).unwrap()).unwrap();
            server.send("nap".into()).unwrap();
            napping.send(()).unwrap();
            for n in 0..20 {
                server.send(format!("fill {n}").into()).unwrap();
            }
            if says_goodbye {
                server.get_mut().shutdown().unwrap();
            }
            let tcp = server.get_mut().get_mut();
            if !says_goodbye {
                tcp.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat()).unwrap();
            }
            napping.send(()).unwrap();
            let _ = tcp.read(&mut [0; 4096]);
            let _ = listener.accept();
        });
        let supervisor = Supervisor::start().unwrap();
        let config = ClientConfig::new("wss://localhost/").unwrap().resolver(move |_, _| Ok(vec![address]));
        let (client, heard, go) = spawn(&supervisor, config.root_certificate(pem).tls(Tls::new().backend(backend)));
        (0..2).for_each(|_| is_napping.recv_timeout(LONG).unwrap());
        eventually("the nap", || heard.lock().len() == 1);
        go.send(()).unwrap();
        eventually("the end", || client.ready_state() != ReadyState::Open);
        let heard = heard.lock().clone();
        assert_eq!((heard.len(), heard.last().unwrap().as_str()), (21, "fill 19"), "{backend:?} {says_goodbye}");
    }
}
