//! A client: its core, its settings, and what one run of its worker leaves to the next. It outlives every run.

pub(crate) mod settlement;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Mutex, ReentrantMutex};

use crate::asked::Asked;
use crate::command::CommandKind;
use crate::command::Commands;
use crate::config::proxy::Proxy;
use crate::config::settings::{Hooks, Settings};
use crate::core::{Core, Told};
use crate::error::ConnectError;
use crate::event::Event;
use crate::handed_back::HandedBack;
use crate::inbound::backlog::Held;
use crate::inbound::consumer::Inline;
use crate::inbound::delivery::Way;
use crate::inbound::outlet::{Capacity, Outlet, SharedTail};
use crate::inbound::queue::Queue;
use crate::lifecycle::{End, ExitReason};
use crate::logger;
use crate::metrics::Published;
use crate::outbound::accepted::Bound;
use crate::outbound::mailbox::Mailbox;
use crate::policy::admission::Admission;
use crate::policy::places::{Addresses, Places};
use crate::policy::rate_limit::Limits;
use crate::policy::reconnect::Reconnect;
use crate::policy::restart::{Exit, Restart};
use crate::policy::terms::{Dialect, Rules};
use crate::record::tap::Shown;
use crate::state::{ClientId, ReadyState, Tag};
use crate::status::Status;
use crate::telemetry::duty::{Duty, Pauses};
use crate::telemetry::health::Health;
use crate::telemetry::stats::{Counters, Depths, Stats};
use crate::unsettled::{Resent, Unsettled};
use crate::user_code::{Panics, UserCode};
use crate::venue::Spoken;
use crate::wanted::Wanted;

pub(crate) struct ClientState {
    pub(crate) core: Arc<Core>,
    pub(crate) settings: Settings,
    /// Without a supervisor a lost heartbeat reconnects, and there are no restarts.
    pub(crate) supervised: bool,
    left: Mutex<HandedBack>,
    /// Code of the caller's, and what follows from it; `None` once the client has ended, so that nothing it holds is held
    /// for ever.
    work: Mutex<Option<Arc<Work>>>,
    pub(crate) reconciles: bool,
    /// Locked by the worker for the whole of its run, before the line; by others only when there is no worker.
    pub(crate) kept: Mutex<Kept>,
    pub(crate) events: Receiver<Event>,
    /// Locked while a recorder's code runs, so that what it counts is in order.
    published: ReentrantMutex<RefCell<Published>>,
    /// `None` when a handler takes the events inline.
    tail: Option<SharedTail>,
    socket: Mutex<Option<Arc<TcpStream>>>,
}

/// What a run of the worker works with.
pub(crate) struct Work {
    pub(crate) hooks: Hooks,
    pub(crate) rules: Arc<Rules>,
}

/// What must survive a run of the worker.
pub(crate) struct Kept {
    /// `None` when a handler takes the events inline.
    pub(crate) queue: Option<Queue>,
    /// `None` before the first run, after a panic of the handler, and where a queue takes the events.
    pub(crate) handler: Option<Inline>,
    pub(crate) held: Held,
    pub(crate) life: Life,
}

/// How the client's connections went.
pub(crate) struct Life {
    pub(crate) reconnect: Reconnect,
    pub(crate) epoch: u64,
    pub(crate) open: bool,
    /// Why the last attempt failed, for the next.
    pub(crate) last_error: Option<ConnectError>,
    pub(crate) addresses: Addresses,
    pub(crate) places: Places,
    /// What the last connection left open, if someone wants to settle it.
    pub(crate) unsettled: Unsettled,
    /// Events that are still to be delivered, oldest first. A handler that panics at one leaves the rest to the next handler.
    pub(crate) pending_events: VecDeque<Event>,
    /// What `reconcile` has sent in this attempt, without the requests that were answered.
    pub(crate) resent: Vec<Resent>,
    /// A message was received, and user code is asked whether it is a heartbeat or an answer. After a panic in that code the
    /// message counts as dropped.
    pub(crate) is_classifying: bool,
    /// Why the run is about to end, while the consumer receives the event before its end.
    pub(crate) verdict: Option<ExitReason>,
    /// What was decided at the end of the run.
    pub(crate) exit: Option<Exit>,
}

impl Life {
    /// Someone decided that a fresh connection is due: earlier failures and waits are forgotten.
    pub(crate) fn dial_anew(&mut self) {
        self.reconnect.reset();
        self.places.reset();
        self.addresses.reset();
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ClientState {
    pub(crate) fn new(mut settings: Settings, supervised: bool) -> io::Result<Self> {
        let hooks = std::mem::take(&mut settings.hooks);
        let now = Instant::now();
        let id = ClientId(NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let name = settings.name.clone().unwrap_or_else(|| format!("{}:{}", id.0, settings.target.host));
        let venue = hooks.venue_or(&settings.target.host).into();
        let tag = Tag { id, name: name.into(), venue };
        let (own, events) = crossbeam_channel::unbounded();
        let outlet = match &hooks.delivery.0 {
            Way::Channel { in_batches } => Some(Outlet::Own { sender: own, given: 0, in_batches: *in_batches }),
            Way::Shared(sender, given) => {
                Some(Outlet::Shared { sender: sender.clone(), given: given.clone(), tag: tag.clone() })
            }
            Way::Inline(_) => None,
        };
        let is_inline = outlet.is_none();
        let to_proxy = settings.proxy.as_ref().map(Proxy::to_proxy);
        for tls in [Some(&settings.tls), to_proxy].into_iter().flatten() {
            let only = if tls.is_pinned() {
                "only its pins are checked"
            } else {
                "whoever sits on the line can pass for the server"
            };
            tls.dangers().for_each(
                |danger| logger::warn!(client:% = tag.name; "client `{}`: `{danger}` is on: {only}", tag.name),
            );
        }
        let capacity = Capacity { events: settings.event_capacity, bytes: settings.event_bytes };
        let kept = settings.send_capacity;
        let queue = outlet.map(|outlet| Queue::new(outlet, tag.clone(), settings.overflow, capacity, kept));
        let limits = Limits::for_client(&settings.limits);
        let admission = Admission { max_message_size: settings.max_message_size, limits };
        let waiting = Bound { messages: settings.send_capacity, bytes: settings.send_bytes };
        let core = Core {
            mailbox: Mailbox::new(admission, waiting, settings.queue_while_disconnected, settings.tap(&tag))?,
            asked: Asked::new(now),
            wanted: Wanted::new(&settings.channels, hooks.venue.is_some()),
            status: Status::default(),
            handshake: Mutex::new(None),
            told: is_inline.then(Told::default),
            commands: Commands::of(settings.restart == Restart::Permanent),
            close_frame: Mutex::default(),
            tries_line: AtomicBool::new(false),
            counters: Counters::default(),
            health: Health::new(now),
            duty: Duty::new(now, settings.stall_threshold),
            pauses: Pauses::new(now),
            correlation: settings.correlation.clone(),
            request_timeout: settings.request_timeout,
            close_timeout: settings.close_timeout,
            thread: Mutex::new(None),
            panics: Panics::new(),
            tag,
        };
        let dialect = hooks.venue.clone().map(|venue| Box::new(Spoken(venue)) as Box<dyn Dialect>);
        let rules = Rules {
            heartbeat: settings.heartbeat.clone(),
            stale: settings.stale.clone(),
            correlation: settings.correlation.clone(),
            request_timeout: settings.request_timeout,
            max_age: settings.max_age,
            dialect,
        };
        let life = Life {
            reconnect: Reconnect::new(settings.reconnect.clone()),
            epoch: 0,
            open: false,
            last_error: None,
            addresses: Addresses::default(),
            places: Places::new(settings.fallbacks.len() + 1),
            unsettled: Unsettled::default(),
            pending_events: VecDeque::new(),
            resent: Vec::new(),
            is_classifying: false,
            verdict: None,
            exit: None,
        };
        Ok(Self {
            core: Arc::new(core),
            supervised,
            reconciles: hooks.reconcile.is_some(),
            work: Mutex::new(Some(Arc::new(Work { hooks, rules: Arc::new(rules) }))),
            tail: queue.as_ref().map(Queue::tail),
            kept: Mutex::new(Kept { queue, handler: None, held: Held::default(), life }),
            left: Mutex::default(),
            events,
            published: ReentrantMutex::default(),
            socket: Mutex::new(None),
            settings,
        })
    }

    /// What follows a run that ended for this reason, with this command standing.
    pub(crate) fn exit(&self, reason: ExitReason, standing: Option<CommandKind>) -> Exit {
        Exit::new(self.settings.restart, self.supervised, reason, standing)
    }

    /// The same for a thread that ended before its run began, or that reported nothing.
    pub(crate) fn exit_outside_a_run(&self, reason: ExitReason) -> Exit {
        self.exit(reason, self.core.commands.standing().map(|command| command.kind))
    }

    /// Its figures at this moment.
    pub(crate) fn stats(&self) -> Stats {
        let core = &self.core;
        let (pending_requests, requests) = core.asked.look(|table| (table.pending(), table.outcomes()));
        let books = &core.mailbox.source.books;
        let unread = self.events.len();
        let depths = Depths { queued: books.waiting(), unread, pending_requests, requests };
        core.counters.snapshot(&core.health, &core.duty, &core.pauses, books.tally.read(), depths)
    }

    /// Gives what is counted to the facade, if there is one.
    pub(crate) fn publish_metrics(&self) {
        if cfg!(feature = "metrics") {
            let health = self.core.health.read(&self.settings.heartbeat);
            let published = self.published.lock();
            // A recorder that asks for what it is being told already gets nothing more.
            if let Ok(mut published) = published.try_borrow_mut() {
                published.publish(&self.core, &self.stats(), &health);
            }
        }
    }

    /// What a run of the worker needs; `None` when the client has ended.
    pub(crate) fn work(&self) -> Option<Arc<Work>> {
        self.work.lock().clone()
    }

    /// Drops the user's code and values that an ended client still has. Called without a lock, since their destructors are user
    /// code.
    pub(crate) fn release_user_code(&self) {
        if self.core.status.get() == ReadyState::Closed {
            let handler = self.kept.lock().handler.take();
            self.drop_guarded(handler);
            let work = self.work.lock().take();
            self.core.mailbox.wake.silence_for_good();
            self.drop_guarded(work);
            while let Some(value) = self.core.next_told() {
                self.drop_guarded(value);
            }
        }
    }

    /// Drops a value of the user's. A panic in that is reported and changes nothing else.
    pub(crate) fn drop_guarded<T>(&self, value: T) {
        if self.core.panics.guard(UserCode::Destructor, || drop(value)).is_none() {
            let name = &self.core.tag.name;
            logger::error!(client:% = name; "client `{name}`: a destructor of a handler, closure or value given to it panicked");
        }
    }

    pub(crate) fn register_socket(&self, tcp: Option<Arc<TcpStream>>) {
        *self.socket.lock() = tcp;
    }

    /// From outside, for a worker that does not answer: the peer sees the end, the worker's next read or write too.
    pub(crate) fn shut_socket(&self) {
        if let Some(tcp) = &*self.socket.lock() {
            let _ = tcp.shutdown(Shutdown::Both);
        }
    }

    /// Wakes all that wait for the client's state. Nothing follows `Closed`.
    fn announce(&self, end: &End) {
        match end {
            End::Closed(reason) => self.core.status.close(reason.clone()),
            End::Parked(reason) => self.core.status.park(reason.clone()),
        }
        self.core.wanted.announce();
    }

    /// What nobody could be told of any more, for the supervisor's event. Called when there is no worker.
    pub(crate) fn take_handed_back(&self) -> HandedBack {
        self.untold(&mut self.kept.lock())
    }

    /// The same, for a client whose thread may still be busy with its handler's end.
    pub(crate) fn take_handed_back_within(&self, limit: Duration) -> HandedBack {
        self.kept.try_lock_for(limit).map(|mut kept| self.untold(&mut kept)).unwrap_or_default()
    }

    /// Of what was on its way to a thread that was left behind, what nobody could be told of.
    pub(crate) fn take_left(&self) -> HandedBack {
        std::mem::take(&mut self.left.lock())
    }

    fn untold(&self, kept: &mut Kept) -> HandedBack {
        // A thread that was left behind may have come back in any way, and nothing more is going to be written.
        if self.core.status.get() == ReadyState::Closed {
            self.settle_rest(&mut kept.life);
        }
        let (mut all, lost) = kept.queue.as_mut().map(Queue::take_orphans).unwrap_or_default();
        self.core.counters.dropped.add(lost);
        kept.life.pending_events.iter().for_each(|event| self.record(event, Shown::Never));
        all.extend(Event::all_handed_back(kept.life.pending_events.drain(..)));
        all
    }
}
