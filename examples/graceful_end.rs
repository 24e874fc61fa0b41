//! A graceful end on Ctrl-C: what was accepted is written, the server is told, and whatever did not go out is named.
//! `cargo run --example graceful_end`, then Ctrl-C.

use std::time::Duration;

use crossbeam_channel::{bounded, select};
use ws_supervisor::{ClientConfig, Event, Supervisor, testing::Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (stop, stopped) = bounded(1);
    ctrlc::set_handler(move || _ = stop.try_send(()))?;
    let server = Server::echo()?;
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(ClientConfig::new(server.url())?.name("desk"))?;
    let events = client.events();
    println!("running; press Ctrl-C");
    loop {
        select! {
            recv(events) -> event => println!("{:?}", event?),
            recv(stopped) -> _ => break,
        }
    }
    // Every client at once, each within the grace. Threads that do not come back are named.
    let report = supervisor.shutdown(Duration::from_secs(5));
    for event in events {
        if let Event::Closed { reason, unsent, .. } = event {
            println!("{reason}; {} messages did not go out", unsent.len());
        }
    }
    println!("left behind: {:?}", report.left_behind);
    Ok(())
}
