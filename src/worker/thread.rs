//! A worker's thread, from its first instruction to its last: placed on its core, run, and ended with a decision on what
//! follows. A panic is accounted for here.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::exit::Exit;
use super::run::Run;
use crate::client_state::{ClientState, Kept, Life};
use crate::inbound::consumer::Consumer;
use crate::inbound::delivery::Way;
use crate::lifecycle::ExitReason;
use crate::policy::restart::Fate;
use crate::state::{DisconnectReason, ReadyState};
use crate::transport::wait;

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
            return Exit::new(&worker, ExitReason::Closed);
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
        return Err(format!(
            "option `pin_to`: there is no core {core}, or this process may not use it; the thread that started the client may use {own:?}"
        ));
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

/// The whole of a worker's thread.
fn thread_main(state: &Arc<ClientState>, restarted: Option<(ExitReason, u64)>) -> Exit {
    state.core.set_thread();
    let mut handler = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let Some(work) = state.work() else { return Exit::new(state, ExitReason::Closed) };
        let mut kept = state.kept.lock();
        let Kept { queue, life } = &mut *kept;
        if queue.is_none() {
            pause_after_crashes(state, life);
        }
        let overflow = state.settings.overflow;
        let consumer = match (&work.hooks.delivery.0, queue) {
            (Way::Inline(factory), _) => Consumer::handler(&mut **handler.insert(factory()), overflow),
            (_, Some(queue)) => Consumer::queue(queue, overflow),
            (_, None) => return Exit::new(state, ExitReason::Closed),
        };
        let mut run = Run::new(state, work.clone(), life, state.core.mailbox.line.lock(), consumer);
        let reason = run.run(restarted);
        run.finish(reason)
    }));
    let exit = result.unwrap_or_else(|payload| {
        let message = panic_message(payload.as_ref());
        // What was thrown is the handler's, and may throw again when it is dropped.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        dropped.unwrap_or_else(std::mem::forget);
        post_mortem(state, message)
    });
    // Not before: a drop that panics while a panic unwinds ends the process.
    state.drop_for_caller(handler);
    state.let_go();
    exit
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

pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> Box<str> {
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).into();
    }
    payload.downcast_ref::<String>().map_or("(no message)", String::as_str).into()
}

/// The run is gone, what it kept is whole: hand back what it held.
fn post_mortem(state: &ClientState, message: Box<str>) -> Exit {
    let core = &*state.core;
    let mut kept = state.kept.lock();
    let link = &mut *core.mailbox.line.lock();
    let now = Instant::now();
    let _ = core.duty.end(now);
    core.pauses.end(now);
    log::error!(client:% = core.tag.name; "client `{}`: its worker panicked: {message}", core.tag.name);
    if kept.life.open {
        state.settle_connection(&mut kept.life, link, DisconnectReason::Panicked(message.clone()));
    } else {
        // In the middle of an attempt, or of opening a session.
        link.let_go(&core.mailbox.source.books);
        state.register_socket(None);
    }
    let Kept { queue, life } = &mut *kept;
    if let Some(queue) = queue {
        life.untold.drain(..).for_each(|event| queue.push_event(event));
    }
    // Without a queue the next handler is told, or whoever watches the supervisor.
    kept.life.reconnect.panicked(now);
    let exit = Exit::new(state, ExitReason::Panicked(message));
    match &exit.fate {
        Fate::Restart => core.status.set(ReadyState::Connecting),
        Fate::End(end) => state.conclude(&mut kept, link, end),
    }
    exit
}
