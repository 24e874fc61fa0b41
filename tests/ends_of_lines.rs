//! How a line ends: every word of the server's is heard in its place, every message of ours is accounted for.
#![allow(missing_docs)]

mod common;
use common::{LONG, config, eventually, frame, ms, next_open, received, takes, text};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

fn collect(client: &Client, until: impl Fn(&Event) -> bool) -> (Vec<String>, Option<Event>) {
    let (mut all, events, deadline) = (vec![], client.events(), Instant::now() + Duration::from_secs(10));
    while let Ok(event) = events.recv_deadline(deadline) {
        if until(&event) {
            return (all, Some(event));
        }
        if let Event::Message(m) = &event {
            all.push(text(m));
        }
    }
    (all, None)
}

// what was held while opening is overtaken by what comes during a close asked for in on_open
struct ReOpen {
    heard: Sender<String>,
    first: Arc<AtomicUsize>,
}
impl Handler for ReOpen {
    fn on_open(&mut self, c: &mut Context<'_>) {
        if self.first.fetch_add(1, Ordering::SeqCst) == 0 {
            c.reconnect();
        }
    }
    fn on_message(&mut self, _: &mut Context<'_>, m: MessageRef<'_>) {
        self.heard.send(text(&m.to_message())).unwrap();
    }
}

#[test]
fn held_messages_keep_their_place_when_on_open_asks_for_a_reconnect() {
    let script = Script::silent().greet(|p| {
        if p.index == 0 { ["1", "2", "ready", "3", "4"].into_iter().map(Message::from).collect() } else { vec![] }
    });
    let server = Server::start(script).unwrap();
    let (heard, hears) = unbounded();
    let first = Arc::new(AtomicUsize::new(0));
    let delivery = Delivery::inline(move || ReOpen { heard: heard.clone(), first: first.clone() });
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).delivery(delivery).on_open(|s| {
        if s.epoch() == 1 {
            s.recv_until(|m| m.as_text() == Some("ready"))?;
        }
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    eventually("second", || client.epoch() == 2);
    let all: Vec<_> = hears.try_iter().collect();
    assert_eq!(all, ["1", "2", "3", "4"]);
}

// same with a queue
#[test]
fn held_messages_keep_their_place_when_the_reader_asks_for_a_reconnect() {
    let script = Script::silent().greet(|p| {
        if p.index == 0 {
            let mut all: Vec<Message> = (0..3000).map(|n| n.to_string().into()).collect();
            all.push("ready".into());
            all.extend((3000..3100).map(|n| Message::from(n.to_string())));
            all
        } else {
            vec![]
        }
    });
    let server = Server::start(script).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).on_open(|s| {
        if s.epoch() == 1 {
            s.recv_until(|m| m.as_text() == Some("ready"))?;
        }
        Ok(())
    });
    let client = supervisor.spawn_client(config).unwrap();
    next_open(&client);
    client.reconnect();
    let (all, _) = collect(&client, |e| matches!(e, Event::Disconnected { .. }));
    let want: Vec<_> = (0..3100).map(|n| n.to_string()).collect();
    let wrong = all.iter().zip(&want).position(|(a, b)| a != b);
    assert!(all == want, "{} of {}, first wrong at {wrong:?}: {:?}", all.len(), want.len(), wrong.map(|w| &all[w]));
}

// max_age with the reader behind
#[test]
fn max_age_loses_nothing_that_the_kernel_has() {
    for tls in [false, true] {
        let script = Script::silent()
            .greet(|p| if p.index == 0 { (0..2000).map(|n| Message::from(n.to_string())).collect() } else { vec![] });
        let server = if tls { Server::start_tls(script) } else { Server::start(script) }.unwrap();
        let client =
            Client::connect(config(&server).event_capacity(4).max_age(ms(300)).heartbeat(Heartbeat::disabled()))
                .unwrap();
        eventually("rotated", || client.epoch() >= 2 || client.ready_state() == ReadyState::Closed);
        let (all, last) = collect(&client, |e| matches!(e, Event::Disconnected { .. }));
        assert_eq!((all.len(), client.stats().dropped), (2000, 0), "tls {tls} {last:?}");
    }
}

/// A reader leaves a client of a shared channel with more to send than its server takes; then `end` happens.
fn deserted(before: impl FnOnce(&Client), end: impl FnOnce(&Server) -> usize) -> (HandedBack, Stats) {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (delivery, events) = Delivery::shared();
    let client = supervisor
        .spawn_client(config(&server).delivery(delivery).send_capacity(100_000).heartbeat(Heartbeat::disabled()))
        .unwrap();
    client.wait_until_open(LONG).unwrap();
    server.deafen(true);
    let big = "x".repeat(100_000);
    for _ in 0..200 {
        client.send(big.clone()).unwrap();
    }
    before(&client);
    takes(ms(300));
    drop(events);
    end(&server);
    let alerts = supervisor.events();
    let deadline = Instant::now() + Duration::from_secs(20);
    let handed = loop {
        if let SupervisorEvent::Parked { handed_back, .. } = alerts.recv_deadline(deadline).unwrap() {
            break handed_back;
        }
    };
    (handed, client.stats())
}

#[test]
fn what_was_unsent_when_the_reader_deserted_reaches_the_supervisor() {
    let (handed, stats) = deserted(|_| {}, |server| server.push("tick"));
    assert_eq!(
        (handed.unsent.len() as u64, handed.uncertain.len() as u64),
        (stats.unsent, stats.uncertain),
        "{stats:?}"
    );
}

// left behind inline
struct Blocks {
    told: Sender<Event>,
    entered: Sender<()>,
    go: Receiver<()>,
}
impl Handler for Blocks {
    fn on_message(&mut self, c: &mut Context<'_>, _: MessageRef<'_>) {
        let _ = c.send("of the handler");
        self.entered.send(()).unwrap();
        self.go.recv().unwrap();
    }
    fn on_event(&mut self, _: &mut Context<'_>, e: Event) {
        self.told.send(e).unwrap();
    }
}

#[test]
fn what_was_on_its_way_to_a_left_behind_handler_reaches_the_supervisor() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let ((entered, was), (go, gone)) = (unbounded(), unbounded());
    let (told, tells) = unbounded();
    let delivery = Delivery::inline(move || Blocks { told: told.clone(), entered: entered.clone(), go: gone.clone() });
    let client = supervisor.spawn_client(config(&server).delivery(delivery).close_timeout(ms(200))).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("tick");
    was.recv_timeout(LONG).unwrap();
    for n in 0..3 {
        client.send(format!("caller {n}")).unwrap();
    }
    assert!(supervisor.stop_client(client.id()).is_err());
    go.send(()).unwrap();
    let alerts = supervisor.events();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut unsent = vec![];
    let mut seen = vec![];
    while let Ok(event) = alerts.recv_deadline(deadline) {
        seen.push(format!("{event:?}"));
        match event {
            SupervisorEvent::CameBack { handed_back, .. } => {
                unsent.extend(handed_back.unsent.iter().map(text));
                break;
            }
            SupervisorEvent::LeftBehind { handed_back, .. } | SupervisorEvent::Closed { handed_back, .. } => {
                unsent.extend(handed_back.unsent.iter().map(text));
            }
            _ => {}
        }
    }
    unsent.extend(client.take_handed_back().unsent.iter().map(text));
    for e in tells.try_iter() {
        seen.push(format!("handler: {e:?}"));
        if let Event::Closed { unsent: u, .. } | Event::Disconnected { unsent: u, .. } = e {
            unsent.extend(u.iter().map(text));
        }
    }
    unsent.sort();
    eventually("counted", || {
        let s = client.stats();
        s.accepted == s.unsent + s.sent
    });
    assert_eq!(unsent, ["caller 0", "caller 1", "caller 2", "of the handler"], "{seen:#?} {:?}", client.stats());
}

// a handler that panics at the first of several requests whose time ran out together
struct Asker {
    heard: Sender<String>,
    panics: Arc<AtomicUsize>,
    asks: Arc<AtomicUsize>,
}
impl Handler for Asker {
    fn on_open(&mut self, c: &mut Context<'_>) {
        if self.asks.fetch_add(1, Ordering::SeqCst) == 0 {
            for n in 0..5 {
                c.request(Request::new("order", [n]).timeout(ms(100))).unwrap();
            }
        }
    }
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    fn on_event(&mut self, _: &mut Context<'_>, e: Event) {
        if let Event::Response(r) = e {
            self.heard.send(r.id.to_string()).unwrap();
            if self.panics.fetch_add(1, Ordering::SeqCst) == 0 {
                panic!("at the first");
            }
        }
    }
}

#[test]
fn a_panic_at_the_first_of_many_timeouts_loses_no_other() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (heard, hears) = unbounded();
    let (panics, asks) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let delivery = Delivery::inline(move || Asker { heard: heard.clone(), panics: panics.clone(), asks: asks.clone() });
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    eventually("again", || client.epoch() == 2);
    takes(ms(300));
    let all: Vec<_> = hears.try_iter().collect();
    assert_eq!(all.len(), 5, "each request ends once: {all:?}, pending {}", client.stats().pending_requests);
}

// a close whose write fails first
struct Busy2 {
    entered: Sender<()>,
    go: Receiver<()>,
    heard: Sender<String>,
}
impl Handler for Busy2 {
    fn on_message(&mut self, _: &mut Context<'_>, m: MessageRef<'_>) {
        if m.as_text() == Some("go") {
            self.entered.send(()).unwrap();
            self.go.recv().unwrap();
        }
        self.heard.send(text(&m.to_message())).unwrap();
    }
    fn on_event(&mut self, _: &mut Context<'_>, e: Event) {
        match e {
            Event::Disconnected { reason, .. } => self.heard.send(reason.to_string()).unwrap(),
            Event::Closed { .. } => self.heard.send("closed".into()).unwrap(),
            _ => {}
        }
    }
}

fn close_broken(tls: bool, stop: bool, order: bool) -> Vec<String> {
    let script = Script::silent().greet(|p| if p.index == 0 { vec!["go".into()] } else { vec![] });
    let server = if tls { Server::start_tls(script) } else { Server::start(script) }.unwrap();
    let ((entered, was), (go, gone), (heard, hears)) = (unbounded(), unbounded(), unbounded());
    let delivery = Delivery::inline(move || Busy2 { entered: entered.clone(), go: gone.clone(), heard: heard.clone() });
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    was.recv_timeout(LONG).unwrap();
    server.push_raw(&[frame(1, b"fill 1"), frame(9, b""), frame(1, b"fill 2"), frame(1, b"fill 3")].concat());
    takes(ms(50));
    server.reset();
    assert!(server.wait_until(LONG, |r| r[0].ended));
    if order {
        client.send("order").unwrap();
    }
    let stopper = stop.then(|| {
        let c = client.clone();
        std::thread::spawn(move || c.close())
    });
    if !stop {
        client.reconnect();
    }
    takes(ms(50));
    go.send(()).unwrap();
    let mut all = vec![];
    while all.len() < 5 {
        match hears.recv_timeout(Duration::from_secs(5)) {
            Ok(t) => {
                let end = t == "closed" || t.contains("reconnect") || t.contains("asked");
                all.push(t);
                if end {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    if let Some(s) = stopper {
        let _ = s.join();
    }
    all
}

#[test]
fn a_close_whose_write_fails_reads_the_last_words() {
    let mut wrong = vec![];
    for tls in [false, true] {
        for stop in [false, true] {
            for order in [false, true] {
                let all = close_broken(tls, stop, order);
                if all.len() < 4 || all[..4] != ["go", "fill 1", "fill 2", "fill 3"] {
                    wrong.push(format!("tls {tls} stop {stop} order {order}: {all:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

// a command during a reconnect's close is forgotten
#[test]
fn a_restart_asked_for_during_a_reconnects_close_is_done() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client =
        supervisor.spawn_client(config(&server).close_timeout(ms(1000)).heartbeat(Heartbeat::disabled())).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.mute();
    client.reconnect();
    eventually("closing", || client.ready_state() == ReadyState::Closing);
    supervisor.restart_client(client.id()).unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let mut seen = vec![];
    while let Ok(e) = client.events().recv_deadline(until) {
        if matches!(e, Event::Restarted { .. }) {
            return;
        }
        seen.push(format!("{e:?}"));
    }
    panic!("never restarted: {seen:#?}");
}

// close by a handler during a reconnect's close
struct Halts;
impl Handler for Halts {
    fn on_message(&mut self, c: &mut Context<'_>, _: MessageRef<'_>) {
        c.close();
    }
}
#[test]
fn a_handlers_close_during_a_reconnect_is_done() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let config = config(&server).close_timeout(ms(1000)).heartbeat(Heartbeat::disabled());
    let client = supervisor.spawn_client(config.delivery(Delivery::inline(|| Halts))).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.mute();
    client.reconnect();
    eventually("closing", || client.ready_state() == ReadyState::Closing);
    server.push_raw(&frame(1, b"halt"));
    takes(ms(2500));
    assert_eq!(client.ready_state(), ReadyState::Closed, "epoch {}", client.epoch());
}

// an unsent that was in the disconnected event pushed to a deserted channel before the desertion is noticed
#[test]
fn a_cut_after_the_reader_has_gone_hands_back_to_the_supervisor() {
    let order = |client: &Client| drop(client.post(Request::new("order", ())).unwrap());
    let (handed, stats) = deserted(order, Server::reset);
    assert_eq!((handed.unsent.len() as u64 + 1, handed.responses.len()), (stats.unsent, 1), "{stats:?}");
}
struct Opens;
impl Handler for Opens {
    fn on_open(&mut self, c: &mut Context<'_>) {
        c.send("of the handler").unwrap();
    }
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
}
#[test]
fn what_waited_for_the_connection_goes_before_what_a_handler_sends() {
    let server = Server::start(Script::silent()).unwrap();
    let url = server.url();
    server.pause();
    let supervisor = Supervisor::start().unwrap();
    let config = ClientConfig::new(url).unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX);
    let client =
        supervisor.spawn_client(config.queue_while_disconnected(1000).delivery(Delivery::inline(|| Opens))).unwrap();
    for n in 0..1000 {
        client.send(n.to_string()).unwrap();
    }
    server.resume().unwrap();
    server.wait_for_message(|m| m.as_text() == Some("999"));
    let all = received(&server);
    let at = all.iter().position(|t| t == "of the handler");
    assert!(at.is_none_or(|at| at == 1000), "{at:?}");
}

#[test]
fn what_its_sender_took_back_costs_nothing() {
    let server = Server::start(Script::silent()).unwrap();
    let url = server.url();
    server.pause();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::bucket(1, 1, Duration::from_secs(3600)).unwrap();
    let config = ClientConfig::new(url).unwrap().backoff(ms(5), ms(20)).max_retries(u32::MAX).rate_limit(limit);
    let client = supervisor.spawn_client(config.queue_while_disconnected(10).heartbeat(Heartbeat::disabled())).unwrap();
    assert!(matches!(client.send_confirmed("a", ms(50)), Err(ConfirmError::NotSent(_))));
    server.resume().unwrap();
    next_open(&client);
    eventually("taken out", || client.stats().unsent == 1);
    client.send("b").unwrap();
}
