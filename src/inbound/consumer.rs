//! Who takes what comes in: the client's queue, or a handler on this thread. The one place that knows which.
//!
//! Until the session is open it holds what comes, under the same overflow policy.

use std::any::Any;
use std::time::{Duration, Instant};

use super::backlog::{Held, Overrun};
use super::context::Context;
use super::delivery::Handler;
use super::outlet::Capacity;
use super::queue::Queue;
use crate::core::Core;
use crate::event::Event;
use crate::message::{Message, MessageRef};
use crate::outbound::outbox::Outbox;
use crate::overflow::{AtLimit, Overflow, Stage};
use crate::policy::pacer::Pacer;
use crate::policy::timers::Timers;
use crate::record::tap::Tap;
use crate::telemetry::duty::Doing;

pub(crate) struct Consumer<'a> {
    to: To<'a>,
    overflow: Overflow,
    held: &'a mut Held,
    pacer: Pacer,
}

enum To<'a> {
    Queue(&'a mut Queue),
    Handler(&'a mut Inline),
}

/// A handler and its timers, which are handed from run to run. After a panic this says whether the handler's own code was
/// running.
pub(crate) struct Inline {
    handler: Box<dyn Handler>,
    timers: Timers,
    is_running: bool,
}

impl Inline {
    pub(crate) fn new(handler: Box<dyn Handler>) -> Self {
        Self { handler, timers: Timers::default(), is_running: false }
    }

    /// Whether its handler has not returned: it panicked.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }
}

/// What a handler is shown and may use.
pub(crate) struct Scene<'a> {
    pub(crate) core: &'a Core,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) epoch: Option<u64>,
    pub(crate) now: Instant,
}

/// Timers that fire one after the other before whoever wants something sent gets a turn.
const TIMERS_AT_ONCE: usize = 16;

/// And no more of them after so long.
const FIRES_FOR: Duration = Duration::from_millis(1);

impl<'a> Consumer<'a> {
    pub(crate) fn queue(queue: &'a mut Queue, overflow: Overflow, held: &'a mut Held) -> Self {
        Self { to: To::Queue(queue), overflow, held, pacer: Pacer::default() }
    }

    pub(crate) fn handler(inline: &'a mut Inline, overflow: Overflow, held: &'a mut Held) -> Self {
        Self { to: To::Handler(inline), overflow, held, pacer: Pacer::default() }
    }

    /// A message, for the handler. Inlined where every message passes: a call and a move cost a tenth of a flood.
    #[inline(always)]
    pub(crate) fn message(&mut self, scene: Scene<'_>, message: MessageRef<'_>) {
        self.call(scene, |handler, context| handler.on_message(context, message));
    }

    /// Calls the handler, if there is one. The one place where its code runs, so that a panic is known to be its own.
    #[inline(always)]
    pub(crate) fn call(&mut self, scene: Scene<'_>, code: impl FnOnce(&mut dyn Handler, &mut Context<'_>)) {
        let To::Handler(Inline { handler, timers, is_running }) = &mut self.to else { return };
        let Scene { core, outbox, epoch, now } = scene;
        core.duty.begin(now, Doing::Handler);
        *is_running = true;
        code(&mut **handler, &mut Context { core, outbox, timers, epoch, now });
        *is_running = false;
    }

    /// Any other event: never dropped.
    pub(crate) fn event(&mut self, scene: Scene<'_>, event: Event) {
        match &mut self.to {
            To::Queue(queue) => queue.push_event(event),
            To::Handler(_) => self.call(scene, |handler, context| match event {
                Event::Open { .. } => handler.on_open(context),
                event => handler.on_event(context, event),
            }),
        }
    }

    /// A value of a caller's, for the handler.
    pub(crate) fn command(&mut self, scene: Scene<'_>, value: Box<dyn Any + Send>) {
        if let Some(tap) = scene.core.tap() {
            tap.command(scene.core.shown(scene.epoch), scene.now);
        }
        self.call(scene, |handler, context| handler.on_command(context, value));
    }

    /// When a timer of the handler's is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        match &self.to {
            To::Handler(inline) => inline.timers.next(),
            To::Queue(_) => None,
        }
    }

    /// Calls the handler for every timer that is due.
    pub(crate) fn fire_timers(&mut self, scene: Scene<'_>) {
        let To::Handler(Inline { timers, .. }) = &self.to else { return };
        let Scene { core, outbox, epoch, now } = scene;
        let mark = timers.mark();
        for _ in 0..TIMERS_AT_ONCE {
            let To::Handler(Inline { timers, .. }) = &mut self.to else { break };
            let Some(token) = timers.due(now, mark) else { break };
            let scene = Scene { core, outbox: &mut *outbox, epoch, now };
            if let Some(tap) = core.tap() {
                tap.timer(token, core.shown(epoch), now);
            }
            self.call(scene, |handler, context| handler.on_timer(context, token));
            if now.elapsed() >= FIRES_FOR {
                break;
            }
        }
    }

    /// Whether another message can be taken from the socket. Only a full queue under `Backpressure` says no.
    pub(crate) fn has_room_to_read(&mut self) -> bool {
        match &mut self.to {
            To::Queue(queue) => queue.has_room_to_read(),
            To::Handler(_) => true,
        }
    }

    /// Lets the reader see what was handed over: all that was read in one go is taken apart.
    pub(crate) fn flush(&mut self) {
        if let To::Queue(queue) = &mut self.to {
            queue.flush();
            queue.log();
        }
    }

    /// As `flush`, and what waited for room follows as far as there is some.
    pub(crate) fn catch_up(&mut self) {
        if let To::Queue(queue) = &mut self.to {
            queue.hand_over();
        }
    }

    /// Hands over events that wait for room. When some still wait, or reading does, returns when to try again: the
    /// caller's channel cannot tell us.
    pub(crate) fn hand_over(&mut self, now: Instant, paused: bool) -> Option<Instant> {
        let To::Queue(queue) = &mut self.to else { return None };
        let waits = !queue.hand_over();
        queue.log();
        self.pacer.next(now, waits || paused, queue.handed_over())
    }

    pub(crate) fn is_handler(&self) -> bool {
        matches!(self.to, To::Handler(_))
    }

    /// The queue, if it is one.
    pub(crate) fn as_queue(&mut self) -> Option<&mut Queue> {
        match &mut self.to {
            To::Queue(queue) => Some(queue),
            To::Handler(_) => None,
        }
    }

    /// Whether nobody is left who could take anything.
    pub(crate) fn is_deserted(&self) -> bool {
        matches!(&self.to, To::Queue(queue) if queue.is_deserted())
    }

    /// Whether messages wait behind a full queue.
    pub(crate) fn is_behind(&self) -> bool {
        matches!(&self.to, To::Queue(queue) if queue.is_behind())
    }

    /// Keeps messages until `open`. Where the policy drops, no more of them than of unread events; in any case no more than so
    /// many bytes.
    pub(crate) fn hold(&mut self, capacity: Capacity) {
        let drops = matches!(self.overflow, Overflow::DropOldest | Overflow::DropNewest);
        self.held.begin(if drops { capacity.events } else { usize::MAX }, capacity.bytes);
    }

    /// Keeps a message until the session is open; returns how many were dropped for it.
    pub(crate) fn keep(&mut self, message: Message, tap: Option<&Tap>) -> Result<u64, Overrun> {
        let at_limit = self.overflow.at_limit(Stage::Opening);
        let dropped = self.held.backlog().map_or(Ok(0), |backlog| backlog.push_message(message, at_limit))?;
        let nth = (at_limit == AtLimit::DropOldest).then_some(0);
        tap.iter().for_each(|tap| (0..dropped).for_each(|_| tap.withheld(nth)));
        Ok(dropped)
    }

    /// Whether no more can be kept, where none may be dropped.
    pub(crate) fn holds_enough(&self) -> bool {
        let keeps_all = !matches!(self.overflow, Overflow::DropOldest | Overflow::DropNewest);
        keeps_all && self.held.is_full()
    }

    /// Takes the first of the kept messages that is wanted.
    pub(crate) fn take_kept(&mut self, wanted: &mut dyn FnMut(&Message) -> bool, tap: Option<&Tap>) -> Option<Message> {
        let (nth, message) = self.held.backlog()?.take_message(wanted)?;
        tap.iter().for_each(|tap| tap.withheld(Some(nth)));
        Some(message)
    }

    /// Messages that came while the session was being opened.
    #[inline]
    pub(crate) fn held(&mut self) -> &mut Held {
        self.held
    }
}
