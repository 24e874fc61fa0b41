//! The command line.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

const HELP: &str = "\
A supervised Deribit connection that signs in, subscribes, survives and shuts down, against an embedded Deribit.

  --seconds N   how long it runs (default 8)
  --url URL     connects to a real one instead, for example wss://test.deribit.com/ws/api/v2; signs in with
                DERIBIT_ID and DERIBIT_SECRET from the environment, or not at all. Places no order there.
  --ca FILE     with --url: trusts the CA certificates in this PEM file too
  --serve       only serves the embedded Deribit, for other clients; stdin takes `break INSTRUMENT` and `quit`
  --tls         with --serve: over TLS
  --ca-out FILE with --serve: writes the CA's certificate there
Environment: RUST_LOG=info shows the library's own log.";

pub struct Options {
    pub duration: Duration,
    pub url: Option<String>,
    pub ca: Option<PathBuf>,
    pub serve: bool,
    pub tls: bool,
    pub ca_out: Option<PathBuf>,
}

impl Options {
    pub fn from_args() -> Result<Self, Box<dyn Error>> {
        let mut options =
            Self { duration: Duration::from_secs(8), url: None, ca: None, serve: false, tls: false, ca_out: None };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("seconds") => {
                    let seconds: f64 = parser.value()?.parse()?;
                    options.duration = Duration::try_from_secs_f64(seconds)?;
                }
                Long("url") => options.url = Some(parser.value()?.string()?),
                Long("ca") => options.ca = Some(parser.value()?.into()),
                Long("serve") => options.serve = true,
                Long("tls") => options.tls = true,
                Long("ca-out") => options.ca_out = Some(parser.value()?.into()),
                Short('h') | Long("help") => {
                    println!("{HELP}");
                    std::process::exit(0);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if options.duration < Duration::from_millis(800) {
            return Err("--seconds takes at least 0.8".into());
        }
        if options.serve && options.url.is_some() {
            return Err("--serve and --url exclude each other".into());
        }
        Ok(options)
    }
}
