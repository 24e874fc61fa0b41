//! What comes in reaches the caller in order, within bounds, by the policy that was chosen.

mod common;

use std::sync::Arc;

use common::{LONG, config, eventually, ms, next, next_open, next_text, rpc};
use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, Context, Delivery, DisconnectReason, Event, Handler, Heartbeat, Message, MessageRef, Overflow, ReadyState,
    Request, Supervisor,
};

fn burst(n: usize) -> Script {
    let messages: Vec<_> = (0..n).map(|n| Message::text(n.to_string())).collect();
    Script::silent().greet(move |_| messages.clone())
}

fn number(message: &Message) -> usize {
    message.as_text().unwrap().parse().unwrap()
}

#[test]
fn messages_arrive_whole_in_order_and_byte_for_byte() {
    for tls in [false, true] {
        let all: Vec<Message> = (0..300usize)
            .map(|n| {
                let bytes: Vec<u8> = (0..n * 211).map(|i| (i * 31 + n) as u8).collect();
                if n % 2 == 0 { Message::binary(bytes) } else { Message::text("é".repeat(n * 100)) }
            })
            .collect();
        let greeting = all.clone();
        let script = Script::silent().greet(move |_| greeting.clone());
        let server = if tls { Server::start_tls(script).unwrap() } else { Server::start(script).unwrap() };
        let client = Client::connect(config(&server)).unwrap();
        for expected in &all {
            let message = next(&client, |event| match event {
                Event::Message(message) => Some(message),
                _ => None,
            });
            assert!(message == *expected, "{message:?} instead of {expected:?}");
            assert!(message.received_at().is_some());
        }
    }
}

#[test]
fn backpressure_loses_nothing_and_heartbeats_and_sends_go_on() {
    let server = Server::start(burst(20_000)).unwrap();
    let heartbeat = Heartbeat::ping_pong(ms(300)).max_missed(1);
    let client = Client::connect(config(&server).event_capacity(10).heartbeat(heartbeat)).unwrap();
    // Nobody reads: the client stops reading the socket, yet it pings and sends, and does not call the line dead.
    assert!(server.wait_until(LONG, |records| records[0].pings >= 10));
    client.send("still sending").unwrap();
    server.wait_for_message(|message| message.as_text() == Some("still sending"));
    assert!(client.events().len() <= 10);
    for n in 0..20_000 {
        assert_eq!(next_text(&client), n.to_string());
    }
    assert_eq!((client.epoch(), client.stats().dropped), (1, 0));
}

fn read_with_gaps(client: &Client, last: usize) -> (Vec<usize>, usize) {
    let (mut seen, mut position, mut lagged) = (vec![], 0, 0);
    while position <= last {
        next(client, |event| {
            match event {
                Event::Message(message) => {
                    assert_eq!(number(&message), position, "the gap is where Lagged says");
                    seen.push(position);
                    position += 1;
                }
                Event::Lagged { dropped, .. } => {
                    lagged += dropped as usize;
                    position += dropped as usize;
                }
                _ => return None,
            }
            Some(())
        });
    }
    (seen, lagged)
}

#[test]
fn drop_newest_keeps_the_first_and_counts_the_rest() {
    let server = Server::start(burst(1000)).unwrap();
    let client = Client::connect(config(&server).event_capacity(100).overflow(Overflow::DropNewest)).unwrap();
    eventually("all read", || client.stats().received == 1000);
    let (seen, lagged) = read_with_gaps(&client, 999);
    assert_eq!(seen, (0..99).collect::<Vec<_>>(), "the open event took one place");
    assert_eq!((lagged, client.stats().dropped), (901, 901));
}

#[test]
fn drop_oldest_keeps_the_last() {
    let server = Server::start(burst(1000)).unwrap();
    let client = Client::connect(config(&server).event_capacity(100).overflow(Overflow::DropOldest)).unwrap();
    eventually("all read", || client.stats().received == 1000);
    let (seen, lagged) = read_with_gaps(&client, 999);
    assert_eq!(seen[seen.len() - 50..], (950..1000).collect::<Vec<_>>());
    assert_eq!(seen.len() + lagged, 1000);
}

#[test]
fn disconnect_gives_up_the_connection() {
    let server = Server::scripted(|n| if n == 0 { burst(1000) } else { burst(5) }).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).event_capacity(100).overflow(Overflow::Disconnect);
    let client = supervisor.spawn_client(config).unwrap();
    let mut read = 0;
    let reason = next(&client, |event| match event {
        Event::Message(_) => {
            read += 1;
            // Slow enough to be overrun.
            std::thread::park_timeout(ms(5));
            None
        }
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, DisconnectReason::Overflow);
    assert!(read >= 99, "{read}: what was queued before is delivered before");
    assert_eq!(next_open(&client), 2);
}

#[test]
fn many_clients_share_one_channel() {
    let server = Server::start(Script::silent().greet(|peer| vec![peer.index.to_string().into()])).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (delivery, events) = Delivery::shared();
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let config = config(&server).name(format!("c{n}")).delivery(delivery.clone());
            supervisor.spawn_client(config).unwrap()
        })
        .collect();
    assert!(clients[0].events().recv().is_err(), "the client's own channel ends at once");
    let (mut opened, mut messages) = (vec![], 0);
    while messages < 8 {
        let event = events.recv_timeout(LONG).unwrap();
        assert!(clients.iter().any(|client| client.id() == event.client && *client.name() == *event.name));
        match event.event {
            Event::Open { .. } => opened.push(event.client),
            Event::Message(_) => {
                assert!(opened.contains(&event.client), "each client's own order is kept");
                messages += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Tells the test what it saw, and replies on its own thread.
struct Echo {
    seen: Sender<String>,
    built: usize,
}

impl Handler for Echo {
    fn on_open(&mut self, context: &mut Context<'_>) {
        self.seen.send(format!("{}: open {:?} {}", self.built, context.epoch(), context.name())).unwrap();
        context.send("from on_open").unwrap();
    }

    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if message.as_text() == Some("close") {
            return context.close();
        }
        self.seen.send(format!("{}: {}", self.built, message.as_text().unwrap())).unwrap();
    }

    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        let sent = context.send("refused").is_ok();
        let kind = format!("{event:?}");
        self.seen.send(format!("{}: {} {sent}", self.built, kind.split([' ', '{']).next().unwrap())).unwrap();
    }
}

#[test]
fn an_inline_handler_lives_a_whole_life() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (seen, saw) = unbounded();
    let built = Arc::new(Mutex::new(0));
    let delivery = Delivery::inline(move || {
        let mut built = built.lock();
        *built += 1;
        Echo { seen: seen.clone(), built: *built }
    });
    let client = supervisor.spawn_client(config(&server).name("inline").delivery(delivery)).unwrap();
    let expect = |line: &str| assert_eq!(saw.recv_timeout(LONG).unwrap(), line);
    expect("1: open Some(1) inline");
    expect("1: from on_open");
    server.cut();
    expect("1: Disconnected false");
    expect("1: open Some(2) inline");
    expect("1: from on_open");
    supervisor.restart_client(client.id()).unwrap();
    expect("1: Disconnected false");
    expect("1: Restarted false");
    expect("1: open Some(3) inline");
    expect("1: from on_open");
    server.push("close");
    expect("1: Closed false");
    eventually("closed", || client.ready_state() == ReadyState::Closed);
    assert!(saw.try_recv().is_err(), "nothing comes after it");
}

/// A client that nobody reads: its memory is bounded, and it tells what became of each request all the same.
#[test]
fn events_that_nobody_reads_are_summed_up() {
    let server = Server::start(rpc(|_, params| Some(Ok(params.clone())))).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).event_capacity(4).overflow(Overflow::DropNewest);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    for n in 0..1_500 {
        eventually("accepted", || client.post(Request::new("count", [n])).is_ok());
    }
    eventually("answered", || client.stats().pending_requests == 0);
    client.close().unwrap();
    let all: Vec<_> = client.events().iter().collect();
    assert!(all.len() <= 4 + 1024 + 2, "{}", all.len());
    let mut told = 0;
    for event in all {
        match event {
            Event::Response(response) => {
                assert_eq!(response.decode::<Vec<usize>>().unwrap(), [told]);
                told += 1;
            }
            Event::Collapsed { handed_back, .. } => {
                for response in handed_back.responses {
                    assert_eq!(response.decode::<Vec<usize>>().unwrap(), [told]);
                    told += 1;
                }
            }
            _ => {}
        }
    }
    assert_eq!(told, 1_500);
}

#[test]
fn the_venues_pings_are_answered_with_their_payload_and_counted() {
    let server = Server::start(Script::silent().ping_every(ms(10))).unwrap();
    let client = Client::connect(config(&server).heartbeat(Heartbeat::server_ping(LONG))).unwrap();
    assert!(server.wait_until(LONG, |records| records[0].pongs >= 5));
    eventually("counted", || client.stats().heartbeats >= 5);
    assert!(client.heartbeat_health().last_received.is_some());
    assert_eq!(client.stats().received, 0);
}

#[test]
fn deribits_heartbeat_is_asked_for_and_its_tests_are_answered() {
    let test = r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#;
    let script = Script::reply(|_, message| match message.as_text() {
        Some(text) if text.contains("public/set_heartbeat") => {
            let id = text.split(r#""id":"#).nth(1).unwrap().split(',').next().unwrap();
            vec![format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"ok"}}"#).into()]
        }
        _ => vec![],
    });
    let server = Server::start(script.every(ms(10), move |_| vec![test.into()])).unwrap();
    let client = Client::connect(config(&server).heartbeat(Heartbeat::deribit(LONG))).unwrap();
    server.wait_for_message(|message| message.as_text().is_some_and(|text| text.contains(r#""interval":30"#)));
    server.wait_for_message(|message| message.as_text().is_some_and(|text| text.contains("public/test")));
    eventually("counted", || client.stats().heartbeats >= 5);
    client.close().unwrap();
    let delivered = client.events().iter().filter(|event| matches!(event, Event::Message(_))).count();
    assert_eq!(delivered, 0, "heartbeats are not the caller's business");
}

#[test]
fn a_heartbeat_message_is_sent_matched_and_missed() {
    let answering = Script::reply(|_, message| match message.as_bytes() {
        b"PING\r\n" => vec![Message::binary("PONG\r\n")],
        _ => vec![],
    });
    let server = Server::scripted(move |n| if n == 0 { answering.clone() } else { Script::silent() }).unwrap();
    let heartbeat = Heartbeat::message(ms(50), Message::binary("PING\r\n"), |m| m.as_bytes() == b"PONG\r\n");
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).heartbeat(heartbeat)).unwrap();
    eventually("answers are counted", || client.stats().heartbeats >= 3);
    assert!(client.heartbeat_health().last_round_trip.is_some());
    server.cut();
    // The second connection answers none of them.
    let missed = next(&client, |event| match event {
        Event::Disconnected { reason: DisconnectReason::HeartbeatLost { missed }, .. } => Some(missed),
        Event::Message(message) => panic!("{message:?}"),
        _ => None,
    });
    assert_eq!(missed, 2);
}

#[test]
fn a_venue_that_stops_its_heartbeat_is_lost() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let heartbeat = Heartbeat::deribit(std::time::Duration::from_secs(1)).max_missed(1);
    let client = supervisor.spawn_client(config(&server).heartbeat(heartbeat)).unwrap();
    next(&client, |event| match event {
        Event::Restarted { reason: ws_supervisor::ExitReason::HeartbeatLost { missed: 1 }, .. } => Some(()),
        _ => None,
    });
    assert_eq!(next_open(&client), 2);
}

/// Answers every message, and is held up in the first.
struct Slow {
    seen: Sender<String>,
    entered: Sender<()>,
    held: crossbeam_channel::Receiver<()>,
}

impl Handler for Slow {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        if message.as_text() == Some("first") {
            self.entered.send(()).unwrap();
            let _ = self.held.recv();
        }
        let answered = context.send("answer").is_ok();
        self.seen.send(format!("{} {answered}", message.as_text().unwrap())).unwrap();
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Disconnected { reason, unsent, .. } = event {
            self.seen.send(format!("{reason}; {} unsent", unsent.len())).unwrap();
        }
    }
}

/// A write finds the connection broken while fills wait unread in the kernel: they are delivered.
#[test]
fn what_the_server_said_before_the_line_broke_is_still_delivered() {
    let server = Server::scripted(|n| {
        if n == 0 { Script::silent().greet(|_| vec!["first".into()]) } else { Script::hold_upgrade() }
    })
    .unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (seen, saw) = unbounded();
    let (entered, was_entered) = unbounded();
    let (release, held) = crossbeam_channel::bounded(0);
    let delivery = Delivery::inline(move || Slow { seen: seen.clone(), entered: entered.clone(), held: held.clone() });
    supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    was_entered.recv_timeout(LONG).unwrap();
    server.push("fill 1");
    server.push("fill 2");
    assert!(server.wait_until(LONG, |records| records[0].served == 3));
    server.reset();
    assert!(server.wait_until(LONG, |records| records[0].ended));
    release.send(()).unwrap();
    let mut expect = vec![];
    while expect.len() < 4 {
        expect.push(saw.recv_timeout(LONG).unwrap());
    }
    assert_eq!(expect[..3], ["first true", "fill 1 true", "fill 2 true"]);
    assert!(expect[3].starts_with("connection lost") && expect[3].ends_with("unsent"), "{}", expect[3]);
}

#[test]
fn answers_that_nobody_reads_are_bounded_in_bytes_and_none_is_lost() {
    const ASKED: usize = 100;
    let big = serde_json::Value::from("x".repeat(64 << 10));
    for overflow in [Overflow::DropOldest, Overflow::DropNewest, Overflow::Disconnect, Overflow::Backpressure] {
        let big = big.clone();
        let server = Server::start(rpc(move |_, _| Some(Ok(big.clone())))).unwrap();
        let unread = config(&server).overflow(overflow).event_bytes(256 << 10).heartbeat(Heartbeat::disabled());
        let client = Client::connect(unread).unwrap();
        (0..ASKED).for_each(|_| drop(client.post(Request::new("history", ())).unwrap()));
        eventually("reading is held up", || client.stats().paused_for.is_some());
        let answered = ASKED - client.stats().pending_requests;
        assert!(answered <= 12, "{overflow:?}: {answered}");
        let answers = client.events().iter().filter(|event| matches!(event, Event::Response(_))).take(ASKED).count();
        assert_eq!(answers, ASKED, "{overflow:?}");
    }
}
