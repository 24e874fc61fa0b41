//! Where a client's thread, and every thread that writes for it, put the entries of a recording: bytes in memory, without
//! waiting. The recorder's thread fetches them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use crate::event::Event;
use crate::message::CloseFrame;
use crate::request::RequestId;
use crate::state::ReadyState;
use crate::transport::Outgoing;

/// The kind of an entry in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Sort {
    Text,
    Binary,
    Ping,
    Pong,
    /// Two bytes of code, and the reason; or nothing.
    Close,
    /// JSON: an event, or a step of the client that a replay repeats.
    Event,
}

impl Sort {
    const ALL: [Self; 6] = [Self::Text, Self::Binary, Self::Ping, Self::Pong, Self::Close, Self::Event];
}

/// Whether a message or an event is delivered when it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Delivered at once, on an open connection; or in this state, in which nothing can be sent.
    Now(Option<ReadyState>),
    /// Held until the session is open.
    Held,
    /// Never: it is the connection's own.
    Never,
}

/// A step of the client that is no [`Event`], and that a replay repeats.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub(super) enum Step {
    /// A connection is there; its session is not open yet.
    Connected {},
    /// A handler was made.
    Handler {},
    /// A timer fired.
    Timer { token: u64 },
    /// The handler scheduled a timer; `due` is in nanoseconds since the recorder began.
    Schedule { token: u64, due: u64 },
    /// A value of a caller's was given to the handler.
    Command {},
    /// The handler made a request under a number of the client's.
    Request { id: u64 },
    /// The first of the held messages was delivered.
    Released {},
    /// A held message is not delivered: code that opens the session took it, or it was dropped. `None`: the last one.
    Withheld { nth: Option<usize> },
    /// Entries had no room in memory and are not in the recording.
    Lost { entries: u64 },
}

/// States, by the number that stands for them in memory; 0 is none.
const STATES: [ReadyState; 6] = [
    ReadyState::Connecting,
    ReadyState::Open,
    ReadyState::Closing,
    ReadyState::Closed,
    ReadyState::Backoff,
    ReadyState::Parked,
];

/// An entry as it lies in memory, in front of its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) sort: Sort,
    pub(super) is_out: bool,
    pub(super) shown: Shown,
    pub(super) epoch: u64,
    /// Nanoseconds since the recorder began.
    pub(super) at: u64,
    /// For how long the kernel had it; 0: the kernel was not asked.
    pub(super) in_socket: u64,
    pub(super) len: u32,
}

const HEAD: usize = 32;

impl Head {
    fn write(self, to: &mut Vec<u8>) {
        let mut bytes = [0; HEAD];
        let (shown, state) = match self.shown {
            Shown::Now(state) => {
                (0, state.map_or(0, |state| STATES.iter().take_while(|one| **one != state).count() + 1))
            }
            Shown::Held => (1, 0),
            Shown::Never => (2, 0),
        };
        (bytes[0], bytes[1], bytes[2], bytes[3]) = (self.sort as u8, self.is_out.into(), shown, state as u8);
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
            shown: match bytes[2] {
                0 => Shown::Now(usize::from(bytes[3]).checked_sub(1).and_then(|state| STATES.get(state).copied())),
                1 => Shown::Held,
                _ => Shown::Never,
            },
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

/// Entries that are not written yet.
#[derive(Debug, Default)]
struct Unwritten {
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
    /// Bytes here and in the pieces that the recorder's thread has fetched and not given back.
    bytes: usize,
    spare: Vec<Vec<u8>>,
    /// Entries that had no room since the last one that had.
    lost: u64,
}

impl Unwritten {
    fn push(&mut self, head: Head, payload: [&[u8]; 2]) {
        let size = HEAD + head.len as usize;
        if self.last.capacity() - self.last.len() < size {
            let next = self.spare.pop().filter(|_| size <= PIECE);
            let next = next.unwrap_or_else(|| Vec::with_capacity(PIECE.max(size)));
            let last = std::mem::replace(&mut self.last, next);
            self.full.extend(Some(last).filter(|last| !last.is_empty()));
        }
        self.bytes += size;
        head.write(&mut self.last);
        payload.iter().for_each(|part| self.last.extend_from_slice(part));
    }
}

/// Of one client.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Arc<str>,
    begun: Instant,
    limit: usize,
    unwritten: Mutex<Unwritten>,
    epoch: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// The recorder's thread, which is woken when half the room is used up.
    recorder: Thread,
    is_woken: AtomicBool,
}

impl Shared {
    /// All that came since the last time, in pieces.
    pub(super) fn fetch(&self) -> Vec<Vec<u8>> {
        self.is_woken.store(false, Ordering::Relaxed);
        let mut unwritten = self.unwritten.lock();
        let next = unwritten.spare.pop().unwrap_or_default();
        let last = std::mem::replace(&mut unwritten.last, next);
        let mut pieces = std::mem::take(&mut unwritten.full);
        pieces.extend(Some(last).filter(|last| !last.is_empty()));
        pieces
    }

    /// Pieces that were fetched and written: their room is free again.
    pub(super) fn give_back(&self, pieces: Vec<Vec<u8>>) {
        let mut unwritten = self.unwritten.lock();
        for mut piece in pieces {
            unwritten.bytes -= piece.len();
            // One that was made for a large message is not kept.
            if piece.capacity() == PIECE && unwritten.spare.len() < SPARE {
                piece.clear();
                unwritten.spare.push(piece);
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
            unwritten: Mutex::default(),
            epoch: 0.into(),
            dropped: 0.into(),
            recorder,
            is_woken: false.into(),
        });
        (Self(shared.clone()), shared)
    }

    /// A connection is there: what follows is of this epoch.
    pub(crate) fn connected(&self, epoch: u64) {
        self.0.epoch.store(epoch, Ordering::Relaxed);
        self.step(Step::Connected {}, Shown::Never, Instant::now());
    }

    /// Nanoseconds since the recorder began.
    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.0.begun).as_nanos() as u64
    }

    fn put(&self, sort: Sort, is_out: bool, shown: Shown, at: Instant, in_socket: u64, payload: [&[u8]; 2]) {
        let shared = &*self.0;
        let (at, epoch) = (self.nanos(at), shared.epoch.load(Ordering::Relaxed));
        let len = payload[0].len() + payload[1].len();
        let mut unwritten = shared.unwritten.lock();
        // One entry always has room, however long it is.
        if unwritten.bytes > 0 && unwritten.bytes + HEAD + len > shared.limit {
            unwritten.lost += 1;
            drop(unwritten);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if unwritten.lost > 0 {
            let entries = std::mem::take(&mut unwritten.lost);
            let json = serde_json::to_vec(&Step::Lost { entries }).unwrap_or_default();
            let len = json.len() as u32;
            let head = Head { sort: Sort::Event, is_out: false, shown: Shown::Never, epoch, at, in_socket: 0, len };
            unwritten.push(head, [&json, &[]]);
        }
        unwritten.push(Head { sort, is_out, shown, epoch, at, in_socket, len: len as u32 }, payload);
        let is_half_full = unwritten.bytes > shared.limit / 2;
        drop(unwritten);
        if is_half_full && !shared.is_woken.swap(true, Ordering::Relaxed) {
            shared.recorder.unpark();
        }
    }

    /// A message that came.
    pub(crate) fn message(&self, message: crate::message::MessageRef<'_>, shown: Shown, at: Instant) {
        let sort = if message.is_text() { Sort::Text } else { Sort::Binary };
        let in_socket = message.time_in_socket().map_or(0, |time| time.as_nanos() as u64);
        self.put(sort, false, shown, at, in_socket, [message.as_bytes(), &[]]);
    }

    /// A control frame that came.
    pub(crate) fn control(&self, sort: Sort, payload: &[u8], at: Instant) {
        self.put(sort, false, Shown::Never, at, 0, [payload, &[]]);
    }

    /// The answer to a ping, which is written by the transport.
    pub(crate) fn answered(&self, payload: &[u8], at: Instant) {
        self.put(Sort::Pong, true, Shown::Never, at, 0, [payload, &[]]);
    }

    pub(crate) fn close(&self, frame: Option<&CloseFrame>, is_out: bool) {
        let now = Instant::now();
        match frame {
            None => self.put(Sort::Close, is_out, Shown::Never, now, 0, [&[], &[]]),
            Some(CloseFrame { code, reason }) => {
                self.put(Sort::Close, is_out, Shown::Never, now, 0, [&code.to_be_bytes(), reason.as_bytes()]);
            }
        }
    }

    /// A message of the caller's, or the connection's own, that the kernel has.
    pub(crate) fn sent(&self, message: &crate::message::Message, is_own: bool) {
        let sort = if message.is_text() { Sort::Text } else { Sort::Binary };
        let shown = if is_own { Shown::Never } else { Shown::Now(None) };
        self.put(sort, true, shown, Instant::now(), 0, [message.as_bytes(), &[]]);
    }

    /// A frame that the connection sends by itself.
    pub(crate) fn outgoing(&self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::Message(message) => self.sent(message, true),
            Outgoing::Ping(payload) => self.put(Sort::Ping, true, Shown::Never, Instant::now(), 0, [payload, &[]]),
            Outgoing::Close(frame) => self.close(Some(frame), true),
        }
    }

    /// An event, as it is delivered. Messages are frames, and have entries of their own.
    pub(crate) fn event(&self, event: &Event, shown: Shown, at: Instant) {
        if !matches!(event, Event::Message(_) | Event::Messages(_)) {
            self.json(event, shown, at);
        }
    }

    fn step(&self, step: Step, shown: Shown, at: Instant) {
        self.json(&step, shown, at);
    }

    fn json(&self, value: &impl Serialize, shown: Shown, at: Instant) {
        // Nothing that is recorded has keys that are no text, or numbers that JSON does not know.
        if let Ok(json) = serde_json::to_vec(value) {
            self.put(Sort::Event, false, shown, at, 0, [&json, &[]]);
        }
    }

    /// A handler was made.
    pub(crate) fn handler(&self) {
        self.step(Step::Handler {}, Shown::Never, Instant::now());
    }

    /// A timer fires.
    pub(crate) fn timer(&self, token: u64, shown: Shown, at: Instant) {
        self.step(Step::Timer { token }, shown, at);
    }

    /// The handler schedules a timer.
    pub(crate) fn schedule(&self, token: u64, due: Instant, at: Instant) {
        self.step(Step::Schedule { token, due: self.nanos(due) }, Shown::Never, at);
    }

    /// The handler is given a value of a caller's.
    pub(crate) fn command(&self, shown: Shown, at: Instant) {
        self.step(Step::Command {}, shown, at);
    }

    /// The first of the held messages is delivered.
    pub(crate) fn released(&self, shown: Shown, at: Instant) {
        self.step(Step::Released {}, shown, at);
    }

    /// A held message is not delivered.
    pub(crate) fn withheld(&self, nth: Option<usize>) {
        self.step(Step::Withheld { nth }, Shown::Never, Instant::now());
    }

    /// The handler makes a request under this id; one that it chose itself is not recorded.
    pub(crate) fn request(&self, id: &RequestId, at: Instant) {
        if let RequestId::Number(id) = *id {
            self.step(Step::Request { id }, Shown::Never, at);
        }
    }
}
