//! The heartbeat's machine, driven by a clock of the tests' own.

#![cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]

#[cfg(feature = "property-tests")]
use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);

/// With nothing heard.
fn tick(monitor: &mut Monitor, now: Instant, caught_up: bool) -> Beat {
    let long_ago = monitor.looked_at;
    monitor.tick(now, caught_up, long_ago, false)
}

fn ping_of(action: Beat) -> Bytes {
    match action {
        Beat::Ping(payload) => payload,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ping_is_answered_by_its_own_pong_only() {
    let t0 = Instant::now();
    let (mut monitor, first) = Monitor::open(Heartbeat::ping_pong(S), 7, t0);
    assert_eq!(first, Beat::Nothing);
    assert_eq!(tick(&mut monitor, t0 + S / 2, true), Beat::Nothing);
    let one = ping_of(tick(&mut monitor, t0 + S, true));
    assert!(!monitor.pong(b"", t0 + S));
    assert!(!monitor.pong(&[0; 16], t0 + S));
    assert!(monitor.pong(&one, t0 + S + S / 4));
    assert_eq!(monitor.round_trip(), Some(S / 4));
    assert!(!monitor.pong(&one, t0 + S + S / 2), "answered once");
    let two = ping_of(tick(&mut monitor, t0 + 2 * S, true));
    assert_ne!(one, two);
}

#[test]
fn misses_in_a_row_lose_the_line_and_a_late_pong_saves_it() {
    let t0 = Instant::now();
    let (mut monitor, _) = Monitor::open(Heartbeat::ping_pong(S).max_missed(2), 7, t0);
    let one = ping_of(tick(&mut monitor, t0 + S, true));
    ping_of(tick(&mut monitor, t0 + 2 * S, true));
    assert_eq!(monitor.failures(), 1);
    assert!(monitor.pong(&one, t0 + 2 * S), "late, but its own");
    assert_eq!(monitor.failures(), 0);
    ping_of(tick(&mut monitor, t0 + 3 * S, true));
    assert_eq!(monitor.failures(), 1);
    assert_eq!(tick(&mut monitor, t0 + 4 * S, true), Beat::Lost { missed: 2 });
    assert_eq!(monitor.due(), None);
}

#[test]
fn what_may_wait_unread_is_not_counted_as_missing() {
    let t0 = Instant::now();
    let (mut monitor, _) = Monitor::open(Heartbeat::ping_pong(S).max_missed(1), 7, t0);
    for second in 1..200 {
        ping_of(tick(&mut monitor, t0 + second * S, false));
    }
    monitor.excuse(t0 + 200 * S);
    ping_of(tick(&mut monitor, t0 + 201 * S, true));
    assert_eq!(tick(&mut monitor, t0 + 202 * S, true), Beat::Lost { missed: 1 });
}

#[test]
fn silence_of_the_servers_pings_is_lost_at_once() {
    let t0 = Instant::now();
    let (mut monitor, _) = Monitor::open(Heartbeat::server_ping(60 * S), 7, t0);
    assert!(monitor.ping(t0 + 59 * S));
    assert_eq!(tick(&mut monitor, t0 + 60 * S, true), Beat::Nothing);
    assert_eq!(tick(&mut monitor, t0 + 119 * S, true), Beat::Lost { missed: 1 });
}

#[test]
fn a_message_heartbeat_is_sent_and_matched() {
    let t0 = Instant::now();
    let (mut monitor, _) = Monitor::open(Heartbeat::message(S, "ping", |m| m.as_text() == Some("pong")), 7, t0);
    assert_eq!(tick(&mut monitor, t0 + S, true), Beat::Send(Message::text("ping")));
    assert!(!monitor.message(Message::text("tick").view(), t0 + S).ours);
    assert!(monitor.message(Message::text("pong").view(), t0 + S).ours);
    assert_eq!(tick(&mut monitor, t0 + 2 * S, true), Beat::Send(Message::text("ping")));
    tick(&mut monitor, t0 + 3 * S, true);
    assert_eq!(tick(&mut monitor, t0 + 4 * S, true), Beat::Lost { missed: 2 });
}

#[test]
fn disabled_is_never_due() {
    let (mut monitor, first) = Monitor::open(Heartbeat::disabled(), 7, Instant::now());
    assert_eq!((first, monitor.due()), (Beat::Nothing, None));
    assert_eq!(tick(&mut monitor, Instant::now() + 1000 * S, true), Beat::Nothing);
}

#[cfg(feature = "property-tests")]
proptest! {
    /// Whatever comes in and whenever, the line is lost exactly when `max_missed` pings in a row went unanswered.
    #[test]
    fn lost_exactly_after_max_missed_in_a_row(max in 1u32..5, answers in proptest::collection::vec(any::<bool>(), 1..40)) {
        let mut now = Instant::now();
        let (mut monitor, _) = Monitor::open(Heartbeat::ping_pong(S).max_missed(max), 7, now);
        let mut in_a_row = 0;
        let mut outstanding = false;
        for answered in answers {
            now += S;
            if outstanding { in_a_row += 1; }
            let action = tick(&mut monitor, now, true);
            if in_a_row >= max {
                prop_assert_eq!(action, Beat::Lost { missed: max });
                return Ok(());
            }
            let payload = ping_of(action);
            outstanding = !answered;
            if answered {
                prop_assert!(monitor.pong(&payload, now + S / 10));
                in_a_row = 0;
            }
            prop_assert_eq!(monitor.failures(), in_a_row);
        }
    }
}

/// After a machine slept: what asks asks at once, and one who waits for the server goes on waiting.
#[test]
fn only_a_heartbeat_that_asks_is_due_after_a_sleep() {
    let t0 = Instant::now();
    let (mut asks, _) = Monitor::open(Heartbeat::ping_pong(60 * S), 7, t0);
    asks.ask_now(t0 + S);
    assert_eq!(asks.due(), Some(t0 + S));
    for waits in [Heartbeat::server_ping(60 * S), Heartbeat::expect(60 * S, |_| true), Heartbeat::disabled()] {
        let (mut waits, _) = Monitor::open(waits, 7, t0);
        let before = waits.due();
        waits.ask_now(t0 + S);
        assert_eq!(waits.due(), before, "a server's next ping comes when it comes");
    }
}

struct Beats;

impl crate::policy::heartbeat::HeartbeatDialect for Beats {
    fn classify(&self, _: MessageRef<'_>) -> Classified {
        Classified::Alive { reply: None }
    }
}

/// Two misses in a row: an interval and a half for the first, and an interval more.
#[test]
fn a_venue_that_sends_heartbeats_has_two_intervals_and_a_half() {
    let t0 = Instant::now();
    let (mut monitor, _) = Monitor::open(Heartbeat::dialect(2 * S, Beats), 7, t0);
    let message = Message::text("beat");
    monitor.message(message.view(), t0 + S);
    assert_eq!(tick(&mut monitor, t0 + 4 * S - S / 4, true), Beat::Nothing);
    assert_eq!(tick(&mut monitor, t0 + 4 * S, true), Beat::Nothing, "the first is missing");
    assert_eq!(monitor.failures(), 1);
    assert_eq!(tick(&mut monitor, t0 + 6 * S - S / 4, true), Beat::Nothing);
    assert_eq!(tick(&mut monitor, t0 + 6 * S, true), Beat::Lost { missed: 2 });
}

#[test]
fn a_heartbeat_of_the_servers_has_its_whole_time_again_after_reading_was_paused() {
    let t0 = Instant::now();
    for (heartbeat, whole) in [(Heartbeat::dialect(2 * S, Beats), 3 * S), (Heartbeat::server_ping(2 * S), 2 * S)] {
        let (mut monitor, _) = Monitor::open(heartbeat, 7, t0);
        monitor.excuse(t0 + 100 * S);
        assert_eq!(monitor.due(), Some(t0 + 100 * S + whole));
    }
}
