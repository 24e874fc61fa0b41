//! What lives on the client's own thread: timers, the watch over a handler that does not return, the kernel's
//! timestamps, and callers who write while that thread sleeps.

mod common;

use std::time::Instant;

use common::{LONG, config, eventually, ms};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{
    Context, Delivery, Handler, IdleStrategy, Message, MessageRef, Supervisor, SupervisorEvent, TlsBackend,
};

/// Asks for ten timers when it opens, out of order; one more for each; and says which fired, and whether too soon.
struct Metronome {
    fired: Sender<(u64, bool)>,
    asked: Vec<(Instant, u64)>,
}

impl Metronome {
    fn ask(&mut self, context: &mut Context<'_>, at: Instant, token: u64) {
        context.schedule(at, token);
        self.asked.push((at, token));
    }
}

impl Handler for Metronome {
    fn on_open(&mut self, context: &mut Context<'_>) {
        let now = context.now();
        for token in (0..10).rev() {
            self.ask(context, now + ms(5) * token as u32, token);
        }
        context.schedule(now, 99);
        assert!(context.cancel(99));
        assert!(!context.cancel(99));
    }

    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        assert_eq!(Some(context.now()), message.received_at());
    }

    fn on_timer(&mut self, context: &mut Context<'_>, token: u64) {
        let due = self.asked.iter().find(|(_, other)| *other == token).map(|(at, _)| *at);
        let early = due.is_none_or(|due| Instant::now() < due || context.now() < due);
        self.fired.send((token, early)).unwrap();
        if token < 10 {
            context.send(token.to_string()).unwrap();
            let again = context.now() + ms(100);
            self.ask(context, again, token + 10);
        }
    }
}

#[test]
fn a_handlers_timers_fire_in_order_never_early_and_what_they_send_is_sent() {
    for idle in [IdleStrategy::Park, IdleStrategy::BusySpin] {
        let server = Server::echo().unwrap();
        let supervisor = Supervisor::start().unwrap();
        let (fired, seen) = unbounded();
        let delivery = Delivery::inline(move || Metronome { fired: fired.clone(), asked: vec![] });
        supervisor.spawn_client(config(&server).idle_strategy(idle).delivery(delivery)).unwrap();
        for token in 0..20 {
            assert_eq!(seen.recv_timeout(LONG), Ok((token, false)), "{idle:?}");
        }
        assert!(server.wait_until(LONG, |records| records[0].received.len() == 10));
        let sent: Vec<_> = (0..10).map(|n| Message::from(n.to_string())).collect();
        assert_eq!(server.records()[0].received, sent);
        assert!(supervisor.shutdown(LONG).left_behind.is_empty());
    }
}

#[test]
fn timers_outlive_a_connection_but_not_their_handler() {
    struct Patient(Sender<u64>);
    impl Handler for Patient {
        fn on_open(&mut self, context: &mut Context<'_>) {
            let epoch = context.epoch().unwrap();
            let at = context.now() + if epoch == 3 { ms(1) } else { ms(200) };
            context.schedule(at, epoch);
        }
        fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
            panic!("a panic that a test asked for");
        }
        fn on_timer(&mut self, _: &mut Context<'_>, token: u64) {
            self.0.send(token).unwrap();
        }
    }
    let server = Server::scripted(|n| match n {
        0 => Script::silent().then_cut(),
        _ => Script::silent(),
    })
    .unwrap();
    let supervisor = Supervisor::start().unwrap();
    let (fired, seen) = unbounded();
    let delivery = Delivery::inline(move || Patient(fired.clone()));
    let client = supervisor.spawn_client(config(&server).delivery(delivery)).unwrap();
    assert_eq!(seen.recv_timeout(LONG), Ok(1), "scheduled on the first connection, fired on the second");
    assert_eq!(seen.recv_timeout(LONG), Ok(2));
    server.cut();
    eventually("open a third time", || client.epoch() == 3);
    assert_eq!(seen.recv_timeout(LONG), Ok(3));
    server.push("panic");
    eventually("restarted", || client.stats().restarts == 1);
    assert_eq!(seen.recv_timeout(LONG), Ok(4), "the new handler's own");
}

struct Held {
    entered: Sender<()>,
    held: Receiver<()>,
}

impl Handler for Held {
    fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {
        self.entered.send(()).unwrap();
        let _ = self.held.recv();
    }
}

#[test]
fn a_handler_that_does_not_return_is_told_of_while_it_lasts_and_counted_when_it_ends() {
    for idle in [IdleStrategy::Park, IdleStrategy::BusySpin] {
        let server = Server::start(Script::silent()).unwrap();
        let supervisor = Supervisor::start().unwrap();
        let (entered, is_in) = unbounded();
        let (release, held) = bounded(0);
        let delivery = Delivery::inline(move || Held { entered: entered.clone(), held: held.clone() });
        let config = config(&server).name("held").idle_strategy(idle).stall_threshold(ms(50)).delivery(delivery);
        let client = supervisor.spawn_client(config).unwrap();
        client.wait_until_open(LONG).unwrap();
        for n in 1..=2 {
            server.push("tick");
            is_in.recv_timeout(LONG).unwrap();
            match supervisor.events().recv_timeout(LONG) {
                Ok(SupervisorEvent::Stalled { name, lasts, client: id, .. }) => {
                    assert_eq!((&*name, id), ("held", client.id()));
                    assert!(lasts > ms(50) && lasts < LONG, "{lasts:?}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(client.stats().stalls, n - 1, "it has not ended");
            release.send(()).unwrap();
            eventually("counted", || client.stats().stalls == n);
            assert!(client.stats().longest_turn > ms(50));
        }
        assert!(supervisor.events().try_recv().is_err(), "once a turn");
    }
}

/// What a caller pays for is one write, not the wake-up of a thread that would do it.
#[cfg(target_os = "linux")]
#[test]
fn a_caller_writes_while_the_worker_sleeps() {
    const MESSAGES: usize = 2000;
    let server = Server::start(Script::silent()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let client = supervisor.spawn_client(config(&server).name("asleep")).unwrap();
    assert_eq!(common::next_open(&client), 1);
    let switches = || common::thread_status("asleep", "voluntary_ctxt_switches").unwrap().parse::<usize>().unwrap();
    let before = switches();
    for n in 0..MESSAGES {
        client.send_confirmed(n.to_string(), LONG).unwrap();
    }
    let woken = switches() - before;
    assert!(woken < MESSAGES / 4, "{woken} wake-ups for {MESSAGES} messages, one after another");
    assert!(server.wait_until(LONG, |records| records[0].received.len() == MESSAGES));
    let all = server.records().remove(0).received;
    let expected: Vec<_> = (0..MESSAGES).map(|n| Message::from(n.to_string())).collect();
    assert_eq!(all, expected);
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernels_timestamps_tell_how_long_a_message_sat_in_the_socket() {
    for tls in [false, true] {
        let script = Script::silent();
        let server = if tls { Server::start_tls(script).unwrap() } else { Server::start(script).unwrap() };
        let supervisor = Supervisor::start().unwrap();
        let (entered, is_in) = unbounded();
        let (release, held) = bounded(0);
        struct Telling(Held, Sender<Option<std::time::Duration>>);
        impl Handler for Telling {
            fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
                self.1.send(message.time_in_socket()).unwrap();
                self.0.on_message(context, message);
            }
        }
        let (times, told) = unbounded();
        let delivery =
            Delivery::inline(move || Telling(Held { entered: entered.clone(), held: held.clone() }, times.clone()));
        let client = supervisor.spawn_client(config(&server).kernel_timestamps(true).delivery(delivery)).unwrap();
        client.wait_until_open(LONG).unwrap();
        // Linux begins to stamp a moment after it is asked to: the first messages may have no time.
        let prompt = std::iter::from_fn(|| {
            server.push("while it waits");
            is_in.recv_timeout(LONG).unwrap();
            let stamp = told.recv_timeout(LONG).unwrap();
            if stamp.is_none() {
                release.send(()).unwrap();
            }
            Some(stamp)
        });
        let prompt = prompt.take(1000).flatten().next().expect("a timestamp");
        assert!(prompt < LONG, "{prompt:?}");
        server.push("while it is held");
        // Not a wait for a condition: the time itself is what is measured.
        let begun = Instant::now();
        eventually("half a second has gone by", || begun.elapsed() > ms(500));
        release.send(()).unwrap();
        is_in.recv_timeout(LONG).unwrap();
        let late = told.recv_timeout(LONG).unwrap().expect("a timestamp");
        assert!(late > ms(250) && late < begun.elapsed() + ms(250), "{late:?}");
        release.send(()).unwrap();
        eventually("recorded", || client.stats().time_in_socket.max > ms(250));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_real_time_priority_holds_or_is_an_error_at_the_start() {
    use ws_supervisor::StartError;
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    for priority in [0, 100] {
        let refused = supervisor.spawn_client(config(&server).real_time_priority(priority));
        assert!(matches!(refused, Err(StartError::Config(_))), "{refused:?}");
    }
    match supervisor.spawn_client(config(&server).name("urgent").real_time_priority(7)) {
        Ok(client) => {
            client.wait_until_open(LONG).unwrap();
            assert_eq!(common::thread_schedule("urgent"), Some((1, 7)), "SCHED_FIFO");
        }
        Err(StartError::Os(message)) => {
            assert!(message.contains("real_time_priority") && message.contains("CAP_SYS_NICE"), "{message}");
            assert_eq!(server.accepts(), 0);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pings_leave_their_round_trips_in_the_stats() {
    let server = Server::echo().unwrap();
    let supervisor = Supervisor::start().unwrap();
    let heartbeat = ws_supervisor::Heartbeat::ping_pong(ms(20));
    let client = supervisor.spawn_client(config(&server).heartbeat(heartbeat)).unwrap();
    eventually("five", || client.stats().ping_round_trip.count >= 5);
    let times = client.stats().ping_round_trip;
    assert!(times.min <= times.p50 && times.p50 <= times.p99 && times.p99 <= times.p999, "{times:?}");
    assert!(times.max >= times.p999 && times.max < LONG, "{times:?}");
    assert_eq!(client.stats().time_in_socket.count, 0, "nobody asked");
}

#[test]
fn a_stack_too_small_for_tls_is_an_error_at_the_start() {
    let server = Server::start_tls(Script::echo()).unwrap();
    let supervisor = Supervisor::start().unwrap();
    let refused = supervisor.spawn_client(config(&server).stack_size(1024));
    assert!(refused.unwrap_err().to_string().contains("stack_size"));
    let enough = if common::tls_backend() == TlsBackend::NativeTls { 64 << 10 } else { 128 << 10 };
    supervisor.spawn_client(config(&server).stack_size(enough)).unwrap().wait_until_open(LONG).unwrap();
}
