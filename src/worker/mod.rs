//! The worker: the loop on the client's own thread, sole owner of the socket. Connect, serve, close, and say why it
//! ended. It never spawns anything.

mod close;
mod establish;
mod requests;
mod serve;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::client_state::{Seat, Shared};
use crate::command::{Order, OrderKind};
use crate::connect::{Attempt, Halt};
use crate::deadline::later;
use crate::dial::Dial;
use crate::error::ConnectError;
use crate::event::Event;
use crate::inbound::context::Context;
use crate::inbound::delivery::{Handler, Way};
use crate::lifecycle::ExitReason;
use crate::message::Message;
use crate::outbound::gate::Pass;
use crate::outbound::line::Guard;
use crate::outbound::link::Link;
use crate::policy::pacer::Pacer;
use crate::policy::reconnect::Next;
use crate::policy::restart::{Fate, fate};
use crate::policy::timers::Timers;
use crate::request::Request;
use crate::state::{DisconnectReason, ReadyState};
use crate::transport::wait;

/// Starts a worker's thread, on its core and with its priority if it has one. `last` is dropped as the last thing the
/// thread does.
pub(crate) fn start(
    shared: &Arc<Shared>,
    restarted: Option<(ExitReason, u64)>,
    last: impl Send + 'static,
) -> io::Result<JoinHandle<ExitReason>> {
    let (placed, is_placed) = crossbeam_channel::bounded(1);
    let config = &shared.config;
    let (core, priority) = (config.core, config.priority);
    let worker = shared.clone();
    let run = move || {
        let place = place(core, priority);
        let failed = place.is_err();
        let _ = placed.send(place);
        if failed {
            return ExitReason::Closed;
        }
        let _last = last;
        thread_main(&worker, restarted)
    };
    let mut thread = std::thread::Builder::new().name(shared.tag.name.to_string());
    if let Some(bytes) = config.stack_size {
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

/// The whole of a worker's thread. A panic is accounted for and told to whoever joins.
fn thread_main(shared: &Arc<Shared>, restarted: Option<(ExitReason, u64)>) -> ExitReason {
    shared.set_thread();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut seat = shared.seat.lock();
        let mut run = Run::new(shared, &mut seat, shared.line.lock());
        let exit = run.run(restarted);
        run.finish(&exit);
        exit
    }));
    result.unwrap_or_else(|payload| {
        let message = panic_message(payload.as_ref());
        // What was thrown is the handler's, and may throw again when it is dropped.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        dropped.unwrap_or_else(std::mem::forget);
        post_mortem(shared, message.clone());
        ExitReason::Panicked(message)
    })
}

pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> Box<str> {
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).into();
    }
    payload.downcast_ref::<String>().map_or("(no message)", String::as_str).into()
}

/// The run is gone, its seat is whole: hand back what it held.
fn post_mortem(shared: &Shared, message: Box<str>) {
    let mut seat = shared.seat.lock();
    let seat = &mut *seat;
    let link = &mut *shared.line.lock();
    let _ = shared.duty.end(Instant::now());
    log::error!("client `{}`: its worker panicked: {message}", shared.tag.name);
    if seat.open {
        let unsent = shared.collect_unsent(seat, link, Pass::Queue).unsent;
        let event =
            Event::Disconnected { epoch: seat.epoch, reason: DisconnectReason::Panicked(message.clone()), unsent };
        if let Some(queue) = &mut seat.queue {
            queue.push_event(event);
        }
    } else {
        // In the middle of an attempt, or of opening a session.
        link.let_go(&shared.source.sent);
        shared.register_socket(None);
    }
    seat.reconnect.panicked(Instant::now());
    let exit = ExitReason::Panicked(message);
    match fate(shared, &exit) {
        Fate::Restart => shared.status.set(ReadyState::Connecting),
        Fate::End(end) => shared.conclude(Some((seat, link)), end),
    }
}

/// What ended a connection.
enum Ended {
    Lost(DisconnectReason),
    Ordered(Order),
    /// Its session could not be opened.
    NotReady(Halt),
}

/// One run of the worker.
struct Run<'a> {
    shared: &'a Arc<Shared>,
    seat: &'a mut Seat,
    link: Guard<'a, Link>,
    handler: Option<Box<dyn Handler>>,
    timers: Timers,
    /// Turns in a row that found nothing to do.
    idle_turns: u32,
    /// The connection has nothing more to say.
    reads_broken: bool,
    /// The client is being closed: what its handler sends now is refused.
    closing: bool,
    /// What must be asked before something expires, and when.
    renewal: Option<(Instant, Request)>,
    /// When the connection is to be replaced: once nothing is pending, or at the latest.
    rotation: Option<(Instant, Instant)>,
    /// When the rate limits have room for the channels that are still to be asked for.
    ask_again_at: Option<Instant>,
}

impl<'a> Run<'a> {
    fn new(shared: &'a Arc<Shared>, seat: &'a mut Seat, link: Guard<'a, Link>) -> Self {
        let handler = match &shared.config.delivery.0 {
            Way::Inline(factory) => Some(factory()),
            _ => None,
        };
        Self {
            shared,
            seat,
            link,
            handler,
            timers: Timers::default(),
            idle_turns: 0,
            reads_broken: false,
            closing: false,
            renewal: None,
            rotation: None,
            ask_again_at: None,
        }
    }

    fn run(&mut self, restarted: Option<(ExitReason, u64)>) -> ExitReason {
        self.seat.reconnect.new_run();
        if let Some((reason, restarts)) = restarted {
            self.emit(Event::Restarted { reason, restarts });
        }
        loop {
            if let Err(order) = self.await_turn() {
                return self.obey(order);
            }
            let exit = match self.dial() {
                Ok((transport, deadline)) => match self.serve(transport, deadline) {
                    Ended::Ordered(order) => return self.obey(order),
                    Ended::Lost(reason) => self.lost(reason),
                    Ended::NotReady(halt) => self.halted(halt),
                },
                Err(halt) => self.halted(halt),
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    fn obey(&mut self, order: Order) -> ExitReason {
        // What is ordered from now on is for the next run.
        self.shared.orders.clear();
        match order.kind {
            OrderKind::Close | OrderKind::Stop => ExitReason::Closed,
            OrderKind::Restart => {
                self.seat.reconnect.reset();
                ExitReason::RestartRequested
            }
        }
    }

    /// Waits out the backoff; an order ends the wait.
    fn await_turn(&mut self) -> Result<(), Order> {
        let mut pacer = Pacer::default();
        loop {
            if let Some(order) = self.shared.orders.standing() {
                return Err(order);
            }
            let now = Instant::now();
            let Some(until) = self.seat.reconnect.not_before().filter(|until| now < *until) else {
                self.shared.status.set(ReadyState::Connecting);
                return Ok(());
            };
            self.shared.status.set(ReadyState::Backoff);
            self.fire_timers(now);
            self.end_turn(Instant::now());
            let others = [self.pump(&mut pacer, now, false), self.timers.next()];
            let until = others.into_iter().flatten().fold(until, Instant::min);
            let _ = wait(None, &self.shared.wake, Some(until), || self.shared.orders.pending());
        }
    }

    /// Makes a connection; the session on it is to be open by the deadline that comes with it.
    fn dial(&mut self) -> Result<(crate::transport::Transport, Instant), Halt> {
        let shared = self.shared;
        let deadline = later(Instant::now(), shared.config.connect_timeout);
        let mut dial = Dial::new(&shared.config, self.seat.reconnect.failures() + 1, deadline);
        if let Some(prepare) = &shared.config.prepare {
            shared.duty.begin(Instant::now());
            let prepared = prepare(&mut dial);
            self.end_turn(Instant::now());
            prepared.map_err(|error| match shared.orders.standing() {
                Some(_) => Halt::Cancelled,
                None => ConnectError::Session(Box::new(error)).into(),
            })?;
        }
        let cancelled = || shared.orders.pending();
        let register = |tcp: &Arc<std::net::TcpStream>| shared.register_socket(Some(tcp.clone()));
        log::debug!("client `{}`: connecting to {}", shared.tag.name, dial.target);
        let transport = Attempt::new(&shared.config, &dial, &shared.wake, &cancelled, &register).run()?;
        Ok((transport, deadline))
    }

    fn halted(&mut self, halt: Halt) -> Option<ExitReason> {
        match halt {
            Halt::Failed(error) => self.failed(error),
            // Whoever cancelled left an order, and the next turn finds it.
            Halt::Cancelled => None,
        }
    }

    fn failed(&mut self, error: ConnectError) -> Option<ExitReason> {
        self.shared.register_socket(None);
        self.shared.counters.failed_attempts.add(1);
        let next = self.seat.reconnect.failed(Instant::now(), error.retry_after(), fastrand::f64());
        let retry_in = match next {
            // Whoever waits in `Client::connect` is told of the first failure and nothing is tried behind their back.
            Next::RetryIn(wait) if error.is_retryable() && (self.shared.supervised || self.seat.epoch > 0) => {
                Some(wait)
            }
            _ => None,
        };
        let name = &self.shared.tag.name;
        match retry_in {
            Some(wait) => log::warn!("client `{name}`: {error}; next attempt in {wait:.1?}"),
            None => log::warn!("client `{name}`: {error}; no further attempt in this run"),
        }
        self.emit(Event::ConnectFailed { attempt: self.seat.reconnect.failures(), error: error.clone(), retry_in });
        self.shared.status.fail(error.clone());
        if error.is_retryable() {
            return retry_in.is_none().then(|| ExitReason::RetriesExhausted { last: error.to_string().into() });
        }
        Some(ExitReason::Refused(error))
    }

    fn lost(&mut self, reason: DisconnectReason) -> Option<ExitReason> {
        let unsent = self.collect(Pass::Queue);
        let next = match reason {
            // Meant to be: no failure, and nothing to wait for.
            DisconnectReason::MaxAge => self.seat.reconnect.rotated(Instant::now()),
            _ => self.seat.reconnect.failed(Instant::now(), None, fastrand::f64()),
        };
        self.shared.status.set(ReadyState::Connecting);
        let (name, epoch) = (&self.shared.tag.name, self.seat.epoch);
        log::warn!("client `{name}`: connection {epoch} ended: {reason}; {} messages handed back", unsent.len());
        let exit = match (&reason, next) {
            (DisconnectReason::HeartbeatLost { missed }, _) if self.shared.supervised => {
                Some(ExitReason::HeartbeatLost { missed: *missed })
            }
            (_, Next::Exhausted) => Some(ExitReason::RetriesExhausted { last: reason.to_string().into() }),
            _ => None,
        };
        self.emit(Event::Disconnected { epoch, reason, unsent });
        exit
    }

    /// The last thing a run does: what the handler must still hear, it hears here.
    fn finish(&mut self, exit: &ExitReason) {
        let end = match fate(self.shared, exit) {
            Fate::Restart => {
                if self.seat.open {
                    let unsent = self.collect(Pass::Queue);
                    let (epoch, reason) = (self.seat.epoch, DisconnectReason::RestartRequested);
                    self.emit(Event::Disconnected { epoch, reason, unsent });
                }
                self.shared.status.set(ReadyState::Connecting);
                return;
            }
            Fate::End(end) => end,
        };
        match &mut self.handler {
            None => self.shared.conclude(Some((self.seat, &mut self.link)), end),
            Some(_) => {
                let unsent = self.collect(Pass::Shut);
                self.with_handler(|handler, context| handler.on_event(context, end.event(unsent)));
                self.shared.settle(&end);
                self.shared.outlet_after(&end);
            }
        }
    }

    /// The connection is over: hands back what was accepted, and tells the handler of its requests.
    fn collect(&mut self, pass: Pass) -> Vec<Message> {
        let collected = self.shared.collect_unsent(self.seat, &mut self.link, pass);
        for response in collected.responses {
            self.emit(Event::Response(Box::new(response)));
        }
        collected.unsent
    }

    fn emit(&mut self, event: Event) {
        if self.handler.is_none() {
            if let Some(queue) = &mut self.seat.queue {
                queue.push_event(event);
            }
            return;
        }
        self.with_handler(|handler, context| match event {
            Event::Open { .. } => handler.on_open(context),
            event => handler.on_event(context, event),
        });
    }

    /// Calls the handler, if there is one, and watches how long it takes.
    fn with_handler(&mut self, call: impl FnOnce(&mut dyn Handler, &mut Context<'_>)) {
        let Some(handler) = &mut self.handler else { return };
        let now = Instant::now();
        self.shared.duty.begin(now);
        let epoch = (self.seat.open && !self.closing).then_some(self.seat.epoch);
        let (outbox, timers) = (&mut self.link.outbox, &mut self.timers);
        call(&mut **handler, &mut Context { shared: self.shared, outbox, timers, epoch, now });
    }

    /// Calls the handler for every timer that is due.
    fn fire_timers(&mut self, now: Instant) {
        let mark = self.timers.mark();
        while let Some(token) = self.timers.due(now, mark) {
            self.with_handler(|handler, context| handler.on_timer(context, token));
        }
    }

    /// A turn of the loop is over.
    fn end_turn(&self, now: Instant) {
        if let Some(took) = self.shared.duty.end(now) {
            let (name, threshold) = (&self.shared.tag.name, self.shared.duty.threshold());
            log::warn!("client `{name}`: a turn of its loop took {took:.1?}, longer than {threshold:?}");
        }
    }

    /// Hands over events that wait for room. When some still wait, or reading does, returns when to try again: the
    /// caller's channel cannot tell us.
    fn pump(&mut self, pacer: &mut Pacer, now: Instant, paused: bool) -> Option<Instant> {
        let queue = self.seat.queue.as_mut()?;
        let waits = !queue.pump();
        pacer.next(now, waits || paused, queue.handed_over())
    }
}
