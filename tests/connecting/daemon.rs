//! Servers that are not ours, each in a process of its own that ends with the test.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::eventually;

/// A folder that is gone when the test is over.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ws-supervisor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file in it with this text.
    pub fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that nobody listens on. Another process may take it before it is used; then the daemon ends, and the test fails
/// and says so.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub struct Daemon {
    child: Child,
    pub port: u16,
    _folder: Folder,
}

/// Where a program is; not every user's PATH has the administrator's folders.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file())
}

/// Starts a program once it is configured in its folder for a port; `None`, which is said, when it is not installed.
pub fn start(program: &str, arguments: impl FnOnce(&Folder, u16) -> Vec<String>) -> Option<Daemon> {
    let Some(file) = find(program) else {
        println!("not here, so passed over: {program}");
        return None;
    };
    let (folder, port) = (Folder::new(), free_port());
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child = Command::new(file)
        .args(arguments(&folder, port))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut daemon = Daemon { child, port, _folder: folder };
    eventually(program, || {
        if let Some(status) = daemon.child.try_wait().unwrap() {
            let log = std::fs::read_to_string(daemon._folder.path().join("log")).unwrap_or_default();
            panic!("{program} has ended: {status}\n{log}");
        }
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    Some(daemon)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
