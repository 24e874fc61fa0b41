//! The supervisor: spawns workers, joins them when they end, and decides by OTP's rules whether another follows.
//! It owns the join handles and never touches a connection.

pub(crate) mod child_spec;
mod tree;

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

pub use self::child_spec::{ClientCount, ClientInfo, ClientPhase};
pub(crate) use self::tree::Tree;
use crate::client::Client;
use crate::config::ClientConfig;
use crate::error::ConfigError;
use crate::lifecycle::{ExitReason, ParkReason, StartError, StopError};
use crate::state::ClientId;

/// Whose restarts are counted together.
///
/// ```
/// use ws_supervisor::{IntensityScope, Supervisor};
/// let otp = Supervisor::builder().intensity_scope(IntensityScope::Supervisor).start()?;
/// # drop(otp);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum IntensityScope {
    /// Each client has its own budget, and exceeding it parks that client alone. The default: one venue's trouble is
    /// not another's.
    #[default]
    Client,
    /// OTP's rule: one budget for all, and exceeding it stops everything and ends [`Supervisor::join`] with the reason.
    Supervisor,
}

/// What happens to a supervisor's clients, for alerts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SupervisorEvent {
    /// A worker ended abnormally and was started anew.
    #[non_exhaustive]
    Restarted {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// Why the worker ended.
        reason: ExitReason,
        /// How many times now.
        restarts: u64,
    },
    /// A client was given up on. Someone has to look.
    #[non_exhaustive]
    Parked {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// Why.
        reason: ParkReason,
    },
    /// A turn of a client's loop lasts longer than its `stall_threshold`: most likely its handler has not returned.
    /// Told once a turn, while it lasts; [`Stats::longest_turn`](crate::Stats) has the whole of it later.
    #[non_exhaustive]
    Stalled {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// How long the turn has lasted so far.
        lasts: Duration,
    },
    /// A client ended and is no longer supervised.
    #[non_exhaustive]
    Closed {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
        /// Why.
        reason: ExitReason,
    },
    /// A thread did not come back within its grace time and was left behind.
    #[non_exhaustive]
    LeftBehind {
        /// Which client.
        client: ClientId,
        /// Its name.
        name: Arc<str>,
    },
    /// The supervisor's own thread panicked and was replaced; the clients did not notice.
    #[non_exhaustive]
    Recovered {
        /// The panic's message.
        panic: Box<str>,
    },
}

/// Why a supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorExit {
    /// `shutdown`, or the supervisor was dropped.
    ShutDown,
    /// [`IntensityScope::Supervisor`]: the common budget was exceeded.
    #[non_exhaustive]
    IntensityExceeded {
        /// The client whose restart was one too many.
        client: Arc<str>,
        /// Why its worker ended.
        last: ExitReason,
    },
}

/// What a shutdown left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Names of the clients whose threads did not come back in time. Their sockets are shut.
    pub left_behind: Vec<Arc<str>>,
}

/// Settings of a supervisor; made by [`Supervisor::builder`].
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{IntensityScope, Supervisor};
///
/// let supervisor = Supervisor::builder()
///     .intensity(5, Duration::from_secs(30))
///     .intensity_scope(IntensityScope::Client)
///     .max_clients(100)
///     .start()?;
/// # drop(supervisor);
/// # Ok::<(), ws_supervisor::StartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SupervisorBuilder {
    pub(crate) max_restarts: usize,
    pub(crate) window: Duration,
    pub(crate) scope: IntensityScope,
    pub(crate) max_clients: Option<usize>,
    pub(crate) grace: Duration,
}

impl SupervisorBuilder {
    /// At most `max_restarts` within `window`, a sliding window on the monotonic clock that includes its edge; the
    /// next restart is refused. Zero restarts means that the first crash is one too many. Defaults to 10 in 60 s.
    pub fn intensity(mut self, max_restarts: usize, window: Duration) -> Self {
        (self.max_restarts, self.window) = (max_restarts, window);
        self
    }

    /// Whose restarts are counted together. Defaults to [`IntensityScope::Client`].
    pub fn intensity_scope(mut self, scope: IntensityScope) -> Self {
        self.scope = scope;
        self
    }

    /// How many clients there may be, parked and restarting ones included. Defaults to no limit.
    pub fn max_clients(mut self, clients: usize) -> Self {
        self.max_clients = Some(clients);
        self
    }

    /// The grace time when the supervisor is dropped, or ends by its intensity. Defaults to 5 s.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Starts the supervisor: its own thread, and one that guards it.
    ///
    /// # Errors
    /// When a setting breaks its rule, or the operating system gives no thread.
    pub fn start(self) -> Result<Supervisor, StartError> {
        if self.window.is_zero() {
            return Err(ConfigError::new("intensity", "the window must be greater than zero").into());
        }
        if self.max_clients == Some(0) {
            return Err(ConfigError::new("max_clients", "must be at least 1").into());
        }
        let grace = self.grace;
        let tree = Arc::new(Tree::new(self));
        let guardian = tree::guard(&tree).map_err(|error| StartError::Os(error.to_string().into()))?;
        Ok(Supervisor { tree, guardian: Mutex::new(Some(guardian)), grace })
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
pub struct Supervisor {
    tree: Arc<Tree>,
    guardian: Mutex<Option<JoinHandle<()>>>,
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
        SupervisorBuilder {
            max_restarts: 10,
            window: Duration::from_secs(60),
            scope: IntensityScope::default(),
            max_clients: None,
            grace: Duration::from_secs(5),
        }
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
        let shared = self.tree.spawn(config)?;
        Ok(Client::supervised(shared, Arc::downgrade(&self.tree)))
    }

    /// Ends a client for good: what it accepted is written, the connection closed, the thread joined. Returns when
    /// that is done, after the client's `close_timeout` at the latest. From the client's own handler it returns at
    /// once and the end follows.
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
        self.tree.stop(client)
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
        self.tree.restart(client)
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
        self.tree.resume(client)
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
        self.tree.list()
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
        self.tree.count()
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
        let shared = self.tree.find(name)?;
        Some(Client::supervised(shared, Arc::downgrade(&self.tree)))
    }

    /// What happens to the clients, for alerts. All receivers share one queue of the latest 1,024 events; older ones
    /// that nobody read give way.
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
        self.tree.events()
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
        let report = self.tree.shut_down(SupervisorExit::ShutDown, grace);
        self.reap();
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
        let exit = self.tree.wait_for_end();
        self.reap();
        exit
    }

    fn reap(&self) {
        if !self.tree.has_ended() {
            return;
        }
        // It has nothing left to do but return, so this does not wait.
        if let Some(guardian) = self.guardian.lock().take() {
            let _ = guardian.join();
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn panic_for_test(&self) {
        self.tree.panic_for_test();
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

/// A point in time that a grace ends at, however long the grace.
fn deadline(grace: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(grace).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365))
}
