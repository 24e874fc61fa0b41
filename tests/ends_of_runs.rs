//! The end of a run is decided once, before user code receives its last events; a handler outlives every restart but its own
//! panic; and each message that was received before a panic is delivered or counted.
#![allow(missing_docs)]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, frame, ms, wait_for_state};
use parking_lot::Mutex;
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Client, Context, Delivery, Event, Handler, Heartbeat, Message, MessageRef, ParkReason, ReadyState, Request,
    Restart, SendError, StopError, Supervisor, SupervisorEvent, UserCode,
};

/// What one handler received, and what it does about it.
#[derive(Clone, Default)]
struct Plan {
    log: Arc<Mutex<Vec<String>>>,
    built: Arc<AtomicUsize>,
    panics_at: &'static str,
    closes_at: &'static str,
    waits_at: Option<(&'static str, crossbeam_channel::Receiver<()>)>,
}

struct Logging(Plan, usize);

impl Plan {
    fn delivery(&self) -> Delivery {
        let plan = self.clone();
        Delivery::inline(move || Logging(plan.clone(), plan.built.fetch_add(1, Ordering::SeqCst) + 1))
    }

    fn received(&self, what: &str) -> usize {
        self.log.lock().iter().filter(|line| line.contains(what)).count()
    }
}

impl Logging {
    fn note(&self, context: &mut Context<'_>, what: String) {
        let Self(plan, number) = self;
        plan.log.lock().push(format!("{number}: {what}"));
        if !plan.closes_at.is_empty() && what.starts_with(plan.closes_at) {
            context.close();
        }
        if let Some((at, go)) = plan.waits_at.as_ref().filter(|(at, _)| what.starts_with(at)) {
            go.recv_timeout(LONG).unwrap_or_else(|_| panic!("nobody let it go on at {at}"));
        }
        assert!(plan.panics_at.is_empty() || !what.starts_with(plan.panics_at), "as planned");
    }
}

impl Handler for Logging {
    fn on_open(&mut self, context: &mut Context<'_>) {
        let epoch = context.epoch();
        self.note(context, format!("open {epoch:?}"));
    }

    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        let text = message.as_text().unwrap_or_default().to_owned();
        if text == "timer" {
            context.schedule(context.now() + ms(300), 7);
        }
        self.note(context, format!("message {text}"));
    }

    fn on_timer(&mut self, context: &mut Context<'_>, token: u64) {
        self.note(context, format!("timer {token}"));
    }

    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        self.note(context, event.kind().to_owned());
    }
}

/// Nothing dials within this time, which is far more than a retry takes here.
fn stays_at(server: &Server, accepts: usize) {
    let until = Instant::now() + ms(600);
    while Instant::now() < until {
        assert_eq!(server.accepts(), accepts, "it dialled again");
        std::thread::park_timeout(ms(10));
    }
}

#[test]
fn a_client_that_its_handler_closed_stays_closed_when_the_handler_panics_at_the_event() {
    for restart in [Restart::Transient, Restart::Temporary] {
        let server = Server::start(Script::silent()).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let alerts = supervisor.events();
        let plan = Plan { panics_at: "closed", closes_at: "message halt", ..Plan::default() };
        let client = supervisor.spawn_client(config(&server).restart(restart).delivery(plan.delivery())).unwrap();
        client.wait_until_open(LONG).unwrap();
        server.push("halt");
        wait_for_state(&client, ReadyState::Closed);
        stays_at(&server, 1);
        let events: Vec<_> = alerts.try_iter().collect();
        let [SupervisorEvent::UserCodePanicked { code: UserCode::Handler, .. }, SupervisorEvent::Closed { .. }] =
            &events[..]
        else {
            panic!("{events:?}")
        };
    }
}

#[test]
fn a_refusal_parks_whatever_the_handler_does_when_it_receives_it() {
    for panics_at in ["parked", "connect_failed"] {
        let server = Server::start(Script::refuse(403)).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let plan = Plan { panics_at, ..Plan::default() };
        let client = supervisor.spawn_client(config(&server).delivery(plan.delivery())).unwrap();
        wait_for_state(&client, ReadyState::Parked);
        eventually("listed as parked", || supervisor.count_clients().parked == 1);
        stays_at(&server, 1);
        server.set_script(Script::silent());
        supervisor.resume_client(client.id()).unwrap();
        client.wait_until_open(LONG).unwrap();
    }
}

#[test]
fn a_command_that_is_granted_while_the_client_parks_is_carried_out() {
    for at in ["connect_failed", "parked"] {
        for reconnects in [false, true] {
            if (at, reconnects) == ("parked", true) {
                continue;
            }
            let server = Server::start(Script::refuse(403)).unwrap();
            let supervisor = Supervisor::start().unwrap();
            let (go_on, go) = crossbeam_channel::unbounded();
            let plan = Plan { waits_at: Some((at, go)), ..Plan::default() };
            let client = supervisor.spawn_client(config(&server).delivery(plan.delivery())).unwrap();
            eventually("the handler waits", || plan.received(at) == 1);
            server.set_script(Script::silent());
            match reconnects {
                true => client.reconnect(),
                false => supervisor.restart_client(client.id()).unwrap(),
            }
            (0..3).for_each(|_| go_on.send(()).unwrap());
            client.wait_until_open(LONG).unwrap();
            assert_eq!(plan.built.load(Ordering::SeqCst), 1, "no panic, no other handler");
        }
    }
}

#[test]
fn a_handler_that_closes_its_client_as_an_attempt_fails_closes_it() {
    let server = Server::start(Script::refuse(403)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let plan = Plan { closes_at: "connect_failed", ..Plan::default() };
    let client = supervisor.spawn_client(config(&server).delivery(plan.delivery())).unwrap();
    wait_for_state(&client, ReadyState::Closed);
    assert_eq!(plan.received("parked"), 0, "{:?}", plan.log.lock());
    eventually("gone", || supervisor.resume_client(client.id()) == Err(StopError::NotFound));
    stays_at(&server, 1);
}

#[test]
fn a_handler_lives_until_it_panics_through_every_other_restart() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let plan = Plan { panics_at: "message panic", ..Plan::default() };
    let fails = Arc::new(AtomicUsize::new(0));
    let failing = fails.clone();
    let config = config(&server)
        .max_retries(0)
        .delivery(plan.delivery())
        .heartbeat(Heartbeat::ping_pong(ms(200)).max_missed(1))
        .prepare(move |_| {
            let left = failing.load(Ordering::SeqCst);
            failing.store(left.saturating_sub(1), Ordering::SeqCst);
            assert!(left == 0, "a panic of `prepare`");
            Ok(())
        });
    let client = supervisor.spawn_client(config).unwrap();
    let is_open_after = |epoch| {
        eventually("the next connection", || client.epoch() > epoch && client.ready_state() == ReadyState::Open);
    };
    is_open_after(0);
    supervisor.restart_client(client.id()).unwrap();
    is_open_after(1);
    server.push("timer");
    eventually("scheduled", || plan.received("message timer") == 1);
    // Retries exhausted.
    server.cut();
    is_open_after(2);
    eventually("timers live as long as their handler", || plan.received("timer 7") == 1);
    // A heartbeat that is lost.
    server.set_script(Script::silent());
    let epoch = client.epoch();
    server.mute();
    is_open_after(epoch);
    // A panic of other code.
    fails.store(1, Ordering::SeqCst);
    let epoch = client.epoch();
    client.reconnect();
    is_open_after(epoch);
    // Parked and resumed.
    supervisor.park_client(client.id()).unwrap();
    eventually("parked", || supervisor.count_clients().parked == 1);
    supervisor.resume_client(client.id()).unwrap();
    is_open_after(client.epoch());
    assert_eq!(plan.built.load(Ordering::SeqCst), 1, "{:?}", plan.log.lock());
    let epoch = client.epoch();
    server.push("panic");
    is_open_after(epoch);
    assert_eq!(plan.built.load(Ordering::SeqCst), 2);
}

#[test]
fn what_was_received_before_a_panic_is_delivered_or_counted() {
    for (inline, in_batches) in [(true, false), (false, false), (false, true)] {
        // Kept until the session is open, and then never delivered.
        let greeting: Vec<Message> = (0..100).map(|n| Message::text(format!("t{n}"))).collect();
        let server = Server::start(Script::silent().greet(move |_| greeting.clone())).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let (plan, times) = (Plan::default(), AtomicUsize::new(0));
        let delivery = match (inline, in_batches) {
            (true, _) => plan.delivery(),
            (false, true) => Delivery::batches(),
            (false, false) => Delivery::channel(),
        };
        let heartbeat = Heartbeat::expect(Duration::from_secs(3600), |message| {
            assert!(message.as_text() != Some("boom"), "a panic of the matcher");
            false
        });
        let config = config(&server).delivery(delivery).heartbeat(heartbeat).on_open(move |session| {
            let _ = session.call::<i32>(Request::new("unanswered", ()).timeout(ms(100)));
            assert!(times.fetch_add(1, Ordering::SeqCst) > 0, "a panic of `on_open`");
            Ok(())
        });
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        let events = client.events();
        let mut read = 0;
        let mut delivered = || {
            read += events
                .try_iter()
                .map(|event| match event {
                    Event::Message(_) => 1,
                    Event::Messages(messages) => messages.len() as u64,
                    _ => 0,
                })
                .sum::<u64>();
            if inline { plan.received("message") as u64 } else { read }
        };
        eventually("the second session's are delivered", || delivered() == 100);
        assert_eq!((client.stats().received, client.stats().dropped), (200, 100));
        // In one read, the panic in the middle.
        let texts = (0..101).map(|n| if n == 50 { "boom".to_owned() } else { format!("u{n}") });
        let burst: Vec<u8> = texts.flat_map(|text| frame(1, text.as_bytes())).collect();
        server.push_raw(&burst);
        eventually("the third connection", || client.epoch() == 2 && delivered() == 250);
        assert_eq!(client.stats().dropped, 151, "one that was being looked at, and 50 behind it");
    }
}

#[test]
fn a_permanent_client_that_closes_itself_when_it_opens_is_paced_and_parked() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::builder().intensity(3, Duration::from_secs(60)).start().unwrap();
    let plan = Plan { closes_at: "open", ..Plan::default() };
    let config = config(&server).restart(Restart::Permanent).delivery(plan.delivery());
    let client = supervisor.spawn_client(config).unwrap();
    wait_for_state(&client, ReadyState::Parked);
    assert_eq!(server.accepts(), 4, "the first, and three restarts");
}

#[test]
fn a_parked_client_whose_handler_has_returned_does_not_stall() {
    let server = Server::start(Script::refuse(403)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let alerts = supervisor.events();
    let plan = Plan::default();
    let config = config(&server).stall_threshold(ms(20)).delivery(plan.delivery());
    let client = supervisor.spawn_client(config).unwrap();
    wait_for_state(&client, ReadyState::Parked);
    std::thread::park_timeout(ms(200));
    server.set_script(Script::silent());
    supervisor.resume_client(client.id()).unwrap();
    client.wait_until_open(LONG).unwrap();
    assert!(alerts.try_iter().all(|event| !matches!(event, SupervisorEvent::Stalled { .. })));
    assert!(client.stats().longest_turn < ms(200), "{:?}", client.stats().longest_turn);
}

#[test]
fn a_client_is_parked_by_hand_and_by_the_venues_close_code() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).park_on_close([4401])).unwrap();
    client.wait_until_open(LONG).unwrap();
    client.send("last order").unwrap();
    supervisor.park_client(client.id()).unwrap();
    eventually("parked", || supervisor.count_clients().parked == 1);
    assert_eq!(server.records()[0].received.len(), 1, "what was accepted is written first");
    stays_at(&server, 1);
    supervisor.restart_client(client.id()).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.close_all(4401, "key revoked");
    wait_for_state(&client, ReadyState::Parked);
    stays_at(&server, 2);
    let reason = supervisor.list_clients()[0].parked.clone();
    assert!(matches!(&reason, Some(ParkReason::ClosedByServer(frame)) if frame.code == 4401), "{reason:?}");
}

/// Sends until a message is refused because `end` has ended the connection. By then the client no longer says that it is open.
fn send_until_not_open(client: &Client, end: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(end);
        loop {
            match client.send("one more") {
                Err(SendError::NotOpen { .. }) => break assert_ne!(client.ready_state(), ReadyState::Open),
                Ok(()) | Err(SendError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    });
}

/// Many messages wait to be written, so that much is to be collected between the change of state and the refusals.
#[test]
fn a_client_that_says_it_is_open_refuses_no_message_as_not_open() {
    let supervisor = Supervisor::start().unwrap();
    for round in 0..6 {
        let server = Server::scripted(|number| match number {
            1 => Script::silent(),
            _ => Script::refuse(503),
        })
        .unwrap();
        server.deafen(true);
        let config = config(&server).send_capacity(100_000).close_timeout(ms(50));
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        eventually("much waits", || {
            let accepted = (0..1000).filter(|_| client.send("x".repeat(1000)).is_ok());
            accepted.count() > 0 && client.stats().queued > 5_000
        });
        match round % 2 {
            0 => send_until_not_open(&client, || assert_eq!(server.reset(), 1)),
            _ => send_until_not_open(&client, || client.reconnect()),
        }
        // With 50 ms of grace the thread may be reported as late.
        let _ = supervisor.stop_client(client.id());
    }
}
