//! The handle: what callers hold. Over 400 lines since each call is documented here, with an example.

pub(crate) mod pending;
mod requests;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use crate::client_state::ClientState;
use crate::command::CommandKind;
use crate::config::ClientConfig;
use crate::config::settings::Settings;
use crate::core::Core;
use crate::error::{ConfigError, ConfirmError, SendError};
use crate::event::Event;
use crate::handed_back::HandedBack;
use crate::handshake::Handshake;
use crate::lifecycle::{StartError, StopError, WaitError};
use crate::message::Message;
use crate::outbound::mailbox::{Enlists, Nobody};
use crate::policy::restart::{Exit, Restart};
use crate::receipt::Receipt;
use crate::state::{ClientId, ReadyState};
use crate::telemetry::counter::Percentiles;
use crate::telemetry::health::HeartbeatHealth;
use crate::telemetry::stats::Stats;
use crate::worker::thread;

/// A handle of one WebSocket client. Cheap to clone, usable from any thread, valid across every reconnect and restart
/// of its client.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, Supervisor, testing::Server};
///
/// let server = Server::echo()?;
/// let supervisor = Supervisor::start()?;
/// let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
/// client.wait_until_open(Duration::from_secs(5))?;
/// client.send("hello")?;
/// server.wait_for_message(|message| message.as_text() == Some("hello"));
/// client.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    state: Arc<ClientState>,
    keeper: Keeper,
}

/// A supervisor, as far as its clients' handles need it.
pub(crate) trait Supervises: Send + Sync {
    fn stop(self: Arc<Self>, client: ClientId) -> Result<(), StopError>;
}

/// Who looks after the worker.
#[derive(Clone)]
enum Keeper {
    Supervisor(Weak<dyn Supervises>),
    /// Nobody but the handles: the last one that goes closes the client.
    Handles(Arc<Unsupervised>),
}

struct Unsupervised {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<Exit>>>,
    /// Ends when the thread has done its last.
    done: Receiver<()>,
}

impl Drop for Unsupervised {
    fn drop(&mut self) {
        self.core.command(CommandKind::Stop, self.core.close_timeout);
    }
}

impl Client {
    pub(crate) fn supervised(state: Arc<ClientState>, supervisor: Weak<dyn Supervises>) -> Self {
        Self { core: state.core.clone(), state, keeper: Keeper::Supervisor(supervisor) }
    }

    /// The unsupervised door, for tests and short jobs: connects, and returns when the connection is open. The client
    /// reconnects as configured; when its retries are exhausted or its thread panics, it is closed. Dropping the last
    /// handle closes it.
    ///
    /// # Errors
    /// When the configuration breaks a rule, the operating system gives no thread, or the first attempt to connect
    /// fails, within `connect_timeout`; with [fallback URLs](ClientConfig::fallback_url), when one to each has failed. A
    /// [`dial_limit`](ClientConfig::dial_limit) is waited for first, however long that takes. What only a supervisor does is
    /// missing: restarts, and trying the line after this machine has slept.
    ///
    /// ```
    /// use ws_supervisor::{Client, ClientConfig, testing::Server};
    ///
    /// let server = Server::echo()?;
    /// let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// client.send("hello")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn connect(config: ClientConfig) -> Result<Self, StartError> {
        let settings = resolve(&config)?;
        if settings.restart != Restart::default() {
            return Err(ConfigError::new("restart", "needs a supervisor: use `Supervisor::spawn_client`").into());
        }
        let os = |error: std::io::Error| StartError::Os(error.to_string().into());
        let state = Arc::new(ClientState::new(settings, false).map_err(os)?);
        let (last, done) = crossbeam_channel::bounded::<()>(0);
        let thread = thread::start(&state, None, last).map_err(os)?;
        let core = state.core.clone();
        let keeper = Arc::new(Unsupervised { core: core.clone(), thread: Mutex::new(Some(thread)), done });
        let client = Self { core, state, keeper: Keeper::Handles(keeper) };
        match client.core.status.wait_for_first() {
            Ok(()) => Ok(client),
            Err(error) => {
                let _ = client.close();
                Err(error)
            }
        }
    }

    /// Accepts a message for the open connection and returns at once, without waiting for the network. What was
    /// accepted is written to the socket, or handed back in the event that reports the end of the connection; it is
    /// never written on a later one.
    ///
    /// # Errors
    /// When there is no open connection (and `queue_while_disconnected` has no room), when `send_capacity` messages or
    /// `send_bytes` wait already, or when the message is larger than `max_message_size`. The error holds the message.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// match client.send("order") {
    ///     Ok(()) => println!("accepted: it will be written or handed back"),
    ///     Err(refused) => {
    ///         println!("{refused}");
    ///         assert_eq!(refused.into_message().as_text(), Some("order"));
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.accept(message.into(), Nobody)
    }

    fn accept<E: Enlists>(&self, message: Message, others: E) -> Result<(), E::Error> {
        self.core.mailbox.accept(message, || self.core.status.get(), others)
    }

    /// As [`send`](Client::send), and returns once the kernel has all of the message, or says what is known instead.
    /// Blocks for at most `timeout`. Nothing is handed back in events for such a message: this call's result is its
    /// account. One whose time ran out keeps its place within `send_capacity` until the worker comes across it.
    ///
    /// # Errors
    /// [`ConfirmError::Refused`] when it was not accepted (always so on the client's own handler's thread, which would
    /// wait for itself), [`ConfirmError::NotSent`] when the server cannot act on it, [`ConfirmError::OutcomeUnknown`]
    /// when the time ran out in the middle of writing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// client.send_confirmed("order", Duration::from_secs(1))?;
    /// assert_eq!(client.stats().sent, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_confirmed(&self, message: impl Into<Message>, timeout: Duration) -> Result<(), ConfirmError> {
        let message = message.into();
        if self.core.is_own_thread() {
            return Err(ConfirmError::Refused(SendError::OwnThread { message }));
        }
        let (written, outcome) = crossbeam_channel::bounded(1);
        let receipt = Arc::new(Receipt::new(written));
        self.accept(message.clone(), Confirmed(&receipt)).map_err(ConfirmError::Refused)?;
        let received = match Instant::now().checked_add(timeout) {
            Some(deadline) => outcome.recv_deadline(deadline).ok(),
            None => outcome.recv().ok(),
        };
        match received {
            Some(true) => Ok(()),
            Some(false) => Err(ConfirmError::NotSent(message)),
            None if receipt.take_back() => Err(ConfirmError::NotSent(message)),
            // It may have been settled between the timeout and the attempt to take it back.
            None => match outcome.try_recv() {
                Ok(true) => Ok(()),
                Ok(false) => Err(ConfirmError::NotSent(message)),
                Err(_) => Err(ConfirmError::OutcomeUnknown(message)),
            },
        }
    }

    /// The client's events: a real crossbeam channel, for `recv`, iteration and `select!`. It ends after
    /// [`Event::Closed`]. Clones share one queue: each event goes to one of them. With shared or inline delivery the
    /// events go there, and this channel ends at once.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let events = client.events();
    /// crossbeam_channel::select! {
    ///     recv(events) -> event => assert!(matches!(event?, Event::Open { epoch: 1, .. })),
    ///     default(Duration::from_secs(10)) => panic!("nothing happened"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn events(&self) -> Receiver<Event> {
        self.state.events.clone()
    }

    /// Blocks until the connection is open, at most `timeout`; at once if it is.
    ///
    /// # Errors
    /// When the time runs out (with the last failure), or the client is parked or closed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// client.wait_until_open(Duration::from_secs(10))?;
    /// assert_eq!(client.ready_state(), ReadyState::Open);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_until_open(&self, timeout: Duration) -> Result<(), WaitError> {
        // On its own thread nothing would change while it waits.
        let timeout = if self.core.is_own_thread() { Duration::ZERO } else { timeout };
        self.core.status.wait_until_open(timeout)
    }

    /// What the client is doing now.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// assert_eq!(client.ready_state(), ReadyState::Open);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ready_state(&self) -> ReadyState {
        self.core.status.get()
    }

    /// The number of the current or last connection: rises by one at every open, across restarts too; 0 before the
    /// first.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// assert_eq!(client.epoch(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn epoch(&self) -> u64 {
        self.core.counters.epoch.get()
    }

    /// What was agreed on when the latest connection was made: headers, cookies, subprotocol, addresses, TLS. `None` before
    /// the first.
    ///
    /// ```
    /// # use ws_supervisor::{Client, ClientConfig, testing::Server};
    /// # let server = Server::echo()?;
    /// let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// assert_eq!(client.handshake().unwrap().peer.to_string(), server.address().to_string());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handshake(&self) -> Option<Arc<Handshake>> {
        self.core.handshake.lock().clone()
    }

    /// Tells the client's inline handler a value, on the client's thread, between two messages:
    /// [`Handler::on_command`](crate::Handler::on_command). Returns at once; also while there is no connection. A handler that
    /// panics takes what it was told with it, the rest waits for the next. What is never told is dropped by the thread that
    /// ends the client.
    ///
    /// # Errors
    /// With the value, when the client has no inline handler, is closed, or has 1,024 values waiting.
    ///
    /// ```
    /// use std::any::Any;
    /// use ws_supervisor::{Client, ClientConfig, Context, Delivery, Handler, Message, MessageRef, testing::Server};
    ///
    /// enum Order {
    ///     CancelAll,
    /// }
    /// struct Desk;
    /// impl Handler for Desk {
    ///     fn on_message(&mut self, _: &mut Context<'_>, _: MessageRef<'_>) {}
    ///     fn on_command(&mut self, context: &mut Context<'_>, command: Box<dyn Any + Send>) {
    ///         match command.downcast_ref() {
    ///             Some(Order::CancelAll) => context.send("cancel all").expect("open"),
    ///             None => eprintln!("not an order"),
    ///         }
    ///     }
    /// }
    /// let server = Server::echo()?;
    /// let client = Client::connect(ClientConfig::new(server.url())?.delivery(Delivery::inline(|| Desk)))?;
    /// client.tell(Order::CancelAll).map_err(|_| "refused")?;
    /// server.wait_for_message(|message| message.as_text() == Some("cancel all"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn tell<T: Any + Send>(&self, value: T) -> Result<(), T> {
        let core = &self.core;
        match &core.told {
            Some(told) if told.has_room() && core.status.get() != ReadyState::Closed => told.tell(Box::new(value)),
            _ => return Err(value),
        }
        core.mailbox.wake.wake();
        Ok(())
    }

    /// Ends the connection in good order and makes the next at once, on the same thread, with the same handler. Returns at
    /// once; not counted as a failure. Nothing happens when the client is closed or parked.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// client.reconnect();
    /// let reason = client.events().iter().find_map(|event| match event {
    ///     Event::Disconnected { reason, .. } => Some(reason),
    ///     _ => None,
    /// });
    /// assert_eq!(reason, Some(DisconnectReason::ReconnectRequested));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reconnect(&self) {
        self.core.command(CommandKind::Reconnect, self.core.close_timeout);
    }

    /// How the heartbeat does.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let health = client.heartbeat_health();
    /// assert_eq!((health.kind, health.consecutive_failures), (HeartbeatKind::PingPong, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn heartbeat_health(&self) -> HeartbeatHealth {
        self.core.health.read(&self.state.settings.heartbeat)
    }

    /// The client's counters since it was spawned.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let stats = client.stats();
    /// assert_eq!((stats.reconnects, stats.restarts, stats.unsent), (0, 0, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(&self) -> Stats {
        self.state.stats()
    }

    /// How long requests of yours took to be answered, by method: the first 64 methods are told apart.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::start(Script::reply(|_, _| vec![r#"{"id":1,"result":"ok"}"#.into()]))?;
    /// # let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// let _: String = client.request("private/buy", ())?;
    /// let latencies = client.request_latencies();
    /// println!("p99 of orders: {:?}", latencies["private/buy"].p99);
    /// assert_eq!(client.stats().request_latency.count, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request_latencies(&self) -> BTreeMap<Box<str>, Percentiles> {
        let methods = self.core.counters.request_latency.by_method().into_iter();
        methods.map(|(method, times)| (method, times.percentiles(Duration::from_micros(1)))).collect()
    }

    /// Publishes what is counted of this client now; its supervisor does it by itself ([`metrics`](crate::metrics)).
    ///
    /// ```
    /// # use ws_supervisor::{Client, ClientConfig, testing::Server};
    /// # let server = Server::echo()?;
    /// let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// client.publish_metrics();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn publish_metrics(&self) {
        self.state.publish_metrics();
    }

    /// What its configuration came to, every option with the value that it has, as a
    /// [configuration file](crate::config_file) would have it: secrets, and paths and queries of URLs, left out.
    ///
    /// ```
    /// # use ws_supervisor::{Client, ClientConfig, testing::Server};
    /// # let server = Server::echo()?;
    /// let config = ClientConfig::new(server.url())?.header("Authorization", "Bearer secret");
    /// let settings = Client::connect(config)?.effective_settings();
    /// assert_eq!(settings["connect_timeout"], "10s");
    /// assert!(!settings.to_string().contains("secret"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "serde")]
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    pub fn effective_settings(&self) -> serde_json::Value {
        crate::config::effective::effective(&self.core.tag, &self.state.settings)
    }

    /// The client's id.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// assert_eq!(supervisor.list_clients()[0].id, client.id());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self) -> ClientId {
        self.core.tag.id
    }

    /// The client's name.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// assert!(client.name().ends_with("127.0.0.1"), "a number and the host, unless you name it");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.core.tag.name
    }

    /// What of yours ended with this client when nobody was left to be told: a handler that panicked, without a
    /// supervisor to make another. Empty for a supervised client, whose [`SupervisorEvent`](crate::SupervisorEvent) has it, for
    /// a queue, which gets its last words, and until the client is [`Closed`](ReadyState::Closed). Each is told once.
    /// Waits for the client's thread, `close_timeout` at most.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::Server};
    /// # let server = Server::echo()?;
    /// struct Breaks;
    ///
    /// impl Handler for Breaks {
    ///     fn on_message(&mut self, context: &mut Context<'_>, _: MessageRef<'_>) {
    ///         context.send("never sent").unwrap();
    ///         panic!("a bug");
    ///     }
    /// }
    ///
    /// let config = ClientConfig::new(server.url())?.delivery(Delivery::inline(|| Breaks));
    /// let client = Client::connect(config)?;
    /// server.push("tick");
    /// while client.wait_until_open(Duration::from_secs(10)).is_ok() {}
    /// assert_eq!(client.take_handed_back().unsent, [Message::from("never sent")]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take_handed_back(&self) -> HandedBack {
        match (&self.keeper, self.ready_state()) {
            // Its own thread holds what it would wait for.
            (Keeper::Handles(_), ReadyState::Closed) if !self.core.is_own_thread() => {
                self.state.take_handed_back_within(self.core.close_timeout)
            }
            _ => HandedBack::default(),
        }
    }

    /// As [`close`](Client::close), with this code and reason in the close frame in place of 1000: some venues keep or drop
    /// resting orders by it.
    ///
    /// # Errors
    /// As `close`; [`StopError::InvalidCloseFrame`] when the code or the reason may not be sent, and then nothing was done.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::Server};
    /// # let server = Server::echo()?;
    /// let client = Client::connect(ClientConfig::new(server.url())?)?;
    /// client.close_with(4000, "end of day")?;
    /// server.wait_until(Duration::from_secs(10), |records| records[0].close_code.is_some());
    /// assert_eq!(server.records()[0].close_code, Some(4000));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close_with(&self, code: u16, reason: &str) -> Result<(), StopError> {
        self.core.set_close_frame(code, reason)?;
        self.close()
    }

    /// Ends the client gracefully: writes what was accepted, waits for the responses to requests under way (for 40 % of
    /// `close_timeout` at most), sends a close frame and waits for the server's. This is a normal end, so a transient client is
    /// not restarted (a permanent one is). Returns when the client is closed, after `close_timeout` at the latest; at once on the
    /// thread of the client's own handler, and for a permanent client.
    ///
    /// # Errors
    /// [`StopError::LeftBehind`] when the thread did not end in time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// client.close()?;
    /// assert_eq!(client.ready_state(), ReadyState::Closed);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close(&self) -> Result<(), StopError> {
        let core = &self.core;
        match &self.keeper {
            Keeper::Supervisor(supervisor) if self.state.settings.restart != Restart::Permanent => {
                let Some(supervisor) = supervisor.upgrade() else { return Ok(()) };
                match supervisor.stop(core.tag.id) {
                    Err(StopError::NotFound) => Ok(()),
                    other => other,
                }
            }
            Keeper::Supervisor(_) => {
                core.command(CommandKind::Close, core.close_timeout);
                Ok(())
            }
            Keeper::Handles(keeper) => {
                let until = core.command(CommandKind::Stop, core.close_timeout).0.deadline;
                if core.is_own_thread() {
                    return Ok(());
                }
                if !core.status.wait_until_closed(core.close_timeout) {
                    self.state.shut_socket();
                    return Err(StopError::LeftBehind(self.name().into()));
                }
                // It has said its last word; what is left is to drop the handler, which may take its time.
                if keeper.done.recv_deadline(until) == Err(RecvTimeoutError::Timeout) {
                    return Err(StopError::LeftBehind(self.name().into()));
                }
                if let Some(thread) = keeper.thread.lock().take() {
                    let _ = thread.join();
                }
                Ok(())
            }
        }
    }
}

/// What a configuration comes to, or the first thing that is wrong with it.
pub(crate) fn resolve(config: &ClientConfig) -> Result<Settings, StartError> {
    config.resolve().map_err(|faults| {
        let first = faults.into_iter().next();
        first.map_or(StartError::ShutDown, StartError::Config)
    })
}

/// A message whose sender waits until it is written.
struct Confirmed<'a>(&'a Arc<Receipt>);

impl Enlists for Confirmed<'_> {
    type Error = SendError;

    fn enlist(&mut self, _: &Message, _: Option<u64>) -> Result<Option<Arc<Receipt>>, SendError> {
        Ok(Some(self.0.clone()))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name())
            .field("ready_state", &self.ready_state())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}
