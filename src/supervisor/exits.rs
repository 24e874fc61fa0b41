//! The supervisor's thread: it joins workers that have ended, carries out what their exit says, and spends the budget of
//! restarts. It also looks for workers that stall.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::MutexGuard;

use super::child::{Child, Waits};
use super::event::{SupervisorEvent, SupervisorExit};
use super::settings::IntensityScope;
use super::table::{Notice, Progress, Rows, Table};
use crate::client_state::ClientState;
use crate::deadline::later;
use crate::lifecycle::{End, ExitReason, ParkReason};
use crate::metrics;
use crate::policy::clocks::Clocks;
use crate::policy::restart::Fate;
use crate::state::ClientId;
use crate::worker::exit::Exit;
use crate::worker::thread::panic_message;

/// How long a client for which there was no thread waits, at first and at most.
const THREAD_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

impl Table {
    pub(super) fn run(self: &Arc<Self>) {
        self.adopt();
        let mut next_look = Instant::now();
        let mut next_metrics = cfg!(feature = "metrics").then_some(next_look);
        let mut clocks = Clocks::new(next_look, SystemTime::now());
        loop {
            self.publish_owed();
            let now = Instant::now();
            if next_metrics.is_some_and(|at| now >= at) {
                self.publish_metrics();
                next_metrics = Some(later(now, self.settings.metrics_every));
            }
            if now >= next_look {
                self.look_for_stalls(now);
                if clocks.show_a_gap(now, SystemTime::now(), now + self.watch_every()) {
                    log::warn!("this machine or process has stood still: every line is tried");
                    self.rows.lock().children.values().for_each(|child| child.state.core.try_line());
                }
            }
            // A client with a low threshold may have come meanwhile.
            next_look =
                if now >= next_look { now + self.watch_every() } else { next_look.min(now + self.watch_every()) };
            let deadline = {
                let rows = self.rows.lock();
                match &rows.progress {
                    Progress::Running if rows.children.is_empty() => None,
                    Progress::Running => {
                        let waits = rows.children.values().filter_map(|child| child.waits.as_ref());
                        Some(waits.map(|waits| waits.until).chain(next_metrics).fold(next_look, Instant::min))
                    }
                    Progress::ShuttingDown { deadline, .. } => Some((*deadline).min(next_look)),
                    Progress::Ended { .. } => break,
                }
            };
            match self.next_notice(deadline) {
                Some(Notice::Exited { client, run }) => self.exited(client, run),
                #[cfg(feature = "testing")]
                Some(Notice::Panic) => panic!("a panic that a test asked for"),
                Some(Notice::Look | Notice::ShutDown) | None => {}
            }
            if deadline.is_none() {
                // Nobody was looked after meanwhile.
                next_look = Instant::now();
                clocks = Clocks::new(next_look, SystemTime::now());
            }
            self.start_those_that_wait();
            self.end_if_due();
        }
        self.publish_owed();
        // From now on threads that were left behind tell of themselves.
        self.ended.store(true, Ordering::Relaxed);
        self.hear_the_late();
    }

    /// Clients for which the system had no thread.
    fn start_those_that_wait(self: &Arc<Self>) {
        let now = Instant::now();
        let mut rows = self.rows.lock();
        for child in rows.children.values_mut() {
            if let Some(waits) = child.waits.take_if(|waits| waits.until <= now) {
                self.start_again(child, waits.exit, waits.pause);
            }
        }
    }

    /// What is counted of all clients, and of them together.
    pub(super) fn publish_metrics(&self) {
        let _turn = self.publishing.lock();
        // Publishing is the recorder's code: not under the table's lock.
        let states: Vec<_> = self.rows.lock().children.values().map(|child| child.state.clone()).collect();
        states.iter().for_each(|state| state.publish_metrics());
        let count = self.count();
        let states = [
            ("running", count.running),
            ("open", count.open),
            ("restarting", count.restarting),
            ("parked", count.parked),
        ];
        metrics::clients(&states);
    }

    fn look_for_stalls(&self, now: Instant) {
        for child in self.rows.lock().children.values() {
            let core = &child.state.core;
            let (client, name) = (core.tag.id, &core.tag.name);
            if let Some((lasts, doing)) = core.duty.stalled(now) {
                log::error!(client:% = name; "client `{name}`: {doing} has not returned for {lasts:.1?}");
                let tag = core.tag.clone();
                self.owe(move || metrics::stalled(&tag, doing));
                self.tell(SupervisorEvent::Stalled { client, name: name.clone(), lasts, doing });
            }
            if let Some(lasts) = core.pauses.is_long(now, core.duty.threshold()) {
                log::error!(client:% = name; "client `{name}`: its events are not read, and so its socket has not been for {lasts:.1?}");
                let tag = core.tag.clone();
                self.owe(move || metrics::reader_behind(&tag));
                self.tell(SupervisorEvent::ReaderBehind { client, name: name.clone(), lasts });
            }
        }
    }

    /// Clients that ended while nobody looked.
    fn adopt(self: &Arc<Self>) {
        let ended: Vec<_> = {
            let rows = self.rows.lock();
            let ended =
                |child: &Child| child.thread.as_ref().is_none_or(JoinHandle::is_finished) && !child.is_without_thread();
            let children = rows.children.iter().filter(|(_, child)| ended(child));
            children.map(|(client, child)| (*client, child.run)).collect()
        };
        for (client, run) in ended {
            self.exited(client, run);
        }
    }

    /// A worker has ended: join it, then do what its exit says.
    fn exited(self: &Arc<Self>, client: ClientId, run: u64) {
        let of_this_run = |child: &&mut Child| child.run == run;
        let thread = {
            let mut rows = self.rows.lock();
            let child = rows.children.get_mut(&client).filter(of_this_run);
            child.and_then(|child| child.thread.take())
        };
        // The thread has said that it is done, so this does not wait.
        let joined = thread.map(JoinHandle::join);
        let mut rows = self.rows.lock();
        let Some(child) = rows.children.get_mut(&client).filter(of_this_run) else {
            return self.came_back(rows, client, run);
        };
        let panicked = |state: &_, message| Exit::new(state, ExitReason::Panicked(message));
        if let Some(result) = joined {
            let exit = result.unwrap_or_else(|payload| panicked(&child.state, panic_message(payload.as_ref())));
            child.exit = Some(exit);
        } else if child.is_without_thread() || child.thread.is_some() {
            return;
        }
        let exit = child.exit.clone().unwrap_or_else(|| panicked(&child.state, "(lost with the supervisor)".into()));
        self.carry_out(rows, client, exit);
    }

    /// The thread of a client that was left behind has ended after all.
    pub(super) fn came_back(&self, mut rows: MutexGuard<'_, Rows>, client: ClientId, run: u64) {
        let Some(state) = rows.lost.remove(&(client, run)) else { return };
        // What it lets go of may be the caller's.
        drop(rows);
        let (name, handed_back) = (state.core.tag.name.clone(), state.take_handed_back());
        log::warn!(client:% = name; "client `{name}`: its thread, which was left behind, has ended after all");
        self.tell(SupervisorEvent::CameBack { client, name, handed_back });
    }

    /// What an exit says is done, unless a stop overrules it, the budget of restarts is spent, a resume is waiting for just
    /// this, or there is no thread to be had.
    fn carry_out(self: &Arc<Self>, mut rows: MutexGuard<'_, Rows>, client: ClientId, exit: Exit) {
        let shutting_down = !matches!(rows.progress, Progress::Running);
        let Some(child) = rows.children.get_mut(&client) else { return };
        let (state, name) = (child.state.clone(), child.state.core.tag.name.clone());
        let stops = child.stopping || shutting_down;
        match exit.fate {
            Fate::End(End::Parked(_)) if child.resumes && !stops => {
                child.resumes = false;
                (child.parked, child.exit) = (true, None);
                if let Err(error) = self.start_parked(child) {
                    log::error!(client:% = name; "client `{name}`: no thread to resume it, so it stays parked: {error}");
                }
                self.changed.notify_all();
            }
            Fate::End(End::Parked(reason)) if !stops => {
                self.park(child, reason);
            }
            Fate::Restart if !stops => self.restart_or_give_up(rows, client, exit.reason),
            fate => {
                let reason = match fate {
                    Fate::End(End::Closed(reason)) => reason,
                    _ => ExitReason::Closed,
                };
                rows.children.remove(&client);
                self.close_idle(&state, reason);
                self.changed.notify_all();
                drop(rows);
                state.let_go();
            }
        }
    }

    fn restart_or_give_up(self: &Arc<Self>, mut guard: MutexGuard<'_, Rows>, client: ClientId, exit: ExitReason) {
        let rows = &mut *guard;
        let Some(child) = rows.children.get_mut(&client) else { return };
        let (state, name) = (child.state.clone(), child.state.core.tag.name.clone());
        let budget = match self.settings.scope {
            IntensityScope::Client => &mut child.intensity,
            IntensityScope::Supervisor => &mut rows.intensity,
        };
        if self.settings.counts(&exit) && !budget.allows(Instant::now()) {
            return match self.settings.scope {
                IntensityScope::Client => self.park(child, ParkReason::IntensityExceeded { last: exit }),
                IntensityScope::Supervisor => {
                    log::error!(client:% = name; "client `{name}`: one restart too many: the supervisor ends ({exit})");
                    rows.children.remove(&client);
                    self.close_idle(&state, exit.clone());
                    let exit = SupervisorExit::IntensityExceeded { client: name, last: exit };
                    let ended = self.begin_shut_down(rows, exit, self.settings.grace);
                    drop(guard);
                    ended.iter().chain([&state]).for_each(|state| state.let_go());
                }
            };
        }
        if exit != ExitReason::RestartRequested {
            state.core.counters.restarts.add(1);
        }
        self.start_again(child, exit, THREAD_PAUSE.0);
    }

    /// Starts the next run. Where the system has no thread to give, it is asked again, and that is nobody's fault.
    fn start_again(self: &Arc<Self>, child: &mut Child, exit: ExitReason, pause: Duration) {
        let (state, name) = (child.state.clone(), child.state.core.tag.name.clone());
        let restarts = state.core.counters.restarts.get();
        match self.start_worker(&state, Some((exit.clone(), restarts))) {
            Ok((thread, run)) => {
                (child.thread, child.run, child.exit) = (Some(thread), run, None);
                log::warn!(client:% = name; "client `{name}`: restarted ({exit}), {restarts} times now");
                let (tag, reason) = (state.core.tag.clone(), exit.clone());
                self.owe(move || metrics::restarted(&tag, &reason));
                if exit != ExitReason::RestartRequested {
                    let client = state.core.tag.id;
                    self.tell(SupervisorEvent::Restarted { client, name, reason: exit, restarts });
                }
            }
            Err(error) => {
                log::error!(client:% = name; "client `{name}`: no thread for it, trying again in {pause:?}: {error}");
                let (until, next) = (Instant::now() + pause, (pause * 2).min(THREAD_PAUSE.1));
                child.waits = Some(Waits { until, pause: next, exit });
                child.exit = None;
            }
        }
    }

    fn park(&self, child: &mut Child, reason: ParkReason) {
        child.state.conclude_idle(&End::Parked(reason.clone()));
        (child.parked, child.exit) = (true, None);
        let (client, name) = (child.state.core.tag.id, child.state.core.tag.name.clone());
        let handed_back = child.state.take_handed_back();
        let (tag, why) = (child.state.core.tag.clone(), reason.clone());
        self.owe(move || metrics::parked(&tag, &why));
        self.tell(SupervisorEvent::Parked { client, name, reason, handed_back });
        self.changed.notify_all();
    }

    /// A client without a thread is closed, and whoever watches is told. The worker said so itself, unless it was on its
    /// way to something else when the stop came. What it held is to be let go of outside the lock.
    pub(super) fn close_idle(&self, state: &Arc<ClientState>, reason: ExitReason) {
        state.conclude_idle(&End::Closed(reason.clone()));
        let (client, name) = (state.core.tag.id, state.core.tag.name.clone());
        let handed_back = state.take_handed_back();
        let closed = state.clone();
        self.owe(move || closed.publish_metrics());
        self.tell(SupervisorEvent::Closed { client, name, reason, handed_back });
    }

    pub(super) fn end_if_due(&self) {
        let mut rows = self.rows.lock();
        let Progress::ShuttingDown { exit, deadline } = &rows.progress else { return };
        if !rows.children.is_empty() && Instant::now() < *deadline {
            return;
        }
        let exit = exit.clone();
        for (_, child) in std::mem::take(&mut rows.children) {
            self.leave_behind(&mut rows, &child);
        }
        rows.progress = Progress::Ended { exit };
        self.changed.notify_all();
    }

    pub(super) fn leave_behind(&self, rows: &mut Rows, child: &Child) {
        let (client, name) = (child.state.core.tag.id, child.state.core.tag.name.clone());
        log::error!(client:% = name; "client `{name}`: its thread did not end in time and is left behind");
        child.state.shut_socket();
        child.state.conclude_left_behind(&End::Closed(ExitReason::Closed));
        rows.left_behind.push(name.clone());
        rows.lost.insert((client, child.run), child.state.clone());
        let state = child.state.clone();
        self.owe(move || {
            state.publish_metrics();
            metrics::left_behind(&state.core.tag);
        });
        let handed_back = child.state.take_left();
        self.tell(SupervisorEvent::LeftBehind { client, name, handed_back });
    }

    /// Returns the clients that had no thread, and so have ended: what they held is to be let go of outside the lock.
    pub(super) fn begin_shut_down(
        &self,
        rows: &mut Rows,
        exit: SupervisorExit,
        grace: Duration,
    ) -> Vec<Arc<ClientState>> {
        if !matches!(rows.progress, Progress::Running) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        rows.progress = Progress::ShuttingDown { exit, deadline: crate::deadline::later(Instant::now(), grace) };
        for child in rows.children.values_mut() {
            child.stopping = true;
            child.state.core.command(crate::command::CommandKind::Stop, grace);
            if child.is_without_thread() {
                self.close_idle(&child.state, ExitReason::Closed);
                ended.push(child.state.clone());
            }
        }
        rows.children.retain(|_, child| !child.is_without_thread());
        self.notify(Notice::ShutDown);
        ended
    }
}
