//! What others do while there is no supervisor's thread, or it is in trouble.

use std::net::TcpListener;

use super::*;
use crate::config::ClientConfig;
use crate::supervisor::settings::SupervisorBuilder;

const LONG: Duration = Duration::from_secs(30);

/// A table that no supervisor looks after, and a client in it that connects to a server that never answers.
fn unattended() -> (Arc<Table>, ClientId, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let table = Arc::new(Table::new(SupervisorBuilder::default()));
    let config = ClientConfig::new(format!("ws://{}/", listener.local_addr().unwrap())).unwrap();
    let client = table.spawn(&config.connect_timeout(LONG)).unwrap().core.tag.id;
    (table, client, listener)
}

#[test]
fn an_end_whose_notice_was_lost_with_the_supervisor_is_found_by_the_next() {
    let (table, client, _listener) = unattended();
    table.rows.lock().children[&client].state.core.command(CommandKind::Stop, LONG);
    while !matches!(table.next_notice(Some(Instant::now() + LONG)), Some(Notice::Exited { .. })) {}
    while !table.rows.lock().children[&client].thread.as_ref().unwrap().is_finished() {
        std::thread::yield_now();
    }
    table.adopt();
    assert!(table.rows.lock().children.is_empty(), "its end was carried out");
}

#[test]
fn a_shutdown_ends_in_time_without_the_supervisors_thread() {
    let (table, _, _listener) = unattended();
    let (done, ended) = crossbeam_channel::bounded(1);
    let shuts = table.clone();
    std::thread::spawn(move || {
        let _ = done.send(shuts.shut_down(SupervisorExit::ShutDown, Duration::from_millis(50)));
    });
    ended.recv_timeout(LONG).expect("the caller ends it when the grace is over");
    assert!(matches!(table.rows.lock().progress, Progress::Ended { .. }));
}
