//! Where events go: the [`Delivery`] ways, and the [`Handler`] of the inline way.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam_channel::{Receiver, Sender};

use crate::event::{ClientEvent, Event};
use crate::inbound::context::Context;
use crate::message::MessageRef;

/// Where a client's events go.
///
/// ```
/// use ws_supervisor::{ClientConfig, Delivery, Event, Supervisor, testing::Server};
///
/// let server = Server::echo()?;
/// let supervisor = Supervisor::start()?;
/// let (delivery, events) = Delivery::shared();
/// for name in ["a", "b"] {
///     supervisor.spawn_client(ClientConfig::new(server.url())?.name(name).delivery(delivery.clone()))?;
/// }
/// let mut open: Vec<_> = events.iter().take(2).map(|event| event.name.to_string()).collect();
/// open.sort();
/// assert_eq!(open, ["a", "b"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Delivery(pub(crate) Way);

#[derive(Clone)]
pub(crate) enum Way {
    Channel {
        in_batches: bool,
    },
    /// With the number of events that were put into it.
    Shared(Sender<ClientEvent>, Arc<AtomicU64>),
    Inline(Arc<HandlerFactory>),
}

pub(crate) type HandlerFactory = dyn Fn() -> Box<dyn Handler> + Send + Sync;

impl Delivery {
    /// The client's own channel, read by [`Client::events`](crate::Client::events). The default.
    pub fn channel() -> Self {
        Self(Way::Channel { in_batches: false })
    }

    /// As [`channel`](Delivery::channel), for who receives much: messages that one read brought cross it together, up to 256 of
    /// them in one [`Event::Messages`], a lone one too. They wait no longer for that: what has come crosses at once. A flood
    /// of small messages goes more than twice as fast so, since a channel costs most of what it costs for each event.
    /// `event_capacity`, `event_bytes` and the overflow policy count messages, as ever;
    /// [`Stats::unread`](crate::Stats::unread) counts events. Each message is seen where it lies and kept by
    /// [`to_message`](MessageRef::to_message), which copies it: none keeps a whole batch alive.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Delivery, Event, Supervisor, testing::Server};
    ///
    /// let server = Server::echo()?;
    /// let supervisor = Supervisor::start()?;
    /// let client = supervisor.spawn_client(ClientConfig::new(server.url())?.delivery(Delivery::batches()))?;
    /// let mut left = 3;
    /// for event in client.events() {
    ///     match event {
    ///         Event::Open { .. } => ["a", "b", "c"].into_iter().try_for_each(|order| client.send(order))?,
    ///         Event::Messages(messages) => left -= messages.len(),
    ///         other => panic!("{other:?}"),
    ///     }
    ///     if left == 0 { break }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn batches() -> Self {
        Self(Way::Channel { in_batches: true })
    }

    /// One channel for many clients: give a clone to each, and read the receiver. Every client keeps to its own
    /// `event_capacity` and `event_bytes`, counted by its own events: one that floods takes no room from a quiet one. When
    /// the last receiver is dropped, its clients are parked ([`ParkReason::Deserted`](crate::ParkReason)): nobody would
    /// notice what happens on their connections.
    pub fn shared() -> (Self, Receiver<ClientEvent>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        (Self(Way::Shared(sender, Arc::default())), receiver)
    }

    /// A handler on the worker's own thread: no channel, no queue, no hop. The factory is called on that thread, for the first
    /// run of the worker and after each panic of the handler: a handler that panicked is never used again, and every other
    /// restart hands it to the next run.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Context, Delivery, Handler, MessageRef, Supervisor, testing::Server};
    ///
    /// struct Quoter;
    /// impl Handler for Quoter {
    ///     fn on_open(&mut self, context: &mut Context<'_>) {
    ///         context.send("subscribe").expect("just opened");
    ///     }
    ///     fn on_message(&mut self, context: &mut Context<'_>, tick: MessageRef<'_>) {
    ///         if tick.as_text() == Some("subscribe") {
    ///             context.send("quote").expect("open");
    ///         }
    ///     }
    /// }
    ///
    /// let server = Server::echo()?;
    /// let supervisor = Supervisor::start()?;
    /// let config = ClientConfig::new(server.url())?.delivery(Delivery::inline(|| Quoter));
    /// supervisor.spawn_client(config)?;
    /// server.wait_for_message(|message| message.as_text() == Some("quote"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn inline<H: Handler + 'static>(factory: impl Fn() -> H + Send + Sync + 'static) -> Self {
        Self(Way::Inline(Arc::new(move || Box::new(factory()))))
    }
}

impl Default for Delivery {
    fn default() -> Self {
        Self::channel()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Way::Channel { in_batches: false } => "Channel",
            Way::Channel { in_batches: true } => "Batches",
            Way::Shared(..) => "Shared",
            Way::Inline(_) => "Inline",
        })
    }
}

/// A strategy that lives on the worker's thread. While one of these methods runs, nothing else of the client does: no
/// read, no heartbeat, no stop.
///
/// A handler lives until it panics or its client ends. It is kept, with its timers, across reconnects and across every restart
/// that is not its own panic: a lost heartbeat, exhausted retries, `restart_client`, a parked client that is resumed, a panic in
/// another closure of yours. Each run of the worker is a thread of its own, so a handler is `Send`. Its own panic ends the run,
/// and the supervisor starts another with a new handler.
///
/// A handler is dropped on its worker's thread after the last event was delivered; that of a parked client that is stopped, on
/// the supervisor's side. Values that your code keeps in thread-locals are dropped after it, and the supervisor, which joins
/// the thread, waits for their destructors: keep those short.
pub trait Handler: Send {
    /// A connection is open. Called instead of [`on_event`](Handler::on_event) with [`Event::Open`]; which channels the
    /// server has acknowledged or refused, [`Context::subscriptions`] says.
    fn on_open(&mut self, context: &mut Context<'_>) {
        let _ = context;
    }

    /// A message came. It is gone when this returns, unless you keep it with [`to_message`](MessageRef::to_message). What you send through the context is written when this returns.
    fn on_message(&mut self, context: &mut Context<'_>, message: MessageRef<'_>);

    /// A timer of [`Context::schedule`] is due.
    fn on_timer(&mut self, context: &mut Context<'_>, token: u64) {
        let _ = (context, token);
    }

    /// A value came by [`Client::tell`](crate::Client::tell): downcast it to what you tell.
    fn on_command(&mut self, context: &mut Context<'_>, command: Box<dyn Any + Send>) {
        let _ = (context, command);
    }

    /// Anything else that happened. The run after a panic begins with the events that the last run could not deliver:
    /// `Disconnected`, with the messages that are returned, and responses. When no run follows (`Parked` after too many
    /// restarts) they are in [`Supervisor::events`](crate::Supervisor::events).
    ///
    /// The end of a run is decided before its last event is delivered: a panic here does not change it.
    fn on_event(&mut self, context: &mut Context<'_>, event: Event) {
        let _ = (context, event);
    }
}
