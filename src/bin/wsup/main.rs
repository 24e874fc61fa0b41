//! `wsup`: the library from a shell. Its parts are in the files beside this one, one for each command.

mod arguments;
mod check;
mod connect;
mod demo;
mod picture;
mod record;
mod replay;
mod run;
mod say;
mod top;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};

/// What a command comes to: its exit status, or why it could not be done.
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
        Command::Top(options) => top::top(&options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "wsup", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => man(),
    };
    outcome.unwrap_or_else(|error| {
        // Whoever read has read enough, as `head` does.
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("wsup: {error}");
        ExitCode::FAILURE
    })
}

/// One page, the commands after the whole.
fn man() -> Outcome {
    let mut command = Arguments::command();
    command.build();
    let mut out = std::io::stdout();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        clap_mangen::Man::new(command.clone()).title(format!("wsup-{}", command.get_name())).render(&mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}
