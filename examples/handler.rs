//! A handler on the client's own thread: it sees each tick first and its order leaves as soon as it returns.
//! `cargo run --example handler`

use std::time::Duration;

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::{ClientConfig, Context, Delivery, Event, Handler, Message, MessageRef, Supervisor};

/// Buys whatever costs less than 100.
struct Buyer;

impl Handler for Buyer {
    fn on_message(&mut self, context: &mut Context<'_>, tick: MessageRef<'_>) {
        let price = tick.as_text().and_then(|text| text.parse::<u32>().ok());
        if let Some(price) = price.filter(|price| *price < 100) {
            // The message comes back in the error, should there be no connection, no room or no tokens left.
            if let Err(refused) = context.send(format!("buy at {price}")) {
                eprintln!("{refused}");
            }
        }
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        println!("{event:?}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let prices = |_: &_| [120, 105, 97].map(|price: u32| Message::from(price.to_string())).into();
    let venue = Server::start(Script::silent().greet(prices))?;
    let supervisor = Supervisor::start()?;
    supervisor.spawn_client(ClientConfig::new(venue.url())?.delivery(Delivery::inline(|| Buyer)))?;
    let order = venue.wait_for_message(|_| true);
    println!("the venue received: {}", order.as_text().unwrap_or_default());
    supervisor.shutdown(Duration::from_secs(5));
    Ok(())
}
