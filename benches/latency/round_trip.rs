//! Tick to trade: the server writes a tick of 64 bytes, the client answers with an order of 64 bytes on the thread
//! that read it, the server measures from one to the other.

use std::time::Instant;

use ws_supervisor::{Client, Context, Delivery, Handler, MessageRef};

use crate::rig::{Contender, Times, Wire, server_frame};

const SIZE: usize = 64;
/// A client's frame has two bytes before the payload and four of the mask (RFC 6455 section 5.2).
const CLIENT_FRAME: usize = 6 + SIZE;

struct Trader;

impl Handler for Trader {
    fn on_message(&mut self, context: &mut Context<'_>, tick: MessageRef<'_>) {
        context.send(tick).expect("an open connection");
    }
}

pub fn tick_to_trade(wire: &Wire, contender: Contender, samples: usize) -> Times {
    let frame = server_frame(SIZE);
    let measure = |server: &mut dyn crate::rig::Stream, tick: &[u8], answer: usize| {
        let mut buffer = vec![0; answer];
        Times::measure(samples, || {
            let begun = Instant::now();
            server.write_all(tick).expect("a tick");
            server.read_exact(&mut buffer).expect("an order");
            begun.elapsed().as_secs_f64() * 1e6
        })
    };
    if let Contender::Ours(idle) = contender {
        let (mut server, client) = wire.upgraded(|url| {
            let config = wire.config(&url, idle).delivery(Delivery::inline(|| Trader));
            std::thread::spawn(move || Client::connect(config).expect("a connection"))
        });
        let client = client.join().expect("the connecting thread");
        let times = measure(&mut *server, &frame, CLIENT_FRAME);
        drop(client);
        return times;
    }
    let (mut server, client) = wire.served(contender, |mut peer| {
        let mut scratch = [0; SIZE];
        while let Some(message) = peer.receive(&mut scratch) {
            peer.answer(message, &scratch);
        }
    });
    let times = match contender {
        Contender::Raw { .. } => measure(&mut *server, &frame[frame.len() - SIZE..], SIZE),
        _ => measure(&mut *server, &frame, CLIENT_FRAME),
    };
    drop(server);
    client.join().expect("the client's thread");
    times
}
