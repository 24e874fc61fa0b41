//! The streams by their names, and a connection to Redis that is made again when it is lost.

use std::time::Duration;

use redis::{Client, Commands, Connection, RedisResult};

/// Messages of the clients. An entry's id is its number: `7-0` is the seventh message, `9-1` says that those up to the ninth are
/// lost. So a message that is written again after a break is refused the second time.
pub const FEED: &str = "ws:feed";

/// Orders of other machines, and the answers to them, under the order's id.
pub const ORDERS: &str = "ws:orders";
pub const ANSWERS: &str = "ws:answers";

/// The order that was read last, and those that were read and not answered, each with the lease of the gateway that read it.
pub const READ: &str = "ws:orders:read";
pub const OPEN: &str = "ws:orders:open";

/// The readers' group.
pub const READERS: &str = "readers";

/// A Redis that hangs is left before the queue is full.
const PATIENCE: Duration = Duration::from_secs(1);

pub fn connect(url: &str) -> RedisResult<Connection> {
    let connection = Client::open(url)?.get_connection_with_timeout(PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// The number of the last entry; 0 where there is none.
pub fn last_number(connection: &mut Connection, stream: &str) -> RedisResult<u64> {
    let last: redis::streams::StreamRangeReply = connection.xrevrange_count(stream, "+", "-", 1)?;
    Ok(last.ids.first().map_or(0, |entry| number(&entry.id)))
}

pub fn number(id: &str) -> u64 {
    id.split('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Makes a group that begins at the first entry, unless it is there.
pub fn ensure_group(connection: &mut Connection, stream: &str, group: &str) -> RedisResult<()> {
    match connection.xgroup_create_mkstream::<_, _, _, String>(stream, group, "0") {
        Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
        _ => Ok(()),
    }
}
