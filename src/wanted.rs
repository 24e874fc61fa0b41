//! The channels that a client wants, and who waits for them: the table of subscriptions for callers' threads and the
//! worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{RefusedChannel, SubscribeError};
use crate::policy::subscriptions::{Standing, SubscriptionStatus, Subscriptions};
use crate::state::ReadyState;

#[derive(Debug)]
pub(crate) struct Wanted {
    table: Mutex<Subscriptions>,
    /// A channel's standing may have changed.
    changed_standing: Condvar,
    /// There may be channels to ask for.
    changed: AtomicBool,
    /// Whether a venue is configured, which knows how to subscribe.
    has_dialect: bool,
}

impl Wanted {
    pub(crate) fn new(channels: &[Arc<str>], has_dialect: bool) -> Self {
        let mut table = Subscriptions::default();
        table.want(channels);
        Self {
            table: Mutex::new(table),
            changed_standing: Condvar::new(),
            changed: AtomicBool::new(false),
            has_dialect,
        }
    }

    /// One look at the table, under its lock. Whoever waits for a channel looks again afterwards.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let result = look(&mut self.table.lock());
        self.changed_standing.notify_all();
        result
    }

    /// Notes what the caller wants. The worker has to hear of it.
    pub(crate) fn want(&self, channels: &[Arc<str>], wish: Wish) -> Result<(), SubscribeError> {
        if !self.has_dialect {
            return Err(SubscribeError::NoVenue);
        }
        self.look(|table| match wish {
            Wish::There => table.want(channels),
            Wish::Gone => table.unwant(channels),
            Wish::Anew => table.want_anew(channels),
        });
        self.set_changed();
        Ok(())
    }

    pub(crate) fn status(&self) -> SubscriptionStatus {
        self.table.lock().status()
    }

    pub(crate) fn set_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    pub(crate) fn take_changed(&self) -> bool {
        self.has_changed() && self.changed.swap(false, Ordering::Relaxed)
    }

    /// Wakes those who wait, after something was said that they do not read here: that the client has ended.
    pub(crate) fn announce(&self) {
        // Locked first: a waiter that has just looked would miss the word before it sleeps.
        drop(self.table.lock());
        self.changed_standing.notify_all();
    }

    /// Wants these channels, or does not any more, and waits until the server has acknowledged each. `wake` tells the
    /// worker; `state` is what the client is doing.
    pub(crate) fn want_and_wait(
        &self,
        channels: &[Arc<str>],
        wish: Wish,
        deadline: Instant,
        wake: impl FnOnce(),
        state: impl Fn() -> ReadyState,
    ) -> Result<(), SubscribeError> {
        // First, so that none of them can be refused and forgotten before we look.
        let _waits = Waits::new(self, channels);
        self.want(channels, wish)?;
        let wanted = wish != Wish::Gone;
        wake();
        let mut table = self.table.lock();
        let mut last_look = false;
        // Channels before this one were settled when they were looked at: each wake-up looks on from there, not at all of
        // them, and at the end once more at all.
        let mut settled = 0;
        loop {
            while settled < channels.len() && table.standing(&channels[settled], wanted) != Standing::UnderWay {
                settled += 1;
            }
            if settled == channels.len() || last_look {
                let (pending, refused) = look_at_all(&table, channels, wanted);
                if pending.is_empty() && refused.is_empty() {
                    return Ok(());
                }
                if (pending.is_empty() || last_look) && wanted {
                    let names: Vec<_> = refused.iter().map(|refusal| refusal.channel.clone()).collect();
                    table.unwant(&names);
                }
                if pending.is_empty() {
                    return Err(SubscribeError::Refused(refused));
                }
                if last_look {
                    return Err(SubscribeError::Timeout { pending, refused, state: state() });
                }
                settled = 0;
            }
            let state = state();
            if matches!(state, ReadyState::Closed | ReadyState::Parked) {
                return Err(SubscribeError::NotRunning(state));
            }
            last_look = self.changed_standing.wait_until(&mut table, deadline).timed_out();
        }
    }
}

/// What the caller wants of some channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    There,
    Gone,
    /// There, from the beginning: what the server sends at first of it is wanted again.
    Anew,
}

fn look_at_all(table: &Subscriptions, channels: &[Arc<str>], wanted: bool) -> (Vec<Arc<str>>, Vec<RefusedChannel>) {
    let (mut pending, mut refused) = (vec![], vec![]);
    for channel in channels {
        match table.standing(channel, wanted) {
            Standing::Settled => {}
            Standing::UnderWay => pending.push(channel.clone()),
            Standing::Refused(error) => refused.push(RefusedChannel { channel: channel.clone(), error }),
        }
    }
    (pending, refused)
}

/// Somebody who waits for channels; while they do, what becomes of each is remembered.
struct Waits<'a>(&'a Wanted, &'a [Arc<str>]);

impl<'a> Waits<'a> {
    fn new(wanted: &'a Wanted, channels: &'a [Arc<str>]) -> Self {
        wanted.table.lock().wait(channels, true);
        Self(wanted, channels)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.table.lock().wait(self.1, false);
    }
}
