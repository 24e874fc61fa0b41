//! A running supervisor, seen from another process: over a Unix socket, a line of JSON at a time. `wsup top` attaches to it.
//!
//! Each connection is sent a [`Status`] at once and every half second after. Where commands are allowed, each line that
//! comes is one: `{"do": "restart", "client": "feed"}`, with `restart`, `resume` or `stop`; the answer is a line
//! `{"done": "restart feed"}` or `{"refused": "…"}` among the others. A line `{"closing": "…"}` says why no more follows.

mod snapshot;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::snapshot::{ClientStatus, Status, StatusEvent};
use crate::client::Supervises;
use crate::logger;
use crate::supervisor::{Supervisor, Table};

/// The commands that a connection to a [`StatusServer`] may give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StatusAccess {
    /// Look.
    #[default]
    ReadOnly,
    /// Look, and restart, resume and stop clients.
    Commands,
}

/// A command, as a line has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum StatusCommand {
    /// [`Supervisor::restart_client`].
    Restart {
        /// Its name.
        client: String,
    },
    /// [`Supervisor::resume_client`].
    Resume {
        /// Its name.
        client: String,
    },
    /// [`Supervisor::stop_client`].
    Stop {
        /// Its name.
        client: String,
    },
}

/// How often a status is sent.
const EVERY: Duration = Duration::from_millis(500);

/// How often the thread looks whether it should end.
const LOOK: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long after a failure the next is let in.
const AGAIN: Duration = Duration::from_millis(200);

/// Connections at once; one more is refused.
const MOST: usize = 16;

/// A line longer than this is no command.
const LONGEST: usize = 4096;

/// How long a peer that reads nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends a supervisor's status to each connection. Dropping it ends that and removes the socket.
#[derive(Debug)]
#[must_use = "dropping it closes the status socket"]
pub struct StatusServer {
    path: PathBuf,
    /// Which file there is ours.
    identity: (u64, u64),
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    lock: Lock,
}

/// The right to serve at a path: a file beside it that is locked (flock(2)) as long as its process lives.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    fn take(socket: &Path) -> io::Result<Self> {
        let mut name = socket.file_name().unwrap_or_default().to_owned();
        name.push(".lock");
        let path = socket.with_file_name(name);
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(
                |error| {
                    io::Error::new(
                        error.kind(),
                        format!("{}: {error}: another user's desk may serve here", path.display()),
                    )
                },
            )?;
            if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(io::Error::new(ErrorKind::AddrInUse, "another desk serves its status here"));
            }
            // The one before may have removed it between the two calls.
            let own = file.metadata()?;
            if identity(&path).is_ok_and(|there| there == (own.dev(), own.ino())) {
                return Ok(Self { path, file });
            }
        }
    }

    /// Called while the lock is held.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

impl Supervisor {
    /// Serves its status at this path, which only this user may connect to (mode 0600). It has one thread, and
    /// one more for each connection; the clients' threads are not touched.
    ///
    /// # Errors
    /// When the socket can't be made: another process serves there, or another user's did, the folder is not there or not
    /// writable, the path is too long for a socket (some 95 bytes are fine). The socket of a process that is gone is replaced. A
    /// file beside it, `PATH.lock`, keeps two processes from one path, also when they start at once; it is removed at the end.
    ///
    /// ```
    /// use ws_supervisor::Supervisor;
    /// use ws_supervisor::status_server::StatusAccess;
    ///
    /// let supervisor = Supervisor::start()?;
    /// # let path = std::env::temp_dir().join(format!("status-doc-{}.sock", std::process::id()));
    /// let serving = supervisor.serve_status(&path, StatusAccess::ReadOnly)?;
    /// assert!(path.exists());
    /// drop(serving);
    /// assert!(!path.exists());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn serve_status(&self, path: impl AsRef<Path>, access: StatusAccess) -> io::Result<StatusServer> {
        let path = path.as_ref().to_owned();
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let lock = Lock::take(&path).map_err(at)?;
        let listener = listen(&path).map_err(at)?;
        let ends = Arc::new(AtomicBool::new(false));
        let (table, flag) = (Arc::downgrade(self.table()), ends.clone());
        let thread = std::thread::Builder::new()
            .name("status".into())
            .spawn(move || accept(&listener, &table, access, &flag))?;
        Ok(StatusServer {
            identity: identity(&path).map_err(at)?,
            path: path.clone(),
            ends,
            thread: Some(thread),
            lock,
        })
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Another file may be there by now.
        if identity(&self.path).ok() == Some(self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        self.lock.remove();
    }
}

/// The socket is made in a folder that is this user's alone, and is given its mode before it is moved to where it can be found.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(ErrorKind::AddrInUse, "another desk serves its status here")),
        // Left by a process that is gone, or never there.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
        // A file that is no socket: see below.
        Err(error) if error.kind() == ErrorKind::Other || error.raw_os_error() == Some(libc::ENOTSOCK) => {}
        Err(error) => return Err(error),
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !FileTypeExt::is_socket(&found.file_type()) => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        _ => {}
    }
    let folder = path.with_file_name(format!(".{:08x}", fastrand::u32(..)));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let hidden = folder.join("s");
    let made = UnixListener::bind(&hidden).and_then(|listener| {
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        fs::rename(&hidden, path)?;
        Ok(listener)
    });
    let _ = fs::remove_file(&hidden);
    let _ = fs::remove_dir(&folder);
    made
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn accept(listener: &UnixListener, table: &Weak<Table>, access: StatusAccess, ends: &Arc<AtomicBool>) {
    let open = Arc::new(AtomicUsize::new(0));
    while !ends.load(Ordering::Acquire) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut polled = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut polled, Some(&LOOK));
                continue;
            }
            Err(error) => {
                // No descriptors to be had, for one: that passes.
                logger::error!("the status is not served to one that asked: {error}");
                std::thread::sleep(AGAIN);
                continue;
            }
        };
        if stream.set_nonblocking(false).is_err() {
            continue;
        }
        if open.fetch_add(1, Ordering::Relaxed) >= MOST {
            open.fetch_sub(1, Ordering::Relaxed);
            refuse(stream);
            continue;
        }
        let (table, ends, counted) = (table.clone(), ends.clone(), open.clone());
        let serve = move || {
            // A peer that is gone is no fault.
            let _ = serve(stream, &table, access, &ends);
            counted.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("status-peer".into()).spawn(serve).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Says why no status is sent. A line this short has room in a new socket.
fn refuse(stream: UnixStream) {
    let reason = format!("{MOST} others read this status already, and more are not served");
    let socket = socket2::Socket::from(stream);
    let _ = socket.set_nonblocking(true);
    let _ = writeln!(WithoutSignal(socket), "{}", json!({ "closing": reason }));
}

/// Writes to a peer that may be gone without raising `SIGPIPE`, which ends a C or C++ host that left the signal at its default.
/// The standard library of Rust 1.85 asks for that on TCP sockets only.
struct WithoutSignal(socket2::Socket);

impl Write for WithoutSignal {
    #[cfg(not(target_vendor = "apple"))]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    /// Apple's systems have an option of the socket in place of the flag.
    #[cfg(target_vendor = "apple")]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn serve(stream: UnixStream, table: &Weak<Table>, access: StatusAccess, ends: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(EVERY))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut out = WithoutSignal(socket2::Socket::from(stream.try_clone()?));
    #[cfg(target_vendor = "apple")]
    out.0.set_nosigpipe(true)?;
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    while !ends.load(Ordering::Acquire) {
        let Some(table) = table.upgrade() else {
            return writeln!(out, "{}", json!({ "closing": "the desk's supervisor has ended" }));
        };
        let status = serde_json::to_string(&table.status())?;
        writeln!(out, "{status}")?;
        let room = (LONGEST + 1).saturating_sub(line.len()) as u64;
        match lines.by_ref().take(room).read_until(b'\n', &mut line) {
            Ok(_) if line.len() > LONGEST => return Ok(()),
            Ok(0) => return Ok(()),
            // The end came within a line.
            Ok(_) if !line.ends_with(b"\n") => return Ok(()),
            Ok(_) if ends.load(Ordering::Acquire) => return Ok(()),
            Ok(_) => {
                let answer = match answer(&table, access, &line) {
                    Ok(done) => json!({ "done": done }),
                    Err(refused) => json!({ "refused": refused }),
                };
                line.clear();
                writeln!(out, "{answer}")?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn answer(table: &Arc<Table>, access: StatusAccess, line: &[u8]) -> Result<String, String> {
    let command: StatusCommand = serde_json::from_slice(line).map_err(|error| format!("no command: {error}"))?;
    if access == StatusAccess::ReadOnly {
        return Err("this status is served read-only".into());
    }
    obey(table, &command)
}

pub(crate) fn obey(table: &Arc<Table>, command: &StatusCommand) -> Result<String, String> {
    let (StatusCommand::Restart { client } | StatusCommand::Resume { client } | StatusCommand::Stop { client }) =
        command;
    let id = table.find(client).ok_or_else(|| format!("there is no client `{client}`"))?.core.tag.id;
    let (what, result) = match command {
        StatusCommand::Restart { .. } => ("restart", table.restart(id)),
        StatusCommand::Resume { .. } => ("resume", table.resume(id)),
        StatusCommand::Stop { .. } => ("stop", table.clone().stop(id)),
    };
    result.map(|()| format!("{what} {client}")).map_err(|error| error.to_string())
}

impl Supervisor {
    /// Does what a line to [`serve_status`](Supervisor::serve_status) would, and says what was done.
    ///
    /// # Errors
    /// Why it was not done, in words.
    ///
    /// ```
    /// use ws_supervisor::Supervisor;
    /// use ws_supervisor::status_server::StatusCommand;
    /// let supervisor = Supervisor::start()?;
    /// let refused = supervisor.obey(&StatusCommand::Stop { client: "unknown".into() });
    /// assert_eq!(refused, Err("there is no client `unknown`".into()));
    /// # Ok::<(), ws_supervisor::StartError>(())
    /// ```
    pub fn obey(&self, command: &StatusCommand) -> Result<String, String> {
        obey(self.table(), command)
    }
}
