//! The exporter: a recorder that keeps what is published, and one thread that hands it to whoever asks.

use std::error::Error;
use std::sync::Arc;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use ws_supervisor::Supervisor;

/// Seconds: from a round trip in a rack to one around the world, and beyond.
const TIMES: [f64; 12] = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0];

pub fn install() -> Result<PrometheusHandle, Box<dyn Error>> {
    let times = Matcher::Suffix("_seconds".to_owned());
    let handle = PrometheusBuilder::new().set_buckets_for_metric(times, &TIMES)?.install_recorder()?;
    ws_supervisor::metrics::describe();
    Ok(handle)
}

pub fn serve(address: &str, metrics: PrometheusHandle, supervisor: Arc<Supervisor>) -> Result<(), Box<dyn Error>> {
    let server = tiny_http::Server::http(address).map_err(|error| format!("{address}: {error}"))?;
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        for request in server.incoming_requests() {
            // What is told is the state at this scrape, not that of up to a second ago.
            supervisor.publish_metrics();
            metrics.run_upkeep();
            let text = tiny_http::Response::from_string(metrics.render());
            let kind = "Content-Type: text/plain; version=0.0.4".parse::<tiny_http::Header>();
            let _ = request.respond(match kind {
                Ok(kind) => text.with_header(kind),
                Err(()) => text,
            });
        }
    })?;
    Ok(())
}
