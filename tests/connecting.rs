//! From a URL to an open connection through what a desk's network has: proxies, certificates, dead addresses, servers that
//! stall; and feeds that fall silent on a line that is alive. The proxies and some of the servers are real ones, of makers
//! that are not us: where one is not installed its part says so and is passed over (`.ci/setup` installs them by name).

mod common;

#[path = "connecting/addresses.rs"]
mod addresses;
#[path = "connecting/certificates.rs"]
mod certificates;
#[path = "connecting/crossing.rs"]
mod crossing;
#[path = "connecting/daemon.rs"]
mod daemon;
#[path = "connecting/endpoints.rs"]
mod endpoints;
#[path = "connecting/matrix.rs"]
mod matrix;
#[path = "connecting/relay.rs"]
mod relay;
#[path = "connecting/silence.rs"]
mod silence;
#[path = "connecting/stages.rs"]
mod stages;
#[path = "connecting/upgrade.rs"]
mod upgrade;
