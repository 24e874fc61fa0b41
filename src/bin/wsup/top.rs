//! `wsup top`

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use ws_supervisor::live;

use crate::arguments::TopOptions;
use crate::{Outcome, demo, picture, say, signals};

pub fn top(options: &TopOptions) -> Outcome {
    let Some(path) = &options.path else {
        let desk = demo::desk()?;
        if let Some((width, height)) = options.picture {
            let mut statuses = vec![];
            for _ in 0..30 {
                statuses.push(desk.supervisor.status());
                std::thread::sleep(Duration::from_millis(500));
            }
            say::line(&picture::svg(&live::picture(statuses, width, height), options.light))?;
            return Ok(ExitCode::SUCCESS);
        }
        live::show(&desk.supervisor, ends()?)?;
        return Ok(ExitCode::SUCCESS);
    };
    if let Some((width, height)) = options.picture {
        let statuses = live::statuses(path, 3)?;
        say::line(&picture::svg(&live::picture(statuses, width, height), options.light))?;
        return Ok(ExitCode::SUCCESS);
    }
    live::attach(path, ends()?)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a signal has asked for the end: the terminal is given back first.
fn ends() -> io::Result<impl Fn() -> bool> {
    let signal = signals::ended_by_signal()?;
    Ok(move || !signal.is_empty())
}
