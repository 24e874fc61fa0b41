//! Only the embedded Deribit, for clients of other makers.

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Duration;

use ws_supervisor::testing::DeribitServer;

use crate::options::Options;

/// Serves until stdin ends or says `quit`; then tells what broke a rule.
pub fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let builder = DeribitServer::builder().every(Duration::from_millis(5));
    let server = if options.tls { builder.tls() } else { builder }.start()?;
    if let Some(file) = &options.ca_out {
        std::fs::write(file, server.ca_pem())?;
    }
    println!("{}", server.url());
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("break", instrument)) => println!("broken: {}", server.break_chain(instrument)),
            _ if line == "quit" => break,
            _ => println!("`break INSTRUMENT` or `quit`"),
        }
        std::io::stdout().flush()?;
    }
    let records = server.server().records();
    let messages: usize = records.iter().map(|record| record.received.len()).sum();
    println!("served {} connections, {messages} messages; rules broken: {:?}", records.len(), server.violations());
    Ok(())
}
