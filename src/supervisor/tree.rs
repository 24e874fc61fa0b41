//! The table of clients, the supervisor's thread that acts on exits, and the guardian that replaces that thread.
//! The table outlives the thread: a new one adopts what it finds.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::child_spec::{Child, ClientCount, ClientInfo, ClientPhase};
use super::{IntensityScope, ShutdownReport, SupervisorBuilder, SupervisorEvent, SupervisorExit, deadline};
use crate::client_state::Shared;
use crate::command::OrderKind;
use crate::config::ClientConfig;
use crate::lifecycle::{End, ExitReason, ParkReason, StartError, StopError};
use crate::policy::restart::{Fate, fate};
use crate::policy::restart_intensity::RestartIntensity;
use crate::state::{ClientId, ReadyState};
use crate::worker;
use crate::worker::panic_message;

const EVENTS: usize = 1024;

pub(crate) struct Tree {
    settings: SupervisorBuilder,
    /// Nanoseconds between two looks for stalled workers.
    watch: AtomicU64,
    runs: AtomicU64,
    table: Mutex<Table>,
    /// A client left the table, or the supervisor ended.
    changed: Condvar,
    notices: (Sender<Notice>, Receiver<Notice>),
    events: (Sender<SupervisorEvent>, Receiver<SupervisorEvent>),
}

struct Table {
    children: BTreeMap<ClientId, Child>,
    intensity: RestartIntensity,
    phase: Phase,
    left_behind: Vec<Arc<str>>,
}

enum Phase {
    Running,
    ShuttingDown { exit: SupervisorExit, deadline: Instant },
    Ended { exit: SupervisorExit },
}

enum Notice {
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

/// Sent by a worker's thread as the last thing it does, however it ends.
struct ExitNotice {
    notices: Sender<Notice>,
    client: ClientId,
    run: u64,
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        let _ = self.notices.send(Notice::Exited { client: self.client, run: self.run });
    }
}

/// Starts the guardian, which starts the supervisor's thread, and again whenever that panics.
pub(super) fn guard(tree: &Arc<Tree>) -> io::Result<JoinHandle<()>> {
    let tree = tree.clone();
    std::thread::Builder::new().name("ws-guardian".into()).spawn(move || {
        loop {
            let supervised = tree.clone();
            let thread = std::thread::Builder::new().name("ws-supervisor".into()).spawn(move || supervised.run());
            match thread.map(JoinHandle::join) {
                Ok(Ok(())) => return,
                Ok(Err(payload)) => {
                    let panic = panic_message(payload.as_ref());
                    log::error!("the supervisor's thread panicked and is replaced: {panic}");
                    tree.tell(SupervisorEvent::Recovered { panic });
                }
                Err(error) => {
                    log::error!("no thread for the supervisor, trying again: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    })
}

impl Tree {
    pub(super) fn new(settings: SupervisorBuilder) -> Self {
        let intensity = RestartIntensity::new(settings.max_restarts, settings.window);
        Self {
            settings,
            watch: AtomicU64::new(Duration::from_millis(500).as_nanos() as u64),
            runs: AtomicU64::new(0),
            table: Mutex::new(Table {
                children: BTreeMap::new(),
                intensity,
                phase: Phase::Running,
                left_behind: Vec::new(),
            }),
            changed: Condvar::new(),
            notices: crossbeam_channel::unbounded(),
            events: crossbeam_channel::bounded(EVENTS),
        }
    }

    // ---- the supervisor's thread ----

    fn run(self: &Arc<Self>) {
        self.adopt();
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_look {
                self.look_for_stalls(now);
            }
            // A client with a low threshold may have come meanwhile.
            next_look =
                if now >= next_look { now + self.watch_every() } else { next_look.min(now + self.watch_every()) };
            let deadline = {
                let table = self.table.lock();
                match &table.phase {
                    Phase::Running if table.children.is_empty() => None,
                    Phase::Running => Some(next_look),
                    Phase::ShuttingDown { deadline, .. } => Some((*deadline).min(next_look)),
                    Phase::Ended { .. } => return,
                }
            };
            let notice = match deadline {
                None => self.notices.1.recv().ok(),
                Some(deadline) => self.notices.1.recv_deadline(deadline).ok(),
            };
            match notice {
                Some(Notice::Exited { client, run }) => self.exited(client, run),
                #[cfg(feature = "testing")]
                Some(Notice::Panic) => panic!("a panic that a test asked for"),
                Some(Notice::Look | Notice::ShutDown) | None => {}
            }
            self.end_if_due();
        }
    }

    fn watch_every(&self) -> Duration {
        Duration::from_nanos(self.watch.load(Ordering::Relaxed))
    }

    fn look_for_stalls(&self, now: Instant) {
        for child in self.table.lock().children.values() {
            if let Some(lasts) = child.shared.duty.stalled(now) {
                let (client, name) = (child.shared.tag.id, child.shared.tag.name.clone());
                log::error!("client `{name}`: its handler has not returned for {lasts:.1?}");
                self.tell(SupervisorEvent::Stalled { client, name, lasts });
            }
        }
    }

    /// Clients that ended while nobody looked.
    fn adopt(self: &Arc<Self>) {
        let ended: Vec<_> = {
            let table = self.table.lock();
            let ended = |child: &Child| child.thread.as_ref().is_none_or(JoinHandle::is_finished) && !child.parked;
            table
                .children
                .iter()
                .filter(|(_, child)| ended(child))
                .map(|(client, child)| (*client, child.run))
                .collect()
        };
        for (client, run) in ended {
            self.exited(client, run);
        }
    }

    /// A worker has ended: join it, then decide.
    fn exited(self: &Arc<Self>, client: ClientId, run: u64) {
        let of_this_run = |child: &&mut Child| child.run == run;
        let thread = {
            let mut table = self.table.lock();
            let child = table.children.get_mut(&client).filter(of_this_run);
            child.and_then(|child| child.thread.take())
        };
        // The thread has said that it is done, so this does not wait.
        let joined = thread.map(JoinHandle::join);
        let mut table = self.table.lock();
        let Some(child) = table.children.get_mut(&client).filter(of_this_run) else { return };
        if let Some(result) = joined {
            child.exit = Some(result.unwrap_or_else(|payload| ExitReason::Panicked(panic_message(payload.as_ref()))));
        } else if child.parked || child.thread.is_some() {
            return;
        }
        let exit = child.exit.clone().unwrap_or_else(|| ExitReason::Panicked("(lost with the supervisor)".into()));
        self.decide(table, client, exit);
    }

    fn decide(self: &Arc<Self>, mut table: MutexGuard<'_, Table>, client: ClientId, exit: ExitReason) {
        let shutting_down = !matches!(table.phase, Phase::Running);
        let Some(child) = table.children.get_mut(&client) else { return };
        let shared = child.shared.clone();
        let name = shared.tag.name.clone();
        let fate = match fate(&shared, &exit) {
            Fate::Restart if child.stopping || shutting_down => Fate::End(End::Closed(ExitReason::Closed)),
            fate => fate,
        };
        match fate {
            Fate::End(end) => {
                // The worker did this itself, unless it was on its way to a restart when the stop came.
                shared.conclude_idle(end.clone());
                match end {
                    End::Closed(reason) => {
                        table.children.remove(&client);
                        self.tell(SupervisorEvent::Closed { client, name, reason });
                    }
                    End::Parked(reason) => {
                        (child.parked, child.exit) = (true, None);
                        self.tell(SupervisorEvent::Parked { client, name, reason });
                    }
                }
                self.changed.notify_all();
            }
            Fate::Restart => self.restart_or_give_up(table, client, exit),
        }
    }

    fn restart_or_give_up(self: &Arc<Self>, mut table: MutexGuard<'_, Table>, client: ClientId, exit: ExitReason) {
        let counted = exit != ExitReason::RestartRequested;
        loop {
            let table = &mut *table;
            let Some(child) = table.children.get_mut(&client) else { return };
            let (shared, name) = (child.shared.clone(), child.shared.tag.name.clone());
            let budget = match self.settings.scope {
                IntensityScope::Client => &mut child.intensity,
                IntensityScope::Supervisor => &mut table.intensity,
            };
            if counted && !budget.allows(Instant::now()) {
                match self.settings.scope {
                    IntensityScope::Client => {
                        let reason = ParkReason::IntensityExceeded { last: exit };
                        shared.conclude_idle(End::Parked(reason.clone()));
                        (child.parked, child.exit) = (true, None);
                        self.tell(SupervisorEvent::Parked { client, name, reason });
                        self.changed.notify_all();
                    }
                    IntensityScope::Supervisor => {
                        log::error!("client `{name}`: one restart too many: the supervisor ends ({exit})");
                        shared.conclude_idle(End::Closed(exit.clone()));
                        table.children.remove(&client);
                        self.tell(SupervisorEvent::Closed { client, name: name.clone(), reason: exit.clone() });
                        let exit = SupervisorExit::IntensityExceeded { client: name, last: exit };
                        self.begin_shut_down(table, exit, self.settings.grace);
                    }
                }
                return;
            }
            if counted {
                shared.counters.restarts.add(1);
            }
            let restarts = shared.counters.restarts.get();
            match self.start_worker(&shared, Some((exit.clone(), restarts))) {
                Ok((thread, run)) => {
                    (child.thread, child.run, child.exit) = (Some(thread), run, None);
                    log::warn!("client `{name}`: restarted ({exit}), {restarts} times now");
                    if counted {
                        self.tell(SupervisorEvent::Restarted { client, name, reason: exit, restarts });
                    }
                    return;
                }
                // As in OTP a failed restart counts as one, so this ends.
                Err(error) if counted => log::error!("client `{name}`: no thread for it: {error}"),
                Err(error) => {
                    log::error!("client `{name}`: no thread for it: {error}");
                    let reason = ParkReason::IntensityExceeded { last: exit };
                    shared.conclude_idle(End::Parked(reason.clone()));
                    (child.parked, child.exit) = (true, None);
                    self.tell(SupervisorEvent::Parked { client, name, reason });
                    return;
                }
            }
        }
    }

    fn end_if_due(&self) {
        let mut table = self.table.lock();
        let Phase::ShuttingDown { exit, deadline } = &table.phase else { return };
        if !table.children.is_empty() && Instant::now() < *deadline {
            return;
        }
        let exit = exit.clone();
        for (_, child) in std::mem::take(&mut table.children) {
            self.leave_behind(&mut table, child);
        }
        table.phase = Phase::Ended { exit };
        self.changed.notify_all();
    }

    fn leave_behind(&self, table: &mut Table, child: Child) {
        let (client, name) = (child.shared.tag.id, child.shared.tag.name.clone());
        log::error!("client `{name}`: its thread did not end in time and is left behind");
        child.shared.shut_socket();
        child.shared.conclude(None, End::Closed(ExitReason::Closed));
        table.left_behind.push(name.clone());
        self.tell(SupervisorEvent::LeftBehind { client, name });
    }

    // ---- the callers ----

    pub(super) fn spawn(self: &Arc<Self>, config: ClientConfig) -> Result<Arc<Shared>, StartError> {
        config.validate()?;
        let os = |error: io::Error| StartError::Os(error.to_string().into());
        let shared = Arc::new(Shared::new(config, true).map_err(os)?);
        let mut table = self.table.lock();
        if !matches!(table.phase, Phase::Running) {
            return Err(StartError::ShutDown);
        }
        if let Some(max) = self.settings.max_clients.filter(|max| table.children.len() >= *max) {
            return Err(StartError::MaxClients(max));
        }
        if table.children.values().any(|child| child.shared.tag.name == shared.tag.name) {
            return Err(StartError::DuplicateName((&*shared.tag.name).into()));
        }
        let (thread, run) = self.start_worker(&shared, None).map_err(os)?;
        let child = Child {
            shared: shared.clone(),
            thread: Some(thread),
            run,
            exit: None,
            intensity: RestartIntensity::new(self.settings.max_restarts, self.settings.window),
            parked: false,
            stopping: false,
        };
        table.children.insert(shared.tag.id, child);
        let every = (shared.config.stall_threshold / 2).clamp(Duration::from_millis(5), Duration::from_millis(500));
        let sooner = self.watch.fetch_min(every.as_nanos() as u64, Ordering::Relaxed) > every.as_nanos() as u64;
        if sooner || table.children.len() == 1 {
            let _ = self.notices.0.send(Notice::Look);
        }
        Ok(shared)
    }

    /// Starts a run of a client's worker; returns its thread and its number.
    fn start_worker(
        &self,
        shared: &Arc<Shared>,
        restarted: Option<(ExitReason, u64)>,
    ) -> io::Result<(JoinHandle<ExitReason>, u64)> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let notice = ExitNotice { notices: self.notices.0.clone(), client: shared.tag.id, run };
        Ok((worker::start(shared, restarted, notice)?, run))
    }

    pub(crate) fn stop(&self, client: ClientId) -> Result<(), StopError> {
        let mut table = self.table.lock();
        let Some(child) = table.children.get_mut(&client) else { return Err(StopError::NotFound) };
        child.stopping = true;
        let shared = child.shared.clone();
        let until = shared.order(OrderKind::Stop, shared.config.close_timeout).deadline;
        if child.parked {
            shared.conclude_idle(End::Closed(ExitReason::Closed));
            table.children.remove(&client);
            let (name, reason) = (shared.tag.name.clone(), ExitReason::Closed);
            self.tell(SupervisorEvent::Closed { client, name, reason });
            return Ok(());
        }
        if shared.is_own_thread() {
            return Ok(());
        }
        while table.children.contains_key(&client) {
            if self.changed.wait_until(&mut table, until).timed_out() {
                let Some(child) = table.children.remove(&client) else { break };
                self.leave_behind(&mut table, child);
                return Err(StopError::LeftBehind((&*shared.tag.name).into()));
            }
        }
        Ok(())
    }

    pub(super) fn restart(self: &Arc<Self>, client: ClientId) -> Result<(), StopError> {
        match self.resume(client) {
            Err(StopError::NotParked) => {}
            other => return other,
        }
        let table = self.table.lock();
        let child = table.children.get(&client).ok_or(StopError::NotFound)?;
        child.shared.order(OrderKind::Restart, child.shared.config.close_timeout);
        Ok(())
    }

    pub(super) fn resume(self: &Arc<Self>, client: ClientId) -> Result<(), StopError> {
        let mut table = self.table.lock();
        let soon = deadline(Duration::from_secs(1));
        let child = loop {
            let child = table.children.get(&client).ok_or(StopError::NotFound)?;
            if child.parked {
                break table.children.get_mut(&client).ok_or(StopError::NotFound)?;
            }
            // A worker that parks itself tells its caller first; its exit is acted upon in a moment.
            let parking = child.shared.status.get() == ReadyState::Parked;
            if !parking || child.shared.is_own_thread() || self.changed.wait_until(&mut table, soon).timed_out() {
                return Err(StopError::NotParked);
            }
        };
        let shared = child.shared.clone();
        shared.seat.lock().reconnect.reset();
        // What was asked of the run that parked itself is done by starting another.
        shared.orders.clear();
        shared.status.set(ReadyState::Connecting);
        shared.gate.set(crate::outbound::gate::Pass::Queue);
        match self.start_worker(&shared, None) {
            Ok((thread, run)) => {
                child.intensity.forgive();
                (child.thread, child.run, child.parked) = (Some(thread), run, false);
                log::info!("client `{}`: resumed", shared.tag.name);
                Ok(())
            }
            Err(error) => {
                shared.gate.close(crate::outbound::gate::Pass::Shut);
                shared.status.set(ReadyState::Parked);
                Err(StopError::Os(error.to_string().into()))
            }
        }
    }

    pub(super) fn list(&self) -> Vec<ClientInfo> {
        self.table.lock().children.values().map(Child::info).collect()
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

    pub(super) fn find(&self, name: &str) -> Option<Arc<Shared>> {
        let table = self.table.lock();
        table.children.values().map(|child| &child.shared).find(|shared| &*shared.tag.name == name).cloned()
    }

    pub(super) fn events(&self) -> Receiver<SupervisorEvent> {
        self.events.1.clone()
    }

    fn tell(&self, event: SupervisorEvent) {
        let mut event = event;
        while let Err(TrySendError::Full(refused)) = self.events.0.try_send(event) {
            let _ = self.events.1.try_recv();
            event = refused;
        }
    }

    fn begin_shut_down(&self, table: &mut Table, exit: SupervisorExit, grace: Duration) {
        if !matches!(table.phase, Phase::Running) {
            return;
        }
        table.phase = Phase::ShuttingDown { exit, deadline: deadline(grace) };
        for child in table.children.values_mut() {
            child.stopping = true;
            child.shared.order(OrderKind::Stop, grace);
            if child.parked {
                child.shared.conclude_idle(End::Closed(ExitReason::Closed));
            }
        }
        table.children.retain(|_, child| !child.parked);
        let _ = self.notices.0.send(Notice::ShutDown);
    }

    pub(super) fn shut_down(&self, exit: SupervisorExit, grace: Duration) -> ShutdownReport {
        let mut table = self.table.lock();
        self.begin_shut_down(&mut table, exit, grace);
        let own = table.children.values().find(|child| child.shared.is_own_thread());
        if let Some(own) = own.map(|child| child.shared.tag.name.clone()) {
            return ShutdownReport { left_behind: vec![own] };
        }
        // The supervisor's thread ends it; should that be in trouble, we do.
        while let Phase::ShuttingDown { deadline, .. } = &table.phase {
            let until = *deadline + Duration::from_millis(200);
            if self.changed.wait_until(&mut table, until).timed_out() {
                MutexGuard::unlocked(&mut table, || self.end_if_due());
            }
        }
        ShutdownReport { left_behind: table.left_behind.clone() }
    }

    pub(super) fn wait_for_end(&self) -> SupervisorExit {
        let mut table = self.table.lock();
        loop {
            if let Phase::Ended { exit } = &table.phase {
                return exit.clone();
            }
            self.changed.wait(&mut table);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.table.lock().phase, Phase::Ended { .. })
    }

    #[cfg(feature = "testing")]
    pub(super) fn panic_for_test(&self) {
        let _ = self.notices.0.send(Notice::Panic);
    }
}
