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
use super::table::{Departed, Notice, Progress, Rows, Table};
use crate::client_state::ClientState;
use crate::command::CommandKind;
use crate::deadline::later;
use crate::lifecycle::{End, ExitReason, ParkReason};
use crate::logger;
use crate::metrics;
use crate::policy::clocks::Clocks;
use crate::policy::restart::{Exit, Fate, Restart};
use crate::state::{ClientId, Tag};
use crate::user_code::{PROCESS, PanicReport, PanicsSeen, panic_message};

/// How long a client for which there was no thread waits, at first and at most.
const THREAD_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

impl Table {
    pub(super) fn run(self: &Arc<Self>) {
        self.adopt();
        let mut next_look = Instant::now();
        let mut clocks = Clocks::new(next_look, SystemTime::now());
        loop {
            let now = Instant::now();
            if now >= next_look {
                self.look_for_stalls(now);
                if clocks.show_a_gap(now, SystemTime::now(), now + self.watch_every()) {
                    self.defer(|_| logger::warn!("this machine or process was suspended: every connection is tested"));
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
                    Progress::Running => Some(rows.next_start().map_or(next_look, |at| at.min(next_look))),
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
                // While there were no clients, nothing was looked at.
                next_look = Instant::now();
                clocks = Clocks::new(next_look, SystemTime::now());
            }
            self.start_those_that_wait();
            self.end_if_due();
        }
        // From now on threads that were abandoned report their own end.
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

    fn look_for_stalls(&self, now: Instant) {
        let mut rows = self.rows.lock();
        for child in rows.children.values_mut() {
            let core = &child.state.core;
            let (client, name) = (core.tag.id, &core.tag.name);
            if let Some((lasts, doing)) = core.duty.stalled(now) {
                let tag = core.tag.clone();
                self.defer(move |_| {
                    let name = &tag.name;
                    logger::error!(client:% = name; "client `{name}`: {doing} has not returned for {lasts:.1?}");
                    metrics::stalled(&tag, doing);
                });
                self.publish(SupervisorEvent::Stalled { client, name: name.clone(), lasts, doing });
            }
            if let Some(lasts) = core.pauses.is_long(now, core.duty.threshold()) {
                let tag = core.tag.clone();
                self.defer(move |_| {
                    let name = &tag.name;
                    logger::error!(client:% = name; "client `{name}`: event queue full for {lasts:.1?}; reading from the socket is paused");
                    metrics::reader_behind(&tag);
                });
                self.publish(SupervisorEvent::ReaderBehind { client, name: name.clone(), lasts });
            }
            self.report_panics(&child.state, &mut child.panics_seen);
        }
        drop(rows);
        self.report_panics_of_process();
    }

    /// Publishes an event for each kind of code that panicked outside a run of this client since the last look.
    pub(super) fn report_panics(&self, state: &ClientState, seen: &mut PanicsSeen) {
        self.publish_panics(Some(&state.core.tag), state.core.panics.collect(seen));
    }

    fn report_panics_of_process(&self) {
        self.publish_panics(None, PROCESS.collect(&mut self.panics_seen.lock()));
    }

    fn publish_panics(&self, tag: Option<&Tag>, reports: Vec<PanicReport>) {
        for PanicReport { code, times, panic } in reports {
            let (client, name) = (tag.map(|tag| tag.id), tag.map(|tag| tag.name.clone()));
            self.publish(SupervisorEvent::UserCodePanicked { client, name, code, times, panic });
        }
    }

    /// Drops an ended client's handler, closures and values, which may panic too. Called without a lock.
    pub(super) fn release(&self, (state, mut seen): Departed) {
        state.release_user_code();
        self.report_panics(&state, &mut seen);
    }

    /// Has the guardian do that.
    fn release_later(&self, departed: Option<Departed>) {
        if let Some(departed) = departed {
            self.defer(move |table| table.release(departed));
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
    pub(super) fn exited(self: &Arc<Self>, client: ClientId, run: u64) {
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
        let panicked = |state: &ClientState, message| state.exit_outside_a_run(ExitReason::Panicked(message));
        if let Some(result) = joined {
            let exit = result.unwrap_or_else(|payload| panicked(&child.state, panic_message(payload)));
            child.exit = Some(exit);
        } else if child.is_without_thread() || child.thread.is_some() {
            return;
        }
        let exit = child.exit.clone().unwrap_or_else(|| panicked(&child.state, "(lost with the supervisor)".into()));
        self.carry_out(rows, client, exit);
    }

    /// The thread of a client that was left behind has ended after all.
    pub(super) fn came_back(&self, mut rows: MutexGuard<'_, Rows>, client: ClientId, run: u64) {
        let Some((state, mut seen)) = rows.abandoned.remove(&(client, run)) else { return };
        rows.publishing += 1;
        drop(rows);
        let (name, handed_back) = (state.core.tag.name.clone(), state.take_handed_back());
        self.publish(SupervisorEvent::CameBack { client, name: name.clone(), handed_back });
        self.report_panics(&state, &mut seen);
        let mut rows = self.rows.lock();
        rows.publishing -= 1;
        let is_last =
            rows.abandoned.is_empty() && rows.publishing == 0 && matches!(rows.progress, Progress::Ended { .. });
        drop(rows);
        if is_last {
            self.close_events();
        }
        self.defer(move |_| {
            logger::warn!(client:% = name; "client `{name}`: its thread, which had been abandoned, has ended");
        });
    }

    /// What an exit says is done, unless a stop overrules it, the budget of restarts is spent, a resume is waiting for just
    /// this, or there is no thread to be had.
    fn carry_out(self: &Arc<Self>, mut rows: MutexGuard<'_, Rows>, client: ClientId, exit: Exit) {
        let shutting_down = !matches!(rows.progress, Progress::Running);
        let Some(child) = rows.children.get_mut(&client) else { return };
        let (state, name) = (child.state.clone(), child.state.core.tag.name.clone());
        // A close that was given after the run's end was decided, by its handler for example, is carried out here.
        let closes = state.core.commands.close_given() && state.settings.restart != Restart::Permanent;
        let stops = child.stopping || shutting_down || closes;
        match exit.fate {
            Fate::End(End::Parked(_)) if child.resumes && !stops => {
                child.resumes = false;
                (child.parked, child.exit) = (true, None);
                if let Err(error) = self.start_parked(child) {
                    self.defer(move |_| {
                        logger::error!(client:% = name; "client `{name}`: no thread to resume it, so it stays parked: {error}");
                    });
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
                self.release_later(self.close_idle(&mut rows, client, reason));
                self.changed.notify_all();
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
                    let (of, why) = (name.clone(), exit.clone());
                    self.defer(move |_| {
                        logger::error!(client:% = of; "client `{of}`: one restart too many: the supervisor ends ({why})");
                    });
                    self.release_later(self.close_idle(rows, client, exit.clone()));
                    let exit = SupervisorExit::IntensityExceeded { client: name, last: exit };
                    self.begin_shut_down(rows, exit, self.settings.grace);
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
                let (tag, reason) = (state.core.tag.clone(), exit.clone());
                self.defer(move |_| {
                    let name = &tag.name;
                    match reason {
                        ExitReason::RestartRequested => {
                            logger::info!(client:% = name; "client `{name}`: restarted, as requested");
                        }
                        _ => logger::warn!(client:% = name; "client `{name}`: restart {restarts} ({reason})"),
                    }
                    metrics::restarted(&tag, &reason);
                });
                if exit != ExitReason::RestartRequested {
                    let client = state.core.tag.id;
                    self.publish(SupervisorEvent::Restarted { client, name, reason: exit, restarts });
                }
            }
            Err(error) => {
                self.defer(move |_| {
                    logger::error!(client:% = name; "client `{name}`: no thread for it, trying again in {pause:?}: {error}");
                });
                let (until, next) = (Instant::now() + pause, (pause * 2).min(THREAD_PAUSE.1));
                child.waits = Some(Waits { until, pause: next, exit });
                child.exit = None;
            }
        }
    }

    pub(super) fn park(&self, child: &mut Child, reason: ParkReason) {
        child.state.core.commands.parked();
        let is_news = child.state.conclude_idle(&End::Parked(reason.clone()));
        (child.parked, child.exit) = (true, None);
        let (client, name) = (child.state.core.tag.id, child.state.core.tag.name.clone());
        let handed_back = child.state.take_handed_back();
        let (state, why) = (child.state.clone(), reason.clone());
        self.defer(move |_| {
            metrics::parked(&state.core.tag, &why);
            if is_news {
                state.report_end(&End::Parked(why));
            }
        });
        self.report_panics(&child.state, &mut child.panics_seen);
        self.publish(SupervisorEvent::Parked { client, name, reason, handed_back });
        self.changed.notify_all();
    }

    /// Takes a client without a thread out of the table and closes it. Its worker has announced the end already, unless
    /// another run was to follow when the stop came.
    /// What the client has of the user's is for the caller to release, without the lock.
    pub(super) fn close_idle(&self, rows: &mut Rows, client: ClientId, reason: ExitReason) -> Option<Departed> {
        let Child { state, mut panics_seen, .. } = rows.children.remove(&client)?;
        let end = End::Closed(reason.clone());
        let is_news = state.conclude_idle(&end);
        let (name, handed_back) = (state.core.tag.name.clone(), state.take_handed_back());
        self.report_panics(&state, &mut panics_seen);
        self.publish(SupervisorEvent::Closed { client, name, reason, handed_back });
        let closed = state.clone();
        self.defer(move |_| {
            if is_news {
                closed.report_end(&end);
            }
            closed.publish_metrics();
        });
        Some((state, panics_seen))
    }

    pub(super) fn end_if_due(&self) {
        let mut rows = self.rows.lock();
        let Progress::ShuttingDown { exit, deadline } = &rows.progress else { return };
        if !rows.children.is_empty() && Instant::now() < *deadline {
            return;
        }
        let exit = exit.clone();
        for (_, child) in std::mem::take(&mut rows.children) {
            self.abandon(&mut rows, child);
        }
        self.report_panics_of_process();
        self.publish(SupervisorEvent::Ended { exit: exit.clone() });
        rows.progress = Progress::Ended { exit };
        if rows.abandoned.is_empty() && rows.publishing == 0 {
            self.close_events();
        }
        self.changed.notify_all();
    }

    /// Gives up on a thread that did not end in time: its socket is shut, and its messages that can be recovered are returned.
    pub(super) fn abandon(&self, rows: &mut Rows, child: Child) {
        let Child { state, run, panics_seen, .. } = child;
        let (client, name) = (state.core.tag.id, state.core.tag.name.clone());
        state.shut_socket();
        let end = End::Closed(ExitReason::Closed);
        let is_news = state.conclude_abandoned(&end);
        rows.abandoned.insert((client, run), (state.clone(), panics_seen));
        let handed_back = state.take_left();
        self.publish(SupervisorEvent::LeftBehind { client, name, handed_back });
        self.changed.notify_all();
        self.defer(move |_| {
            let name = &state.core.tag.name;
            logger::error!(client:% = name; "client `{name}`: its thread did not end within its grace time and is abandoned");
            if is_news {
                state.report_end(&end);
            }
            state.publish_metrics();
            metrics::left_behind(&state.core.tag);
        });
    }

    /// Stops all clients. Of two shutdowns the one with less patience decides how long the clients have.
    pub(super) fn begin_shut_down(&self, rows: &mut Rows, exit: SupervisorExit, grace: Duration) {
        let deadline = later(Instant::now(), grace);
        match &mut rows.progress {
            Progress::Ended { .. } => return,
            Progress::ShuttingDown { deadline: earlier, .. } if *earlier <= deadline => return,
            Progress::ShuttingDown { deadline: earlier, .. } => *earlier = deadline,
            Progress::Running => rows.progress = Progress::ShuttingDown { exit, deadline },
        }
        let mut without_thread = Vec::new();
        for (client, child) in &mut rows.children {
            child.stopping = true;
            child.state.core.command(CommandKind::Stop, grace);
            if child.is_without_thread() {
                without_thread.push(*client);
            }
        }
        for client in without_thread {
            self.release_later(self.close_idle(rows, client, ExitReason::Closed));
        }
        self.notify(Notice::ShutDown);
        self.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "exits_tests.rs"]
mod tests;
