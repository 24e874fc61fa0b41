//! A worker's thread, from its first instruction to its last: placed on its core, run, and ended with a decision on what
//! follows. A panic is accounted for here.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::run::Run;
use crate::client_state::{ClientState, Kept, Life};
use crate::inbound::consumer::{Consumer, Inline};
use crate::inbound::delivery::Way;
use crate::lifecycle::ExitReason;
use crate::logger;
use crate::policy::restart::Exit;
use crate::state::DisconnectReason;
use crate::transport::{Transport, wait};
use crate::user_code::{UserCode, panic_message};

/// Starts a worker's thread, on its core and with its priority if it has one. `last` is dropped as the last thing the
/// thread does.
pub(crate) fn start(
    state: &Arc<ClientState>,
    restarted: Option<(ExitReason, u64)>,
    last: impl Send + 'static,
) -> io::Result<JoinHandle<Exit>> {
    let (placed, is_placed) = crossbeam_channel::bounded(1);
    let settings = &state.settings;
    let (core, priority) = (settings.core, settings.priority);
    let worker = state.clone();
    let run = move || {
        let place = place(core, priority);
        let failed = place.is_err();
        let _ = placed.send(place);
        if failed {
            return worker.exit_outside_a_run(ExitReason::Closed);
        }
        let _last = last;
        thread_main(&worker, restarted)
    };
    let mut thread = std::thread::Builder::new().name(state.core.tag.name.to_string());
    if let Some(bytes) = settings.stack_size {
        thread = thread.stack_size(bytes);
    }
    let thread = thread.spawn(run)?;
    if core.is_some() || priority.is_some() {
        // The thread's first act is to place itself, so this does not wait for long.
        let place = is_placed.recv().unwrap_or_else(|_| Err("the thread ended at once".into()));
        place.map_err(|message| io::Error::new(io::ErrorKind::InvalidInput, message))?;
    }
    Ok(thread)
}

fn place(core: Option<usize>, priority: Option<u8>) -> Result<(), String> {
    if let Some(core) = core.filter(|core| !pin(*core)) {
        let own = cores();
        return Err(match own.contains(&core) {
            true => format!("option `pin_to`: this system can't pin a thread to a core (asked for {core})"),
            false => format!("option `pin_to`: no core {core}; allowed: {own:?}"),
        });
    }
    priority.map_or(Ok(()), real_time)
}

#[cfg(feature = "real-time")]
fn real_time(priority: u8) -> Result<(), String> {
    use thread_priority::unix::{set_thread_priority_and_policy, thread_native_id};
    use thread_priority::{RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
    let fifo = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let value = ThreadPriority::from_posix(thread_priority::unix::ScheduleParams { sched_priority: priority.into() });
    set_thread_priority_and_policy(thread_native_id(), value, fifo).map_err(|error| {
        format!("option `real_time_priority`: the system refused {priority} ({error:?}); it takes CAP_SYS_NICE or RLIMIT_RTPRIO")
    })
}

#[cfg(not(feature = "real-time"))]
fn real_time(_: u8) -> Result<(), String> {
    Ok(())
}

/// The kernel's set of cores has room for this many.
const MAX_CORES: usize = 1024;

fn pin(core: usize) -> bool {
    core < MAX_CORES && core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

fn cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// A worker's thread from its first run-related step to its last.
fn thread_main(state: &Arc<ClientState>, restarted: Option<(ExitReason, u64)>) -> Exit {
    state.core.set_thread();
    state.core.commands.begin_run();
    let exit = catch_unwind(AssertUnwindSafe(|| run(state, restarted)))
        .unwrap_or_else(|payload| end_after_panic(state, panic_message(payload)));
    state.release_user_code();
    exit
}

fn run(state: &ClientState, restarted: Option<(ExitReason, u64)>) -> Exit {
    let Some(work) = state.work() else { return state.exit_outside_a_run(ExitReason::Closed) };
    let mut kept = state.kept.lock();
    let Kept { queue, handler, held, life } = &mut *kept;
    // Nothing is decided yet about this run.
    (life.verdict, life.exit) = (None, None);
    let overflow = state.settings.overflow;
    let consumer = match (&work.hooks.delivery.0, queue) {
        (Way::Inline(factory), _) => {
            if handler.is_none() {
                pause_after_crashes(state, life);
            }
            let made = handler.get_or_insert_with(|| {
                state.core.tap().iter().for_each(|tap| tap.handler());
                Inline::new(factory())
            });
            Consumer::handler(made, overflow, held)
        }
        (_, Some(queue)) => Consumer::queue(queue, overflow, held),
        (_, None) => return state.exit_outside_a_run(ExitReason::Closed),
    };
    let mut run = Run::new(state, work.clone(), life, state.core.mailbox.line.lock(), consumer);
    let reason = run.run(restarted);
    run.finish(reason)
}

/// A handler is made when its run may dial: one that panics as it is made must not do so as fast as it can.
fn pause_after_crashes(state: &ClientState, life: &Life) {
    let core = &state.core;
    while let Some(until) = life.reconnect.crash_pause_ends().filter(|until| Instant::now() < *until) {
        if core.commands.pending() {
            return;
        }
        core.status.wait_until(until);
        let _ = wait(None, &core.mailbox.wake, Some(until), || core.commands.pending());
    }
}

/// Ends a run that panicked. Everything is settled and decided before anything is logged: a logger may panic too.
fn end_after_panic(state: &ClientState, panic: Box<str>) -> Exit {
    let core = &*state.core;
    let mut kept = state.kept.lock();
    let now = Instant::now();
    let _ = core.duty.end(now);
    core.pauses.end(now);
    // A handler outlives a panic of any other code.
    let broken = kept.handler.take_if(|handler| handler.is_running());
    let Kept { queue, held, life, .. } = &mut *kept;
    if let Some(exit) = life.exit.take() {
        // The handler was receiving the last events of a run whose end is decided.
        drop(kept);
        core.panics.note(UserCode::Handler, panic.clone());
        log_panic(state, &panic);
        state.drop_guarded(broken);
        return exit;
    }
    let mut line = core.mailbox.line.lock();
    let link = &mut *line;
    let classifying = u64::from(std::mem::take(&mut life.is_classifying));
    let dropped = held.drop_rest() + classifying + link.transport.as_mut().map_or(0, Transport::drop_received);
    core.counters.dropped.add(dropped);
    if !life.open {
        // In the middle of an attempt, or of opening a session.
        link.let_go(&core.mailbox.source.books);
        state.register_socket(None);
    }
    life.reconnect.crashed(now);
    let reason = match life.verdict.take() {
        Some(verdict) => {
            core.panics.note(UserCode::Handler, panic.clone());
            verdict
        }
        None => ExitReason::Panicked(panic.clone()),
    };
    let disconnect = DisconnectReason::Panicked { message: panic.clone(), dropped };
    let run_end = state.end_run(life, link, queue.as_mut(), reason, Some(disconnect));
    if let Some(queue) = queue {
        // Events for a handler wait for the next one, or for the supervisor's event.
        state.push_pending(queue, life);
    }
    drop(line);
    drop(kept);
    log_panic(state, &panic);
    state.report(&run_end);
    state.drop_guarded(broken);
    run_end.exit
}

fn log_panic(state: &ClientState, panic: &str) {
    let name = &state.core.tag.name;
    logger::error!(client:% = name; "client `{name}`: its worker panicked: {panic}");
}
