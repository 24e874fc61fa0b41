//! The command line. What stands here is the help that users read.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Supervised WebSocket clients from a shell.
///
/// Every client reconnects by itself, with back-off, and says on stderr what happens to it. Text of
/// messages is all that goes to stdout, so that it can be piped.
#[derive(Parser)]
#[command(name = "wsup", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// The library's own log, on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Check a desk's file: every fault at once, with its place
    Check(CheckOptions),
    /// Run the clients of a file until a signal ends them
    Run(RunOptions),
    /// Connect: lines of stdin are sent, messages are lines on stdout
    Connect(ConnectOptions),
    /// Record what comes and goes to a file
    Record(RecordOptions),
    /// Serve a recording to any WebSocket client
    Replay(ReplayOptions),
    /// List the names in a recording, and values that look like secrets
    CheckRecording(CheckRecordingOptions),
    /// Watch a running desk in the terminal
    Top(TopOptions),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page (wsup man | man -l -)
    Man,
}

#[derive(Args)]
#[command(after_help = "Exit status: 0 when nothing is wrong, 1 otherwise.")]
pub struct CheckOptions {
    /// The desk's file, in TOML
    #[arg(required_unless_present = "schema")]
    pub file: Option<PathBuf>,
    /// Print the JSON schema of such a file instead, for an editor
    #[arg(long)]
    pub schema: bool,
    /// Print what each client's options come to, without secrets
    #[arg(long)]
    pub effective: bool,
}

#[derive(Args)]
#[command(
    after_help = "Exit status: 0 after SIGINT, SIGTERM or SIGHUP when every client ended in time; 1 when the file is wrong, a \
                  client's thread did not end in time, or lines could not be written to stdout (the desk runs on without it); 2 \
                  when a client was parked. A second signal ends it at once, with 128 and the signal's number. SIGHUP stays ignored \
                  under nohup."
)]
pub struct RunOptions {
    /// The desk's file, in TOML
    pub file: PathBuf,
    /// One JSON object a line instead of words
    #[arg(long)]
    pub json: bool,
    /// Print messages too
    #[arg(long)]
    pub messages: bool,
    /// Serve the status at this path, for `wsup top`
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,
    /// Let `wsup top` restart, resume and stop clients
    #[arg(long, requires = "status")]
    pub commands: bool,
    /// End after this time (as 30s, 5m)
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub lasts: Option<Duration>,
}

/// Where to connect, and how.
#[derive(Args)]
pub struct Target {
    /// ws:// or wss://, or `demo` for an exchange in this process
    pub url: String,
    /// A header, as "Name: value"; may be given again. `${NAME}` in it is the environment's
    #[arg(short = 'H', long, value_name = "HEADER")]
    pub header: Vec<String>,
    /// A subprotocol to offer; may be given again
    #[arg(long, value_name = "NAME")]
    pub subprotocol: Vec<String>,
    /// Trust the certificates in this PEM file too
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// http://, https:// or socks5://; `environment` takes the environment's
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// Ping this often; 0s never
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "20s")]
    pub heartbeat: Duration,
    /// Take an open line without messages for dead after this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub stale: Option<Duration>,
    /// Offer compression (permessage-deflate)
    #[arg(long)]
    pub compress: bool,
    /// The venue's dialect, for `--subscribe`
    #[arg(long)]
    pub venue: Option<VenueName>,
    /// Subscribe to this channel on every connection; may be given again
    #[arg(long, value_name = "CHANNEL")]
    pub subscribe: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VenueName {
    Deribit,
    BinanceSpot,
    BinanceFutures,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  wsup connect demo --subscribe trades.BTC-PERPETUAL.raw\n  \
                  echo '{\"op\":\"ping\"}' | wsup connect wss://venue.example/ws --wait 2s\n\n\
                  Exit status: 0 when it was ended on purpose and every line of stdin arrived, or when the reader of stdout has \
                  read enough (as `head`); 1 when it could not go on, when lines of stdin were not sent or may not have arrived, \
                  or when stdout could not be written. A second signal ends it at once, with 128 and the signal's number.")]
pub struct ConnectOptions {
    #[command(flatten)]
    pub target: Target,
    /// Close this long after the end of stdin; by default go on until a signal comes
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait: Option<Duration>,
    /// Messages and events as JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Record to this file as well
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub lasts: Option<Duration>,
}

#[derive(Args)]
#[command(
    after_help = "Example: wsup record demo --subscribe trades.BTC-PERPETUAL.raw --for 5m -o trades.jsonl.zst\n\nSecrets are \
                  replaced by names that are known to hold some: look with `wsup check-recording` before you hand a file \
                  on.\n\nExit status: 0 when all was recorded, 1 when it never connected, was parked, or entries were lost."
)]
pub struct RecordOptions {
    #[command(flatten)]
    pub target: Target,
    /// The file: .jsonl, or .jsonl.zst for a compressed one. One that is there already goes on
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Send this text on every connection; may be given again
    #[arg(long, value_name = "TEXT")]
    pub send: Vec<String>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub lasts: Option<Duration>,
    /// Begin the next file at this many bytes
    #[arg(long, value_name = "BYTES")]
    pub rotate: Option<u64>,
    /// A name of yours whose values are secrets, as `desk_pin`; may be given again
    #[arg(long, value_name = "NAME")]
    pub redact: Vec<String>,
    /// Record secrets as they are
    #[arg(long)]
    pub with_secrets: bool,
}

#[derive(Args)]
#[command(
    after_help = "Example: wsup replay trades.jsonl.zst --listen 127.0.0.1:9001\n\nThe URL to connect to is the first line of \
                  stdout. Lines that can't be read, and files that are missing, are named on stderr and passed over.\n\nExit \
                  status: 0 when it was ended on purpose, 1 when there is nothing to play or the address can't be had."
)]
pub struct ReplayOptions {
    /// A recording, compressed or not; the files that it was rotated into follow
    pub file: PathBuf,
    /// Where to listen; port 0 takes any and says which
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: std::net::SocketAddr,
    /// So many times as fast as recorded; 0 as fast as it goes
    #[arg(long, value_name = "TIMES", default_value_t = 1.0)]
    pub pace: f64,
    /// What this client received only, where the recording is of several
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub lasts: Option<Duration>,
}

#[derive(Args)]
#[command(
    after_help = "Example: wsup check-recording trades.jsonl.zst\n\nExit status: 0 when no value looks like a secret and every \
                  line can be read, 1 when the file can't be read, 2 when a value looks like a secret, 3 when only lines can't be \
                  read."
)]
pub struct CheckRecordingOptions {
    /// A recording, compressed or not; the files that it was rotated into follow
    pub file: PathBuf,
    /// A name of yours whose values are secrets, as `desk_pin`; may be given again
    #[arg(long, value_name = "NAME")]
    pub redact: Vec<String>,
    /// Print the values that look like secrets, and not only their names
    #[arg(long)]
    pub show: bool,
}

#[derive(Args)]
#[command(
    after_help = "Keys: up and down choose a client; r restarts it, s stops it, u resumes it, where the desk allows commands; q \
                  ends.\n\nExit status: 0 when it was ended on purpose, 1 when the desk or the terminal is gone."
)]
pub struct TopOptions {
    /// The path at which the desk serves its status
    #[arg(required_unless_present = "demo")]
    pub path: Option<PathBuf>,
    /// A desk in this process, with clients that have their troubles
    #[arg(long)]
    pub demo: bool,
    /// Draw once, as SVG to stdout, instead of taking the terminal
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    pub picture: Option<(u16, u16)>,
    /// With --picture: dark letters on a light ground
    #[arg(long, requires = "picture")]
    pub light: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    ws_supervisor::config_file::time(text)
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let sides = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.filter(|(width, height)| *width > 0 && *height > 0).ok_or("as 100x30".into())
}
