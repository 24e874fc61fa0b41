//! The command line.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

const HELP: &str = "\
A trading desk that keeps its connections alive, against an embedded exchange.

  --seconds N       how long it runs (default 15)
  --replay FILE     the exchange plays a recorded session (JSON lines) on every connection
  --flat-out        plays it as fast as it goes, not at recorded speed
  --faults none     injects nothing
  --json            the last line of stdout is one JSON object; all else goes to stderr
  --url URL         connects one client to a real server instead
  --send TEXT       with --url: sends this text once a second
  --ca FILE         with --url: trusts the CA certificates in this PEM file too
Environment: RUST_LOG=info shows the library's own log.";

pub struct Options {
    pub duration: Duration,
    pub replay: Option<PathBuf>,
    pub flat_out: bool,
    pub faults: bool,
    pub json: bool,
    pub url: Option<String>,
    pub send: Option<String>,
    pub ca: Option<PathBuf>,
}

impl Options {
    pub fn from_args() -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            duration: Duration::from_secs(15),
            replay: None,
            flat_out: false,
            faults: true,
            json: false,
            url: None,
            send: None,
            ca: None,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("seconds") => {
                    let seconds: f64 = parser.value()?.parse()?;
                    options.duration = Duration::try_from_secs_f64(seconds)?;
                }
                Long("replay") => options.replay = Some(parser.value()?.into()),
                Long("flat-out") => options.flat_out = true,
                Long("faults") => match parser.value()?.string()?.as_str() {
                    "none" => options.faults = false,
                    "all" => options.faults = true,
                    other => return Err(format!("--faults takes `none` or `all`, not `{other}`").into()),
                },
                Long("json") => options.json = true,
                Long("url") => options.url = Some(parser.value()?.string()?),
                Long("send") => options.send = Some(parser.value()?.string()?),
                Long("ca") => options.ca = Some(parser.value()?.into()),
                Short('h') | Long("help") => {
                    println!("{HELP}");
                    std::process::exit(0);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if options.flat_out && options.replay.is_none() {
            return Err("--flat-out needs --replay".into());
        }
        if options.url.is_none() && (options.send.is_some() || options.ca.is_some()) {
            return Err("--send and --ca need --url".into());
        }
        if options.url.is_some() && options.replay.is_some() {
            return Err("--url and --replay exclude each other".into());
        }
        Ok(options)
    }
}
