//! `wsup`: the library from a shell. Its parts are in the files beside this one, one for each command.

mod arguments;
mod check;
mod check_recording;
mod connect;
mod demo;
mod picture;
mod record;
mod replay;
mod run;
mod say;
mod signals;
mod top;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};

/// The result of a command: its exit status, or why it could not be done.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = if arguments.verbose { "info" } else { "off" };
    say::log_to_stderr(level);
    let outcome = match arguments.command {
        Command::Check(options) => check::check(&options),
        Command::Run(options) => run::run(&options),
        Command::Connect(options) => connect::connect(&options),
        Command::Record(options) => record::record(&options),
        Command::Replay(options) => replay::replay(&options),
        Command::CheckRecording(options) => check_recording::check_recording(&options),
        Command::Top(options) => top::top(&options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "wsup", &mut script);
            print(&script)
        }
        Command::Man => man(),
    };
    outcome.unwrap_or_else(|error| {
        // The reader of stdout has read enough, as `head` does.
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        say::note(format_args!("wsup: {error}"));
        ExitCode::FAILURE
    })
}

/// One page, the commands after the whole.
fn man() -> Outcome {
    let mut command = Arguments::command();
    command.build();
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        clap_mangen::Man::new(command.clone()).title(format!("wsup-{}", command.get_name())).render(&mut out)?;
    }
    print(&out)
}

/// Writes text that ends with a line's end to stdout.
fn print(text: &[u8]) -> Outcome {
    say::line(String::from_utf8_lossy(text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
