//! The one door to code that is not the library's: loggers, metrics recorders, handlers at a client's end, destructors of
//! values that a user gave. A panic in such code is caught here, counted, and reported in a
//! [`SupervisorEvent`](crate::SupervisorEvent). Callers hold no lock that another thread waits for.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Code of yours that the library calls, as a [`SupervisorEvent`](crate::SupervisorEvent) names it when it panics outside a
/// client's run.
///
/// ```
/// use ws_supervisor::{Supervisor, SupervisorEvent};
///
/// # let supervisor = Supervisor::start()?;
/// for event in supervisor.events().try_iter() {
///     if let SupervisorEvent::UserCodePanicked { code, panic, .. } = event {
///         eprintln!("{code} panicked: {panic}");
///     }
/// }
/// # Ok::<(), ws_supervisor::StartError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum UserCode {
    /// The logger that the program gave to the `log` facade.
    Logger,
    /// The recorder that the program gave to the `metrics` facade.
    MetricsRecorder,
    /// A [`Handler`](crate::Handler) that was receiving its client's last events.
    Handler,
    /// The destructor of a handler, of a closure in the configuration, or of a value given to the client.
    Destructor,
}

impl UserCode {
    const ALL: [Self; 4] = [Self::Logger, Self::MetricsRecorder, Self::Handler, Self::Destructor];

    /// One word for it, for labels and counts.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Logger => "logger",
            Self::MetricsRecorder => "metrics_recorder",
            Self::Handler => "handler",
            Self::Destructor => "destructor",
        }
    }
}

impl fmt::Display for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Logger => "the logger",
            Self::MetricsRecorder => "the metrics recorder",
            Self::Handler => "the handler",
            Self::Destructor => "a destructor",
        })
    }
}

/// Panics of user code, by what panicked: how often, and the latest message.
#[derive(Debug)]
pub(crate) struct Panics {
    /// Of all kinds, so that a reader with nothing to collect takes no lock.
    total: AtomicU64,
    kinds: Mutex<[(u64, Option<Box<str>>); UserCode::ALL.len()]>,
}

/// How much of it one reader has collected.
#[derive(Clone, Debug, Default)]
pub(crate) struct PanicsSeen {
    total: u64,
    kinds: [u64; UserCode::ALL.len()],
}

/// Panics of one kind of code since they were collected last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PanicReport {
    pub(crate) code: UserCode,
    pub(crate) times: u64,
    pub(crate) panic: Box<str>,
}

/// Those of the program's logger and metrics recorder, which belong to no client.
pub(crate) static PROCESS: Panics = Panics::new();

impl Panics {
    pub(crate) const fn new() -> Self {
        Self { total: AtomicU64::new(0), kinds: Mutex::new([const { (0, None) }; UserCode::ALL.len()]) }
    }

    /// Calls user code. `None` when it panicked, which is noted.
    pub(crate) fn guard<T>(&self, code: UserCode, call: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(call));
        result.map_err(|payload| self.note(code, panic_message(payload))).ok()
    }

    pub(crate) fn note(&self, code: UserCode, panic: Box<str>) {
        let mut kinds = self.kinds.lock();
        let (times, latest) = &mut kinds[code as usize];
        (*times, *latest) = (*times + 1, Some(panic));
        self.total.fetch_add(1, Ordering::Release);
    }

    /// What a reader that starts now has nothing more to collect of.
    pub(crate) fn seen_by_now(&self) -> PanicsSeen {
        let mut seen = PanicsSeen::default();
        self.collect(&mut seen);
        seen
    }

    /// What was noted since `seen`, which is brought up to date.
    pub(crate) fn collect(&self, seen: &mut PanicsSeen) -> Vec<PanicReport> {
        if self.total.load(Ordering::Acquire) == seen.total {
            return Vec::new();
        }
        let kinds = self.kinds.lock();
        seen.total = self.total.load(Ordering::Acquire);
        let new =
            UserCode::ALL.into_iter().zip(&*kinds).zip(&mut seen.kinds).filter_map(|((code, (times, panic)), seen)| {
                let times = times - std::mem::replace(seen, *times);
                let panic = panic.clone().filter(|_| times > 0)?;
                Some(PanicReport { code, times, panic })
            });
        new.collect()
    }
}

/// The text of a panic. Its payload is dropped in a guard too: a payload's destructor is user code and may panic again.
pub(crate) fn panic_message(payload: Box<dyn Any + Send>) -> Box<str> {
    let text = match payload.downcast_ref::<&str>() {
        Some(text) => (*text).into(),
        None => payload.downcast_ref::<String>().map_or("(no message)", String::as_str).into(),
    };
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    dropped.unwrap_or_else(std::mem::forget);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_counted_and_collected_once() {
        let (panics, mut seen) = (Panics::new(), PanicsSeen::default());
        assert_eq!(panics.guard(UserCode::Logger, || 7), Some(7));
        assert_eq!(panics.collect(&mut seen), []);
        for n in 0..3 {
            assert_eq!(panics.guard(UserCode::Destructor, || panic!("number {n}")), None::<()>);
        }
        let report = PanicReport { code: UserCode::Destructor, times: 3, panic: "number 2".into() };
        assert_eq!(panics.collect(&mut seen), [report]);
        assert_eq!(panics.collect(&mut seen), []);
        assert_eq!(panics.collect(&mut panics.seen_by_now()), []);
    }

    #[test]
    fn a_payload_whose_destructor_panics_is_caught_too() {
        struct Again;
        impl Drop for Again {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let panics = Panics::new();
        assert_eq!(panics.guard(UserCode::Handler, || std::panic::panic_any(Again)), None::<()>);
    }
}
