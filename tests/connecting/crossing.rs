//! Through a proxy, both sides close at the same time: only an answer to our close frame proves that the venue has what was sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use ws_supervisor::*;

use crate::common::{LONG, closing, read_head, upgrade_of};

/// A venue that answers the upgrade and, when it is asked to, sends these bytes.
fn venue(go: Receiver<()>, sends: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut tcp = listener.accept().unwrap().0;
        let answer = upgrade_of(&read_head(&mut tcp));
        write!(tcp, "{answer}\r\n").unwrap();
        let _ = go.recv_timeout(LONG);
        tcp.write_all(&sends).unwrap();
        let _ = tcp.read(&mut [0; 100]);
    });
    address
}

/// A proxy that keeps all that the client sends after its upgrade, and lets the venue speak when it has our close frame.
fn keeping_proxy(venue: SocketAddr, go: crossbeam_channel::Sender<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        read_head(&mut client);
        client.write_all(b"HTTP/1.1 200 ok\r\n\r\n").unwrap();
        let mut venue = TcpStream::connect(venue).unwrap();
        venue.write_all(read_head(&mut client).as_bytes()).unwrap();
        let (mut from, mut to) = (venue.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut kept, mut some) = (vec![], [0; 4096]);
        while let Ok(read @ 1..) = client.read(&mut some) {
            kept.extend_from_slice(&some[..read]);
            if kept.contains(&0x88) {
                let _ = go.try_send(());
            }
        }
    });
    address
}

#[test]
fn an_order_that_never_left_the_proxy_is_uncertain_unless_our_close_frame_was_answered() {
    let no_code = crate::common::frame(8, &[]);
    for (close, is_answer) in
        [(closing(1001, "bye"), false), (closing(1012, ""), false), (no_code, false), (closing(1000, ""), true)]
    {
        for reconnects in [false, true] {
            let (go, goes) = bounded(1);
            let venue = venue(goes, close.clone());
            let proxy = Proxy::new(format!("http://{}", keeping_proxy(venue, go))).unwrap();
            let config = ClientConfig::new(format!("ws://{venue}/")).unwrap().proxy(proxy);
            let config = config.heartbeat(Heartbeat::disabled()).close_timeout(Duration::from_secs(5));
            let client = Client::connect(config).unwrap();
            client.send_confirmed("order", LONG).unwrap();
            match reconnects {
                true => client.reconnect(),
                false => client.close().unwrap(),
            }
            let uncertain = crate::common::next(&client, |event| match event {
                Event::Closed { uncertain, .. } | Event::Disconnected { uncertain, .. } => Some(uncertain.len()),
                _ => None,
            });
            assert_eq!(uncertain, usize::from(!is_answer), "{close:?}, reconnects {reconnects}");
        }
    }
}
