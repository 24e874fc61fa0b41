//! One run of the worker: from dial to dial, until something ends it.

use std::cell::RefCell;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::asked::Caller;
use crate::client_state::{ClientState, Life, Work};
use crate::command::{Command, CommandKind};
use crate::connect::attempt::{Attempt, Halt, Worker};
use crate::connect::open::open;
use crate::core::Core;
use crate::deadline::later;
use crate::dial::Dial;
use crate::error::{ConnectError, Phase};
use crate::event::Event;
use crate::inbound::backlog::Overrun;
use crate::inbound::consumer::{Consumer, Scene};
use crate::lifecycle::ExitReason;
use crate::logger;
use crate::message::Message;
use crate::metrics;
use crate::outbound::line::Guard;
use crate::outbound::link::Link;
use crate::overflow::Stage;
use crate::policy::reconnect::{Hint, Next};
use crate::policy::restart::{Exit, Fate, Restart, overruled};
use crate::policy::terms::Action;
use crate::record::tap::Shown;
use crate::state::{DisconnectReason, ReadyState};
use crate::target::Target;
use crate::telemetry::duty::Doing;
use crate::transport::{Broken, Transport, wait};

/// Values told to a handler, one after the other, before the socket and whoever wants something sent get their turn.
const TOLD_AT_ONCE: usize = 16;

/// And no more of them after so long.
const TOLD_FOR: Duration = Duration::from_millis(1);

/// While the client is stopped, its handler is told what became of its messages for this share of the time.
const TOLD: f64 = 0.75;

/// What ended a connection.
pub(super) enum Ended {
    Lost(DisconnectReason),
    Commanded(Command),
    /// Its session could not be opened.
    NotReady(Halt),
}

pub(super) struct Run<'a> {
    pub(super) state: &'a ClientState,
    pub(super) work: Arc<Work>,
    pub(super) core: &'a Core,
    pub(super) life: &'a mut Life,
    pub(super) link: Guard<'a, Link>,
    pub(super) consumer: Consumer<'a>,
    /// What the connection wants done, until it is done.
    pub(super) actions: Vec<Action<Caller>>,
    /// Where the connection goes, `prepare` having had its say.
    pub(super) target: Option<Target>,
    /// Turns in a row that found nothing to do.
    pub(super) idle_turns: u32,
    /// Reading failed: there is nothing more to come.
    pub(super) reads_broken: bool,
    /// When the latest message that is the caller's came, in this batch.
    pub(super) message_at: Option<Instant>,
    /// Bytes of this connection that are counted.
    pub(super) bytes_seen: u64,
    /// When the session began to be opened.
    pub(super) served_at: Instant,
    /// The close code that the server is owed for that.
    pub(super) owes: Option<u16>,
    /// The client is being closed: what its handler sends now is refused.
    pub(super) closing: bool,
    /// The connection is over, and what the kernel still has of it is read whether there is room for it or not.
    pub(super) over: bool,
    /// The run ends, since this was commanded.
    ending: Option<Command>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        state: &'a ClientState,
        work: Arc<Work>,
        life: &'a mut Life,
        link: Guard<'a, Link>,
        consumer: Consumer<'a>,
    ) -> Self {
        Self {
            state,
            work,
            core: &state.core,
            life,
            link,
            consumer,
            actions: Vec::new(),
            target: None,
            idle_turns: 0,
            reads_broken: false,
            message_at: None,
            bytes_seen: 0,
            served_at: Instant::now(),
            owes: None,
            closing: false,
            over: false,
            ending: None,
        }
    }

    pub(super) fn run(&mut self, restarted: Option<(ExitReason, u64)>) -> ExitReason {
        self.settle_earlier_run();
        self.life.reconnect.new_run();
        self.life.places.new_run();
        // Events that an earlier run's handler did not receive.
        self.deliver_pending();
        if let Some((reason, restarts)) = restarted {
            self.emit(Event::Restarted { reason, restarts });
        }
        loop {
            if let Err(command) = self.await_turn() {
                match self.execute(command) {
                    Some(exit) => return exit,
                    None => continue,
                }
            }
            if self.consumer.is_deserted() {
                return ExitReason::Deserted;
            }
            let exit = match self.dial() {
                Ok((transport, deadline)) => match self.serve(transport, deadline) {
                    Ended::Commanded(command) => match self.execute(command) {
                        Some(exit) => return exit,
                        None => self.disconnected(DisconnectReason::ReconnectRequested),
                    },
                    Ended::Lost(reason) => self.disconnected(reason),
                    Ended::NotReady(halt) => self.halted(halt),
                },
                Err(halt) => self.halted(halt),
            };
            match exit {
                Some(exit) if !self.goes_on_after(&exit) => return exit,
                _ => self.life.verdict = None,
            }
        }
    }

    /// A run that ended without settling its account, which a panic in the library itself could do: none of its messages may
    /// be written on a connection of this run.
    fn settle_earlier_run(&mut self) {
        let life = &mut *self.life;
        if life.open || self.link.transport.is_some() {
            let dropped = self.consumer.held().drop_rest();
            self.core.counters.dropped.add(dropped);
            let reason = DisconnectReason::Panicked { message: "(the run did not report its end)".into(), dropped };
            let disconnected = self.state.settle_connection(life, &mut self.link, reason);
            self.state.report_disconnected(&disconnected);
        }
    }

    /// Whether a reconnect was granted to a run that would end for the network's sake.
    fn goes_on_after(&self, reason: &ExitReason) -> bool {
        let standing = self.core.commands.standing().map(|command| command.kind);
        standing == Some(CommandKind::Reconnect) && overruled(reason.clone(), standing) != *reason
    }

    /// `None`: the run goes on.
    fn execute(&mut self, command: Command) -> Option<ExitReason> {
        // It may have been overruled since it was given. What is commanded from now on is for the next run.
        let command = self.core.commands.take().unwrap_or(command);
        match command.kind {
            CommandKind::Close | CommandKind::Stop => {
                self.ending = Some(command);
                Some(ExitReason::Closed)
            }
            CommandKind::Park => {
                self.ending = Some(command);
                Some(ExitReason::ParkRequested)
            }
            CommandKind::Restart => {
                self.life.dial_anew();
                Some(ExitReason::RestartRequested)
            }
            CommandKind::Reconnect => {
                self.life.dial_anew();
                None
            }
        }
    }

    /// Waits out the backoff; a command ends the wait.
    fn await_turn(&mut self) -> Result<(), Command> {
        let core = self.core;
        loop {
            if let Some(command) = core.commands.standing() {
                return Err(command);
            }
            let now = Instant::now();
            let backoff = self.life.reconnect.not_before().filter(|until| now < *until);
            // The venue's limit is asked last: a token is for the attempt that follows at once.
            let dials = self.state.settings.dial_limit.as_ref().filter(|_| backoff.is_none());
            let limited = dials.and_then(|limit| limit.take_one(now).err()).map(|wait| later(now, wait));
            let Some(until) = backoff.or(limited) else {
                core.status.set(ReadyState::Connecting);
                return Ok(());
            };
            if backoff.is_none() {
                logger::debug!(client:% = core.tag.name; "client `{}`: waits {:.1?} for its `dial_limit`", core.tag.name, until - now);
            }
            core.status.wait_until(until);
            self.fire_timers(now);
            self.run_handler_commands();
            self.end_turn(Instant::now());
            let others = [self.consumer.hand_over(now, false), self.consumer.next_timer()];
            let until = others.into_iter().flatten().fold(until, Instant::min);
            let _ = wait(None, &core.mailbox.wake, Some(until), || core.commands.pending() || core.has_told());
        }
    }

    /// Makes a connection; the session on it is to be open by the deadline that comes with it.
    fn dial(&mut self) -> Result<(Transport, Instant), Halt> {
        let (state, core) = (self.state, self.core);
        let settings = &state.settings;
        let now = Instant::now();
        // What a handler was told meanwhile is no part of what the server takes to answer.
        self.end_turn(now);
        let deadline = later(now, settings.connect_timeout);
        self.life.reconnect.dials(now);
        let attempt = self.life.reconnect.failures() + 1;
        let last_error = self.life.last_error.take();
        let target = settings.place(self.life.places.current()).clone();
        let mut dial = Dial::new(target, settings.headers.clone(), attempt, last_error, deadline);
        if let Some(prepare) = self.work.hooks.prepare.clone() {
            core.duty.begin(Instant::now(), Doing::Prepare);
            let prepared = prepare(&mut dial);
            let now = Instant::now();
            self.end_turn(now);
            if now >= deadline && prepared.is_ok() {
                let limit = settings.connect_timeout;
                return Err(ConnectError::Timeout { phase: Phase::Prepare, limit }.into());
            }
            prepared.map_err(|error| match core.commands.standing() {
                Some(_) => Halt::Cancelled,
                None => ConnectError::Session(Box::new(error)).into(),
            })?;
        }
        let cancelled = || core.commands.pending();
        let register = |tcp: &Arc<TcpStream>| state.register_socket(Some(tcp.clone()));
        logger::debug!(client:% = core.tag.name; "client `{}`: connecting to {}", core.tag.name, dial.target);
        self.target = Some(dial.target.clone());
        let hooks = &self.work.hooks;
        // A reader that is behind goes on reading.
        let consumer = RefCell::new(&mut self.consumer);
        let meanwhile = || consumer.borrow_mut().hand_over(Instant::now(), false);
        let worker =
            Worker { wake: &core.mailbox.wake, cancelled: &cancelled, register: &register, meanwhile: &meanwhile };
        let attempt = Attempt::new(settings, hooks, &dial, &self.life.addresses, worker);
        let opened = open(&attempt);
        let (address, asked_to_wait) = (attempt.address(), attempt.asked_to_wait());
        let (another_is_free, soonest_free) = (attempt.another_is_free(), attempt.soonest_free());
        self.life.addresses.another_is_free = another_is_free;
        self.life.addresses.soonest_free = soonest_free;
        if let Some(address) = address {
            self.life.addresses.took(address);
        }
        let now = Instant::now();
        for (address, wait) in asked_to_wait {
            let wait = self.life.reconnect.asked(wait, fastrand::f64());
            self.life.addresses.asked_to_wait(address, later(now, wait), now);
        }
        let (transport, handshake) = opened?;
        *core.handshake.lock() = Some(Arc::new(handshake));
        Ok((transport, deadline))
    }

    fn halted(&mut self, halt: Halt) -> Option<ExitReason> {
        match halt {
            Halt::Failed(error) => self.failed(error),
            // Whoever cancelled left a command, and the next turn finds it.
            Halt::Cancelled => None,
        }
    }

    fn failed(&mut self, error: ConnectError) -> Option<ExitReason> {
        self.state.register_socket(None);
        self.core.counters.failed_attempts.add(1);
        metrics::connect_failed(&self.core.tag, &error);
        let now = Instant::now();
        let slowly = self.state.settings.certificate_retry.filter(|_| error.is_certificate());
        // The wait belongs to the address that asked for it, if another is left.
        let soonest = self.life.addresses.soonest_free.unwrap_or(Duration::MAX);
        let asked = error.retry_after().filter(|_| !self.life.addresses.another_is_free);
        let asked = asked.map(|wait| wait.min(soonest)).or(slowly);
        let asked = asked.map(|wait| self.life.reconnect.asked(wait, fastrand::f64()));
        // If there is another URL it is next, and the client is not parked before each URL was refused.
        let for_good = self.is_permanent(&error);
        let ready_in = self.life.places.failed(for_good, asked.map(|wait| later(now, wait)), now);
        let hint = Hint { retry_after: Some(ready_in), overloaded: error.is_overload(), ..Hint::default() };
        let next = self.life.reconnect.failed(now, hint, fastrand::f64());
        let for_good = for_good && (!self.renews(&error) || next == Next::Exhausted);
        let all_tried = self.life.places.all_tried();
        let is_permanent = for_good && self.life.places.all_refused();
        let retry_in = match next {
            // Whoever waits in `Client::connect` is told of the first failure; no attempt follows that they don't know of.
            Next::RetryIn(wait) if !is_permanent && (self.state.supervised || self.life.epoch > 0 || !all_tried) => {
                Some(wait)
            }
            _ => None,
        };
        let name = &self.core.tag.name;
        match retry_in {
            Some(Duration::ZERO) => {
                logger::warn!(client:% = name, reason = error.kind(); "client `{name}`: {error}; next attempt at once")
            }
            Some(wait) => {
                logger::warn!(client:% = name, reason = error.kind(); "client `{name}`: {error}; next attempt in {wait:.1?}")
            }
            None => {
                logger::warn!(client:% = name, reason = error.kind(); "client `{name}`: {error}; no further attempt in this run")
            }
        }
        // A handler that panics at the event does not change what was decided about the attempt.
        self.life.verdict = is_permanent.then(|| ExitReason::Refused(error.clone()));
        self.emit(Event::ConnectFailed { attempt: self.life.reconnect.failures(), error: error.clone(), retry_in });
        if self.state.supervised || all_tried || retry_in.is_none() {
            self.core.status.fail(error.clone());
        }
        self.life.last_error = Some(error.clone());
        if !is_permanent {
            return retry_in.is_none().then(|| ExitReason::RetriesExhausted { last: error.to_string().into() });
        }
        Some(ExitReason::Refused(error))
    }

    /// Whether no further attempt can succeed before someone has changed something.
    fn is_permanent(&self, error: &ConnectError) -> bool {
        let settings = &self.state.settings;
        match error {
            ConnectError::Refused(refusal) => {
                settings.park_on.contains(&refusal.status) && refusal.retry_after.is_none()
            }
            error if error.is_certificate() => settings.certificate_retry.is_none(),
            error => !error.is_retryable(),
        }
    }

    /// Whether `prepare` may bring other credentials for the next attempt.
    fn renews(&self, error: &ConnectError) -> bool {
        matches!(error, ConnectError::Refused(refusal) if matches!(refusal.status, 401 | 403))
            && self.work.hooks.prepare.is_some()
    }

    fn disconnected(&mut self, reason: DisconnectReason) -> Option<ExitReason> {
        let disconnected = self.state.settle_connection(self.life, &mut self.link, reason.clone());
        let next = match reason {
            // Meant to be: no failure, and nothing to wait for.
            DisconnectReason::MaxAge | DisconnectReason::ReconnectRequested => {
                self.life.reconnect.rotated(Instant::now())
            }
            _ => {
                let hint = Hint { spread: reason.is_restart_of_the_server(), ..Hint::default() };
                self.life.reconnect.failed(Instant::now(), hint, fastrand::f64())
            }
        };
        // What worked in name only is not where to go next.
        let is_silent = matches!(reason, DisconnectReason::Stale { .. } | DisconnectReason::HeartbeatLost { .. });
        if is_silent {
            self.life.places.move_on();
        }
        if is_silent || self.life.reconnect.failures() > 1 {
            self.life.addresses.let_down();
        }
        self.core.status.set(ReadyState::Connecting);
        self.state.report_disconnected(&disconnected);
        let exit = match (&reason, next) {
            (DisconnectReason::HeartbeatLost { missed }, _) if self.state.supervised => {
                Some(ExitReason::HeartbeatLost { missed: *missed })
            }
            (DisconnectReason::Deserted, _) => Some(ExitReason::Deserted),
            (DisconnectReason::ClosedByServer(Some(frame)), _)
                if self.state.supervised && self.state.settings.park_on_close.contains(&frame.code) =>
            {
                Some(ExitReason::ClosedByServer(frame.clone()))
            }
            (_, Next::Exhausted) => Some(ExitReason::RetriesExhausted { last: reason.to_string().into() }),
            _ => None,
        };
        // A handler that panics at the event does not change what was decided about the connection.
        self.life.verdict = exit.clone().filter(|exit| matches!(exit, ExitReason::ClosedByServer(_)));
        self.deliver_pending();
        exit
    }

    /// Ends the run, and then delivers the events that are left: user code runs when everything is decided.
    pub(super) fn finish(mut self, reason: ExitReason) -> Exit {
        if reason == ExitReason::Closed && self.state.settings.restart == Restart::Permanent {
            // A permanent client that closes itself as soon as it is open would dial as fast as it can.
            self.life.reconnect.crashed(Instant::now());
        }
        let run_end = self.state.end_run(self.life, &mut self.link, self.consumer.as_queue(), reason, None);
        self.state.report(&run_end);
        match &run_end.exit.fate {
            Fate::Restart => self.deliver_pending(),
            Fate::End(_) if self.consumer.is_handler() => {
                self.deliver_pending();
                // The last event is delivered even if there is no time for those before it.
                if let Some(last) = self.life.pending_events.pop_back() {
                    self.emit(last);
                }
            }
            // The queue has them, or the thread was abandoned and they are for the supervisor's event.
            Fate::End(_) => {}
        }
        self.end_turn(Instant::now());
        run_end.exit
    }

    // ---- what the phases have in common ----

    /// The connection on which a handler may send now.
    pub(super) fn open_epoch(&self) -> Option<u64> {
        (self.life.open && !self.closing).then_some(self.life.epoch)
    }

    /// To the consumer: never dropped.
    pub(super) fn emit(&mut self, event: Event) {
        let (epoch, now) = (self.open_epoch(), Instant::now());
        if let Some(tap) = self.core.tap() {
            tap.event(&event, self.core.shown(epoch), now);
        }
        let scene = Scene { core: self.core, outbox: &mut self.link.outbox, epoch, now };
        self.consumer.event(scene, event);
    }

    /// Tells the consumer what it must still hear. One at a time is taken from there: should a handler panic, the next one
    /// is told the rest.
    pub(super) fn deliver_pending(&mut self) {
        // What nobody reads any more, or not in time for a stop, is for the supervisor to tell.
        while !self.consumer.is_deserted() && !self.is_pressed() {
            let Some(event) = self.life.pending_events.pop_front() else { break };
            self.emit(event);
        }
    }

    /// Whether whoever ends the client waits, and has waited for long.
    fn is_pressed(&self) -> bool {
        let commanded = self.ending.is_some_and(|command| command.is_spent(TOLD, Instant::now()));
        commanded || self.core.commands.stop_presses(TOLD)
    }

    /// As `deliver_pending`, a few at a time: a cancel does not wait until a handler was told of a thousand timeouts. Until it
    /// is, nothing more is read.
    pub(super) fn deliver_some(&mut self) {
        let until = Instant::now() + TOLD_FOR;
        for _ in 0..TOLD_AT_ONCE {
            let Some(event) = self.life.pending_events.pop_front() else { break };
            self.emit(event);
            if Instant::now() >= until {
                break;
            }
        }
    }

    /// A message that was held until the session was open, to the consumer.
    pub(super) fn deliver(&mut self, message: Message, now: Instant) -> Result<(), Broken> {
        if !self.consumer.is_handler() {
            self.core.tap().iter().for_each(|tap| tap.released(Shown::Now(None), now));
            return self.enqueue(message, Stage::Open);
        }
        let (epoch, open) = (self.life.epoch, self.open_epoch());
        if let Some(tap) = self.core.tap() {
            tap.released(self.core.shown(open), now);
        }
        let scene = Scene { core: self.core, outbox: &mut self.link.outbox, epoch: open, now };
        self.consumer.message(scene, message.view().on(epoch));
        self.write_what_waits()
    }

    /// To the queue, by the overflow policy.
    #[inline(always)]
    pub(super) fn enqueue(&mut self, message: Message, stage: Stage) -> Result<(), Broken> {
        let stage = if self.over { Stage::Over } else { stage };
        let Some(queue) = self.consumer.as_queue() else { return Ok(()) };
        match queue.push_message(message, stage) {
            Ok(0) => Ok(()),
            Ok(dropped) => {
                self.core.counters.dropped.add(dropped);
                Ok(())
            }
            Err(Overrun) => {
                self.core.counters.dropped.add(1);
                Err(Broken::because(DisconnectReason::Overflow))
            }
        }
    }

    pub(super) fn fire_timers(&mut self, now: Instant) {
        if self.is_pressed() {
            return;
        }
        let epoch = self.open_epoch();
        let scene = Scene { core: self.core, outbox: &mut self.link.outbox, epoch, now };
        self.consumer.fire_timers(scene);
    }

    /// Tells the handler what callers have for it, a few at a time. True when there was something.
    pub(super) fn run_handler_commands(&mut self) -> bool {
        if !self.core.has_told() {
            return false;
        }
        let (mut told, mut now) = (false, Instant::now());
        let until = now + TOLD_FOR;
        for _ in 0..TOLD_AT_ONCE {
            if now >= until || self.is_pressed() {
                break;
            }
            let Some(value) = self.core.next_told() else { break };
            told = true;
            let epoch = self.open_epoch();
            let scene = Scene { core: self.core, outbox: &mut self.link.outbox, epoch, now };
            self.consumer.command(scene, value);
            now = Instant::now();
        }
        told
    }

    /// What a handler sent, or the connection wants sent, leaves.
    #[inline]
    pub(super) fn write_what_waits(&mut self) -> Result<(), Broken> {
        if self.link.outbox.is_empty() { Ok(()) } else { self.write_out().map(drop) }
    }

    /// Writes what waits, as far as the kernel takes it; true when all is out.
    pub(super) fn write_out(&mut self) -> Result<bool, Broken> {
        self.link.write_out(&self.core.mailbox.source.books)
    }

    /// A turn of the loop is over.
    pub(super) fn end_turn(&self, now: Instant) {
        if let Some((took, doing)) = self.core.duty.end(now) {
            let (name, threshold) = (&self.core.tag.name, self.core.duty.threshold());
            logger::warn!(client:% = name; "client `{name}`: a turn of its loop, in {doing}, took {took:.1?}, longer than {threshold:?}");
        }
    }
}
