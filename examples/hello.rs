//! The shortest program: connect, say hello, print what comes.
//! `cargo run --example hello`, against a server of its own; or `cargo run --example hello -- wss://venue.example/feed`.

use std::time::Duration;

use ws_supervisor::{ClientConfig, Event, Supervisor, testing::Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let echo = Server::echo()?;
    let url = std::env::args().nth(1).unwrap_or_else(|| echo.url());
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(ClientConfig::new(url)?.name("hello"))?;
    client.wait_until_open(Duration::from_secs(10))?;
    client.send("hello")?;
    for event in client.events() {
        match event {
            Event::Message(message) => {
                println!("the server says: {}", message.as_text().unwrap_or("(binary)"));
                break;
            }
            other => println!("{other:?}"),
        }
    }
    Ok(())
}
