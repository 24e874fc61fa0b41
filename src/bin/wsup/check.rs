//! `wsup check`

use std::process::ExitCode;

use ws_supervisor::config_file::Desk;

use crate::arguments::CheckOptions;
use crate::{Outcome, say};

pub fn check(options: &CheckOptions) -> Outcome {
    if options.schema {
        say::line(&serde_json::to_string_pretty(&Desk::schema())?)?;
    }
    let Some(file) = &options.file else { return Ok(ExitCode::SUCCESS) };
    let desk = match Desk::load(file) {
        Ok(desk) => desk,
        Err(error) => {
            say::note(format_args!("{error}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    for warning in desk.missing_files() {
        say::note(format_args!("{}: warning: {warning}", file.display()));
    }
    if options.effective {
        say::line(&serde_json::to_string_pretty(&desk.effective_settings())?)?;
    } else {
        let names: Vec<_> = desk.clients.iter().map(|(name, _)| name.as_str()).collect();
        let count = if names.len() == 1 { "1 client".to_owned() } else { format!("{} clients", names.len()) };
        say::line(&format!("{}: nothing is wrong; {count}: {}", file.display(), names.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}
