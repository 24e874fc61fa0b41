//! Small promises of supervision, limits, requests and heartbeats, one test each.
#![allow(missing_docs)]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, config, eventually, ms, next, next_open, takes, wait_for_state};
use ws_supervisor::testing::{self, Script, Server};
use ws_supervisor::{
    Client, ClientConfig, ClientPhase, Context, Delivery, Event, Handler, Heartbeat, IntensityScope, Message,
    MessageRef, RateLimit, ReadyState, Request, RequestError, SendError, StopError, Supervisor, SupervisorEvent,
};

struct Sleepy;
impl Handler for Sleepy {
    fn on_message(&mut self, _: &mut Context<'_>, m: MessageRef<'_>) {
        match m.as_text() {
            Some("panic") => panic!("told to"),
            Some(t) if t.starts_with("sleep ") => takes(ms(t[6..].parse().unwrap())),
            _ => {}
        }
    }
}
fn sleepy(server: &Server) -> ClientConfig {
    config(server).delivery(Delivery::inline(|| Sleepy)).heartbeat(Heartbeat::disabled())
}

/// A factory that has a part in `held` for as long as it lives.
fn holding(held: &Arc<()>) -> Delivery {
    let held = held.clone();
    Delivery::inline(move || {
        let _ = &held;
        Sleepy
    })
}

/// The client's handler sleeps for so long from now on.
fn sleeps(server: &Server, client: &Client, time: Duration) {
    let before = client.stats().received;
    server.push(format!("sleep {}", time.as_millis()));
    // Counted as the handler is called, which keeps callers from writing until it returns.
    eventually("asleep", || client.stats().received > before);
}

/// Messages that had not reached an abandoned thread come back in the supervisor's event, in order.
#[test]
fn messages_on_their_way_to_an_abandoned_thread_are_in_its_event_at_once() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let alerts = supervisor.events();
    let client = supervisor.spawn_client(sleepy(&server).close_timeout(ms(300))).unwrap();
    client.wait_until_open(LONG).unwrap();
    sleeps(&server, &client, ms(8000));
    for n in 0..3 {
        client.send(format!("order {n}")).unwrap();
    }
    let pending = client.start_request(Request::new("buy", ())).unwrap();
    assert!(matches!(client.close(), Err(StopError::LeftBehind(_))));
    let handed_back = loop {
        let alert = alerts.recv_timeout(ms(3000)).unwrap();
        if let SupervisorEvent::LeftBehind { handed_back, .. } = alert {
            break handed_back;
        }
    };
    assert_eq!(handed_back.unsent, [Message::from("order 0"), "order 1".into(), "order 2".into()]);
    assert!(matches!(pending.wait::<i32>(), Err(RequestError::NotSent { .. })));
}

/// Also of clients that had no thread.
#[test]
fn an_end_by_the_common_budget_drops_the_closures_of_all_clients() {
    let (bad, refused) = (Server::start(Script::silent()).unwrap(), Server::start(Script::refuse(401)).unwrap());
    let supervisor =
        Supervisor::builder().intensity(0, LONG).intensity_scope(IntensityScope::Supervisor).start().unwrap();
    let held = Arc::new(());
    let one = supervisor.spawn_client(config(&bad).delivery(holding(&held))).unwrap();
    let parked = supervisor.spawn_client(config(&refused).delivery(holding(&held))).unwrap();
    one.wait_until_open(LONG).unwrap();
    eventually("parked", || supervisor.count_clients().parked == 1);
    bad.push("panic");
    let begun = Instant::now();
    supervisor.join();
    assert!(begun.elapsed() < ms(4000), "no thread had to be awaited: {:?}", begun.elapsed());
    assert!(supervisor.shutdown(LONG).left_behind.is_empty());
    wait_for_state(&parked, ReadyState::Closed);
    eventually("dropped", || Arc::strong_count(&held) == 1);
}

/// Half written on a connection that was lost, it has paid for the next one.
#[test]
fn a_queued_message_that_was_half_written_pays_once() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let limit = RateLimit::bucket(1, 1, Duration::from_secs(3600)).unwrap();
    let c = config(&server)
        .rate_limit(limit)
        .queue_while_disconnected(10)
        .heartbeat(Heartbeat::disabled())
        .send_bytes(64 << 20);
    let client = supervisor.spawn_client(c).unwrap();
    // Larger than the kernel takes: it has paid, and is half written when the connection is reset.
    eventually("queued", || client.send("x".repeat(15 << 20)).is_ok());
    server.set_script(Script::silent().then_deaf());
    assert_eq!(next_open(&client), 1);
    takes(ms(500));
    server.set_script(Script::refuse(503));
    server.reset();
    next(&client, |e| matches!(e, Event::Disconnected { .. }).then_some(()));
    server.set_script(Script::silent());
    eventually("again", || client.epoch() == 2 && client.ready_state() == ReadyState::Open);
    server.wait_for_message(|m| m.len() == 15 << 20);
}

#[test]
fn a_message_with_reserved_tokens_in_one_of_two_limits_passes_the_queue() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let cancels = RateLimit::bucket(2, 1, Duration::from_secs(3600))
        .unwrap()
        .reserve(1, |m| m.as_text().is_some_and(|t| t.starts_with("cancel")));
    let other = RateLimit::bucket(100, 1, Duration::from_secs(1)).unwrap();
    let c = config(&server).rate_limit(cancels).rate_limit(other).queue_while_disconnected(10);
    let client = supervisor.spawn_client(c).unwrap();
    eventually("queued", || client.send("order 0").is_ok());
    for n in 1..4 {
        client.send(format!("order {n}")).unwrap();
    }
    server.set_script(Script::silent());
    assert_eq!(next_open(&client), 1);
    server.wait_for_message(|m| m.as_text() == Some("order 0"));
    takes(ms(200));
    client.send("cancel 0").unwrap();
    server.wait_for_message(|m| m.as_text() == Some("cancel 0"));
}

#[test]
fn a_refusal_reports_the_longest_wait_of_all_limits() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let short = RateLimit::bucket(1, 1, Duration::from_secs(5)).unwrap();
    let long = RateLimit::bucket(1, 1, Duration::from_secs(500)).unwrap();
    let client = supervisor.spawn_client(config(&server).rate_limit(short).rate_limit(long)).unwrap();
    client.wait_until_open(LONG).unwrap();
    client.send("a").unwrap();
    match client.send("b") {
        Err(SendError::RateLimited { retry_after, .. }) => {
            assert!(retry_after > Duration::from_secs(300), "{retry_after:?}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_factory_that_panics_every_time_is_paced() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::builder().intensity(100_000, LONG).start().unwrap();
    let n = Arc::new(AtomicUsize::new(0));
    let m = n.clone();
    let c = config(&server).delivery(Delivery::inline(move || -> Sleepy {
        m.fetch_add(1, Ordering::SeqCst);
        panic!("broken")
    }));
    let _client = supervisor.spawn_client(c).unwrap();
    takes(ms(1500));
    let made = n.load(Ordering::SeqCst);
    assert!((2..=9).contains(&made), "{made} times in 1.5 s; by 0, 50, 100, 200, 400, 800 ms it is 7");
}

#[test]
fn of_more_events_than_the_queue_holds_the_latest_are_kept() {
    let supervisor = Supervisor::start().unwrap();
    for n in 0..1_100 {
        let other = ClientConfig::new("ws://127.0.0.1:9").unwrap().name(n.to_string());
        let other = supervisor.spawn_client(other).unwrap();
        supervisor.stop_client(other.id()).unwrap();
    }
    let names: Vec<_> = supervisor.events().try_iter().filter_map(|e| e.name().map(str::to_owned)).collect();
    assert_eq!((names.len(), names.last().map(String::as_str)), (1024, Some("1099")));
}

#[test]
fn a_shutdown_is_in_time_while_the_supervisors_thread_panics_all_the_time() {
    let server = Server::start(Script::silent().then_mute()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(sleepy(&server)).unwrap();
    client.wait_until_open(LONG).unwrap();
    for _ in 0..2000 {
        testing::panic_supervisor(&supervisor);
    }
    let begun = Instant::now();
    supervisor.shutdown(ms(300));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn requests_are_counted_once_by_how_they_end() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    next_open(&client);
    // Timed out, then its id again, answered once; the second answer answers no request.
    assert!(client.call::<i32>(Request::new("a", ()).id(5).timeout(ms(50))).is_err());
    let again = client.start_request(Request::new("a", ()).id(5)).unwrap();
    server.push(r#"{"jsonrpc":"2.0","id":5,"result":1}"#);
    assert_eq!(again.wait::<i32>().unwrap(), 1);
    server.push(r#"{"jsonrpc":"2.0","id":5,"result":2}"#);
    let second = next(&client, |e| match e {
        Event::Message(m) => Some(m.as_text().unwrap().to_owned()),
        Event::LateResponse(_) => Some("late".into()),
        _ => None,
    });
    // Abandoned: its answer is an event, and not counted as late.
    drop(client.start_request(Request::new("b", ()).id(6)).unwrap());
    server.push(r#"{"jsonrpc":"2.0","id":6,"result":1}"#);
    next(&client, |e| matches!(e, Event::LateResponse(_)).then_some(()));
    let r = client.stats().requests;
    assert_eq!((r.answered, r.timed_out, r.abandoned, r.late), (1, 1, 1, 0), "{r:?}");
    assert!(second.contains("\"result\":2"), "{second}");
}

#[test]
fn a_requested_connection_does_not_wait_for_the_backoff() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let hour = Duration::from_secs(3600);
    for how in ["restart_client", "reconnect"] {
        server.set_script(Script::refuse(503));
        let c = ClientConfig::new(server.url())
            .unwrap()
            .backoff(hour, hour)
            .heartbeat(Heartbeat::disabled())
            .max_retries(u32::MAX);
        let client = supervisor.spawn_client(c).unwrap();
        eventually("in backoff", || client.stats().failed_attempts >= 1 && client.ready_state() == ReadyState::Backoff);
        server.set_script(Script::silent());
        match how {
            "restart_client" => supervisor.restart_client(client.id()).unwrap(),
            _ => client.reconnect(),
        }
        client.wait_until_open(Duration::from_secs(15)).unwrap();
    }
}

#[test]
fn a_later_client_with_a_shorter_stall_threshold_is_watched_as_closely() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let first = supervisor.spawn_client(sleepy(&server)).unwrap();
    first.wait_until_open(LONG).unwrap();
    let second = supervisor.spawn_client(sleepy(&server).stall_threshold(ms(40))).unwrap();
    second.wait_until_open(LONG).unwrap();
    let alerts = supervisor.events();
    for _ in 0..5 {
        server.push_to(1, "sleep 250");
        takes(ms(400));
    }
    let stalls = alerts.try_iter().filter(|e| matches!(e, SupervisorEvent::Stalled { .. })).count();
    assert!(stalls >= 4, "{stalls} of 5 turns of 250 ms at a threshold of 40 ms");
}

#[test]
fn heartbeats_missed_while_reading_was_paused_do_not_count() {
    for heartbeat in
        [Heartbeat::server_ping(ms(400)), Heartbeat::message(ms(150), "ping", |m| m.as_text() == Some("pong"))]
    {
        let script = Script::reply(|_, m| if m.as_text() == Some("ping") { vec!["pong".into()] } else { vec![] })
            .greet(|_| (0..3000).map(|n| Message::text(n.to_string())).collect())
            .ping_every(ms(60));
        let server = Server::start(script).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let client = supervisor.spawn_client(config(&server).heartbeat(heartbeat).event_capacity(10)).unwrap();
        eventually("full", || client.events().len() >= 10);
        takes(ms(1500));
        let mut n = 0;
        for event in client.events() {
            match event {
                Event::Message(_) => {
                    n += 1;
                    if n % 10 == 0 && n < 1500 {
                        takes(ms(2));
                    }
                    if n == 3000 {
                        break;
                    }
                }
                Event::Disconnected { reason, .. } => panic!("{reason} after {n}"),
                _ => {}
            }
        }
        takes(ms(300));
        assert_eq!((client.epoch(), client.stats().restarts), (1, 0));
    }
}

#[test]
fn an_abandoned_client_is_closed_for_all_callers() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(sleepy(&server).close_timeout(ms(300))).unwrap();
    client.wait_until_open(LONG).unwrap();
    sleeps(&server, &client, ms(8000));
    client.reconnect(); // not executed while the handler sleeps
    assert!(matches!(client.close(), Err(StopError::LeftBehind(_))));
    assert_eq!(client.ready_state(), ReadyState::Closed);
    assert!(client.wait_until_open(ms(500)).is_err_and(|e| e == ws_supervisor::WaitError::Closed));
    match client.send("late") {
        Err(SendError::NotOpen { state, .. }) => assert_eq!(state, ReadyState::Closed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reserve_of_the_whole_bucket_is_refused() {
    let all = RateLimit::bucket(5, 1, Duration::from_secs(1)).unwrap().reserve(5, |_| false);
    let most = RateLimit::bucket(5, 1, Duration::from_secs(1)).unwrap().reserve(4, |_| false);
    let config = |limit| ClientConfig::new("ws://127.0.0.1:9").unwrap().rate_limit(limit).validate();
    assert!(config(all).is_err());
    assert!(config(most).is_ok());
}

#[test]
fn a_stopped_parked_client_drops_its_closures_and_a_stopping_one_is_listed_as_stopping() {
    let (refused, mute) =
        (Server::start(Script::refuse(401)).unwrap(), Server::start(Script::silent().then_mute()).unwrap());
    let supervisor = Supervisor::start().unwrap();
    let held = Arc::new(());
    let parked = supervisor.spawn_client(config(&refused).delivery(holding(&held))).unwrap();
    eventually("parked", || supervisor.count_clients().parked == 1);
    supervisor.stop_client(parked.id()).unwrap();
    assert_eq!(Arc::strong_count(&held), 1);
    let slow = supervisor.spawn_client(config(&mute).close_timeout(ms(2000))).unwrap();
    slow.wait_until_open(LONG).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| supervisor.stop_client(slow.id()));
        eventually("stopping", || {
            supervisor.list_clients().first().is_some_and(|i| i.phase == ws_supervisor::ClientPhase::Stopping)
        });
    });
}

#[test]
fn posted_requests_are_reported_before_closed_in_their_order() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server)).unwrap();
    next_open(&client);
    let ids: Vec<_> = (0..3).map(|_| client.post(Request::new("buy", ())).unwrap()).collect();
    eventually("written", || server.records()[0].received.len() == 3);
    client.close().unwrap();
    let mut reported = vec![];
    for event in client.events() {
        match event {
            Event::Response(response) => reported.push(response.id.clone()),
            Event::Closed { .. } => break,
            _ => {}
        }
    }
    assert_eq!(reported, ids);
}

#[test]
fn a_caller_waiting_for_an_abandoned_client_gets_its_error_at_once() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor
        .spawn_client(sleepy(&server).close_timeout(ms(300)).request_timeout(Duration::from_secs(60)))
        .unwrap();
    client.wait_until_open(LONG).unwrap();
    let pending = client.start_request(Request::new("buy", ())).unwrap();
    eventually("written", || server.records()[0].received.len() == 1);
    sleeps(&server, &client, ms(8000));
    let begun = Instant::now();
    assert!(matches!(client.close(), Err(StopError::LeftBehind(_))));
    assert!(matches!(pending.wait::<i32>(), Err(RequestError::OutcomeUnknown { .. })));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn a_message_heartbeat_beside_pings_receives_its_answers() {
    let script = Script::reply(|_, m| if m.as_text() == Some("ping") { vec!["pong".into()] } else { vec![] });
    let server = Server::start(script).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let both = Heartbeat::ping_pong(ms(200)).and(Heartbeat::message(ms(200), "ping", |m| m.as_text() == Some("pong")));
    let client = supervisor.spawn_client(config(&server).heartbeat(both)).unwrap();
    assert_eq!(next_open(&client), 1);
    takes(ms(2000));
    assert_eq!((client.epoch(), client.stats().restarts), (1, 0));
    assert!(client.events().try_iter().all(|e| !matches!(e, Event::Message(_))), "its answers are not delivered");
}

#[test]
fn a_cost_counts_beside_a_limit_without_one() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let hour = Duration::from_secs(3600);
    let costly = RateLimit::bucket(10, 1, hour)
        .unwrap()
        .cost(|m| if m.as_text().is_some_and(|t| t.contains("buy")) { 5 } else { 1 });
    let plain = RateLimit::bucket(100, 1, hour).unwrap();
    let client = supervisor.spawn_client(config(&server).rate_limit(costly).rate_limit(plain)).unwrap();
    next_open(&client);
    let outcomes: Vec<_> = (0..3).map(|_| client.start_request(Request::new("buy", ())).is_ok()).collect();
    assert_eq!(outcomes, [true, true, false]);
}

#[test]
fn misses_are_counted_in_a_row() {
    let server = Server::start(Script::silent().then_mute()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client =
        supervisor.spawn_client(config(&server).heartbeat(Heartbeat::ping_pong(ms(400)).max_missed(3))).unwrap();
    assert_eq!(next_open(&client), 1);
    // The server answers no ping; now and then an unsolicited pong is all that comes.
    for _ in 0..6 {
        takes(ms(1000));
        server.push_raw(&[0x8a, 0]);
    }
    assert_eq!(client.stats().restarts, 0, "{:?}", client.heartbeat_health());
}

#[test]
fn values_for_the_handler_of_an_ended_client_are_dropped() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(sleepy(&server)).unwrap();
    client.wait_until_open(LONG).unwrap();
    let held = Arc::new(());
    sleeps(&server, &client, ms(700));
    for _ in 0..3 {
        client.tell(held.clone()).unwrap();
    }
    client.close().unwrap();
    eventually("dropped", || Arc::strong_count(&held) == 1);
}

#[test]
fn a_resumed_client_does_not_wait_for_the_backoff_of_before() {
    let server = Server::start(Script::refuse(503)).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let hour = Duration::from_secs(3600);
    let waits = ClientConfig::new(server.url()).unwrap().backoff(hour, hour).max_retries(u32::MAX);
    let client = supervisor.spawn_client(waits).unwrap();
    eventually("in backoff", || client.stats().failed_attempts >= 1 && client.ready_state() == ReadyState::Backoff);
    supervisor.park_client(client.id()).unwrap();
    eventually("parked", || client.ready_state() == ReadyState::Parked);
    server.set_script(Script::silent());
    supervisor.resume_client(client.id()).unwrap();
    client.wait_until_open(LONG).unwrap();
}

/// Sends as many requests as it is told to.
struct Asks(crossbeam_channel::Sender<(usize, Option<RequestError>)>);

impl Handler for Asks {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        let count: usize = message.as_text().unwrap().parse().unwrap();
        let mut sent = 0;
        let refused = (0..count).find_map(|_| {
            let result = context.request(Request::new("buy", ()));
            sent += usize::from(result.is_ok());
            result.err()
        });
        self.0.send((sent, refused)).unwrap();
    }
}

#[test]
fn a_request_beyond_the_most_that_may_be_pending_leaves_no_trace_in_the_account() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (sender, asked) = crossbeam_channel::unbounded();
    let delivery = Delivery::inline(move || Asks(sender.clone()));
    let config = sleepy(&server).delivery(delivery).send_capacity(100_000);
    let client = supervisor.spawn_client(config).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("70000");
    let (sent, refused) = asked.recv_timeout(Duration::from_secs(120)).unwrap();
    assert!(matches!(refused, Some(RequestError::TooManyPending { limit, .. }) if limit == sent), "{refused:?}");
    assert_eq!(client.stats().accepted, sent as u64);
    eventually("all have left", || client.stats().queued == 0);
}

/// Panics, and takes its time to be dropped.
struct Lingers(crossbeam_channel::Receiver<()>, crossbeam_channel::Sender<()>);

impl Handler for Lingers {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        panic!("told to");
    }
}

impl Drop for Lingers {
    fn drop(&mut self) {
        let _ = self.1.send(());
        let _ = self.0.recv_timeout(LONG);
    }
}

#[test]
fn a_client_stopped_while_its_panicked_thread_ends_is_not_restarted() {
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let ((go_on, may_go_on), (drops, dropped)) = (crossbeam_channel::unbounded(), crossbeam_channel::unbounded());
    let delivery = Delivery::inline(move || Lingers(may_go_on.clone(), drops.clone()));
    let client = supervisor.spawn_client(sleepy(&server).close_timeout(LONG).delivery(delivery)).unwrap();
    client.wait_until_open(LONG).unwrap();
    server.push("panic");
    dropped.recv_timeout(LONG).unwrap();
    eventually("a restart was decided", || client.ready_state() == ReadyState::Connecting);
    let events = supervisor.events();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| supervisor.stop_client(client.id()));
        eventually("it is stopping", || supervisor.list_clients().iter().all(|one| one.phase == ClientPhase::Stopping));
        go_on.send(()).unwrap();
        assert_eq!(stop.join().unwrap(), Ok(()));
    });
    let restarted = events.try_iter().find(|event| matches!(event, SupervisorEvent::Restarted { .. }));
    assert!(restarted.is_none() && server.accepts() == 1, "{restarted:?}");
}
