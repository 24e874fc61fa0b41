//! An [`io::ErrorKind`] in a recording: its name. One that is not in the list is read back as `Other`.

use std::io;

use serde::{Deserialize, Deserializer, Serializer};

/// Kinds of errors that a connect attempt can end with, by the names that std gives them.
const KINDS: [io::ErrorKind; 16] = [
    io::ErrorKind::AddrInUse,
    io::ErrorKind::AddrNotAvailable,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::InvalidInput,
    io::ErrorKind::NetworkDown,
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::NotConnected,
    io::ErrorKind::NotFound,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ResourceBusy,
    io::ErrorKind::TimedOut,
    io::ErrorKind::Unsupported,
];

pub(crate) fn serialize<S: Serializer>(kind: &io::ErrorKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{kind:?}"))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::ErrorKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(KINDS.into_iter().find(|kind| format!("{kind:?}") == name).unwrap_or(io::ErrorKind::Other))
}
