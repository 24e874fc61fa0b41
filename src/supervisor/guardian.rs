//! The guardian: replaces the supervisor's thread whenever that panics. The table outlives the thread; a new one adopts what
//! it finds.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::event::SupervisorEvent;
use super::table::Table;
use crate::metrics;
use crate::worker::thread::panic_message;

/// Pause before a thread that the system did not give is asked for again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Starts the guardian, which starts the supervisor's thread, and again whenever that panics.
pub(super) fn guard(table: &Arc<Table>) -> io::Result<JoinHandle<()>> {
    let table = table.clone();
    std::thread::Builder::new().name("ws-guardian".into()).spawn(move || {
        loop {
            let supervised = table.clone();
            let thread = std::thread::Builder::new().name("ws-supervisor".into()).spawn(move || supervised.run());
            match thread.map(JoinHandle::join) {
                Ok(Ok(())) => return,
                Ok(Err(payload)) => {
                    let panic = panic_message(payload.as_ref());
                    log::error!("the supervisor's thread panicked and is replaced: {panic}");
                    metrics::recovered();
                    table.tell(SupervisorEvent::Recovered { panic });
                }
                Err(error) => {
                    log::error!("no thread for the supervisor, trying again: {error}");
                    std::thread::sleep(TRY_AGAIN);
                }
            }
        }
    })
}
