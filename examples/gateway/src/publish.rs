//! The gateway: one process a venue. Messages of its client go to the feed; orders come back to it.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use ws_supervisor::{ClientConfig, Context, Delivery, Event, Handler, MessageRef, Supervisor};

use crate::Options;
use crate::desk::Venue;
use crate::lease::Lease;
use crate::orders;
use crate::sink::Sink;
use crate::stream::{ANSWERS, FEED};

/// Lives on the client's thread.
struct Feed {
    sink: Sink,
    answers: Sink,
    lease: Arc<Lease>,
    expiry: Duration,
    heard: u64,
}

impl Handler for Feed {
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>) {
        self.heard += 1;
        self.sink.put(context.name(), message.epoch().unwrap_or_default(), message.as_bytes(), "");
    }

    fn on_event(&mut self, _: &mut Context<'_>, event: Event) {
        match event {
            Event::Response(response) => orders::answer(&self.answers, &response),
            Event::LateResponse(response) => orders::answer_late(&self.answers, &response),
            _ => {}
        }
    }

    fn on_command(&mut self, context: &mut Context<'_>, command: Box<dyn std::any::Any + Send>) {
        if let Ok(order) = command.downcast::<orders::Order>() {
            orders::place(context, &self.answers, &self.lease, self.expiry, *order);
        }
    }
}

pub fn publish(options: &Options) -> Result<(), Box<dyn Error>> {
    let embedded = options.venue.is_none().then(|| Venue::start(options.rate)).transpose()?;
    let url = options.venue.clone().or(embedded.as_ref().map(Venue::url)).ok_or("no venue")?;
    let lease = Lease::take(&options.redis)?;
    eprintln!("gateway: has lease {}", lease.token());
    let (sink, writer) = Sink::start(&options.redis, FEED, options.spool_bytes, lease.clone())?;
    let (answers, answering) = Sink::start(&options.redis, ANSWERS, options.spool_bytes, lease.clone())?;
    let began = sink.number();
    let supervisor = Supervisor::start()?;
    let config = {
        let (sink, answers, lease, expiry) = (sink.clone(), answers.clone(), lease.clone(), options.order_expiry);
        let handler = move || {
            let (sink, answers, lease) = (sink.clone(), answers.clone(), lease.clone());
            Feed { sink, answers, lease, expiry, heard: 0 }
        };
        ClientConfig::new(url)?.name("venue").delivery(Delivery::inline(handler))
    };
    let client = supervisor.spawn_client(config)?;
    client.wait_until_open(Duration::from_secs(10))?;
    let reading = orders::read(&options.redis, client.clone(), answers.clone(), lease.clone())?;

    let until = Instant::now() + options.seconds;
    while Instant::now() < until && !lease.is_lost() {
        std::thread::sleep(Duration::from_millis(50));
    }
    // The flood ends first, so that the answers to the last orders still come.
    if let Some(venue) = &embedded {
        venue.stop();
    }
    if !lease.is_lost() {
        reading.wait_for_silence(Duration::from_secs(4), Duration::from_secs(60));
    }
    reading.end();
    let stats = client.stats();
    supervisor.shutdown(Duration::from_secs(5));
    let (number, turn) = (sink.number(), stats.longest_turn);
    drop((sink, answers));
    drop(client);
    drop(supervisor);
    let last = writer.join().map_err(|_| "the writer panicked")?;
    answering.join().map_err(|_| "the writer of answers panicked")?;
    lease.give_back();
    if lease.is_lost() {
        return Err("another gateway has taken over".into());
    }
    let heard = number - began;
    println!(
        "{}",
        json!({ "heard": heard, "first": began + 1, "last": last, "longest_turn_ms": turn.as_secs_f64() * 1e3 })
    );
    Ok(())
}
