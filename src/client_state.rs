//! What a client's handles, its worker and its supervisor have in common. It outlives every run of the worker.

mod settlement;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use self::settlement::Collected;
use crate::command::{Order, OrderKind, Orders};
use crate::config::ClientConfig;
use crate::deadline::later;
use crate::event::Event;
use crate::inbound::delivery::Way;
use crate::inbound::queue::{Outlet, Queue};
use crate::lifecycle::{End, ExitReason};
use crate::message::Message;
use crate::outbound::accepted::{Outbound, Places};
use crate::outbound::gate::{Gate, Pass};
use crate::outbound::line::Line;
use crate::outbound::link::{Link, Source};
use crate::policy::rate_limit;
use crate::policy::rate_limit::{Over, RateLimit};
use crate::policy::reconnect::Reconnect;
use crate::policy::requests::Requests;
use crate::policy::subscriptions::Subscriptions;
use crate::state::{ClientId, ReadyState, Tag};
use crate::status::Status;
use crate::telemetry::counter::Counter;
use crate::telemetry::duty::Duty;
use crate::telemetry::health::Health;
use crate::telemetry::stats::Counters;
use crate::unsettled::Unsettled;
use crate::wake::Wake;

pub(crate) struct Shared {
    pub(crate) tag: Tag,
    pub(crate) config: ClientConfig,
    /// Without a supervisor a lost heartbeat reconnects, and there are no restarts.
    pub(crate) supervised: bool,
    pub(crate) gate: Gate,
    pub(crate) wake: Arc<Wake>,
    pub(crate) outbound: Sender<Outbound>,
    pub(crate) source: Source,
    /// For messages that wait for the next connection.
    pub(crate) places: Places,
    pub(crate) orders: Orders,
    pub(crate) limits: Vec<RateLimit>,
    pub(crate) requests: Requests,
    pub(crate) subscriptions: Mutex<Subscriptions>,
    /// A channel's standing may have changed.
    pub(crate) settled: Condvar,
    /// There may be channels to ask for.
    pub(crate) resubscribe: AtomicBool,
    pub(crate) status: Status,
    pub(crate) counters: Counters,
    pub(crate) health: Health,
    /// Locked by the worker for the whole of its run, and by others only when there is none.
    pub(crate) seat: Mutex<Seat>,
    /// Locked by the worker while it runs and does not sleep, after the seat; by a caller only if it is free.
    pub(crate) line: Line<Link>,
    pub(crate) duty: Duty,
    pub(crate) events: Receiver<Event>,
    outlet: Mutex<Option<Outlet>>,
    socket: Mutex<Option<Arc<TcpStream>>>,
    thread: Mutex<Option<ThreadId>>,
}

/// The worker's own state: what must survive a run of it.
pub(crate) struct Seat {
    /// `None` when a handler takes the events inline.
    pub(crate) queue: Option<Queue>,
    pub(crate) reconnect: Reconnect,
    pub(crate) epoch: u64,
    pub(crate) open: bool,
    /// What the last connection left open, if someone wants to settle it.
    pub(crate) unsettled: Unsettled,
}

/// When to try again while what waited for a connection is let out.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Shared {
    pub(crate) fn new(config: ClientConfig, supervised: bool) -> io::Result<Self> {
        let id = ClientId(NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let name = config.name.clone().unwrap_or_else(|| format!("{}:{}", id.0, config.target.host));
        let tag = Tag { id, name: name.into() };
        let (own, events) = crossbeam_channel::unbounded();
        let outlet = match &config.delivery.0 {
            Way::Channel => Some(Outlet::Own(own)),
            Way::Shared(sender) => Some(Outlet::Shared(sender.clone(), tag.clone())),
            Way::Inline(_) => None,
        };
        let queue = outlet.clone().map(|outlet| {
            Queue::new(outlet, tag.clone(), config.overflow, config.event_capacity, config.send_capacity)
        });
        let mut limits = config.limits.clone();
        limits.extend(config.venue.iter().flat_map(|venue| venue.rate_limits()));
        let mut subscriptions = Subscriptions::default();
        subscriptions.want(&config.channels);
        let wake = Arc::new(Wake::new()?);
        let (outbound, queue_out) =
            crossbeam_channel::bounded(config.send_capacity.max(config.queue_while_disconnected));
        Ok(Self {
            requests: Requests::new(Instant::now()),
            subscriptions: Mutex::new(subscriptions),
            settled: Condvar::new(),
            resubscribe: AtomicBool::new(false),
            line: Line::new(wake.clone(), Link::new(limits.clone())),
            limits,
            gate: Gate::new(config.queue_while_disconnected > 0),
            wake,
            outbound,
            source: Source { queue: queue_out, sent: Counter::default() },
            places: Places::default(),
            orders: Orders::default(),
            status: Status::default(),
            counters: Counters::default(),
            health: Health::new(Instant::now()),
            seat: Mutex::new(Seat {
                queue,
                reconnect: Reconnect::new(config.reconnect.clone()),
                epoch: 0,
                open: false,
                unsettled: Unsettled::default(),
            }),
            duty: Duty::new(Instant::now(), config.stall_threshold),
            events,
            outlet: Mutex::new(outlet),
            socket: Mutex::new(None),
            thread: Mutex::new(None),
            tag,
            config,
            supervised,
        })
    }

    pub(crate) fn order(&self, kind: OrderKind, grace: Duration) -> Order {
        let order = Order { kind, deadline: later(Instant::now(), grace) };
        self.orders.give(order);
        self.wake.wake();
        order
    }

    /// Takes what a message costs from the rate limits, or for a message that is charged when it is written, sees
    /// whether it can ever pass. While such messages are let out at the limits' pace nothing may overtake them, and
    /// nothing be added that would leave together with them.
    pub(crate) fn charge(&self, message: &Message, at_once: bool) -> Result<(), Over> {
        if self.limits.is_empty() {
            return Ok(());
        }
        if !at_once {
            return rate_limit::check(&self.limits, message);
        }
        match self.places.taken() {
            0 => rate_limit::charge(&self.limits, message),
            _ => Err(Over::Wait(LOOK_AGAIN)),
        }
    }

    pub(crate) fn set_thread(&self) {
        *self.thread.lock() = Some(std::thread::current().id());
    }

    /// Whether the caller is this client's own worker, which must not wait for itself.
    pub(crate) fn is_own_thread(&self) -> bool {
        *self.thread.lock() == Some(std::thread::current().id())
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

    /// As `conclude`, for a client without a worker.
    pub(crate) fn conclude_idle(&self, end: End) {
        let mut seat = self.seat.lock();
        self.conclude(Some((&mut seat, &mut self.line.lock())), end);
    }

    /// The client has ended for good, or is given up on. `hold` is `None` when a worker that does not come back has
    /// it; then the messages in its hands are lost to us.
    pub(crate) fn conclude(&self, hold: Option<(&mut Seat, &mut Link)>, end: End) {
        match (self.status.get(), &end) {
            (ReadyState::Closed, _) | (ReadyState::Parked, End::Parked(_)) => return,
            _ => {}
        }
        let event = match hold {
            Some((seat, link)) => {
                let event = end.event(self.collect_unsent(seat, link, Pass::Shut).unsent);
                self.settle(&end);
                if let Some(queue) = &mut seat.queue {
                    queue.push_event(event);
                    match end {
                        End::Closed(_) => queue.finish(),
                        End::Parked(_) => queue.hand_over_all(),
                    }
                }
                self.outlet_after(&end);
                return;
            }
            None => {
                self.gate.close(Pass::Shut);
                let mut collected = Collected::default();
                self.source.queue.try_iter().for_each(|item| self.hand_back(item, &mut collected));
                self.abandon_requests(&mut collected);
                end.event(collected.unsent)
            }
        };
        if let Some(outlet) = &*self.outlet.lock() {
            outlet.push(event);
        }
        self.settle(&end);
        self.outlet_after(&end);
    }

    /// Makes the end known to those who wait; the log says why.
    pub(crate) fn settle(&self, end: &End) {
        let (name, target) = (&self.tag.name, &self.config.target);
        match end {
            End::Closed(ExitReason::Closed) => {
                log::info!("client `{name}` ({target}): closed");
                self.status.close(ExitReason::Closed);
            }
            End::Closed(reason) => {
                log::error!("client `{name}` ({target}): ended: {reason}");
                self.status.close(reason.clone());
            }
            End::Parked(reason) => {
                log::error!("client `{name}` ({target}): parked: {reason}");
                self.status.park(reason.clone());
            }
        }
        // Under the lock, so that nobody who has just looked at the status waits for a word that was said before.
        drop(self.subscriptions.lock());
        self.settled.notify_all();
    }

    pub(crate) fn outlet_after(&self, end: &End) {
        if matches!(end, End::Closed(_)) {
            *self.outlet.lock() = None;
        }
    }
}
