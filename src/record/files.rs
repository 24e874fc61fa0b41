//! The files of a recording: the next one when the one at hand is large or old enough, compressed on request.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// When the next file is begun, and how it is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    pub(super) rotate_bytes: Option<u64>,
    pub(super) rotate_every: Option<Duration>,
    #[cfg(feature = "zstd")]
    pub(super) zstd: Option<i32>,
}

/// How long the end of another recorder may take.
const ENDING: Duration = Duration::from_secs(1);

enum Sink {
    Plain(File),
    #[cfg(feature = "zstd")]
    Zstd(zstd::Encoder<'static, File>),
}

pub(super) struct Files {
    base: PathBuf,
    number: u64,
    rules: Rules,
    sink: Sink,
    /// Bytes before compression.
    written: u64,
    begun: Instant,
    /// A write was cut short: a line of its own comes first.
    torn: bool,
}

/// The file of that number: the first is the path itself, those that follow are `name.1.ext`, `name.2.ext`.
pub(super) fn nth(base: &Path, number: u64) -> PathBuf {
    if number == 0 {
        return base.to_owned();
    }
    let (stem, ext) = split(base);
    base.with_file_name(format!("{stem}.{number}{ext}"))
}

fn split(base: &Path) -> (String, String) {
    let name = base.file_name().unwrap_or_default().to_string_lossy();
    match name.split_once('.') {
        Some((stem, ext)) => (stem.to_owned(), format!(".{ext}")),
        None => (name.into_owned(), String::new()),
    }
}

/// The numbers of the files that are there, in order. Some may be missing: old ones are moved to an archive.
pub(super) fn numbers(base: &Path) -> io::Result<Vec<u64>> {
    let (stem, ext) = split(base);
    let folder = base.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut numbers = Vec::new();
    if base.exists() {
        numbers.push(0);
    }
    for file in folder.read_dir()? {
        let name = file?.file_name();
        let middle = name.to_str().and_then(|name| name.strip_prefix(&*stem)?.strip_prefix('.')?.strip_suffix(&*ext));
        let number =
            middle.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0'));
        numbers.extend(number.and_then(|digits| digits.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Files {
    /// Goes on where an earlier recording of that name ended: nothing is written over.
    pub(super) fn open(base: &Path, rules: Rules) -> io::Result<Self> {
        let mut number = numbers(base)?.last().copied().unwrap_or_default();
        // What is compressed may be torn, and nothing can be read behind the tear.
        if rules.compresses() && nth(base, number).metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
            number += 1;
        }
        let (sink, written, torn) = rules.open(&nth(base, number))?;
        Ok(Self { base: base.to_owned(), number, rules, sink, written, begun: Instant::now(), torn })
    }

    pub(super) fn path(&self) -> PathBuf {
        nth(&self.base, self.number)
    }

    /// Writes whole lines, so that they can be read by others at once.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let is_large = self.rules.rotate_bytes.is_some_and(|bytes| self.written >= bytes);
        let is_old = self.rules.rotate_every.is_some_and(|time| self.begun.elapsed() >= time);
        if self.written > 0 && (is_large || is_old) {
            let next = nth(&self.base, self.number + 1);
            let (sink, written, torn) = self.rules.open(&next)?;
            self.end()?;
            (self.sink, self.written, self.torn, self.begun) = (sink, written, torn, Instant::now());
            self.number += 1;
        }
        let torn = std::mem::replace(&mut self.torn, true);
        let end_of_line: &[u8] = if torn { b"\n" } else { b"" };
        for part in [end_of_line, lines] {
            match &mut self.sink {
                Sink::Plain(file) => file.write_all(part)?,
                #[cfg(feature = "zstd")]
                Sink::Zstd(encoder) => encoder.write_all(part)?,
            }
        }
        #[cfg(feature = "zstd")]
        if let Sink::Zstd(encoder) = &mut self.sink {
            encoder.flush()?;
        }
        self.torn = false;
        self.written += lines.len() as u64;
        Ok(())
    }

    /// The end of the file at hand.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Plain(_) => Ok(()),
            #[cfg(feature = "zstd")]
            Sink::Zstd(encoder) => encoder.do_finish(),
        }
    }
}

impl Rules {
    fn compresses(&self) -> bool {
        #[cfg(feature = "zstd")]
        return self.zstd.is_some();
        #[cfg(not(feature = "zstd"))]
        false
    }

    /// The file, how much is in it, and whether its last line is cut short.
    fn open(&self, path: &Path) -> io::Result<(Sink, u64, bool)> {
        // A recording holds a desk's orders: none but its owner reads it.
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        // Two at once would write into each other's lines.
        if file.metadata()?.is_file() {
            lock(&file)?;
        }
        let written = file.metadata()?.len();
        #[cfg(feature = "zstd")]
        if let Some(level) = self.zstd {
            return Ok((Sink::Zstd(zstd::Encoder::new(file, level)?), written, false));
        }
        let mut last = [b'\n'];
        if written > 0 && file.seek(SeekFrom::End(-1)).is_ok() {
            file.read_exact(&mut last)?;
        }
        Ok((Sink::Plain(file), written, last != [b'\n']))
    }
}

/// Takes the file for this recorder alone. One whose last client is just ending is waited for.
fn lock(file: &File) -> io::Result<()> {
    let until = Instant::now() + ENDING;
    while rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another recorder writes to it"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
