//! Recordings: what clients received and sent and what happened to them, written down as it goes by, read, served again
//! ([`testing::Server::replay`](crate::testing::Server::replay)) and replayed into a handler
//! ([`testing::replay`](crate::testing::replay)).
//!
//! A recording is JSON, one object a line, in the order of time:
//!
//! | key | what |
//! |---|---|
//! | `ts` | RFC 3339, UTC, microseconds |
//! | `dir` | `in` from the server, `out` to it, `event` |
//! | `type` | `text`, `binary`, `ping`, `pong`, `close`; an event's kind |
//! | `data` | the text; base64 where `binary` is true; an event's fields |
//! | `client`, `epoch` | whose it is, and of which connection |
//! | `mono` | nanoseconds of the monotonic clock since the recorder began |
//! | `socket` | nanoseconds in the kernel, where `ClientConfig::kernel_timestamps` asked for it |
//! | `own` | true: the connection's own, which a handler is not shown as a message |
//! | `code` | a close frame's |
//!
//! The first four, with `binary`, are ZenWebsocket's format; a recording that has no others can be read as well.

mod entry;
mod files;
mod reader;
mod recorder;
mod redact;
pub(crate) mod tap;
mod told;

pub use entry::{Direction, Entry, Frame, Recorded};
pub use reader::{Recording, RecordingError};
pub use recorder::{Recorder, RecorderBuilder, RecorderStatus};
