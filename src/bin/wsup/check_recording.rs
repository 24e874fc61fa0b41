//! `wsup check-recording`

use std::process::ExitCode;

use ws_supervisor::record::{Recording, Survey};

use crate::arguments::CheckRecordingOptions;
use crate::{Outcome, say};

pub fn check_recording(options: &CheckRecordingOptions) -> Outcome {
    let mut recording = Recording::open(&options.file)?;
    let mut survey = Survey::with_names(&options.redact);
    let (mut entries, mut faults) = (0u64, 0u64);
    for entry in recording.by_ref() {
        match entry {
            Ok(entry) => {
                entries += 1;
                survey.add(&entry);
            }
            Err(fault) => {
                faults += 1;
                say::note(fault);
            }
        }
    }
    if recording.is_torn() {
        say::note(format_args!("{}: its end is cut off", options.file.display()));
    }
    let (mut names, mut suspects) = (0u64, 0u64);
    for (name, found) in survey.names() {
        names += 1;
        suspects += found.suspect_count;
        let mut line = format!("{:>9} {}", found.count.max(found.suspect_count + found.redacted), say::printable(name));
        if found.redacted > 0 {
            line += &format!("  ({} redacted)", found.redacted);
        }
        if found.suspect_count > 0 {
            line += &format!("  <-- {} look like secrets", found.suspect_count);
        }
        say::line(&line)?;
        for suspect in found.suspects.iter().filter(|_| options.show) {
            say::line(&format!("{:>12}{}", "", say::printable(suspect)))?;
        }
    }
    say::note(format_args!("{entries} entries, {names} names; {suspects} values look like secrets, {faults} faults"));
    Ok(match (suspects, faults) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(3),
        _ => ExitCode::from(2),
    })
}
