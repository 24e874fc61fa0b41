//! Recordings: what clients received and sent and what happened to them, written down as it goes by, read, served again
//! ([`testing::Server::replay`](crate::testing::Server::replay)) and replayed into a handler
//! ([`testing::replay`](crate::testing::replay)).
//!
//! A recording is JSON, one object a line. The lines of one client are in the order in which things happened:
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
//! | `own` | true: the connection's own, which is not delivered |
//! | `held` | true: came before the session was open, and is delivered later |
//! | `state` | the client's state when it was delivered, where nothing could be sent then |
//! | `code` | a close frame's |
//!
//! Besides [`Event`](crate::Event)s there are steps that a replay repeats:
//!
//! | `type` | what happened |
//! |---|---|
//! | `connected` | a connection is there, and its session is being opened |
//! | `handler` | a handler was made |
//! | `schedule`, `timer` | the handler scheduled a timer (`due` in nanoseconds, as `mono`); a timer fired |
//! | `command` | a value of a caller's was given to the handler |
//! | `request` | the handler made a request under this `id` of the client's |
//! | `released` | the first held message was delivered |
//! | `withheld` | a held message (`nth`, or the last) was taken by the code that opens the session, or dropped |
//! | `lost` | so many `entries` had no room in memory and are missing here |
//!
//! The first four, with `binary`, are ZenWebsocket's format; a recording that has no others can be read as well.

mod entry;
mod files;
mod json;
mod merge;
mod reader;
mod recorder;
mod redact;
mod survey;
pub(crate) mod tap;
mod values;

pub use entry::{Direction, Entry, Frame, Recorded};
pub use reader::{Recording, RecordingError};
pub use recorder::{Recorder, RecorderBuilder, RecorderStatus};
pub use survey::{Survey, Surveyed};
