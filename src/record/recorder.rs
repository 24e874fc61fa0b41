//! The recorder: one thread that fetches what clients put down, and writes it. No client ever waits for it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::entry;
use super::files::{Files, Rules};
use super::merge::{Entries, Merged};
use super::redact::Redaction;
use super::tap::{self, Tap};
use crate::logger;

/// How often what was put down is fetched and written.
const EVERY: Duration = Duration::from_millis(100);

/// Dropped entries are logged no more often than this.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Bytes of lines that are written in one go. A single longer line is written by itself.
const AT_ONCE: usize = 256 << 10;

/// How long the last handle waits for what is still to be written.
const AT_THE_END: Duration = Duration::from_secs(5);

/// Settings of a [`Recorder`]. Made by [`Recorder::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct RecorderBuilder {
    path: PathBuf,
    rules: Rules,
    buffer: usize,
    redaction: Redaction,
    with_secrets: bool,
}

impl RecorderBuilder {
    /// Begins the next file (`name.1.ext`, `name.2.ext`) when the one at hand has this many bytes, before compression.
    /// Defaults to never.
    pub fn rotate_bytes(mut self, bytes: u64) -> Self {
        self.rules.rotate_bytes = Some(bytes.max(1));
        self
    }

    /// Begins the next file when the one at hand is that old. Defaults to never.
    pub fn rotate_every(mut self, time: Duration) -> Self {
        self.rules.rotate_every = Some(time);
        self
    }

    /// Compresses with zstd at this level (1 to 22; 3 is zstd's own default); name the file `.jsonl.zst`. Defaults to plain
    /// text.
    #[cfg(feature = "zstd")]
    #[cfg_attr(docsrs, doc(cfg(feature = "zstd")))]
    pub fn zstd(mut self, level: i32) -> Self {
        self.rules.zstd = Some(level);
        self
    }

    /// How many bytes of one client wait in memory for the disk, those being written included, before entries are dropped,
    /// and counted. Defaults to 64 MiB.
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.buffer = bytes;
        self
    }

    /// Records secrets as they are. By default `[redacted]` takes the place of the values of names that are known to hold
    /// secrets (`client_secret`, `signature`, `access_token`, `passphrase`, `apiKey`, in any case, with `_`, `-` or without), in
    /// both directions, in JSON, in JSON within a text of JSON, and in `name=value`; and of what an `auth` or `login` is given as a
    /// list. A venue may use other names: add them with [`redact`](RecorderBuilder::redact), and look with
    /// `wsup check-recording` before you hand a recording on.
    pub fn with_secrets(mut self) -> Self {
        self.with_secrets = true;
        self
    }

    /// Names of your own whose values are secrets, in any case, with `_`, `-` or without.
    ///
    /// ```
    /// # use ws_supervisor::record::Recorder;
    /// let recorder = Recorder::builder("desk.jsonl").redact(["account_pin", "x-desk-id"]);
    /// # drop(recorder);
    /// ```
    pub fn redact<N: AsRef<str>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.redaction.add(names);
        self
    }

    /// The folder of the file.
    #[cfg(feature = "serde")]
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Opens the file, whose folder must exist, and starts the recorder's thread. A new file can be read and written by its owner
    /// alone (mode 0600). A recording that is there already goes on, in its file with the highest number: nothing is written over,
    /// also when older files have been moved away.
    ///
    /// # Errors
    /// When the file can't be opened, another recorder has it (one that is just ending is waited for, a second at most), or the
    /// system has no thread; the path is in the message.
    pub fn start(self) -> io::Result<Recorder> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let files = Files::open(&self.path, self.rules.clone()).map_err(at)?;
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            redaction: Some(self.redaction).filter(|_| !self.with_secrets),
            taps: Mutex::default(),
            status: Mutex::new(RecorderStatus { file: files.path(), ..RecorderStatus::default() }),
            passes: Mutex::new(0),
            passed: Condvar::new(),
            ends: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let thread = std::thread::Builder::new().name("recorder".into()).spawn({
            let shared = shared.clone();
            move || shared.run(files)
        })?;
        Ok(Recorder(Arc::new(Owner { shared, thread: Some(thread), buffer: self.buffer })))
    }
}

/// How a [`Recorder`] does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecorderStatus {
    /// Entries written.
    pub written: u64,
    /// Entries that are lost: the disk was too slow for the buffer, or took nothing.
    pub dropped: u64,
    /// Bytes written, before compression.
    pub bytes: u64,
    /// The file at hand.
    pub file: PathBuf,
    /// Why nothing can be written at the moment, if that is so. It is tried again ten times a second.
    pub fault: Option<String>,
}

/// Records what clients receive and send, and what happens to them, to a file: JSON lines of `ts`, `dir`, `type`, `data`, and
/// where it is base64 `binary`, as [`entry`](super::Entry) has them. Given to clients by
/// [`ClientConfig::record`](crate::ClientConfig::record); clones are handles of the same.
///
/// A client copies each frame into memory and goes on; a thread of the recorder's own writes every 100 ms. A disk that is slow
/// or full stops no client: entries are dropped, counted and logged. The last handle, those in clients and
/// configurations among them, ends the thread when it is dropped, after all is written; a disk that does not answer is waited for
/// for five seconds.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::record::{Recorder, Recording};
/// use ws_supervisor::{Client, ClientConfig, testing::Server};
///
/// # let folder = std::env::temp_dir().join(format!("recorder-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("feed.jsonl");
/// let recorder = Recorder::start(&path)?;
/// let server = Server::echo()?;
/// let client = Client::connect(ClientConfig::new(server.url())?.name("feed").record(&recorder))?;
/// client.send("tick")?;
/// client.events().iter().find(|event| matches!(event, ws_supervisor::Event::Message(_)));
/// assert!(recorder.flush(Duration::from_secs(30)));
/// let ticks = Recording::open(&path)?.filter_map(Result::ok).filter(|entry| entry.message().is_some());
/// assert_eq!(ticks.count(), 1);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use = "dropping the last handle ends the recording"]
pub struct Recorder(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    buffer: usize,
}

impl Recorder {
    /// To this file, which may be there already, with the defaults.
    ///
    /// # Errors
    /// As for [`RecorderBuilder::start`].
    pub fn start(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::builder(path).start()
    }

    /// Other settings than the defaults.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ws_supervisor::record::Recorder;
    /// let nowhere = Recorder::builder("/no/such/folder/a.jsonl").rotate_bytes(1 << 30).rotate_every(Duration::from_secs(3600));
    /// let error = nowhere.start().unwrap_err();
    /// assert!(error.to_string().starts_with("/no/such/folder/a.jsonl: "));
    /// ```
    pub fn builder(path: impl AsRef<Path>) -> RecorderBuilder {
        RecorderBuilder {
            path: path.as_ref().to_owned(),
            rules: Rules::default(),
            buffer: 64 << 20,
            redaction: Redaction::default(),
            with_secrets: false,
        }
    }

    /// How it does.
    pub fn status(&self) -> RecorderStatus {
        let shared = &self.0.shared;
        let waiting: u64 = shared.taps.lock().iter().map(|tap| tap.dropped.load(Ordering::Relaxed)).sum();
        let dropped = shared.dropped.load(Ordering::Relaxed) + waiting;
        RecorderStatus { dropped, ..shared.status.lock().clone() }
    }

    /// Waits until all that came before is written, or has failed to be. False when that takes longer.
    pub fn flush(&self, at_most: Duration) -> bool {
        let shared = &self.0.shared;
        let mut passes = shared.passes.lock();
        // The pass that is under way may have looked already.
        let enough = *passes + 2;
        let until = crate::deadline::later(Instant::now(), at_most);
        while *passes < enough {
            if let Some(thread) = &self.0.thread {
                thread.thread().unpark();
            }
            if shared.passed.wait_until(&mut passes, until).timed_out() {
                return *passes >= enough;
            }
        }
        true
    }

    /// A client's end of it.
    pub(crate) fn tap(&self, client: Arc<str>) -> Option<Tap> {
        let thread = self.0.thread.as_ref()?.thread().clone();
        let (tap, shared) = Tap::new(client, self.0.shared.begun, self.0.buffer, thread);
        self.0.shared.taps.lock().push(shared);
        Some(tap)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread that drops the last handle may be trading: a disk that hangs is waited for this long at most.
            let until = crate::deadline::later(Instant::now(), AT_THE_END);
            let mut passes = self.shared.passes.lock();
            while !self.shared.ended.load(Ordering::Acquire) {
                if self.shared.passed.wait_until(&mut passes, until).timed_out() {
                    drop(passes);
                    logger::error!(
                        "the recorder's disk does not answer: its thread is abandoned, and entries that are not written are lost"
                    );
                    return;
                }
            }
            drop(passes);
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.status()).finish()
    }
}

struct Shared {
    begun: Instant,
    redaction: Option<Redaction>,
    taps: Mutex<Vec<Arc<tap::Shared>>>,
    status: Mutex<RecorderStatus>,
    /// How often all was looked at.
    passes: Mutex<u64>,
    passed: Condvar,
    ends: AtomicBool,
    /// All is written that will be.
    ended: AtomicBool,
    /// Of clients that are gone, and what the disk did not take.
    dropped: AtomicU64,
}

impl Shared {
    fn run(&self, mut files: Files) {
        let (mut lines, mut logged) = (String::new(), (0, None));
        loop {
            // Asked first: what was put down before the end is still fetched.
            let ends = self.ends.load(Ordering::Acquire);
            let taps = self.pass(&mut files, &mut lines);
            self.log_dropped(&taps, &mut logged);
            *self.passes.lock() += 1;
            self.passed.notify_all();
            if ends {
                break;
            }
            std::thread::park_timeout(EVERY);
        }
        if let Err(error) = files.end() {
            logger::error!("recording to {}: its end is not written: {error}", files.path().display());
        }
        let _passes = self.passes.lock();
        self.ended.store(true, Ordering::Release);
        self.passed.notify_all();
    }

    /// Fetches what all clients put down, and writes it in the order of time.
    fn pass(&self, files: &mut Files, lines: &mut String) -> Vec<Arc<tap::Shared>> {
        let taps = {
            let mut taps = self.taps.lock();
            let all = taps.clone();
            // A client that has ended puts nothing more: its entries are fetched for the last time now.
            taps.retain(|tap| {
                let is_used = Arc::strong_count(tap) > 2;
                if !is_used {
                    self.dropped.fetch_add(tap.dropped.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                is_used
            });
            all
        };
        let fetched: Vec<_> = taps.iter().map(|tap| (tap, tap.fetch())).collect();
        let (now, wall) = (Instant::now().saturating_duration_since(self.begun), SystemTime::now());
        let streams = fetched.iter().map(|(tap, pieces)| Entries::new(&tap.client, pieces));
        let mut entries = 0;
        for (head, payload, client) in Merged::new(streams) {
            let ago = now.saturating_sub(Duration::from_nanos(head.at));
            entry::write(head, payload, client, wall - ago, self.redaction.as_ref(), lines);
            entries += 1;
            if lines.len() >= AT_ONCE {
                self.write(files, lines, &mut entries);
            }
        }
        self.write(files, lines, &mut entries);
        fetched.into_iter().for_each(|(tap, pieces)| tap.give_back(pieces));
        taps
    }

    fn write(&self, files: &mut Files, lines: &mut String, entries: &mut u64) {
        if *entries > 0 {
            self.settle(files.write(lines.as_bytes()), files, std::mem::take(entries), lines.len());
        }
        lines.clear();
        lines.shrink_to(2 * AT_ONCE);
    }

    fn settle(&self, result: io::Result<()>, files: &Files, entries: u64, bytes: usize) {
        let file = files.path();
        let fault = result.err().map(|error| error.to_string());
        let before = {
            let mut status = self.status.lock();
            status.file = file.clone();
            if fault.is_none() {
                status.written += entries;
                status.bytes += bytes as u64;
            } else {
                self.dropped.fetch_add(entries, Ordering::Relaxed);
            }
            std::mem::replace(&mut status.fault, fault.clone())
        };
        // A logger is not ours: no lock is held.
        let file = file.display();
        match (before, fault) {
            (None, Some(fault)) => {
                logger::error!("recording to {file} fails, and what it would have held is lost: {fault}")
            }
            (Some(_), None) => {
                logger::warn!("recording to {file} goes on; {} entries are lost", self.dropped.load(Ordering::Relaxed));
            }
            _ => {}
        }
    }

    /// Logs entries that had no room in memory, at most once in ten seconds.
    fn log_dropped(&self, taps: &[Arc<tap::Shared>], logged: &mut (u64, Option<Instant>)) {
        let of_taps: u64 = taps.iter().map(|tap| tap.dropped.load(Ordering::Relaxed)).sum();
        let now = Instant::now();
        if of_taps > logged.0 && logged.1.is_none_or(|at| now >= at + LOG_EVERY) {
            logger::error!(
                "the recorder's disk is too slow: {} entries more have no room and are lost",
                of_taps - logged.0
            );
            *logged = (of_taps, Some(now));
        }
        logged.0 = logged.0.min(of_taps);
    }
}
