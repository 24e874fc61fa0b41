//! The supervisor: spawns workers, joins them when they end, and does what their exit says unless the budget is spent. It
//! never reads or writes a connection; it shuts the socket of a thread that it leaves behind.

mod child;
mod deferred;
mod event;
mod exits;
mod guardian;
mod settings;
mod table;

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

pub use self::child::{ClientCount, ClientInfo, ClientPhase};
pub use self::event::{ShutdownReport, SupervisorEvent, SupervisorExit};
use self::guardian::Guardian;
pub use self::settings::{IntensityScope, RestartCounting, SupervisorBuilder};
#[cfg(feature = "status")]
pub(crate) use self::table::Table;
#[cfg(not(feature = "status"))]
use self::table::Table;
use crate::client::{Client, Supervises};
use crate::client_state::ClientState;
use crate::config::ClientConfig;
use crate::deadline::later;
use crate::lifecycle::{StartError, StopError};
use crate::state::ClientId;

impl SupervisorBuilder {
    /// Starts the supervisor: its own thread, and one that guards it.
    ///
    /// # Errors
    /// When a setting breaks its rule, or the operating system gives no thread.
    pub fn start(self) -> Result<Supervisor, StartError> {
        self.check()?;
        let grace = self.grace;
        let table = Arc::new(Table::new(self));
        let guardian = Guardian::start(&table).map_err(|error| StartError::Os(error.to_string().into()))?;
        Ok(Supervisor { table, guardian, grace })
    }
}

/// Supervises clients: one_for_one, transient unless a client says otherwise, at most 10 restarts in 60 s.
///
/// All methods may be called from any thread. Dropping it shuts it down within `shutdown_grace`.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, Supervisor, testing::Server};
///
/// let server = Server::echo()?;
/// let supervisor = Supervisor::start()?;
/// let client = supervisor.spawn_client(ClientConfig::new(server.url())?.name("echo"))?;
/// client.wait_until_open(Duration::from_secs(5))?;
/// assert_eq!(supervisor.list_clients()[0].name.as_ref(), "echo");
/// let report = supervisor.shutdown(Duration::from_secs(5));
/// assert!(report.left_behind.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a supervisor shuts it down"]
pub struct Supervisor {
    table: Arc<Table>,
    guardian: Guardian,
    grace: Duration,
}

impl Supervisor {
    /// Starts a supervisor with default settings.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start() -> Result<Self, StartError> {
        Self::builder().start()
    }

    /// Settings other than the defaults.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder::default()
    }

    /// The process's own supervisor, started with default settings at first use and never dropped.
    ///
    /// # Panics
    /// At first use, when the operating system gives no thread.
    ///
    /// ```
    /// use ws_supervisor::Supervisor;
    /// assert_eq!(Supervisor::global().count_clients().total, 0);
    /// ```
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Supervisor> = OnceLock::new();
        GLOBAL.get_or_init(|| Self::start().expect("the operating system gives no thread for the supervisor"))
    }

    /// Starts a client and returns at once; whether and when it connects, its events and
    /// [`Client::wait_until_open`] tell.
    ///
    /// # Errors
    /// When the configuration breaks a rule, the name is taken, `max_clients` is reached, the supervisor has shut
    /// down, or the operating system gives no thread. A server that cannot be reached is not an error here.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let again = ClientConfig::new(server.url())?.name(client.name());
    /// assert!(matches!(supervisor.spawn_client(again), Err(StartError::DuplicateName(_))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn_client(&self, config: ClientConfig) -> Result<Client, StartError> {
        Ok(self.handle(self.table.spawn(&config)?))
    }

    /// Ends a client for good: writes what it accepted, waits for the responses to requests under way (for 40 % of the client's
    /// `close_timeout` at most), closes the connection and joins the thread. Returns when that is done, after `close_timeout` at
    /// the latest. From the client's own handler it returns at once and the end follows.
    ///
    /// # Errors
    /// [`StopError::NotFound`], or [`StopError::LeftBehind`] when the thread did not come back in time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// supervisor.stop_client(client.id())?;
    /// assert_eq!(supervisor.count_clients().total, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop_client(&self, client: ClientId) -> Result<(), StopError> {
        self.table.clone().stop(client)
    }

    /// Gives a client a fresh connection on a fresh thread. On purpose, so it is not counted as a restart; a parked
    /// client is resumed. Returns at once.
    ///
    /// # Errors
    /// [`StopError::NotFound`], or [`StopError::Os`] when a parked client gets no thread.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// supervisor.restart_client(client.id())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn restart_client(&self, client: ClientId) -> Result<(), StopError> {
        self.table.restart(client)
    }

    /// Ends a client's connection and keeps the client, which dials no more before [`resume_client`](Self::resume_client) or
    /// [`restart_client`](Self::restart_client) (OTP's `terminate_child` and `restart_child`). Accepted messages are written
    /// first, as when it is stopped. Returns at once; [`SupervisorEvent::Parked`] follows.
    ///
    /// # Errors
    /// [`StopError::NotFound`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// supervisor.park_client(client.id())?; // maintenance
    /// let alert = supervisor.events().recv()?;
    /// assert!(matches!(alert, SupervisorEvent::Parked { reason: ParkReason::Requested, .. }));
    /// supervisor.resume_client(client.id())?;
    /// client.wait_until_open(Duration::from_secs(10))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn park_client(&self, client: ClientId) -> Result<(), StopError> {
        self.table.park_client(client)
    }

    /// Starts a parked client again, its restart budget and backoff as new. Returns at once.
    ///
    /// # Errors
    /// [`StopError::NotFound`], [`StopError::NotParked`], or [`StopError::Os`] when there is no thread for it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// assert_eq!(supervisor.resume_client(client.id()), Err(StopError::NotParked));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resume_client(&self, client: ClientId) -> Result<(), StopError> {
        self.table.resume(client)
    }

    /// The clients in the order in which they were spawned: what each is doing at this moment.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// for client in supervisor.list_clients() {
    ///     println!("{} {:?} {} {}", client.name, client.phase, client.ready_state, client.restarts);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn list_clients(&self) -> Vec<ClientInfo> {
        self.table.list()
    }

    /// How many clients there are, by what they are doing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// assert_eq!(supervisor.count_clients().open, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn count_clients(&self) -> ClientCount {
        self.table.count()
    }

    /// A handle of the client of this name.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let found = supervisor.client(client.name()).expect("it is running");
    /// found.send("through another handle")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn client(&self, name: &str) -> Option<Client> {
        Some(self.handle(self.table.find(name)?))
    }

    fn handle(&self, state: Arc<ClientState>) -> Client {
        let table: Weak<Table> = Arc::downgrade(&self.table);
        Client::supervised(state, table as Weak<dyn Supervises>)
    }

    /// What happens to the clients, for alerts. All receivers share one queue of the latest 1,024 events; older ones
    /// that nobody read give way, those that hand back messages or requests of yours last.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let alerts = supervisor.events();
    /// supervisor.stop_client(client.id())?;
    /// assert!(matches!(alerts.recv()?, SupervisorEvent::Closed { .. }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn events(&self) -> Receiver<SupervisorEvent> {
        self.table.events()
    }

    /// Publishes the counters of all clients now, for an exporter that wants the state at its scrape. The next regular
    /// publication follows a [`metrics_interval`](SupervisorBuilder::metrics_interval) later.
    ///
    /// ```
    /// # use ws_supervisor::Supervisor;
    /// let supervisor = Supervisor::start()?;
    /// supervisor.publish_metrics();
    /// # Ok::<(), ws_supervisor::StartError>(())
    /// ```
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn publish_metrics(&self) {
        self.table.publish_metrics();
    }

    /// Ends all clients in parallel, each within `grace`, then the supervisor. Names those that did not come back.
    /// Calling it again returns the same report. From a client's own handler it returns at once, with that client
    /// counted as not come back.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// let report = supervisor.shutdown(Duration::from_secs(5));
    /// assert!(report.left_behind.is_empty(), "{report:?}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shutdown(&self, grace: Duration) -> ShutdownReport {
        let report = self.table.shut_down(SupervisorExit::ShutDown, grace);
        self.reap(grace);
        report
    }

    /// Blocks until the supervisor has ended, and says why.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::{*, testing::{Script, Server}};
    /// # let server = Server::echo()?;
    /// # let supervisor = Supervisor::start()?;
    /// # let client = supervisor.spawn_client(ClientConfig::new(server.url())?)?;
    /// # client.wait_until_open(Duration::from_secs(10))?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| supervisor.shutdown(Duration::from_secs(5)));
    ///     assert_eq!(supervisor.join(), SupervisorExit::ShutDown);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join(&self) -> SupervisorExit {
        let exit = self.table.wait_for_end();
        self.reap(self.grace);
        exit
    }

    #[cfg(feature = "status")]
    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Joins the guardian of a supervisor that has ended. It may have log lines and metrics left to deliver: a logger that
    /// blocks is waited for no longer than this.
    fn reap(&self, patience: Duration) {
        if self.table.has_ended() {
            self.guardian.join_by(later(Instant::now(), patience));
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn panic_for_test(&self) {
        self.table.panic_for_test();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shutdown(self.grace);
    }
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("clients", &self.count_clients()).finish_non_exhaustive()
    }
}
