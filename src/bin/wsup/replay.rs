//! `wsup replay`

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{select, tick};
use ws_supervisor::record::Recording;
use ws_supervisor::testing::{Pace, Server};

use crate::arguments::ReplayOptions;
use crate::{Outcome, say, signals};

pub fn replay(options: &ReplayOptions) -> Outcome {
    let pace = match options.pace {
        0.0 => Pace::FlatOut,
        1.0 => Pace::Recorded,
        times if times > 0.0 && times.is_finite() => Pace::Times(times),
        other => return Err(format!("--pace {other}: must be 0, or more").into()),
    };
    let mut recording = Recording::open(&options.file)?;
    let mut entries = Vec::new();
    for entry in recording.by_ref() {
        match entry {
            Ok(entry) => entries.push(entry),
            Err(fault) => say::note(format_args!("{fault}; passed over")),
        }
    }
    if recording.is_torn() {
        say::note(format_args!("{}: its end is cut off, and its whole entries are played", options.file.display()));
    }
    let entries: Vec<_> = match &options.client {
        Some(name) => entries.into_iter().filter(|entry| *entry.client == **name).collect(),
        None => entries,
    };
    let messages = entries.iter().filter(|entry| entry.message().is_some()).count();
    if messages == 0 {
        return Err(format!("{}: no message from a server is in it", options.file.display()).into());
    }
    let signal = signals::ended_by_signal()?;
    let server =
        Server::replay_at(options.listen, entries, pace).map_err(|error| format!("{}: {error}", options.listen))?;
    say::line(&server.url())?;
    say::note(format_args!("{} {messages} messages for each connection", say::now()));
    let (ends, looks) = (say::after(options.lasts), tick(Duration::from_millis(200)));
    let mut shown = (0, 0);
    loop {
        select! {
            recv(signal) -> _ => break,
            recv(ends) -> _ => break,
            recv(looks) -> _ => {
                let records = server.records();
                let opened = records.iter().filter(|record| record.opened);
                let all = (opened.clone().count(), opened.filter(|record| record.served >= messages as u64).count());
                if all != shown {
                    shown = all;
                    say::note(format_args!("{} {} connections so far, {} have all of it", say::now(), shown.0, shown.1));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
