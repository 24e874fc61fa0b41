//! The gateway: one process a venue. What its client hears goes to the feed; orders come back to it.

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::json;
use ws_supervisor::{ClientConfig, Context, Delivery, Event, Handler, MessageRef, Supervisor};

use crate::Options;
use crate::desk::Venue;
use crate::orders;
use crate::sink::Sink;
use crate::stream::{ANSWERS, FEED};

/// Lives on the client's thread.
struct Feed {
    sink: Sink,
    answers: Sink,
    heard: u64,
}

impl Handler for Feed {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        self.heard += 1;
        self.sink.put(context.name(), message.epoch().unwrap_or_default(), message.as_bytes(), "");
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        if let Event::Response(response) = event {
            orders::answer(&self.answers, &response);
        }
    }

    fn on_command(&mut self, context: &mut Context<'_>, command: Box<dyn std::any::Any + Send>) {
        if let Ok(order) = command.downcast::<orders::Order>() {
            orders::place(context, &self.answers, *order);
        }
    }
}

pub fn publish(options: &Options) -> Result<(), Box<dyn Error>> {
    let embedded = options.venue.is_none().then(|| Venue::start(options.rate)).transpose()?;
    let url = options.venue.clone().or(embedded.as_ref().map(Venue::url)).ok_or("no venue")?;
    let (sink, writer) = Sink::start(&options.redis, FEED, options.spool_bytes)?;
    let (answers, answering) = Sink::start(&options.redis, ANSWERS, options.spool_bytes)?;
    let began = sink.number();
    let supervisor = Supervisor::start()?;
    let config = {
        let (sink, answers) = (sink.clone(), answers.clone());
        let handler = move || Feed { sink: sink.clone(), answers: answers.clone(), heard: 0 };
        ClientConfig::new(url)?.name("venue").delivery(Delivery::inline(handler))
    };
    let client = supervisor.spawn_client(config)?;
    client.wait_until_open(Duration::from_secs(10))?;
    let reading = orders::read(&options.redis, client.clone(), answers.clone())?;

    let until = Instant::now() + options.seconds;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    // The flood ends first, so that the answers to the last orders still come.
    if let Some(venue) = &embedded {
        venue.stop();
    }
    reading.wait_for_silence(Duration::from_secs(4), Duration::from_secs(60));
    reading.end();
    let stats = client.stats();
    supervisor.shutdown(Duration::from_secs(5));
    let (number, turn) = (sink.number(), stats.longest_turn);
    drop((sink, answers));
    drop(client);
    drop(supervisor);
    let last = writer.join().map_err(|_| "the writer panicked")?;
    answering.join().map_err(|_| "the writer of answers panicked")?;
    let heard = number - began;
    println!(
        "{}",
        json!({ "heard": heard, "first": began + 1, "last": last, "longest_turn_ms": turn.as_secs_f64() * 1e3 })
    );
    Ok(())
}
