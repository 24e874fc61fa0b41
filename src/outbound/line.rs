//! Who writes, and when: one write side under one lock, with a worker that owns it and callers who help out.
//!
//! - The worker holds the lock for as long as it runs; it lets go only while it sleeps.
//! - A caller enqueues its message. If the worker is awake, that is all: the worker will find it. If it sleeps, the caller
//!   tries the lock (it never waits for it) and writes in the worker's stead, which saves waking a thread.
//! - Whatever a caller cannot finish it leaves, and rings: a kernel that is full, a queue that went on filling, a line
//!   that broke.
//! - The worker announces its sleep, and looks for work once more, *while it still holds the lock*, and only then lets go.
//!   So a caller that gets the lock either finds a worker that has announced, and will hear the bell, or one that is past
//!   its sleep and will look at everything again. Were the lock let go of first, a caller could come in between, leave a
//!   message half written, find nobody parked to ring for, and the worker would sleep through it.
//!
//! The worker and the loom model below use the same functions.

use std::sync::Arc;

use crate::wake::{Rings, Wake};

#[cfg(all(loom, test))]
pub(crate) use self::loom_lock::{Guard, Lock};
#[cfg(not(all(loom, test)))]
pub(crate) use parking_lot::{Mutex as Lock, MutexGuard as Guard};

/// What the lock guards.
pub(crate) trait WriteSide {
    /// Where callers put what is to be written, and what else writing takes.
    type Source;

    /// Whether a caller may write here now.
    fn is_open_to_callers(&self) -> bool;

    /// Whether something was left unfinished: by the worker, which then waits for what holds it up, or by a caller, who
    /// then rang.
    fn is_unfinished(&self) -> bool;

    /// Takes what was enqueued and writes it, as far as it goes. True when nothing is left, here or in the source.
    fn write_from(&mut self, source: &Self::Source) -> bool;
}

pub(crate) struct Line<T, W = Wake> {
    wake: Arc<W>,
    side: Lock<T>,
}

impl<T: WriteSide, B: Rings> Line<T, Wake<B>> {
    pub(crate) fn new(wake: Arc<Wake<B>>, side: T) -> Self {
        Self { wake, side: Lock::new(side) }
    }

    /// For the worker; and for whoever stands in for it when there is none.
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.side.lock()
    }

    /// A caller's part: something was enqueued, see to it that it is written. Never waits.
    pub(crate) fn pass_on(&self, source: &T::Source) {
        if !self.wake.is_parked() {
            return;
        }
        if let Some(mut side) = self.side.try_lock() {
            if side.is_open_to_callers() && (side.is_unfinished() || side.write_from(source)) {
                return;
            }
        }
        self.wake.ring();
    }

    /// The worker's sleep. `None` when the last look found something to do. `sleep` says what ended it, and whether that
    /// was the bell.
    pub(crate) fn sleep<R>(
        &self,
        side: &mut Guard<'_, T>,
        last_look: impl FnOnce(&T) -> bool,
        sleep: impl FnOnce(&Wake<B>) -> (R, bool),
    ) -> Option<R> {
        if !self.wake.announce(|| last_look(side)) {
            return None;
        }
        Some(Guard::unlocked(side, || {
            let (result, rung) = sleep(&self.wake);
            self.wake.retract(rung);
            result
        }))
    }
}

/// parking_lot's mutex as loom needs it, and as weak: one that is found taken says nothing about memory. (loom's own may
/// block a `try_lock`.)
#[cfg(all(test, loom))]
mod loom_lock {
    use loom::sync::atomic::{AtomicBool, Ordering};
    use std::ops::{Deref, DerefMut};

    pub(crate) struct Lock<T> {
        taken: AtomicBool,
        value: loom::sync::Mutex<T>,
    }

    pub(crate) struct Guard<'a, T> {
        lock: &'a Lock<T>,
        value: Option<loom::sync::MutexGuard<'a, T>>,
    }

    impl<T> Lock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { taken: AtomicBool::new(false), value: loom::sync::Mutex::new(value) }
        }

        pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
            self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
            Some(Guard { lock: self, value: Some(self.value.lock().unwrap()) })
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            loop {
                match self.try_lock() {
                    Some(guard) => return guard,
                    None => loom::thread::yield_now(),
                }
            }
        }
    }

    impl<T> Guard<'_, T> {
        pub(crate) fn unlocked<R>(guard: &mut Self, run: impl FnOnce() -> R) -> R {
            guard.release();
            let result = run();
            guard.value = guard.lock.lock().value.take();
            result
        }

        fn release(&mut self) {
            if self.value.take().is_some() {
                self.lock.taken.store(false, Ordering::Release);
            }
        }
    }

    impl<T> Drop for Guard<'_, T> {
        fn drop(&mut self) {
            self.release();
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.value.as_deref().unwrap()
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.value.as_deref_mut().unwrap()
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use loom::sync::{Condvar, Mutex};

    #[derive(Default)]
    struct ModelBell {
        rung: Mutex<bool>,
        rings: Condvar,
    }

    impl ModelBell {
        fn hear(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.rings.wait(rung).unwrap();
            }
        }
    }

    impl Rings for ModelBell {
        fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.rings.notify_one();
        }

        fn silence(&self) {
            *self.rung.lock().unwrap() = false;
        }
    }

    /// Messages that count, a kernel with room for so many, and whether callers may write.
    struct Side {
        left: usize,
        room: usize,
        direct: bool,
        written: Arc<(Mutex<usize>, Condvar)>,
    }

    impl WriteSide for Side {
        type Source = AtomicUsize;

        fn is_open_to_callers(&self) -> bool {
            self.direct
        }

        fn is_unfinished(&self) -> bool {
            self.left > 0
        }

        fn write_from(&mut self, source: &AtomicUsize) -> bool {
            if self.left == 0 {
                self.left = source.swap(0, Ordering::Relaxed);
            }
            let now = self.left.min(self.room);
            self.left -= now;
            self.room -= now;
            if now > 0 {
                *self.written.0.lock().unwrap() += now;
                self.written.1.notify_one();
            }
            self.left == 0 && source.load(Ordering::Relaxed) == 0
        }
    }

    struct Model {
        line: Line<Side, Wake<ModelBell>>,
        source: AtomicUsize,
        stop: AtomicBool,
    }

    impl Model {
        fn send(&self) {
            self.source.fetch_add(1, Ordering::Relaxed);
            self.line.pass_on(&self.source);
        }

        /// The worker's loop: write, then sleep until the bell rings, or if something is left until the kernel has room.
        fn work(&self) {
            let mut side = self.line.lock();
            while !self.stop.load(Ordering::Relaxed) {
                side.write_from(&self.source);
                let waits_for_room = side.is_unfinished();
                let look = |side: &Side| {
                    self.stop.load(Ordering::Relaxed)
                        || (!side.is_unfinished() && self.source.load(Ordering::Relaxed) > 0)
                };
                let slept = self.line.sleep(&mut side, look, |wake| match waits_for_room {
                    true => ((), false),
                    false => (wake.bell().hear(), true),
                });
                if slept.is_some() && waits_for_room {
                    side.room = 1;
                }
            }
        }
    }

    /// A message that nobody writes shows as a deadlock, which loom reports.
    fn every_message_is_written(direct: bool, room: usize) {
        crate::wake::explore(move || {
            let written = Arc::new((Mutex::new(0), Condvar::new()));
            let wake = Arc::new(Wake::with_bell(ModelBell::default()));
            let side = Side { left: 0, room, direct, written: written.clone() };
            let line = Line::new(wake.clone(), side);
            let model = Arc::new(Model { line, source: AtomicUsize::new(0), stop: AtomicBool::new(false) });
            let (worker, caller) = (model.clone(), model.clone());
            let worker = loom::thread::spawn(move || worker.work());
            let caller = loom::thread::spawn(move || caller.send());
            model.send();
            let mut all = written.0.lock().unwrap();
            while *all < 2 {
                all = written.1.wait(all).unwrap();
            }
            drop(all);
            model.stop.store(true, Ordering::Relaxed);
            wake.wake();
            caller.join().unwrap();
            worker.join().unwrap();
        });
    }

    #[test]
    fn what_is_enqueued_is_written_by_a_caller_or_by_the_worker() {
        every_message_is_written(true, 2);
    }

    #[test]
    fn what_a_full_kernel_left_half_written_is_finished() {
        every_message_is_written(true, 1);
    }

    #[test]
    fn where_callers_may_not_write_they_wake_the_worker() {
        every_message_is_written(false, 2);
    }
}
