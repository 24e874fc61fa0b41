//! Takes the cases of the Autobahn test suite through real workers: one supervised client a case, which echoes until
//! the suite closes the connection. `examples/autobahn/run` installs the suite, runs this and judges the result.
//!
//! `cargo run --release --example autobahn_client -- --url ws://127.0.0.1:9001 [--ca FILE] [--agent NAME]
//! [--hint-from CASE]`

use std::error::Error;
use std::fs;
use std::time::Duration;

use lexopt::prelude::*;
use ws_supervisor::{
    ClientConfig, Compression, Context, Delivery, Event, Handler, Heartbeat, MessageRef, Restart, Supervisor,
    SupervisorEvent,
};

/// One case may move 16 MiB in small pieces.
const PATIENCE: Duration = Duration::from_secs(60);

struct Echo;

impl Handler for Echo {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        // The suite closes some connections while it is still being answered; then there is nobody to echo to.
        let _ = context.send(message);
    }
}

struct Suite {
    url: String,
    ca: Vec<u8>,
    supervisor: Supervisor,
}

impl Suite {
    fn config(&self, name: &str, target: &str) -> Result<ClientConfig, Box<dyn Error>> {
        let mut config = ClientConfig::new(format!("{}{target}", self.url))?
            .name(name)
            .restart(Restart::Temporary)
            .max_retries(0)
            .heartbeat(Heartbeat::disabled());
        if !self.ca.is_empty() {
            config = config.root_certificate(self.ca.clone());
        }
        Ok(config)
    }

    /// Runs a client until it has ended; returns what it received.
    fn ask(&self, name: &str, target: &str) -> Result<Option<String>, Box<dyn Error>> {
        let client = self.supervisor.spawn_client(self.config(name, target)?)?;
        let mut answer = None;
        for event in client.events() {
            match event {
                Event::Message(message) => answer = message.as_text().map(str::to_owned),
                Event::ConnectFailed { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
        self.wait_for_the_end(name)?;
        Ok(answer)
    }

    fn wait_for_the_end(&self, ended: &str) -> Result<(), Box<dyn Error>> {
        let events = self.supervisor.events();
        loop {
            match events.recv_timeout(PATIENCE) {
                Ok(SupervisorEvent::Closed { name, .. }) if &*name == ended => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(format!("{ended} did not end within {PATIENCE:?}").into()),
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("off")).init();
    let (mut url, mut ca, mut agent) = ("ws://127.0.0.1:9001".to_owned(), vec![], "ws-supervisor".to_owned());
    let mut hint_from = usize::MAX;
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("url") => url = parser.value()?.string()?,
            Long("ca") => ca = fs::read(parser.value()?)?,
            Long("hint-from") => hint_from = parser.value()?.parse()?,
            Long("agent") => agent = parser.value()?.string()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let suite = Suite { url, ca, supervisor: Supervisor::start()? };
    let count: usize = suite.ask("count", "/getCaseCount")?.ok_or("the suite gave no count")?.parse()?;
    for case in 1..=count {
        let name = format!("case-{case}");
        let config = suite.config(&name, &format!("/runCase?case={case}&agent={agent}"))?;
        let compression = Compression::deflate().above(0);
        let hints = case >= hint_from;
        let config = config.compression(if hints { compression.client_no_context_takeover() } else { compression });
        suite.supervisor.spawn_client(config.delivery(Delivery::inline(|| Echo)))?;
        suite.wait_for_the_end(&name)?;
    }
    suite.ask("report", &format!("/updateReports?agent={agent}"))?;
    println!("{count} cases taken as {agent}");
    Ok(())
}
