//! Messages of one process' clients on Redis Streams for other machines, and orders back to them.
//!
//! ```text
//! ws-supervisor-gateway publish --redis URL [--venue URL] [--seconds N]   one process a venue
//! ws-supervisor-gateway read    --redis URL --name NAME [--seconds N]     readers share the work in one group
//! ws-supervisor-gateway order   --redis URL [--count N]                   orders, and an answer for each
//! ws-supervisor-gateway venue   [--rate N]                                a venue: its URL, then the label of each order
//! ```
//!
//! Each prints a report as its last line. `run` starts all of them beside a Redis that is killed in the middle.

mod desk;
mod lease;
mod orders;
mod publish;
mod read;
mod sink;
mod spool;
mod stream;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

/// The command line: names and values.
pub struct Options {
    pub redis: String,
    pub venue: Option<String>,
    pub name: String,
    pub seconds: Duration,
    pub count: usize,
    pub rate: usize,
    pub spool_bytes: u64,
    /// An order that is older is not placed.
    pub order_expiry: Duration,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ws-supervisor-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let mut options = Options {
        redis: "redis://127.0.0.1:6379".into(),
        venue: None,
        name: "reader".into(),
        seconds: Duration::from_secs(10),
        count: 100,
        rate: 20_000,
        spool_bytes: 256 << 20,
        order_expiry: Duration::from_secs(10),
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--redis" => options.redis = value,
            "--venue" => options.venue = Some(value),
            "--name" => options.name = value,
            "--seconds" => options.seconds = Duration::try_from_secs_f64(value.parse()?)?,
            "--count" => options.count = value.parse()?,
            "--rate" => options.rate = value.parse()?,
            "--order-expiry" => options.order_expiry = Duration::try_from_secs_f64(value.parse()?)?,
            "--spool-bytes" => options.spool_bytes = value.parse()?,
            other => return Err(format!("{other} is no option: see the first lines of src/main.rs").into()),
        }
    }
    match command.as_str() {
        "publish" => publish::publish(&options),
        "read" => read::read(&options),
        "order" => orders::order(&options),
        "venue" => desk::serve(options.rate),
        other => Err(format!("{other:?} is no command: publish, read, order, venue").into()),
    }
}
