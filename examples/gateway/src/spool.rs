//! A queue on disk, for while Redis is away: bounded, in order, gone with the process.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::sink::Item;

pub struct Spool {
    file: File,
    limit: u64,
    read: u64,
    written: u64,
}

impl Spool {
    /// A file without a name, which this process alone can open and which goes with it however that ends.
    pub fn new(limit: u64) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, limit, read: 0, written: 0 })
    }

    pub fn is_empty(&self) -> bool {
        self.read == self.written
    }

    /// Items that have no room are lost: their numbers are missing, and the stream says so.
    pub fn push(&mut self, items: &[Item]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for item in items {
            let before = bytes.len();
            item.write(&mut bytes);
            if self.written + bytes.len() as u64 > self.limit {
                bytes.truncate(before);
                break;
            }
        }
        self.file.seek(SeekFrom::Start(self.written))?;
        self.file.write_all(&bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// The next of them, and where they end; `done` removes them.
    pub fn peek(&mut self, at_most: usize) -> io::Result<(Vec<Item>, u64)> {
        let all = self.written - self.read;
        let mut some = all.min(1 << 20);
        loop {
            self.file.seek(SeekFrom::Start(self.read))?;
            let mut bytes = vec![0; some as usize];
            self.file.read_exact(&mut bytes)?;
            let (mut items, mut rest) = (Vec::new(), &bytes[..]);
            while items.len() < at_most {
                let Some((item, after)) = Item::read(rest) else { break };
                items.push(item);
                rest = after;
            }
            // One that is larger than what was read needs more of it.
            if !items.is_empty() || some == all {
                return Ok((items, self.read + (bytes.len() - rest.len()) as u64));
            }
            some = (2 * some).min(all);
        }
    }

    pub fn done(&mut self, until: u64) -> io::Result<()> {
        self.read = until;
        if self.is_empty() {
            (self.read, self.written) = (0, 0);
            self.file.set_len(0)?;
        }
        Ok(())
    }
}
