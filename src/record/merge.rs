//! The entries of all clients in one order. Those of one client stay in the order in which they happened, which is not
//! the order of their times: all messages of one read have the time of that read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::tap::Head;

/// An entry, its payload, and its client's name.
type Entry<'a> = (Head, &'a [u8], &'a str);

/// The entries of one client.
pub(super) struct Entries<'a> {
    client: &'a str,
    pieces: std::slice::Iter<'a, Vec<u8>>,
    rest: &'a [u8],
    /// The latest time so far: an entry follows all that came before it.
    latest: u64,
}

impl<'a> Entries<'a> {
    pub(super) fn new(client: &'a str, pieces: &'a [Vec<u8>]) -> Self {
        Self { client, pieces: pieces.iter(), rest: &[], latest: 0 }
    }

    fn peek(&mut self) -> Option<u64> {
        while self.rest.is_empty() {
            self.rest = self.pieces.next()?;
        }
        let (head, ..) = Head::read(self.rest)?;
        self.latest = self.latest.max(head.at);
        Some(self.latest)
    }

    fn take(&mut self) -> Option<Entry<'a>> {
        let (head, payload, rest) = Head::read(self.rest)?;
        self.rest = rest;
        Some((head, payload, self.client))
    }
}

/// The entries of several clients by time.
pub(super) struct Merged<'a> {
    streams: Vec<Entries<'a>>,
    next: BinaryHeap<Reverse<(u64, usize)>>,
}

impl<'a> Merged<'a> {
    pub(super) fn new(streams: impl Iterator<Item = Entries<'a>>) -> Self {
        let mut streams: Vec<_> = streams.collect();
        let next =
            streams.iter_mut().enumerate().filter_map(|(n, stream)| Some(Reverse((stream.peek()?, n)))).collect();
        Self { streams, next }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let Reverse((_, n)) = self.next.pop()?;
        let stream = &mut self.streams[n];
        let entry = stream.take();
        self.next.extend(stream.peek().map(|at| Reverse((at, n))));
        entry
    }
}
