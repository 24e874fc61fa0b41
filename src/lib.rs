//! Supervised WebSocket clients for synchronous, low-latency programs.
//!
//! Each client is one OS thread that owns one socket. A supervisor thread joins workers that end and starts them anew
//! by OTP's rules. You talk to a client over crossbeam channels, or let a handler run on its thread. There is no async
//! runtime anywhere.
//!
//! # The shortest program
//!
//! ```
//! use std::time::Duration;
//! use ws_supervisor::{ClientConfig, Event, Supervisor};
//!
//! # let server = ws_supervisor::testing::Server::echo()?;
//! # let url = server.url();
//! let supervisor = Supervisor::start()?;
//! let client = supervisor.spawn_client(ClientConfig::new(url)?.name("feed"))?; // returns at once
//! client.wait_until_open(Duration::from_secs(5))?;
//! client.send("hello")?; // never blocks; hands the message back if it is refused
//! for event in client.events() {
//!     match event {
//!         Event::Open { epoch, .. } => println!("connection {epoch}: subscribe now"),
//!         Event::Message(message) => {
//!             println!("{:?}", message.as_text());
//!             break;
//!         }
//!         Event::Disconnected { reason, unsent, .. } => println!("{reason}; {} not sent", unsent.len()),
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What happens when something fails
//!
//! There are two layers of recovery, and exactly one of them dials.
//!
//! 1. **Reconnect**, inside the worker: a lost connection or a failed attempt is followed by another attempt, at once
//!    the first time, then after 1 s, 2 s, … 30 s, with jitter. Failures are forgotten when a connection has stayed
//!    open for [`stable_after`](ClientConfig::stable_after), not when it opens.
//! 2. **Restart**, by the supervisor: when the worker panics, uses up its retries or loses its heartbeat, its thread is
//!    joined and another starts. Weather is not a crash: restarts for the network's sake are paced by the backoff and go
//!    on for as long as the outage. After a panic the first restart is at once, the next after a pause that grows to a
//!    second, and at most 10 follow in 60 s; one too many and the client is *parked*: it stays in the list, says why,
//!    and waits for [`resume_client`](Supervisor::resume_client). OTP's own counting is
//!    [`RestartCounting::All`].
//!
//! Whoever asks for it, no client dials more than 20 times at once and 10 times a second. What no retry can mend (a
//! certificate that is not trusted, [401, 403, 404](ClientConfig::park_on), a refused subprotocol) parks at once.
//!
//! Handles stay valid through all of it. Every open connection has a number, the *epoch*, that only rises.
//!
//! # From a connection to a session
//!
//! A new connection knows nothing. Before anyone is told that it is open, on the client's thread and within
//! [`connect_timeout`](ClientConfig::connect_timeout), in this order: [`prepare`](ClientConfig::prepare) sets URL and
//! headers, the handshake is made, the [`venue`](ClientConfig::venue) signs in, [`on_open`](ClientConfig::on_open) asks
//! and waits in straight lines, the wanted channels are [subscribed](ClientConfig::subscribe) to and acknowledged one by
//! one, and on every connection but the first [`reconcile`](ClientConfig::reconcile) settles what the last one left open.
//!
//! The channels have a time of their own, which each acknowledgement extends: a venue's limit may pace them for minutes. When
//! nothing comes of them for `connect_timeout` the client opens with the rest *pending* and says so. A refusal
//! for the moment is asked about again; a channel over which the server ends the connection is found, set aside and
//! named; the next connection after ten minutes tries it once more. Each of them costs itself only.
//!
//! ```
//! use serde_json::json;
//! use ws_supervisor::{Client, ClientConfig, Event};
//!
//! # let server = ws_supervisor::testing::DeribitServer::start()?;
//! # let url = server.url();
//! let config = ClientConfig::new(url)?.on_open(|session| {
//!     let sign_in = json!({"grant_type": "client_credentials", "client_id": "id", "client_secret": "secret"});
//!     let token: serde_json::Value = session.request("public/auth", sign_in)?;
//!     println!("signed in for {} s", token["expires_in"]);
//!     Ok(())
//! });
//! let client = Client::connect(config)?;
//! let positions: Vec<serde_json::Value> = client.request("private/get_positions", json!({"currency": "BTC"}))?;
//! # assert!(positions.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `venue::deribit` and [`venue::binance`] do all of that for these two venues; [`venue::Venue`] is how another is
//! taught.
//!
//! # Getting there
//!
//! One deadline, [`connect_timeout`](ClientConfig::connect_timeout), covers all steps, and the error names the one that it
//! ended in ([`Phase`]): the name is resolved, its addresses race (RFC 8305), a [`Proxy`] is asked, [`Tls`] agreed on, the
//! upgrade made. An address that takes the connection and then is mute, or answers 5xx, leaves the rest of the time to the
//! next; the one that served is first the next time. [`Client::handshake`] has what was agreed on.
//!
//! ```
//! use std::time::Duration;
//! use ws_supervisor::{ClientConfig, Proxy, RateLimit, SocketOptions, StaleAction, Tls};
//!
//! let dials = RateLimit::window(300, Duration::from_secs(300))?; // the venue's, shared by all clients
//! let config = ClientConfig::new("wss://a.venue.example/ws")?
//!     .fallback_url("wss://b.venue.example/ws")?
//!     .proxy(Proxy::new("http://desk:secret@proxy.example:3128")?.bypass("10.0.0.0/8"))
//!     .tls(Tls::new().root_file("/etc/desk/ca.pem").identity_files("/etc/desk/client.pem", "/etc/desk/client.key"))
//!     .socket(SocketOptions::new().local_address("192.0.2.7".parse()?))
//!     .dial_limit(dials)
//!     .stale_after(Duration::from_secs(10))
//!     .stale_action(StaleAction::Reconnect);
//! # let _ = config;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised about a message
//!
//! A message that [`Client::send`] accepted ends in one of three ways. It is *written*: the kernel has all of it, and
//! nothing speaks against its arrival. It is *unsent*: it comes back in the event that reports the end of the connection
//! ([`Event::Disconnected`], [`Event::Parked`] or [`Event::Closed`]). Or it is *uncertain*, in the same event: written, and
//! never acknowledged by the peer's kernel when the line was given up, as in a partition; ask the venue before you send it
//! again (told on Linux; an acknowledgement by the peer's *kernel* is not the venue's word; through a [`Proxy`] only the
//! venue's pongs count). [`Stats`] counts all of them, and the sum fits. A message is never written on
//! a later connection than the one it was accepted for, unless you asked for a
//! [queue](ClientConfig::queue_while_disconnected): a stale order must not reach the venue.
//! [`Client::send_confirmed`] waits until the kernel has it.
//!
//! Whoever is there is told: your queue, or your handler. One that panicked leaves it to the next, which hears it first;
//! when there is no next, a [`SupervisorEvent`] has it ([`HandedBack`]). A thread that was left behind keeps what it had
//! taken until it comes back ([`SupervisorEvent::CameBack`]). A reader that never reads gets the latest in
//! [`Event::Collapsed`], which counts the others.
//!
//! A request ([`Client::request`], [`Client::post`]) is answered exactly once or fails exactly once; [`RequestError`] says
//! whether the server may have acted on it. It is never queued for a later connection and never repeated. It is written
//! once, when the rate limits let it out.
//!
//! What waits is bounded in messages and in bytes, both ways: [`event_capacity`](ClientConfig::event_capacity) and
//! [`event_bytes`](ClientConfig::event_bytes), [`send_capacity`](ClientConfig::send_capacity) and
//! [`send_bytes`](ClientConfig::send_bytes).
//!
//! What the server sent arrives in order, whole, and within bounds: see [`Overflow`] for what happens when you are
//! slower than the server.
//!
//! # Three ways to receive
//!
//! - [`Delivery::channel`], the default: [`Client::events`] is a real [`crossbeam_channel::Receiver`]; with [`Delivery::batches`]
//!   what came together is one event.
//! - [`Delivery::shared`]: many clients, one channel, each event tagged with its client.
//! - [`Delivery::inline`]: a [`Handler`] on the worker's thread, whose replies leave without a thread hop, and which sees
//!   messages where they lie in the read buffer ([`MessageRef`]).
//!
//! # Panics and `panic = "abort"`
//!
//! A panic on a worker's thread is caught by joining the thread. With `panic = "abort"` in your profile there is
//! nothing to join: the process ends. Supervising panics needs `panic = "unwind"`, Rust's default.
//!
//! # Logging
//!
//! Through [`log`], targets `ws_supervisor::…`: *error* for what a person must look at (parked, a panic, a thread left
//! behind, events that nobody reads), *warn* for what recovers by itself (a lost connection, a failed attempt, a
//! restart, a full queue), *info* for open and closed, *debug* for attempts. Never a query, a header's value or a
//! payload. tungstenite's own target logs payloads that are sent at *trace*. With `env_logger`, in your `main`:
//!
//! ```
//! env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("ws_supervisor=info")).init();
//! ```
//!
//! # Order
//!
//! Events come in the order in which they happened, messages in the order of the wire, and among them the answers to
//! [`Client::post`] and [`Context::request`] as [`Event::Response`]. [`Client::request`] returns when what came before its
//! answer is in the queue; whoever selects over two channels, the events and a [`PendingResponse`], still sees them in
//! the order of its own choice. What the kernel has of a connection when that ends is delivered before the end is told.
//!
//! # Threads, signals, fork, limits
//!
//! - A supervisor has two threads (`ws-supervisor`, `ws-guardian`), a client one, named after it (Linux shows 15 bytes).
//!   A name that must be resolved takes a thread (`dns …`) until the resolver answers.
//! - Descriptors and your closures are let go of when a client has ended, though handles of it live on.
//! - Memory: an idle client takes some 42 KiB with [`many_clients`](ClientConfig::many_clients) (5,000 over `ws` were
//!   measured), by default up to 128 KiB more, its read buffer; twice that over TLS, which takes its own on top. File descriptors: two,
//!   a socket and an eventfd. `ulimit -n` and the limit on threads (`ulimit -u`, a cgroup's `pids.max`) must allow for that.
//! - Signals: none is handled or sent, and no write of ours raises `SIGPIPE`. A system call that a signal interrupts is
//!   made again.
//! - Fork: threads don't survive it. Start the supervisor after forking; in a child that only calls `exec` every
//!   descriptor of ours is closed.
//!
//! # Trouble
//!
//! | what you see | look at |
//! |---|---|
//! | nothing at all | the log, at `RUST_LOG=ws_supervisor=debug` |
//! | `wait_until_open` times out | its error names the last attempt's; `Event::ConnectFailed` each of them |
//! | a certificate is not accepted | its [`TlsFault`]; the clock; the host's name; `ca-certificates`; [`root_certificate`](ClientConfig::root_certificate) |
//! | no way out but a proxy | [`ClientConfig::proxy`]; it is never gone round |
//! | pongs come, data does not | [`stale_after`](ClientConfig::stale_after) |
//! | `Parked` | the reason in it; then [`Supervisor::resume_client`] |
//! | messages stop, the line is open | your own reader: [`Overflow::Backpressure`] stops reading: `stats().paused_for`, [`Event::ReadingPaused`], [`SupervisorEvent::ReaderBehind`] |
//! | messages are older than `received_at` says | the same: they waited in the kernel |
//! | `Stalled`, a large `longest_turn` | a handler or callback of yours that blocks: its name is in `Stalled` |
//! | a channel is `pending` | the venue's limit, or its silence; [`Client::subscriptions`] |
//! | a test needs an event or a handler's context | the module `testing`: `opened(…)`, `response(…)`, `Rehearsal` |
//! | a request that is never answered | a thread that waits for it and should be reading events |
//!
//! # Features
//!
//! - `native-tls`, on by default: TLS by the system's library. Without it `rustls` must be on, and OpenSSL is not needed.
//! - `vendored`: builds OpenSSL from source, for machines without its headers.
//! - `rustls`: TLS without OpenSSL, for the clients that ask for it ([`Tls::backend`]).
//! - `pinning`: servers known by the SHA-256 of their certificate or key (`Tls::pin`).
//! - `socks`: proxies that speak SOCKS5.
//! - `idn`: URLs whose host's name is not ASCII.
//! - `compression`: permessage-deflate (`ClientConfig::compression`), `Decode::gzip` and `Decode::deflate_raw`.
//! - `deribit`: the venue Deribit (the module `venue::deribit`), and with `testing` an embedded one.
//! - `testing`: the scripted server that this crate is tested with, for your own tests (the module `testing`).
//! - `kernel-timestamps`: when the kernel had each message, on Linux (`ClientConfig::kernel_timestamps`).
//! - `metrics`: what is counted, to whichever exporter of the `metrics` facade (the module `metrics`).
//! - `record`, and `zstd` for compressed ones: recordings of what comes and goes (the module `record`).
//! - `serde`: supervisor and clients from a file (the module `config_file`).
//! - `status`, `live`: a running supervisor seen from another process, and in the terminal (`status_server`, `live`).
//! - `cli`: the program `wsup`.
//! - `real-time`: the real-time scheduler for a client's thread (`ClientConfig::real_time_priority`).
//! # Platforms
//!
//! Tested on Linux. macOS, the BSDs and illumos have poll(2) too, and differ in what the kernel can be asked:
//!
//! | what | Linux | other Unixes |
//! |---|---|---|
//! | [`uncertain`](Event::Disconnected) without a proxy | by the peer's acknowledgements (`SIOCOUTQ`) | empty: what was written counts as written. Through a proxy the venue's pongs decide on every system |
//! | the end of a connection while reading is paused | noticed at once, also on Android, FreeBSD and illumos (`POLLRDHUP`) | noticed when reading resumes, at a write, or when both directions are broken |
//! | `SocketOptions::{interface, user_timeout, busy_poll}`, `kernel_timestamps` | available | refused with a [`ConfigError`] |
//! | [`pin_to`](ClientConfig::pin_to) | available | FreeBSD too; macOS takes it as a hint; refused where the system cannot pin |
//! | [`keepalive`](SocketOptions::keepalive) | times and retries | OpenBSD: on, with the system's times |
//! | delayed acknowledgements | sent at once for short reads (`TCP_QUICKACK`) | the system decides |
//! | descriptors of a client | a socket and an eventfd | a socket and a pair of sockets |
//!
//! # Map
//!
//! ```text
//! your threads                worker thread, one a client                                   the server
//! Client ---- Command, ----> worker --> policy::connection (decides: given now and what happened,
//!    |        message          |        it returns what to do and when to ask again)
//!    |       (mailbox)         |    --> transport (TCP, TLS, frames) ------------------------>
//!    |---- writes itself while the worker sleeps (outbound::line) --^
//!    |<------- Event --------- consumer (your queue, or your handler on this thread) <---------
//!                              |
//!                              +-- Exit { reason, fate } --> supervisor's thread: joins, spends the budget, respawns
//! ```
//!
//! The source is laid out in this order, from the ground up. A file imports only what stands above it in this table, or
//! to its left in the same row; a test holds that (`tests/layers.rs` reads this very table).
//!
//! | room | files | what lives there |
//! |---|---|---|
//! | | `text` `message` `messages` `deadline` `overflow` `command` `state` `request` `receipt` `correlation` `unsettled` `user_code` `logger` | words that everything else uses |
//! | `wake/` | `bell` `mod` | how a caller ends the worker's sleep |
//! | `error/` | `io_kind` `config` `send` `request` `session` `connect` `mod` | what can go wrong, by what it went wrong with |
//! | | `handshake` `target` `lifecycle` `response` `handed_back` `event` `session` `dial` | what is said, and what your callbacks are handed |
//! | `transport/` | `wait` `unacknowledged` `socket` `layer` `rustls` `wire` `head` `proof` `assembly` `deflate` `no_deflate` `receiver` `sender` `mod` | bytes become messages: TCP, TLS, frames, the one wait |
//! | | `no_record` | nothing is written down, without the feature |
//! | `record/` | `tap` `json` `redact` `values` `entry` `files` `merge` `recorder` `reader` `survey` `mod` | what comes and goes, written down, and read again |
//! | `policy/` | `mod` `clocks` `places` `timers` `pacer` `idle` `restart_intensity` `restart` `reconnect` `heartbeat` `monitor` `monitors` `staleness` `rate_limit` `admission` `requests` `suspects` `channel` `batches` `subscriptions` `upkeep` `terms` `connection` `asking` | what decides: given `now`; no socket, thread, lock, channel, clock or log |
//! | `venue/` | `mod` `deribit_heartbeat` `binance` `deribit/requests` `deribit` | venues' dialects |
//! | `telemetry/` | `counter` `duty` `health` `stats` `mod` | what can be seen from any thread |
//! | `outbound/` | `gate` `accepted` `outbox` `line` `link` `mailbox` `mod` | the way down: a message is accepted, waits, is written, is counted |
//! | | `status` `asked` `wanted` | who waits for a state, an answer, a channel |
//! | | `core` | what every thread of a client may touch |
//! | | `metrics` `no_metrics` | what is counted, given to the `metrics` facade |
//! | `inbound/` | `backlog` `outlet` `burst` `queue` `context` `delivery` `consumer` `mod` | the way up: to a queue or to a handler |
//! | `config/` | `decode` `compression` `tls` `proxy` `socket` `mod` `connecting` `session` `thread` `settings` `file_parts` `file_connecting` `file` `effective` | options, and what they come to |
//! | `client_state/` | `mod` `settlement` | what one run of a worker leaves to the next; who is told what at an end |
//! | `connect/` | `mod` `attempt` `compression` `no_compression` `resolve` `tcp` `certificate` `tls` `native_tls` `rustls` `secure` `http` `proxy` `handshake` `open` | from a URL to an open connection |
//! | `worker/` | `mod` `run` `acting` `reading` `establish` `close` `pause` `serve` `thread` | the loop on the client's thread: carries out |
//! | `client/` | `mod` `pending` `requests` | the handle |
//! | `supervisor/` | `settings` `event` `child` `table` `deferred` `exits` `guardian` `mod` | joins, and does what an exit says |
//! | `status_server/` | `snapshot` `mod` | seen from another process |
//! | `live/` | `view` `mod` | seen in the terminal |
//! | `config_file/` | `tree` `words` `mod` | all of it from a file |
//!
//! | where is it decided | file |
//! |---|---|
//! | whether a message of yours is accepted or refused | `policy/admission`; a full channel: `outbound/mailbox`; a request too many: `policy/requests` |
//! | who writes it, you or the worker | `outbound/line` |
//! | whether it counts as written | `outbound/outbox` |
//! | what comes back at the end of a connection, and to whom | `client_state/settlement` |
//! | what happens when you read too slowly | `overflow`, carried out by `inbound/backlog` |
//! | that a heartbeat is lost | `policy/monitor` |
//! | that data has stopped | `policy/staleness` |
//! | when to dial again | `policy/reconnect` |
//! | what follows the end of a run | `policy/restart` (asked by `client_state/settlement`); the budget, and what counts: `supervisor/exits`, by `policy/restart_intensity` |
//! | whether a frame may come, and what a message is | `transport/receiver`, `transport/head` |
//! | whom an answer answers | `policy/requests`; who waits for it: `asked` |
//! | which channels are asked for | `policy/subscriptions`; who waits for one: `wanted` |
//! | which of several options wins | `config/settings` |
//! | what a key of a configuration file means | `config/file`, `config/file_parts` |
//! | what is published, under which name | `metrics` |
//! | what a line of a recording says | `record/entry` |
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("ws-supervisor waits with poll(2) and needs a Unix");

mod asked;
mod client;
mod client_state;
mod command;
mod config;
#[cfg(feature = "serde")]
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
pub mod config_file;
mod connect;
mod core;
mod correlation;
mod deadline;
mod dial;
mod error;
mod event;
mod handed_back;
mod handshake;
mod inbound;
mod lifecycle;
#[cfg(all(unix, feature = "live"))]
#[cfg_attr(docsrs, doc(cfg(feature = "live")))]
pub mod live;
mod logger;
mod message;
mod messages;
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "no_metrics.rs"]
mod metrics;
mod outbound;
mod overflow;
mod policy;
mod receipt;
#[cfg(feature = "record")]
#[cfg_attr(docsrs, doc(cfg(feature = "record")))]
pub mod record;
#[cfg(not(feature = "record"))]
#[path = "no_record.rs"]
mod record;
mod request;
mod response;
mod session;
mod state;
mod status;
#[cfg(all(unix, feature = "status"))]
#[cfg_attr(docsrs, doc(cfg(feature = "status")))]
pub mod status_server;
mod supervisor;
mod target;
mod telemetry;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod text;
mod transport;
mod unsettled;
mod user_code;
pub mod venue;
mod wake;
mod wanted;
mod worker;

/// Payloads of messages: [`Message`] is made of its `Bytes`, and gives them back.
pub use bytes;
pub use client::Client;
pub use client::pending::PendingResponse;
pub use config::ClientConfig;
#[cfg(feature = "compression")]
#[cfg_attr(docsrs, doc(cfg(feature = "compression")))]
pub use config::compression::Compression;
pub use config::decode::Decode;
pub use config::proxy::Proxy;
pub use config::socket::SocketOptions;
#[cfg(feature = "pinning")]
#[cfg_attr(docsrs, doc(cfg(feature = "pinning")))]
pub use config::tls::Pin;
pub use config::tls::{Tls, TlsBackend};
pub use correlation::{Answer, Correlation};
/// Channels of events: [`Client::events`] is one of its receivers. Use its `select!` from here, so that both are of one version.
pub use crossbeam_channel;
pub use dial::Dial;
pub use error::{
    ConfigError, ConfirmError, ConnectError, Phase, Refusal, RefusedChannel, RequestError, SendError, SessionError,
    SubscribeError, TlsFault, Unanswered,
};
pub use event::{ClientEvent, Event};
pub use handed_back::HandedBack;
pub use handshake::{Handshake, SubprotocolChoice, TlsSession, TlsVersion};
pub use inbound::context::Context;
pub use inbound::delivery::{Delivery, Handler};
pub use lifecycle::{ExitReason, ParkReason, StartError, StopError, WaitError};
pub use message::{CloseFrame, Message, MessageRef};
pub use messages::Messages;
pub use overflow::Overflow;
pub use policy::heartbeat::{Heartbeat, HeartbeatKind};
pub use policy::idle::IdleStrategy;
pub use policy::rate_limit::RateLimit;
pub use policy::requests::RequestOutcomes;
pub use policy::restart::Restart;
pub use policy::staleness::StaleAction;
pub use policy::subscriptions::SubscriptionStatus;
pub use request::{Json, Request, RequestId, RpcError};
pub use response::Response;
pub use session::Session;
pub use state::{ClientId, DisconnectReason, ReadyState};
pub use supervisor::{
    ClientCount, ClientInfo, ClientPhase, IntensityScope, RestartCounting, ShutdownReport, Supervisor,
    SupervisorBuilder, SupervisorEvent, SupervisorExit,
};
pub use telemetry::counter::Percentiles;
pub use telemetry::duty::Doing;
pub use telemetry::health::HeartbeatHealth;
pub use telemetry::stats::Stats;
pub use unsettled::{UnknownRequest, Unsettled};
pub use user_code::UserCode;

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
