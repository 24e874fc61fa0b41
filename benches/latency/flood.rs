//! Floods: the server writes as fast as the kernel takes it, and the client counts. Messages a second.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use ws_supervisor::{Client, ClientConfig, Context, Delivery, Event, Handler, Message, MessageRef};

use crate::rig::{Contender, Stream, Wire, pin, second_core, server_frame};

/// Who counts the messages of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    Handler,
    /// One that keeps each message until the next.
    Keeper,
    Caller,
    /// The same, with what was read in one go in one event.
    CallerOfBatches,
}

/// How the server writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// As much as fits: full records under TLS.
    Packed,
    /// Each message by itself, in a record of its own.
    OneByOne,
}

struct Counter {
    left: usize,
    done: Sender<()>,
    keeps: bool,
    kept: Option<Message>,
}

impl Handler for Counter {
    fn on_message(&mut self, _: &mut Context<'_>, message: MessageRef<'_>) {
        if self.keeps {
            self.kept = Some(message.to_message());
        }
        self.left -= usize::from(message.is_text());
        if self.left == 0 {
            let _ = self.done.send(());
        }
    }
}

#[derive(Clone, Copy)]
pub struct Flood {
    pub counts: Counts,
    pub size: usize,
    pub writes: Writes,
}

/// As fast as two threads pass the same events through crossbeam's channel, with no socket: what bounds a caller's own channel.
pub fn channel_alone(size: usize, messages: usize) -> f64 {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let message = Message::text("t".repeat(size));
    let begun = Instant::now();
    let producer = std::thread::spawn(move || {
        pin(second_core());
        (0..messages).for_each(|_| sender.send(Event::Message(message.clone())).expect("the consumer"));
    });
    let counted = receiver.iter().filter(|event| matches!(event, Event::Message(_))).count();
    producer.join().expect("the producer");
    assert_eq!(counted, messages);
    messages as f64 / begun.elapsed().as_secs_f64()
}

pub fn flood(wire: &Wire, contender: Contender, flood: Flood, messages: usize) -> f64 {
    let Flood { counts, size, writes } = flood;
    let frames = if writes == Writes::Packed { (256 << 10) / size } else { 1 };
    let chunk = server_frame(size).repeat(frames);
    let messages = messages.div_ceil(frames) * frames;
    let run = |server: &mut dyn Stream, done: Receiver<()>| {
        // A record for each costs its maker more than its reader: they are made beforehand.
        if writes == Writes::OneByOne {
            server.hold();
            (0..messages).for_each(|_| server.write_all(&chunk).expect("a record"));
        }
        let begun = Instant::now();
        match writes {
            Writes::OneByOne => server.release(),
            Writes::Packed => (0..messages / frames).for_each(|_| server.write_all(&chunk).expect("a flood")),
        }
        done.recv().expect("all of it");
        messages as f64 / begun.elapsed().as_secs_f64()
    };
    let (sender, done) = channel();
    let Contender::Ours(idle) = contender else {
        let all = messages * server_frame(size).len();
        let (mut server, client) = wire.served(contender, move |mut peer| {
            let mut scratch = vec![0; 64 << 10];
            match contender {
                // No messages are told apart: as fast as bytes can be had.
                Contender::Raw { .. } => {
                    let mut left = all;
                    while left > 0 {
                        left -= peer.read(&mut scratch);
                    }
                }
                _ => (0..messages).for_each(|_| drop(peer.receive(&mut []).expect("the flood"))),
            }
            let _ = sender.send(());
        });
        let rate = run(&mut *server, done);
        client.join().expect("the client's thread");
        return rate;
    };
    let connect = |url: String, config: &dyn Fn(ClientConfig) -> ClientConfig| {
        let config = config(wire.config(&url, idle));
        std::thread::spawn(move || Arc::new(Client::connect(config).expect("a connection")))
    };
    match counts {
        Counts::Handler | Counts::Keeper => {
            let keeps = counts == Counts::Keeper;
            let handler = move || Counter { left: messages, done: sender.clone(), keeps, kept: None };
            let (mut server, client) =
                wire.upgraded(|url| connect(url, &|config| config.delivery(Delivery::inline(handler.clone()))));
            let client = client.join().expect("the connecting thread");
            let rate = run(&mut *server, done);
            drop(client);
            rate
        }
        Counts::Caller | Counts::CallerOfBatches => {
            let delivery = if counts == Counts::Caller { Delivery::channel() } else { Delivery::batches() };
            let (mut server, client) =
                wire.upgraded(|url| connect(url, &|config| config.event_capacity(65_536).delivery(delivery.clone())));
            let client = client.join().expect("the connecting thread");
            let consumer = std::thread::Builder::new()
                .name("consumer".into())
                .spawn({
                    let client = client.clone();
                    move || {
                        let events = client.events();
                        let mut left = messages;
                        while left > 0 {
                            left -= match events.recv() {
                                Ok(Event::Message(message)) => usize::from(message.is_text()),
                                Ok(Event::Messages(batch)) => batch.iter().filter(|message| message.is_text()).count(),
                                _ => 0,
                            };
                        }
                        let _ = sender.send(());
                    }
                })
                .expect("a thread");
            let rate = run(&mut *server, done);
            consumer.join().expect("the consumer");
            rate
        }
    }
}
