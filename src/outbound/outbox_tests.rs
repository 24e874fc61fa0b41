//! What the outbox keeps of written messages, over a real socket.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use tungstenite::protocol::Role;

use super::*;
use crate::policy::rate_limit::Price;
use crate::transport::{Extensions, Socket, Wire};

#[test]
fn of_messages_that_have_arrived_no_more_is_kept_than_may_wait_for_a_look() {
    let bounds = [Bound { messages: 8, bytes: 1 << 30 }, Bound { messages: 1 << 30, bytes: 1_000 }];
    for keeps in bounds {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let socket = Socket::new(Arc::new(near), 0);
        let (none, most) = (Extensions::default(), usize::MAX);
        let mut transport = Transport::new(Wire::plain(socket), vec![], Role::Client, 4_096, most, most, none);
        let (mut outbox, books) = (Outbox::new(Limits::default(), keeps), Books::default());
        outbox.open(1);
        let mut kept = 0;
        for n in 0..200 {
            let message = Message::binary(vec![n; 100]);
            outbox.push(Accepted::paid(message, Some(1), None, Price::default()));
            assert!(outbox.write_out(&mut transport, &books, Instant::now, 1 << 20, false).unwrap());
            far.read_exact(&mut [0; 106]).unwrap();
            // On this machine a byte that was read was acknowledged, or is about to be.
            while transport.acknowledged().is_some_and(|arrived| arrived < transport.bytes_written()) {
                std::thread::yield_now();
            }
            kept = kept.max(outbox.sent.len());
        }
        assert!(kept <= 20, "{keeps:?}: {kept} are kept");
    }
}
