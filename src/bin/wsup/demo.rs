//! An exchange in this process, for a first look.

use std::io;
use std::time::Duration;

use ws_supervisor::testing::{DeribitServer, Script, Server};
use ws_supervisor::{ClientConfig, Delivery, Handler, Heartbeat, Message, MessageRef, Supervisor};

/// Prices and trades move by themselves.
pub fn exchange() -> io::Result<DeribitServer> {
    DeribitServer::builder().every(Duration::from_millis(200)).start()
}

/// A desk whose clients have their troubles.
pub struct Desk {
    pub supervisor: Supervisor,
    _servers: Vec<Server>,
}

struct Fragile(u32);

impl Handler for Fragile {
    fn on_message(&mut self, _: &mut ws_supervisor::Context<'_>, _: MessageRef<'_>) {
        self.0 += 1;
        assert!(self.0 < 100, "a bug in the strategy");
    }
}

pub fn desk() -> Result<Desk, Box<dyn std::error::Error>> {
    // The panics are part of the show.
    std::panic::set_hook(Box::new(|_| {}));
    let supervisor = Supervisor::start()?;
    let ticks = |millis, at_once: usize| {
        let tick = Message::text(r#"{"stream":"btcusdt@trade","data":{"p":"64123.50","q":"0.013"}}"#);
        Script::echo().every(Duration::from_millis(millis), move |_| vec![tick.clone(); at_once])
    };
    let fast = Server::start(ticks(1, 3))?;
    let slow = Server::start(ticks(200, 1))?;
    let cut = Server::start(ticks(50, 1))?;
    let refused = Server::start(Script::refuse(503))?;
    let config = |server: &Server, name: &str| -> Result<ClientConfig, ws_supervisor::ConfigError> {
        let heartbeat = Heartbeat::ping_pong(Duration::from_millis(250));
        Ok(ClientConfig::new(server.url())?
            .name(name)
            .heartbeat(heartbeat)
            .overflow(ws_supervisor::Overflow::DropOldest))
    };
    let backoff = (Duration::from_secs(1), Duration::from_secs(8));
    for config in [
        config(&fast, "book")?,
        config(&slow, "orders")?,
        config(&cut, "strategy")?.delivery(Delivery::inline(|| Fragile(0))),
        config(&refused, "backup")?.backoff(backoff.0, backoff.1),
    ] {
        supervisor.spawn_client(config)?;
    }
    Ok(Desk { supervisor, _servers: vec![fast, slow, cut, refused] })
}
