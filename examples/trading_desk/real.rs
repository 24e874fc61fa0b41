//! One client against a real server.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, select, tick};
use ws_supervisor::{ClientConfig, Event, Heartbeat, ReadyState, Supervisor};

use crate::options::Options;
use crate::report::{Screen, print_real};

pub fn run(options: &Options, url: &str, screen: &Screen) -> Result<bool, Box<dyn Error>> {
    let mut config = ClientConfig::new(url)?.name("real").heartbeat(Heartbeat::ping_pong(Duration::from_secs(2)));
    if let Some(file) = &options.ca {
        config = config.root_certificate(fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?);
    }
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(config)?;
    let (events, alerts, done) = (client.events(), supervisor.events(), after(options.duration));
    let every = tick(Duration::from_secs(1));
    let mut last = Instant::now();
    loop {
        select! {
            recv(events) -> event => match event {
                // A busy feed would drown the screen.
                Ok(Event::Message(message)) => if last.elapsed() > Duration::from_millis(200) {
                    last = Instant::now();
                    let text = message.as_text().map_or_else(|| format!("{message:?}"), |text| text.trim().to_owned());
                    let shown: String = text.chars().take(100).collect();
                    screen.say(client.name(), format!("received: {shown}"));
                },
                Ok(event) => screen.tell(client.name(), &event),
                Err(_) => break,
            },
            recv(alerts) -> event => if let Ok(event) = event { screen.alert(&event) },
            recv(every) -> _ => if let Some(text) = &options.send {
                if let Err(refused) = client.send(text.as_str()) {
                    screen.say(client.name(), refused.to_string());
                }
            },
            recv(done) -> _ => break,
        }
    }
    let open = client.ready_state() == ReadyState::Open;
    print_real(screen, &client);
    let closed = supervisor.shutdown(Duration::from_secs(5));
    Ok(open && closed.left_behind.is_empty())
}
