//! `wsup record`

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::select;
use ws_supervisor::record::Recorder;
use ws_supervisor::{Event, Supervisor};

use crate::arguments::RecordOptions;
use crate::{Outcome, connect, say, signals};

pub fn record(options: &RecordOptions) -> Outcome {
    let (config, exchange) = connect::config(&options.target)?;
    let mut recorder = connect::recorder(&options.output);
    if let Some(bytes) = options.rotate {
        recorder = recorder.rotate_bytes(bytes);
    }
    recorder = recorder.redact(&options.redact);
    if options.with_secrets {
        recorder = recorder.with_secrets();
    }
    let recorder = recorder.start()?;
    let signal = signals::ended_by_signal()?;
    let supervisor = Supervisor::start()?;
    let client = supervisor.spawn_client(config.record(&recorder))?;
    let (events, ends) = (client.events(), say::after(options.lasts));
    let mut ended = None;
    loop {
        select! {
            recv(events) -> event => {
                let Ok(event) = event else { break };
                if let Event::Open { .. } = event {
                    for text in &options.send {
                        if let Err(refused) = client.send(text.as_str()) {
                            say::note(format_args!("{} not sent: {refused}", say::now()));
                        }
                    }
                }
                say::tell(&event);
                if let Some(code) = connect::ending(&event) {
                    ended = Some(code);
                    break;
                }
            }
            recv(signal) -> _ => break,
            recv(ends) -> _ => break,
        }
    }
    let mut outcome = connect::outcome(ended, &client);
    supervisor.shutdown(Duration::from_secs(5));
    let is_written = recorder.flush(Duration::from_secs(30));
    outcome = report(&recorder, is_written).unwrap_or(outcome);
    drop(exchange);
    Ok(outcome)
}

/// Says what was recorded, and what was not: then this is no success.
pub fn report(recorder: &Recorder, is_written: bool) -> Option<ExitCode> {
    let status = recorder.status();
    let (file, entries, dropped) = (status.file.display(), status.written, status.dropped);
    say::note(format_args!("{} {entries} entries in {file}, {} bytes before compression", say::now(), status.bytes));
    if dropped == 0 && is_written {
        return None;
    }
    let reason = status.fault.unwrap_or("the disk is too slow".into());
    say::note(format_args!("{} {dropped} entries are lost: {reason}", say::now()));
    Some(ExitCode::FAILURE)
}
