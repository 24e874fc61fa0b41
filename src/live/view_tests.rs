use super::*;
use crate::status_server::StatusEvent;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn status(at: f64, received: u64, restarts: u64) -> Status {
    let feed = ClientStatus {
        name: "deribit-prod".into(),
        venue: "deribit".into(),
        url: "wss://www.deribit.com/…".into(),
        open_for: Some(12.0),
        state: "open".into(),
        epoch: 3,
        received,
        sent: received / 10,
        heartbeat_age: Some(0.4),
        rtt_p50_us: 812.0,
        rtt_p99_us: 15_300.0,
        ..ClientStatus::default()
    };
    let parked = ClientStatus {
        name: "binance".into(),
        venue: "binance".into(),
        state: "parked".into(),
        epoch: 1,
        restarts,
        error: Some("restarted too often; last: panicked: the strategy has a bug".into()),
        ..ClientStatus::default()
    };
    let waiting = ClientStatus {
        name: "kraken".into(),
        venue: "ws.kraken.com".into(),
        state: "backoff".into(),
        heartbeat_failures: 2,
        next_attempt: Some(3.2),
        error: Some("cannot connect to 10.0.0.1:443: connection refused".into()),
        ..ClientStatus::default()
    };
    let event = StatusEvent { number: 1, at, client: "binance".into(), what: "parked: restarted too often".into() };
    Status { at, clients: vec![feed, parked, waiting], events: vec![event] }
}

fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

fn view() -> View {
    let mut view = View::default();
    view.update(status(1_000_000.0, 1_000, 1));
    view.update(status(1_000_000.5, 1_500, 4));
    view
}

#[test]
fn a_small_terminal_has_the_columns_that_matter_and_the_events_below() {
    let lines = drawn(&view(), 80, 24);
    let has = |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
    assert!(lines[0].contains("3 clients, 1 open, 1 parked") && lines[0].contains("13:46:40 UTC"), "{lines:#?}");
    for text in ["CLIENT", "deribit-prod open", "1000", "812µs", "15.3ms", "backoff 3.2s", "what happened"] {
        has(text);
    }
    has("binance parked: restarted too often");
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
    assert!(!lines.iter().any(|line| line.contains("VENUE")), "no room for it");
    assert!(lines[23].contains("r restart"));
}

#[test]
fn a_large_one_has_them_all() {
    let lines = drawn(&view(), 200, 60);
    for text in [
        "VENUE",
        "QUEUE",
        "UNREAD",
        "BEAT",
        "RESTARTS",
        "2 lost",
        "4  ▃",
        "deribit-prod: wss://www.deribit.com/…, open for 12s",
        "last: panicked: the strategy has a bug",
    ] {
        assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
    }
}

#[test]
fn nothing_is_done_without_a_yes() {
    let mut view = view();
    assert_eq!(view.key(Key::Down), Reaction::None);
    assert_eq!(view.key(Key::Char('u')), Reaction::None);
    assert!(drawn(&view, 80, 24).iter().any(|line| line.contains("Resume: binance?")));
    assert_eq!(view.key(Key::Char('n')), Reaction::None);
    assert!(!drawn(&view, 80, 24).iter().any(|line| line.contains("Resume: binance?")));
    view.key(Key::Char('s'));
    let stop = StatusCommand::Stop { client: "binance".into() };
    assert_eq!(view.key(Key::Char('y')), Reaction::Do(stop));
    assert_eq!(view.key(Key::Char('y')), Reaction::None, "once");
    assert_eq!(view.key(Key::Char('q')), Reaction::Quit);
}

#[test]
fn a_terminal_of_any_size_is_drawn() {
    let mut view = view();
    view.key(Key::Char('r'));
    for width in [1, 5, 20, 40, 79, 120] {
        for height in [1, 2, 3, 5, 10] {
            drawn(&view, width, height);
        }
    }
    drawn(&View::default(), 80, 24);
}
