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
use crate::command::{CommandKind, Decided};
use crate::config::ClientConfig;
use crate::lifecycle::{ExitReason, ParkReason, StartError, StopError};
use crate::logger;
use crate::outbound::gate::Pass;
use crate::policy::restart::Exit;
use crate::policy::restart_intensity::RestartIntensity;
use crate::state::{ClientId, ReadyState};
#[cfg(feature = "status")]
use crate::telemetry::{health::HeartbeatHealth, stats::Stats};
use crate::user_code::{PROCESS, PanicsSeen};
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

/// Work for the guardian's thread.
pub(super) enum Job {
    /// Calls user code.
    Call(Call),
    /// The first client was spawned: metrics have to be published from now on.
    Look,
    SupervisorThreadEnded,
}

pub(super) type Call = Box<dyn FnOnce(&Table) + Send>;

pub(crate) struct Table {
    pub(super) settings: SupervisorBuilder,
    /// Nanoseconds between two looks for stalled workers.
    watch: AtomicU64,
    runs: AtomicU64,
    pub(super) rows: Mutex<Rows>,
    /// A client left the table or was parked, or the supervisor ended.
    pub(super) changed: Condvar,
    notices: (Sender<Notice>, Receiver<Notice>),
    events: Receiver<SupervisorEvent>,
    /// `None` when no event can follow any more. One thread publishes at a time, so that events that are put back keep their
    /// order.
    events_in: Mutex<Option<Sender<SupervisorEvent>>>,
    recent: Mutex<VecDeque<Noted>>,
    /// Calls of user code, for the guardian's thread.
    pub(super) jobs: (Sender<Job>, Receiver<Job>),
    /// The guardian makes no calls any more.
    pub(super) guardian_ended: AtomicBool,
    /// One thread calls the metrics recorder at a time.
    pub(super) publishing: ReentrantMutex<()>,
    /// `None` without metrics.
    pub(super) next_metrics: Mutex<Option<Instant>>,
    /// Panics of the process's logger and metrics recorder that have been reported.
    pub(super) panics_seen: Mutex<PanicsSeen>,
    /// There is no supervisor any more who would hear a notice.
    pub(super) ended: AtomicBool,
}

pub(super) struct Rows {
    pub(super) children: BTreeMap<ClientId, Child>,
    pub(super) intensity: RestartIntensity,
    pub(super) progress: Progress,
    /// Reports on threads that have ended after all and that are being published: none may find the events closed.
    pub(super) publishing: usize,
    /// Clients whose thread, of this run, did not end in time and has not ended since.
    pub(super) abandoned: BTreeMap<(ClientId, u64), Departed>,
}

/// A client that is not in the table any more, and which panics of its user code have been reported.
pub(super) type Departed = (Arc<ClientState>, PanicsSeen);

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

impl Rows {
    /// When the next client that waits for a thread is started.
    pub(super) fn next_start(&self) -> Option<Instant> {
        self.children.values().filter_map(|child| child.waits.as_ref()).map(|waits| waits.until).min()
    }

    /// Whether a client that is not in the table any more ended, or its thread was abandoned.
    fn how_it_ended(&self, client: ClientId) -> Result<(), StopError> {
        match self.abandoned.iter().find(|((abandoned, _), _)| *abandoned == client) {
            Some((_, (state, _))) => Err(StopError::LeftBehind((&*state.core.tag.name).into())),
            None => Ok(()),
        }
    }
}

impl Supervises for Table {
    fn stop(self: Arc<Self>, client: ClientId) -> Result<(), StopError> {
        let mut rows = self.rows.lock();
        let Some(child) = rows.children.get_mut(&client) else {
            return rows.how_it_ended(client).and(Err(StopError::NotFound));
        };
        child.stopping = true;
        let state = child.state.clone();
        let core = &state.core;
        let until = core.command(CommandKind::Stop, core.close_timeout).0.deadline;
        if child.is_without_thread() {
            let closed = self.close_idle(&mut rows, client, ExitReason::Closed);
            drop(rows);
            // On the caller's thread: when this returns, the client's closures and handler are dropped.
            if let Some(departed) = closed {
                self.release(departed);
            }
            return Ok(());
        }
        if core.is_own_thread() {
            return Ok(());
        }
        while rows.children.contains_key(&client) {
            if !self.changed.wait_until(&mut rows, until).timed_out() {
                continue;
            }
            // A client whose thread has ended was not too late, even if the supervisor's thread is.
            let ended = rows.children.get(&client).filter(|child| child.has_ended()).map(|child| child.run);
            if let Some(run) = ended {
                MutexGuard::unlocked(&mut rows, || self.exited(client, run));
            }
            if let Some(child) = rows.children.remove(&client) {
                self.abandon(&mut rows, child);
            }
        }
        rows.how_it_ended(client)
    }
}

impl Table {
    pub(super) fn new(settings: SupervisorBuilder) -> Self {
        let intensity = RestartIntensity::new(settings.max_restarts, settings.window);
        let (events_in, events) = crossbeam_channel::bounded(EVENTS);
        Self {
            settings,
            watch: AtomicU64::new(WATCH.1.as_nanos() as u64),
            runs: AtomicU64::new(0),
            rows: Mutex::new(Rows {
                children: BTreeMap::new(),
                intensity,
                progress: Progress::Running,
                publishing: 0,
                abandoned: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            notices: crossbeam_channel::unbounded(),
            events,
            events_in: Mutex::new(Some(events_in)),
            recent: Mutex::default(),
            jobs: crossbeam_channel::unbounded(),
            guardian_ended: AtomicBool::new(false),
            publishing: ReentrantMutex::new(()),
            next_metrics: Mutex::new(cfg!(feature = "metrics").then(Instant::now)),
            panics_seen: Mutex::new(PROCESS.seen_by_now()),
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
            panics_seen: PanicsSeen::default(),
        };
        rows.children.insert(tag.id, child);
        let every = (state.settings.stall_threshold / 2).clamp(WATCH.0, WATCH.1);
        let sooner = self.watch.fetch_min(every.as_nanos() as u64, Ordering::Relaxed) > every.as_nanos() as u64;
        if sooner || rows.children.len() == 1 {
            self.notify(Notice::Look);
            self.push_job(Job::Look);
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
        let mut rows = self.rows.lock();
        let child = rows.children.get_mut(&client).ok_or(StopError::NotFound)?;
        let core = &child.state.core;
        match core.command(CommandKind::Restart, core.close_timeout).1 {
            None | Some(Decided::Restart) => Ok(()),
            Some(Decided::Park) => self.resume_child(child),
            Some(Decided::Close) => Err(StopError::NotFound),
        }
    }

    pub(super) fn park_client(&self, client: ClientId) -> Result<(), StopError> {
        let mut rows = self.rows.lock();
        let child = rows.children.get_mut(&client).ok_or(StopError::NotFound)?;
        if child.parked {
            return Ok(());
        }
        // A resume that was granted is overruled.
        if std::mem::take(&mut child.resumes) {
            child.state.core.commands.parked();
            child.state.core.mailbox.gate.close(Pass::Shut);
            child.state.core.status.set(ReadyState::Parked);
        }
        if child.waits.take().is_some() {
            self.park(child, ParkReason::Requested);
            return Ok(());
        }
        let core = &child.state.core;
        match core.command(CommandKind::Park, core.close_timeout).1 {
            Some(Decided::Close) => Err(StopError::NotFound),
            _ => Ok(()),
        }
    }

    pub(crate) fn resume(self: &Arc<Self>, client: ClientId) -> Result<(), StopError> {
        self.resume_child(self.rows.lock().children.get_mut(&client).ok_or(StopError::NotFound)?)
    }

    fn resume_child(self: &Arc<Self>, child: &mut Child) -> Result<(), StopError> {
        if child.resumes {
            return Ok(());
        }
        let core = &child.state.core;
        if core.status.get() != ReadyState::Parked {
            return Err(StopError::NotParked);
        }
        if core.commands.close_given() {
            // Its own handler has closed it: it ends when its thread is joined.
            return Err(StopError::NotFound);
        }
        // From now on it counts as connecting, and accepts messages for the next connection.
        core.status.set(ReadyState::Connecting);
        core.mailbox.gate.set(Pass::Queue);
        core.commands.resumed();
        if child.parked {
            return self.start_parked(child).map_err(|error| StopError::Os(error.to_string().into()));
        }
        // Its thread has not been joined yet: it is started again when it is.
        child.resumes = true;
        Ok(())
    }

    /// Starts a client that was parked and is unparked, its restart budget and backoff as new.
    pub(super) fn start_parked(self: &Arc<Self>, child: &mut Child) -> io::Result<()> {
        let state = child.state.clone();
        let core = &state.core;
        state.kept.lock().life.dial_anew();
        match self.start_worker(&state, None) {
            Ok((thread, run)) => {
                child.intensity.forgive();
                (child.thread, child.run, child.parked) = (Some(thread), run, false);
                let name = core.tag.name.clone();
                self.defer(move |_| logger::info!(client:% = name; "client `{name}`: resumed"));
                Ok(())
            }
            Err(error) => {
                core.commands.parked();
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
        self.events.clone()
    }

    /// Puts an event into the queue of events.
    pub(super) fn publish(&self, event: SupervisorEvent) {
        let events_in = self.events_in.lock();
        self.note(&event);
        let Some(events_in) = &*events_in else { return };
        let Err(TrySendError::Full(event)) = events_in.try_send(event) else { return };
        let mut all: Vec<_> = self.events.try_iter().chain([event]).collect();
        if all.len() > EVENTS {
            let is_the_only_word =
                |event: &SupervisorEvent| event.handed_back().is_some_and(|handed_back| !handed_back.is_empty());
            all.remove(all.iter().position(|event| !is_the_only_word(event)).unwrap_or(0));
        }
        // There is room for them: every other sender waits for the lock.
        all.into_iter().for_each(|event| drop(events_in.try_send(event)));
    }

    /// No event follows: a reader that has read the last of them finds the channel disconnected.
    pub(super) fn close_events(&self) {
        *self.events_in.lock() = None;
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
        self.begin_shut_down(&mut rows, exit, grace);
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
        ShutdownReport { left_behind: rows.abandoned.values().map(|(state, _)| state.core.tag.name.clone()).collect() }
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
