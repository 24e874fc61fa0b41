//! One way: from the server's write to the handler or to a caller that spins, and from a caller's send to the server.

use std::io::ErrorKind;
use std::time::Instant;

use ws_supervisor::{Client, Context, Delivery, Event, Handler, MessageRef};

use crate::rig::{Contender, Note, Stream, Times, Wire, server_frame};

const SIZE: usize = 64;

struct Noter(Note);

impl Handler for Noter {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.0.put();
    }
}

/// From the server's write until `seen` gives the time at which it was there.
fn measure(server: &mut dyn Stream, note: &Note, samples: usize, frame: &[u8], mut seen: impl FnMut() -> u64) -> Times {
    Times::measure(samples, || {
        let begun = note.now();
        server.write_all(frame).expect("a tick");
        (seen() - begun) as f64 / 1e3
    })
}

/// From the server to the code that runs where the socket is read.
pub fn to_handler(wire: &Wire, contender: Contender, samples: usize) -> Times {
    let note = Note::new();
    let frame = server_frame(SIZE);
    let noted = note.clone();
    if let Contender::Ours(idle) = contender {
        let (mut server, client) = wire.upgraded(|url| {
            let config = wire.config(&url, idle).delivery(Delivery::inline(move || Noter(noted.clone())));
            std::thread::spawn(move || Client::connect(config).expect("a connection"))
        });
        let client = client.join().expect("the connecting thread");
        let times = measure(&mut *server, &note, samples, &frame, || note.take());
        drop(client);
        return times;
    }
    let (mut server, client) = wire.served(contender, move |mut peer| {
        let mut scratch = [0; SIZE];
        while peer.receive(&mut scratch).is_some() {
            noted.put();
        }
    });
    let payload = match contender {
        Contender::Raw { .. } => &frame[frame.len() - SIZE..],
        _ => &frame,
    };
    let times = measure(&mut *server, &note, samples, payload, || note.take());
    drop(server);
    client.join().expect("the client's thread");
    times
}

/// From the server over the client's own channel to a caller that spins on it.
pub fn to_caller(wire: &Wire, contender: Contender, samples: usize) -> Times {
    let Contender::Ours(idle) = contender else { return to_handler(wire, contender, samples) };
    let note = Note::new();
    let (mut server, client) = wire.upgraded(|url| {
        let config = wire.config(&url, idle);
        std::thread::spawn(move || Client::connect(config).expect("a connection"))
    });
    let client = client.join().expect("the connecting thread");
    let times = measure(&mut *server, &note, samples, &server_frame(SIZE), || {
        loop {
            if let Ok(Event::Message(_)) = client.events().try_recv() {
                return note.now();
            }
            std::hint::spin_loop();
        }
    });
    drop(client);
    times
}

/// From a caller's send until the server can read it. The caller and the server's reader are one thread, which spins:
/// no wake-up of the server is in the figure, only what lies between `send` and the socket.
pub fn to_server(wire: &Wire, contender: Contender, samples: usize) -> Times {
    let text = "t".repeat(SIZE);
    let measure = |server: &mut dyn Stream, send: &mut dyn FnMut(String)| {
        server.tcp().set_nonblocking(true).expect("non-blocking");
        let mut buffer = [0; 6 + SIZE];
        Times::measure(samples, || {
            let text = text.clone();
            let begun = Instant::now();
            send(text);
            let mut read = 0;
            while read < buffer.len() {
                match server.read(&mut buffer[read..]) {
                    Ok(n) => read += n,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            begun.elapsed().as_secs_f64() * 1e6
        })
    };
    if let Contender::Ours(idle) = contender {
        let (mut server, client) = wire.upgraded(|url| {
            let config = wire.config(&url, idle);
            std::thread::spawn(move || Client::connect(config).expect("a connection"))
        });
        let client = client.join().expect("the connecting thread");
        let times = measure(&mut *server, &mut |text| client.send(text).expect("accepted"));
        drop(client);
        return times;
    }
    let (mut server, mut peer) = wire.pair(contender);
    measure(&mut *server, &mut |text| peer.answer(tungstenite::Message::text(text), &[]))
}
