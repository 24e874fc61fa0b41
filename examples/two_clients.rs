//! Two clients and a timer in one `select!`, on one thread of yours. `cargo run --example two_clients`

use std::time::Duration;

use crossbeam_channel::{select, tick};
use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{ClientConfig, Event, Message, Supervisor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let every = |text: &'static str| Script::silent().every(Duration::from_millis(30), move |_| vec![text.into()]);
    let (spot, futures) = (Server::start(every("spot 100"))?, Server::start(every("future 101"))?);
    let supervisor = Supervisor::start()?;
    let spot = supervisor.spawn_client(ClientConfig::new(spot.url())?.name("spot"))?;
    let futures = supervisor.spawn_client(ClientConfig::new(futures.url())?.name("futures"))?;
    let (spots, future_prices, second) = (spot.events(), futures.events(), tick(Duration::from_millis(200)));
    let mut reports = 0;
    let (mut last_spot, mut last_future) = (None::<Message>, None::<Message>);
    while reports < 3 {
        select! {
            recv(spots) -> event => match event? {
                Event::Message(message) => last_spot = Some(message),
                other => println!("spot: {other:?}"),
            },
            recv(future_prices) -> event => match event? {
                Event::Message(message) => last_future = Some(message),
                other => println!("futures: {other:?}"),
            },
            recv(second) -> _ => {
                reports += 1;
                let text = |message: &Option<Message>| message.as_ref().and_then(Message::as_text).unwrap_or("-").to_owned();
                println!("{} / {}", text(&last_spot), text(&last_future));
            }
        }
    }
    Ok(())
}
