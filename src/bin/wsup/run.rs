//! `wsup run`

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{RecvError, Select};
use serde_json::json;
use ws_supervisor::config_file::Desk;
use ws_supervisor::status_server::StatusAccess;
use ws_supervisor::{Event, SupervisorEvent};

use crate::arguments::RunOptions;
use crate::say::Writer;
use crate::{Outcome, say, signals};

/// How often it is seen whether there is room to write again.
const LOOK: Duration = Duration::from_millis(20);

pub fn run(options: &RunOptions) -> Outcome {
    let desk = match Desk::load(&options.file) {
        Ok(desk) => desk,
        Err(error) => {
            say::note(format_args!("{error}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    let signal = signals::ended_by_signal()?;
    // The status socket comes first: a second desk that finds the path taken must not dial.
    let supervisor = desk.supervisor.clone().start()?;
    let access = if options.commands { StatusAccess::Commands } else { StatusAccess::ReadOnly };
    let status = options.status.as_ref().map(|path| supervisor.serve_status(path, access)).transpose()?;
    let clients = desk.spawn(&supervisor)?;
    let writer = say::Writer::start();
    let (mut events, alerts) = (clients.iter().map(|client| client.events()).collect::<Vec<_>>(), supervisor.events());
    let (ends, mut parked) = (say::after(options.lasts), false);
    loop {
        let mut select = Select::new();
        let (on_signal, on_end, on_fault) = (select.recv(&signal), select.recv(&ends), select.recv(&writer.faults));
        let on_alert = select.recv(&alerts);
        // While the reader of stdout is behind, no event is taken, and the clients stop reading in their turn.
        let first = match writer.has_room() {
            true => events.iter().map(|events| select.recv(events)).min().unwrap_or(usize::MAX),
            false => usize::MAX,
        };
        let Ok(chosen) = select.select_timeout(LOOK) else { continue };
        match chosen.index() {
            index if index == on_fault => {
                // A fault of its output does not end the desk.
                if let Ok(fault) = chosen.recv(&writer.faults) {
                    say::note(format_args!("{} {fault}; the desk runs on, and lines are lost", say::now()));
                }
            }
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
                    alert(options.json, &writer, &event);
                }
            }
            index => match chosen.recv(&events[index - first]) {
                Ok(event) => tell(options, &writer, clients[index - first].name(), &event),
                // The client has ended, and its last event was received.
                Err(RecvError) => events[index - first] = crossbeam_channel::never(),
            },
        }
    }
    drop(status);
    let report = supervisor.shutdown(Duration::from_secs(10));
    for (client, events) in clients.iter().zip(&events) {
        events.try_iter().for_each(|event| tell(options, &writer, client.name(), &event));
    }
    for name in &report.left_behind {
        say::note(format_args!("{} {name}: its thread did not end in time", say::now()));
    }
    let lost = writer.end();
    if lost > 0 {
        say::note(format_args!("{} {lost} lines were not written to stdout", say::now()));
    }
    Ok(match (report.left_behind.is_empty() && lost == 0, parked) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(2),
        (true, false) => ExitCode::SUCCESS,
    })
}

fn tell(options: &RunOptions, writer: &Writer, name: &str, event: &Event) {
    let is_message = matches!(event, Event::Message(_));
    if is_message && !options.messages {
        return;
    }
    if options.json {
        writer.put(say::json(name, event).to_string());
    } else if let Event::Message(message) = event {
        writer.put(format!("{} {name} < {}", say::now(), say::message_line(message)));
    } else if let Some(words) = say::words(event) {
        writer.put(format!("{} {name} {words}", say::now()));
    }
}

fn alert(as_json: bool, writer: &Writer, event: &SupervisorEvent) {
    let name = event.name().unwrap_or("supervisor");
    if !writer.has_room() {
        // An alert does not wait for a slow reader of stdout.
        say::note(format_args!("{} {name} ! {}", say::now(), say::printable(&event.to_string())));
        return;
    }
    if as_json {
        writer.put(json!({ "ts": say::now(), "client": name, "type": "alert", "data": event.to_string() }).to_string());
    } else {
        writer.put(format!("{} {name} ! {}", say::now(), say::printable(&event.to_string())));
    }
}
