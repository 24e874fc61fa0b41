//! Supervised WebSocket clients for synchronous, low-latency programs.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("ws-supervisor waits with poll(2) and needs a Unix");

mod client;
mod command;
mod config;
mod connect;
mod delivery;
mod error;
mod event;
mod gate;
mod health;
mod message;
mod queue;
mod session;
mod shared;
mod stats;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;
mod wake;
mod worker;

pub use client::Client;
pub use config::{ClientConfig, IdleStrategy, Restart};
pub use delivery::{Delivery, Handler, Overflow};
pub use error::{ConfigError, ConfirmError, ConnectError, Phase, Refusal, SendError, StartError, StopError, WaitError};
pub use event::{ClientEvent, ClientId, DisconnectReason, Event, ExitReason, ParkReason, ReadyState};
pub use health::HeartbeatHealth;
pub use message::{CloseFrame, Message};
pub use session::heartbeat::{Heartbeat, HeartbeatKind};
pub use stats::Stats;
pub use supervisor::{
    ClientCount, ClientInfo, ClientPhase, IntensityScope, ShutdownReport, Supervisor, SupervisorBuilder,
    SupervisorEvent, SupervisorExit,
};
pub use worker::Context;
