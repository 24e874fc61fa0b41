//! `wsup record`

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::select;
use ws_supervisor::Event;
use ws_supervisor::Supervisor;

use crate::arguments::RecordOptions;
use crate::{Outcome, connect, say};

pub fn record(options: &RecordOptions) -> Outcome {
    let (config, exchange) = connect::config(&options.target)?;
    let mut recorder = connect::recorder(&options.output);
    if let Some(bytes) = options.rotate {
        recorder = recorder.rotate_bytes(bytes);
    }
    if options.with_secrets {
        recorder = recorder.with_secrets();
    }
    let recorder = recorder.start()?;
    let signal = say::ended_by_signal()?;
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
                            eprintln!("{} not sent: {refused}", say::now());
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
    let written = recorder.flush(Duration::from_secs(30));
    let status = recorder.status();
    let (file, entries, dropped) = (status.file.display(), status.written, status.dropped);
    eprintln!("{} {entries} entries in {file}, {} bytes before compression", say::now(), status.bytes);
    if dropped > 0 || !written {
        eprintln!(
            "{} {dropped} entries are lost: {}",
            say::now(),
            status.fault.unwrap_or("the disk was too slow".into())
        );
        outcome = ExitCode::FAILURE;
    }
    drop(exchange);
    Ok(outcome)
}
