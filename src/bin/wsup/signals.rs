//! Signals that end the program: SIGINT, SIGTERM and SIGHUP.

use std::io;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether a signal is ignored, as SIGHUP is under `nohup`.
#[allow(unsafe_code, reason = "there is no safe call that asks for a signal's action without changing it")]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: without a new action sigaction(2) only writes the present one to `action`, which is valid for that.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Delivers the first signal that asks for the end; the second ends the process at once, with 128 and its number as the status.
/// SIGHUP stays ignored where it is. SIGINT does not: a shell's script ignores it for each of its background jobs.
pub fn ended_by_signal() -> io::Result<Receiver<()>> {
    let hang_up = Some(SIGHUP).filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hang_up))?;
    let (ends, ended) = bounded(1);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signals = signals.forever();
        signals.next();
        let _ = ends.send(());
        if let Some(second) = signals.next() {
            std::process::exit(128 + second);
        }
    })?;
    Ok(ended)
}
