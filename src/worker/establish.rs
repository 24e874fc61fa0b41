//! From a handshake to an open session: sign in, run `on_open`, restore subscriptions, reconcile; all on this thread,
//! under the deadline of the attempt, with heartbeats answered meanwhile.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reading::Came;
use super::run::Run;
use crate::connect::attempt::Halt;
use crate::correlation::Correlation;
use crate::deadline::later;
use crate::error::{ConnectError, SessionError};
use crate::handshake::Handshake;
use crate::inbound::backlog::Overrun;
use crate::inbound::outlet::Capacity;
use crate::logger;
use crate::message::Message;
use crate::outbound::link;
use crate::policy::admission::Unwritten;
use crate::policy::connection::Connection;
use crate::policy::rate_limit::Over;
use crate::policy::terms::Tables;
use crate::request::RequestId;
use crate::session::{Opening, Session};
use crate::state::Tag;
use crate::telemetry::duty::Doing;
use crate::transport::{Broken, Outgoing};
use crate::unsettled::{Resent, Unsettled};

/// How often it is seen whether the kernel has taken all.
const WRITES: Duration = Duration::from_millis(20);

/// Reads between two looks at the clock, however much comes.
const READS_A_CLOCK: u32 = 64;

impl Run<'_> {
    /// Makes the session ready, or says why it cannot be. Messages that nobody here asks for are held for the consumer.
    pub(super) fn establish(
        &mut self,
        tcp: &TcpStream,
        connection: &mut Connection,
        deadline: Instant,
    ) -> Result<(), Halt> {
        self.carry_out(connection).map_err(|broken| not_opened(disconnected(broken)))?;
        let (settings, hooks) = (&self.state.settings, &self.work.hooks);
        if hooks.on_open.is_none() && hooks.venue.is_none() && hooks.reconcile.is_none() {
            return Ok(());
        }
        self.consumer.hold(Capacity { events: settings.event_capacity, bytes: settings.event_bytes });
        let result = Steps {
            run: self,
            connection,
            tcp,
            deadline,
            restoring: false,
            doing: Doing::Upkeep,
            reads: 0,
            is_unclaimed: false,
        }
        .all();
        self.end_turn(Instant::now());
        match result {
            Ok(()) => Ok(()),
            // If a stop is pending, report the stop, whatever error the callback returned.
            Err(_) if self.core.commands.standing().is_some() => Err(Halt::Cancelled),
            Err(error) => Err(not_opened(error)),
        }
    }
}

fn not_opened(error: SessionError) -> Halt {
    Halt::Failed(ConnectError::Session(Box::new(error)))
}

fn disconnected(broken: Broken) -> SessionError {
    SessionError::Disconnected(broken.reason)
}

struct Steps<'t, 'r> {
    run: &'t mut Run<'r>,
    connection: &'t mut Connection,
    tcp: &'t TcpStream,
    deadline: Instant,
    /// The wanted channels are being asked for.
    restoring: bool,
    doing: Doing,
    reads: u32,
    /// A message was returned, and not kept since.
    is_unclaimed: bool,
}

impl Steps<'_, '_> {
    fn all(mut self) -> Result<(), SessionError> {
        let work = self.run.work.clone();
        let hooks = &work.hooks;
        if let Some(venue) = &hooks.venue {
            let renewal = self.by(Doing::SignIn, |steps| venue.authenticate(&mut Session::new(steps)))?;
            self.connection.renew(Instant::now(), renewal);
        }
        if let Some(on_open) = &hooks.on_open {
            self.by(Doing::OnOpen, |steps| on_open(&mut Session::new(steps)))?;
        }
        self.restore()?;
        if let Some(reconcile) = hooks.reconcile.as_ref().filter(|_| self.run.life.epoch > 0 || hooks.reconciles_first)
        {
            // Kept until it is settled: when this fails or panics, the next attempt has to settle the same, but for what was
            // sent again.
            let life = &mut *self.run.life;
            life.unsettled.add_resent(std::mem::take(&mut life.resent));
            let unsettled = life.unsettled.clone();
            self.by(Doing::Reconcile, |steps| reconcile(&mut Session::new(steps), &unsettled))?;
            self.write_all()?;
            let life = &mut *self.run.life;
            let (requests, messages) =
                std::mem::take(&mut life.resent).into_iter().partition(|one| one.request.is_some());
            life.unsettled = Unsettled::default();
            life.unsettled.add_resent(requests);
            self.run.link.keep_resent(messages);
        }
        self.note_claimed();
        Ok(())
    }

    /// Runs code of the caller's. Its time counts against the deadline it runs under, though it ends well.
    fn by<T>(
        &mut self,
        doing: Doing,
        run: impl FnOnce(&mut Self) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        self.doing = doing;
        self.run.core.duty.begin(Instant::now(), doing);
        let result = run(self)?;
        let now = Instant::now();
        self.run.end_turn(now);
        if now >= self.deadline {
            return Err(self.timeout("end", None));
        }
        Ok(result)
    }

    /// Asks for all that is wanted, and waits until each channel is acknowledged or refused; for as long as that makes
    /// progress, however long it takes. When nothing came of it for `connect_timeout`, or more came than can be kept, the
    /// session is opened without the rest, which is asked for all the same.
    fn restore(&mut self) -> Result<(), SessionError> {
        let core = self.run.core;
        let patience = self.run.state.settings.connect_timeout;
        let began = Instant::now();
        (self.restoring, self.doing) = (true, Doing::Upkeep);
        self.connection.restores(began);
        let (mut settled, mut until) = (0, later(began, patience));
        loop {
            let now = Instant::now();
            self.look_after(now, false)?;
            let so_far = core.wanted.look(|table| table.settled());
            if so_far != settled {
                (settled, until) = (so_far, later(now, patience));
            }
            if self.connection.is_restored(core) || now >= until || self.run.consumer.holds_enough() {
                break;
            }
            self.check(later(until, patience), "acknowledgement of subscriptions", None)?;
            let next = self.connection.due(core).map_or(until, |due| due.min(until));
            if let Some(message) = self.next_by(next)? {
                self.keep(message)?;
            }
        }
        self.restoring = false;
        let pending = core.wanted.look(|table| table.pending());
        if !pending.is_empty() {
            let (name, count) = (&core.tag.name, pending.len());
            logger::warn!(client:% = name; "client `{name}`: {count} channels are not acknowledged yet, and it opens without them");
        }
        // What follows has the time that was left.
        self.deadline += began.elapsed();
        Ok(())
    }

    /// Lets the connection say what is due, and does it. `caught_up` only where a read has just found nothing more.
    fn look_after(&mut self, now: Instant, caught_up: bool) -> Result<(), SessionError> {
        let core = self.run.core;
        core.duty.begin(now, self.doing);
        let run = &mut *self.run;
        let wants_changed = self.restoring && core.wanted.take_changed();
        self.connection.tick(run.turn(now, caught_up, wants_changed), core, &mut run.actions);
        run.carry_out(self.connection).map_err(disconnected)
    }

    fn check(&self, until: Instant, waiting_for: &str, limit: Option<Duration>) -> Result<(), SessionError> {
        if self.run.core.commands.standing().is_some() {
            return Err(SessionError::Cancelled);
        }
        if Instant::now() >= until { Err(self.timeout(waiting_for, limit)) } else { Ok(()) }
    }

    fn timeout(&self, waiting_for: &str, limit: Option<Duration>) -> SessionError {
        let limit = limit.unwrap_or(self.run.state.settings.connect_timeout);
        let stage = match self.doing {
            Doing::SignIn => " in signing in",
            Doing::OnOpen => " in `on_open`",
            Doing::Reconcile => " in `reconcile`",
            _ => "",
        };
        SessionError::Timeout { waiting_for: format!("{waiting_for}{stage}").into(), limit }
    }

    /// The next message that is neither a heartbeat nor the answer to a batch of channels; `None` when there is none by
    /// `until`, or when the restore may have come to its end.
    fn next_by(&mut self, until: Instant) -> Result<Option<Message>, SessionError> {
        self.note_claimed();
        loop {
            if self.run.core.commands.standing().is_some() {
                return Err(SessionError::Cancelled);
            }
            self.reads = self.reads.wrapping_add(1);
            if self.reads % READS_A_CLOCK == 0 {
                let now = Instant::now();
                if now >= until {
                    break;
                }
                // A server that always has more to say keeps nothing of ours from being sent.
                if self.connection.due(self.run.core).is_some_and(|due| now >= due) {
                    self.look_after(now, false)?;
                }
            }
            self.run.write_out().map_err(disconnected)?;
            let mut came = None;
            let take = |run: &mut Run<'_>| {
                came = run.keep_read()?;
                Ok(())
            };
            match self.run.read_next(self.connection, take).map_err(disconnected)? {
                Came::Message => return Ok(came),
                Came::Other if self.restoring => break,
                Came::Other | Came::Part => {}
                Came::Nothing if Instant::now() >= until => break,
                Came::Nothing => self.sleep(until)?,
            }
        }
        Ok(None)
    }

    /// Waits until the kernel has all that `reconcile` sent: what is sent after it follows it on the wire, and is accounted for
    /// by what the peer has acknowledged.
    fn write_all(&mut self) -> Result<(), SessionError> {
        while !self.run.write_out().map_err(disconnected)? {
            self.check(self.deadline, "room in the socket for all messages", None)?;
            self.keep_until((Instant::now() + WRITES).min(self.deadline))?;
        }
        Ok(())
    }

    /// Keeps the messages that come until then.
    fn keep_until(&mut self, until: Instant) -> Result<(), SessionError> {
        while Instant::now() < until {
            if let Some(other) = self.next_by(until)? {
                self.keep(other)?;
            }
        }
        Ok(())
    }

    /// The message that was returned last has been taken by the code that opens the session, unless it was kept.
    fn note_claimed(&mut self) {
        if std::mem::take(&mut self.is_unclaimed) {
            self.run.core.tap().iter().for_each(|tap| tap.withheld(None));
        }
    }

    /// Sleeps until bytes come, something is due, or `until`.
    fn sleep(&mut self, until: Instant) -> Result<(), SessionError> {
        let core = self.run.core;
        let now = Instant::now();
        self.run.end_turn(now);
        // The last look may be old: `on_open` took its time. What came until now counts before something is missed.
        let is_due = self.connection.due(core).is_some_and(|due| now >= due);
        let has_more = is_due && !self.tcp.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        if has_more {
            self.run.refresh();
        }
        self.look_after(now, !has_more)?;
        self.run.end_turn(Instant::now());
        let hand_over = self.run.consumer.hand_over(now, false);
        let Some(transport) = &mut self.run.link.transport else { return Err(SessionError::Cancelled) };
        transport.acknowledge();
        let interest = transport.interest();
        let deadline = [self.connection.due(core), hand_over].into_iter().flatten().fold(until, Instant::min);
        let socket = Some((self.tcp.as_fd(), interest));
        let line = &core.mailbox.line;
        let waited = link::sleep(line, &mut self.run.link, socket, Some(deadline), |_| core.commands.pending());
        core.duty.begin(Instant::now(), self.doing);
        let waited = waited.map_err(|error| SessionError::retryable(format!("cannot wait: {error}")))?;
        if waited.socket {
            self.run.refresh();
        }
        Ok(())
    }
}

impl Opening for Steps<'_, '_> {
    fn tag(&self) -> &Tag {
        &self.run.core.tag
    }

    fn correlation(&self) -> &Correlation {
        &self.run.core.correlation
    }

    fn next_id(&self) -> RequestId {
        self.run.core.asked.next_id()
    }

    fn reserve(&self, id: &RequestId) {
        self.run.core.asked.reserve(id);
    }

    fn epoch(&self) -> u64 {
        self.run.life.epoch + 1
    }

    fn handshake(&self) -> Arc<Handshake> {
        self.run.core.handshake.lock().clone().expect("a connection is there")
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn answered(&mut self, id: &RequestId) {
        self.run.life.resent.retain(|one| one.request.as_ref().is_none_or(|(of, _)| of != id));
    }

    fn put(
        &mut self,
        write: &dyn Fn() -> Result<Message, Box<str>>,
        request: Option<(&RequestId, &str)>,
    ) -> Result<(), SessionError> {
        loop {
            self.check(self.deadline, "room under the rate limit", None)?;
            let retry_after = match self.run.core.write(false, Instant::now(), write) {
                Ok((message, _)) => {
                    if self.doing == Doing::Reconcile {
                        let request = request.map(|(id, method)| (id.clone(), method.into()));
                        self.run.life.resent.push(Resent { message: message.clone(), request });
                    }
                    self.run.link.outbox.push_urgent(Outgoing::Message(message));
                    return self.run.write_out().map(drop).map_err(disconnected);
                }
                Err(Unwritten::Over(Over::Wait(time), _)) => time,
                Err(Unwritten::Over(over, early)) => {
                    return Err(over.refuse(early.unwrap_or_else(|| Message::text(""))).into());
                }
                Err(Unwritten::Fault(text)) => return Err(SessionError::Rejected(text)),
                Err(Unwritten::Refused(refused)) => return Err(refused.into()),
            };
            self.keep_until((Instant::now() + retry_after).min(self.deadline))?;
        }
    }

    fn next(&mut self, until: Instant, waiting_for: &str, limit: Option<Duration>) -> Result<Message, SessionError> {
        self.check(until, waiting_for, limit)?;
        match self.next_by(until)? {
            Some(message) => {
                self.is_unclaimed = true;
                Ok(message)
            }
            None => Err(self.timeout(waiting_for, limit)),
        }
    }

    fn keep(&mut self, message: Message) -> Result<(), SessionError> {
        self.is_unclaimed = false;
        match self.run.consumer.keep(message, self.run.core.tap()) {
            Ok(dropped) => self.run.core.counters.dropped.add(dropped),
            Err(Overrun) => {
                self.run.core.counters.dropped.add(1);
                return Err(SessionError::TooManyMessages(self.run.state.settings.event_bytes));
            }
        }
        Ok(())
    }

    fn take_kept(&mut self, wanted: &mut dyn FnMut(&Message) -> bool) -> Option<Message> {
        self.run.consumer.take_kept(wanted, self.run.core.tap())
    }
}
