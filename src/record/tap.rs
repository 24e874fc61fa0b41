//! Where a client's thread, and whoever writes for it, put what is to be recorded: bytes in memory, and nothing waits. The
//! recorder's thread fetches them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Instant;

use parking_lot::Mutex;

use crate::event::Event;
use crate::message::CloseFrame;
use crate::transport::Outgoing;

/// What an entry in memory is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Sort {
    Text,
    Binary,
    Ping,
    Pong,
    /// Two bytes of code, and the reason; or nothing.
    Close,
    /// JSON that is one already.
    Event,
}

impl Sort {
    const ALL: [Self; 6] = [Self::Text, Self::Binary, Self::Ping, Self::Pong, Self::Close, Self::Event];
}

/// An entry as it lies in memory, in front of its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) sort: Sort,
    pub(super) is_out: bool,
    /// The connection claimed it: a heartbeat, an answer.
    pub(super) is_own: bool,
    pub(super) epoch: u64,
    /// Nanoseconds since the recorder began.
    pub(super) at: u64,
    /// For how long the kernel had it; 0: it was not asked.
    pub(super) in_socket: u64,
    pub(super) len: u32,
}

const HEAD: usize = 32;

impl Head {
    fn write(self, to: &mut Vec<u8>) {
        let mut bytes = [0; HEAD];
        (bytes[0], bytes[1], bytes[2]) = (self.sort as u8, self.is_out.into(), self.is_own.into());
        bytes[4..8].copy_from_slice(&self.len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.at.to_ne_bytes());
        bytes[24..].copy_from_slice(&self.in_socket.to_ne_bytes());
        to.extend_from_slice(&bytes);
    }

    /// The first entry, its payload, and the rest.
    pub(super) fn read(from: &[u8]) -> Option<(Self, &[u8], &[u8])> {
        let (bytes, rest) = from.split_at_checked(HEAD)?;
        let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let len = u32::from_ne_bytes(bytes[4..8].try_into().unwrap_or_default());
        let head = Self {
            sort: *Sort::ALL.get(usize::from(bytes[0]))?,
            is_out: bytes[1] != 0,
            is_own: bytes[2] != 0,
            epoch: number(8),
            at: number(16),
            in_socket: number(24),
            len,
        };
        let (payload, rest) = rest.split_at_checked(len as usize)?;
        Some((head, payload, rest))
    }
}

/// Entries are put into pieces of this size, which are used again: nothing is copied as they grow, and their memory is there.
const PIECE: usize = 256 << 10;

/// Pieces that are kept for the next time.
const SPARE: usize = 16;

/// What is put down and not fetched yet.
#[derive(Debug, Default)]
struct Down {
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// Of one client.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Arc<str>,
    begun: Instant,
    limit: usize,
    down: Mutex<Down>,
    epoch: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// The recorder's thread, which is rung when half the room is used up.
    recorder: Thread,
    rung: AtomicBool,
}

impl Shared {
    /// All that came since the last time, in pieces.
    pub(super) fn fetch(&self) -> Vec<Vec<u8>> {
        self.rung.store(false, Ordering::Relaxed);
        let mut down = self.down.lock();
        let next = down.spare.pop().unwrap_or_default();
        let last = std::mem::replace(&mut down.last, next);
        down.bytes = 0;
        let mut pieces = std::mem::take(&mut down.full);
        pieces.extend(Some(last).filter(|last| !last.is_empty()));
        pieces
    }

    /// Pieces that were fetched and written, to be used again.
    pub(super) fn give_back(&self, pieces: Vec<Vec<u8>>) {
        let mut down = self.down.lock();
        for mut piece in pieces {
            // One for a large message is nothing to keep.
            if piece.capacity() == PIECE && down.spare.len() < SPARE {
                piece.clear();
                down.spare.push(piece);
            }
        }
    }
}

/// A client's end.
#[derive(Clone, Debug)]
pub(crate) struct Tap(Arc<Shared>);

impl Tap {
    pub(super) fn new(client: Arc<str>, begun: Instant, limit: usize, recorder: Thread) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared {
            client,
            begun,
            limit,
            down: Mutex::default(),
            epoch: 0.into(),
            dropped: 0.into(),
            recorder,
            rung: false.into(),
        });
        (Self(shared.clone()), shared)
    }

    /// What comes from now on is of this connection.
    pub(crate) fn begin(&self, epoch: u64) {
        self.0.epoch.store(epoch, Ordering::Relaxed);
    }

    fn put(&self, sort: Sort, is_out: bool, is_own: bool, at: Instant, in_socket: u64, payload: [&[u8]; 2]) {
        let shared = &*self.0;
        let at = at.saturating_duration_since(shared.begun).as_nanos() as u64;
        let len = payload[0].len() + payload[1].len();
        let epoch = shared.epoch.load(Ordering::Relaxed);
        let mut down = shared.down.lock();
        let (before, after) = (down.bytes, down.bytes + HEAD + len);
        // One entry always has room, whatever its length.
        if before > 0 && after > shared.limit {
            drop(down);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if down.last.capacity() - down.last.len() < HEAD + len {
            let next = down.spare.pop().unwrap_or_else(|| Vec::with_capacity(PIECE));
            let last = std::mem::replace(&mut down.last, next);
            down.full.extend(Some(last).filter(|last| !last.is_empty()));
        }
        down.bytes = after;
        Head { sort, is_out, is_own, epoch, at, in_socket, len: len as u32 }.write(&mut down.last);
        payload.iter().for_each(|part| down.last.extend_from_slice(part));
        drop(down);
        if after > shared.limit / 2 && !shared.rung.swap(true, Ordering::Relaxed) {
            shared.recorder.unpark();
        }
    }

    /// A message that came. `is_own`: the connection claimed it.
    pub(crate) fn message(&self, message: crate::message::MessageRef<'_>, is_own: bool, at: Instant) {
        let sort = if message.is_text() { Sort::Text } else { Sort::Binary };
        let in_socket = message.time_in_socket().map_or(0, |time| time.as_nanos() as u64);
        self.put(sort, false, is_own, at, in_socket, [message.as_bytes(), &[]]);
    }

    /// A control frame that came.
    pub(crate) fn control(&self, sort: Sort, payload: &[u8], at: Instant) {
        self.put(sort, false, true, at, 0, [payload, &[]]);
    }

    /// The answer to a ping, which leaves by itself.
    pub(crate) fn answered(&self, payload: &[u8], at: Instant) {
        self.put(Sort::Pong, true, true, at, 0, [payload, &[]]);
    }

    pub(crate) fn close(&self, frame: Option<&CloseFrame>, is_out: bool) {
        let now = Instant::now();
        match frame {
            None => self.put(Sort::Close, is_out, true, now, 0, [&[], &[]]),
            Some(CloseFrame { code, reason }) => {
                self.put(Sort::Close, is_out, true, now, 0, [&code.to_be_bytes(), reason.as_bytes()]);
            }
        }
    }

    /// A message of the caller's, or the connection's own, that the kernel has.
    pub(crate) fn sent(&self, message: &crate::message::Message, is_own: bool) {
        let sort = if message.is_text() { Sort::Text } else { Sort::Binary };
        self.put(sort, true, is_own, Instant::now(), 0, [message.as_bytes(), &[]]);
    }

    /// What the connection sends on its own account.
    pub(crate) fn outgoing(&self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::Message(message) => self.sent(message, true),
            Outgoing::Ping(payload) => self.put(Sort::Ping, true, true, Instant::now(), 0, [payload, &[]]),
            Outgoing::Close(frame) => self.close(Some(frame), true),
        }
    }

    /// What happened. The two that say how something ended are told where it does.
    pub(crate) fn event(&self, event: &Event) {
        if let Some(json) = super::told::told(event) {
            self.put(Sort::Event, false, false, Instant::now(), 0, [json.to_string().as_bytes(), &[]]);
        }
    }
}
