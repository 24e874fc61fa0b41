//! The table of clients, and what callers may do with it. The thread that acts on exits is in `exits`.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Condvar, Mutex, MutexGuard, ReentrantMutex};

use super::child::{Child, ClientCount, ClientInfo, ClientPhase};
use super::event::{ShutdownReport, SupervisorEvent, SupervisorExit};
use super::settings::SupervisorBuilder;
use crate::client::{Supervises, resolve};
use crate::client_state::ClientState;
use crate::command::CommandKind;
use crate::config::ClientConfig;
use crate::lifecycle::{ExitReason, StartError, StopError};
use crate::outbound::gate::Pass;
use crate::policy::restart_intensity::RestartIntensity;
use crate::state::{ClientId, ReadyState};
#[cfg(feature = "status")]
use crate::telemetry::{health::HeartbeatHealth, stats::Stats};
use crate::worker::exit::Exit;
use crate::worker::thread;

/// Events that wait for whoever watches; older ones give way, those that hand something back last.
const EVENTS: usize = 1024;

/// How often to look for stalled workers, at the least and at the most.
const WATCH: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Beyond the grace: whoever shuts down ends it, should the supervisor's thread be in trouble.
const OVERDUE: Duration = Duration::from_millis(200);

/// So many of the latest events are kept in words.
const RECENT: usize = 64;

/// Something that happened, in words.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "status"), expect(dead_code))]
pub(crate) struct Noted {
    pub(crate) number: u64,
    pub(crate) at: SystemTime,
    pub(crate) client: String,
    pub(crate) what: String,
}

/// What is to be published of a client.
pub(super) type Owed = Box<dyn FnOnce() + Send>;

pub(crate) struct Table {
    pub(super) settings: SupervisorBuilder,
    /// Nanoseconds between two looks for stalled workers.
    watch: AtomicU64,
    runs: AtomicU64,
    pub(super) rows: Mutex<Rows>,
    /// A client left the table or was parked, or the supervisor ended.
    pub(super) changed: Condvar,
    notices: (Sender<Notice>, Receiver<Notice>),
    events: (Sender<SupervisorEvent>, Receiver<SupervisorEvent>),
    telling: Mutex<()>,
    recent: Mutex<VecDeque<Noted>>,
    /// What is to be published, by code that is not ours, once no lock of ours is held.
    owed: Mutex<VecDeque<Owed>>,
    /// One thread publishes at a time.
    pub(super) publishing: ReentrantMutex<()>,
    /// There is no supervisor any more who would hear a notice.
    pub(super) ended: AtomicBool,
}

pub(super) struct Rows {
    pub(super) children: BTreeMap<ClientId, Child>,
    pub(super) intensity: RestartIntensity,
    pub(super) progress: Progress,
    pub(super) left_behind: Vec<Arc<str>>,
    /// Those whose thread, of this run, may still end.
    pub(super) lost: BTreeMap<(ClientId, u64), Arc<ClientState>>,
}

pub(super) enum Progress {
    Running,
    ShuttingDown { exit: SupervisorExit, deadline: Instant },
    Ended { exit: SupervisorExit },
}

pub(super) enum Notice {
    Exited {
        client: ClientId,
        run: u64,
    },
    /// A client has come: look after it.
    Look,
    ShutDown,
    #[cfg(feature = "testing")]
    Panic,
}

/// Given by a worker's thread as the last thing it does, however it ends.
struct ExitNotice {
    table: Arc<Table>,
    client: ClientId,
    run: u64,
}

impl Drop for ExitNotice {
    /// Takes no lock while there is a supervisor: where the system gives no thread this is dropped by one who has the table's.
    fn drop(&mut self) {
        self.table.notify(Notice::Exited { client: self.client, run: self.run });
        // Either this sees the supervisor's end, or the supervisor sees the notice.
        fence(Ordering::SeqCst);
        if self.table.ended.load(Ordering::Relaxed) {
            self.table.hear_the_late();
        }
    }
}

impl Supervises for Table {
    fn stop(&self, client: ClientId) -> Result<(), StopError> {
        let mut rows = self.rows.lock();
        let Some(child) = rows.children.get_mut(&client) else { return Err(StopError::NotFound) };
        child.stopping = true;
        let state = child.state.clone();
        let core = &state.core;
        let until = core.command(CommandKind::Stop, core.close_timeout).deadline;
        if child.is_without_thread() {
            rows.children.remove(&client);
            self.close_idle(&state, ExitReason::Closed);
            drop(rows);
            state.let_go();
            self.publish_owed();
            return Ok(());
        }
        if core.is_own_thread() {
            return Ok(());
        }
        while rows.children.contains_key(&client) {
            if self.changed.wait_until(&mut rows, until).timed_out() {
                let Some(child) = rows.children.remove(&client) else { break };
                self.leave_behind(&mut rows, &child);
                drop(rows);
                self.publish_owed();
                return Err(StopError::LeftBehind((&*core.tag.name).into()));
            }
        }
        drop(rows);
        self.publish_owed();
        Ok(())
    }
}

impl Table {
    pub(super) fn new(settings: SupervisorBuilder) -> Self {
        let intensity = RestartIntensity::new(settings.max_restarts, settings.window);
        Self {
            settings,
            watch: AtomicU64::new(WATCH.1.as_nanos() as u64),
            runs: AtomicU64::new(0),
            rows: Mutex::new(Rows {
                children: BTreeMap::new(),
                intensity,
                progress: Progress::Running,
                left_behind: Vec::new(),
                lost: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            notices: crossbeam_channel::unbounded(),
            events: crossbeam_channel::bounded(EVENTS),
            telling: Mutex::default(),
            recent: Mutex::default(),
            owed: Mutex::default(),
            publishing: ReentrantMutex::new(()),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn notify(&self, notice: Notice) {
        let _ = self.notices.0.send(notice);
    }

    /// After the supervisor's end: threads that were left behind and have ended since are told of.
    pub(super) fn hear_the_late(&self) {
        fence(Ordering::SeqCst);
        for notice in self.notices.1.try_iter() {
            if let Notice::Exited { client, run } = notice {
                self.came_back(self.rows.lock(), client, run);
            }
        }
    }

    pub(super) fn next_notice(&self, deadline: Option<Instant>) -> Option<Notice> {
        match deadline {
            None => self.notices.1.recv().ok(),
            Some(deadline) => self.notices.1.recv_deadline(deadline).ok(),
        }
    }

    pub(super) fn watch_every(&self) -> Duration {
        Duration::from_nanos(self.watch.load(Ordering::Relaxed))
    }

    pub(super) fn spawn(self: &Arc<Self>, config: &ClientConfig) -> Result<Arc<ClientState>, StartError> {
        let os = |error: io::Error| StartError::Os(error.to_string().into());
        let state = Arc::new(ClientState::new(resolve(config)?, true).map_err(os)?);
        let tag = &state.core.tag;
        let mut rows = self.rows.lock();
        if !matches!(rows.progress, Progress::Running) {
            return Err(StartError::ShutDown);
        }
        if let Some(max) = self.settings.max_clients.filter(|max| rows.children.len() >= *max) {
            return Err(StartError::MaxClients(max));
        }
        if rows.children.values().any(|child| child.state.core.tag.name == tag.name) {
            return Err(StartError::DuplicateName((&*tag.name).into()));
        }
        let (thread, run) = self.start_worker(&state, None).map_err(os)?;
        let child = Child {
            state: state.clone(),
            thread: Some(thread),
            run,
            exit: None,
            intensity: RestartIntensity::new(self.settings.max_restarts, self.settings.window),
            parked: false,
            resumes: false,
            stopping: false,
            waits: None,
        };
        rows.children.insert(tag.id, child);
        let every = (state.settings.stall_threshold / 2).clamp(WATCH.0, WATCH.1);
        let sooner = self.watch.fetch_min(every.as_nanos() as u64, Ordering::Relaxed) > every.as_nanos() as u64;
        if sooner || rows.children.len() == 1 {
            self.notify(Notice::Look);
        }
        Ok(state)
    }

    /// Starts a run of a client's worker; returns its thread and its number.
    pub(super) fn start_worker(
        self: &Arc<Self>,
        state: &Arc<ClientState>,
        restarted: Option<(ExitReason, u64)>,
    ) -> io::Result<(JoinHandle<Exit>, u64)> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let notice = ExitNotice { table: self.clone(), client: state.core.tag.id, run };
        Ok((thread::start(state, restarted, notice)?, run))
    }

    pub(crate) fn restart(self: &Arc<Self>, client: ClientId) -> Result<(), StopError> {
        match self.resume(client) {
            Err(StopError::NotParked) => {}
            other => return other,
        }
        let rows = self.rows.lock();
        let core = &rows.children.get(&client).ok_or(StopError::NotFound)?.state.core;
        core.command(CommandKind::Restart, core.close_timeout);
        Ok(())
    }

    pub(crate) fn resume(self: &Arc<Self>, client: ClientId) -> Result<(), StopError> {
        let mut rows = self.rows.lock();
        let child = rows.children.get_mut(&client).ok_or(StopError::NotFound)?;
        if child.parked {
            Self::unpark(&child.state);
            return self.start_parked(child).map_err(|error| StopError::Os(error.to_string().into()));
        }
        if child.state.core.status.get() != ReadyState::Parked {
            return Err(StopError::NotParked);
        }
        // Its thread says so before it is joined: it is started again as soon as it is.
        child.resumes = true;
        Self::unpark(&child.state);
        Ok(())
    }

    /// From now on it counts as connecting, and takes what may wait for a connection.
    fn unpark(state: &ClientState) {
        // What was asked of the run that parked itself is done by starting another.
        state.core.commands.take();
        state.core.status.set(ReadyState::Connecting);
        state.core.mailbox.gate.set(Pass::Queue);
    }

    /// Starts a client that was parked and is unparked, its restart budget and backoff as new.
    pub(super) fn start_parked(self: &Arc<Self>, child: &mut Child) -> io::Result<()> {
        let state = child.state.clone();
        let core = &state.core;
        state.kept.lock().life.reconnect.reset();
        match self.start_worker(&state, None) {
            Ok((thread, run)) => {
                child.intensity.forgive();
                (child.thread, child.run, child.parked) = (Some(thread), run, false);
                log::info!(client:% = core.tag.name; "client `{}`: resumed", core.tag.name);
                Ok(())
            }
            Err(error) => {
                core.mailbox.gate.close(Pass::Shut);
                core.status.set(ReadyState::Parked);
                Err(error)
            }
        }
    }

    /// All that is to be seen of each client.
    #[cfg(feature = "status")]
    pub(crate) fn figures(&self) -> Vec<(ClientInfo, Stats, HeartbeatHealth)> {
        let rows = self.rows.lock();
        let figures = rows.children.values().map(|child| {
            let state = &child.state;
            (child.info(), state.stats(), state.core.health.read(&state.settings.heartbeat))
        });
        figures.collect()
    }

    /// The latest events.
    #[cfg(feature = "status")]
    pub(crate) fn recent(&self) -> Vec<Noted> {
        self.recent.lock().iter().cloned().collect()
    }

    pub(super) fn list(&self) -> Vec<ClientInfo> {
        self.rows.lock().children.values().map(Child::info).collect()
    }

    pub(super) fn count(&self) -> ClientCount {
        let mut count = ClientCount::default();
        for client in self.list() {
            count.total += 1;
            count.running += usize::from(client.phase == ClientPhase::Running);
            count.open += usize::from(client.ready_state == ReadyState::Open);
            count.restarting += usize::from(client.phase == ClientPhase::Restarting);
            count.parked += usize::from(client.phase == ClientPhase::Parked);
        }
        count
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<ClientState>> {
        let rows = self.rows.lock();
        rows.children.values().map(|child| &child.state).find(|state| &*state.core.tag.name == name).cloned()
    }

    pub(super) fn events(&self) -> Receiver<SupervisorEvent> {
        self.events.1.clone()
    }

    pub(super) fn tell(&self, event: SupervisorEvent) {
        // One at a time: what is put back keeps its order.
        let _turn = self.telling.lock();
        self.note(&event);
        let Err(TrySendError::Full(event)) = self.events.0.try_send(event) else { return };
        let mut all: Vec<_> = self.events.1.try_iter().chain([event]).collect();
        if all.len() > EVENTS {
            let is_the_only_word =
                |event: &SupervisorEvent| event.handed_back().is_some_and(|handed_back| !handed_back.is_empty());
            all.remove(all.iter().position(|event| !is_the_only_word(event)).unwrap_or(0));
        }
        // There is room for them: nobody else puts anything in.
        all.into_iter().for_each(|event| drop(self.events.0.try_send(event)));
    }

    /// To be published when no lock is held.
    pub(super) fn owe(&self, publish: impl FnOnce() + Send + 'static) {
        if cfg!(feature = "metrics") {
            self.owed.lock().push_back(Box::new(publish));
        }
    }

    /// Publishes what is owed. Called without any lock: a recorder may do what it likes, but not at the same time twice.
    pub(super) fn publish_owed(&self) {
        let _turn = self.publishing.lock();
        // The lock is let go of before foreign code runs.
        let next = || self.owed.lock().pop_front();
        while let Some(publish) = next() {
            publish();
        }
    }

    /// Keeps in words what happened, for whoever looks later.
    fn note(&self, event: &SupervisorEvent) {
        if cfg!(feature = "status") {
            let mut recent = self.recent.lock();
            let number = recent.back().map_or(1, |last| last.number + 1);
            let client = event.name().unwrap_or_default().into();
            recent.push_back(Noted { number, at: SystemTime::now(), client, what: event.to_string() });
            while recent.len() > RECENT {
                recent.pop_front();
            }
        }
    }

    pub(super) fn shut_down(&self, exit: SupervisorExit, grace: Duration) -> ShutdownReport {
        let mut rows = self.rows.lock();
        let ended: Vec<_> = self.begin_shut_down(&mut rows, exit, grace);
        MutexGuard::unlocked(&mut rows, || ended.iter().for_each(|state| state.let_go()));
        let own = rows.children.values().find(|child| child.state.core.is_own_thread());
        if let Some(own) = own.map(|child| child.state.core.tag.name.clone()) {
            return ShutdownReport { left_behind: vec![own] };
        }
        // The supervisor's thread ends it; should that be in trouble, we do.
        while let Progress::ShuttingDown { deadline, .. } = &rows.progress {
            let until = *deadline + OVERDUE;
            if self.changed.wait_until(&mut rows, until).timed_out() {
                MutexGuard::unlocked(&mut rows, || self.end_if_due());
            }
        }
        let left_behind = rows.left_behind.clone();
        drop(rows);
        self.publish_owed();
        ShutdownReport { left_behind }
    }

    pub(super) fn wait_for_end(&self) -> SupervisorExit {
        let mut rows = self.rows.lock();
        loop {
            if let Progress::Ended { exit } = &rows.progress {
                return exit.clone();
            }
            self.changed.wait(&mut rows);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.rows.lock().progress, Progress::Ended { .. })
    }

    #[cfg(feature = "testing")]
    pub(super) fn panic_for_test(&self) {
        self.notify(Notice::Panic);
    }
}
