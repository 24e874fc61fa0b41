//! `wsup run`

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{RecvError, Select};
use serde_json::json;
use ws_supervisor::config_file::Desk;
use ws_supervisor::status_server::StatusAccess;
use ws_supervisor::{Event, SupervisorEvent};

use crate::arguments::RunOptions;
use crate::{Outcome, say};

pub fn run(options: &RunOptions) -> Outcome {
    let desk = match Desk::load(&options.file) {
        Ok(desk) => desk,
        Err(error) => {
            eprintln!("{error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let signal = say::ended_by_signal()?;
    let (supervisor, clients) = desk.start()?;
    let access = if options.commands { StatusAccess::Commands } else { StatusAccess::ReadOnly };
    let status = options.status.as_ref().map(|path| supervisor.serve_status(path, access)).transpose()?;
    let (mut events, alerts) = (clients.iter().map(|client| client.events()).collect::<Vec<_>>(), supervisor.events());
    let (ends, mut parked) = (say::after(options.lasts), false);
    loop {
        let mut select = Select::new();
        let (on_signal, on_end, on_alert) = (select.recv(&signal), select.recv(&ends), select.recv(&alerts));
        let first = events.iter().map(|events| select.recv(events)).min().unwrap_or(usize::MAX);
        let chosen = select.select();
        match chosen.index() {
            index if index == on_signal => {
                let _ = chosen.recv(&signal);
                break;
            }
            index if index == on_end => {
                let _ = chosen.recv(&ends);
                break;
            }
            index if index == on_alert => {
                if let Ok(event) = chosen.recv(&alerts) {
                    parked |= matches!(event, SupervisorEvent::Parked { .. });
                    alert(options.json, &event);
                }
            }
            index => match chosen.recv(&events[index - first]) {
                Ok(event) => tell(options, clients[index - first].name(), &event),
                // Its end is told; it is not asked any more.
                Err(RecvError) => events[index - first] = crossbeam_channel::never(),
            },
        }
    }
    drop(status);
    let report = supervisor.shutdown(Duration::from_secs(10));
    for (client, events) in clients.iter().zip(&events) {
        events.try_iter().for_each(|event| tell(options, client.name(), &event));
    }
    Ok(match (report.left_behind.is_empty(), parked) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(2),
        (true, false) => ExitCode::SUCCESS,
    })
}

fn tell(options: &RunOptions, name: &str, event: &Event) {
    let is_message = matches!(event, Event::Message(_));
    if is_message && !options.messages {
        return;
    }
    if options.json {
        say::line(&say::json(name, event).to_string());
    } else if let Event::Message(message) = event {
        say::line(&format!("{} {name} < {}", say::now(), say::message_line(message)));
    } else if let Some(words) = say::words(event) {
        say::line(&format!("{} {name} {words}", say::now()));
    }
}

fn alert(as_json: bool, event: &SupervisorEvent) {
    let name = event.name().unwrap_or("supervisor");
    if as_json {
        say::line(&json!({ "ts": say::now(), "client": name, "type": "alert", "data": event.to_string() }).to_string());
    } else {
        say::line(&format!("{} {name} ! {event}", say::now()));
    }
}
