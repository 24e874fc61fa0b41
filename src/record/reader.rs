//! A recording, read entry by entry.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::entry::{self, Entry};
use super::files::{nth, numbers};

/// What is wrong with a recording, and where.
#[derive(Debug)]
#[non_exhaustive]
pub struct RecordingError {
    /// The file; empty where it is none.
    pub file: PathBuf,
    /// The line, from 1 on.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

impl Error for RecordingError {}

/// The entries of a recording in their order, through all its files. An error stands in the place of a part that can't be read, and the rest
/// is read: a line that is no entry, a file that is missing between two others. Old files that were moved away are
/// none: the recording begins with the first that is there. A last line that is cut short, as a crash leaves it, is passed over;
/// [`is_torn`](Recording::is_torn) says so.
///
/// ```
/// use ws_supervisor::record::Recording;
/// let torn = concat!(
///     r#"{"ts":"2021-07-22T22:25:41.062170Z","dir":"in","type":"text","data":"one"}"#, "\n",
///     r#"{"ts":"2021-07-22T22:25:41.0821"#,
/// );
/// let mut recording = Recording::read(torn.as_bytes());
/// assert_eq!(recording.by_ref().map(Result::unwrap).count(), 1);
/// assert!(recording.is_torn());
/// ```
pub struct Recording {
    /// The files that follow, with their numbers; the last first.
    following: Vec<(u64, PathBuf)>,
    number: u64,
    file: PathBuf,
    lines: Box<dyn BufRead + Send>,
    line: u64,
    text: Vec<u8>,
    torn: bool,
}

impl Recording {
    /// Opens a recording, compressed with zstd or not (the feature `zstd`): this file, and those that it was rotated into, as
    /// far as they are there. The file that was begun last may be given instead of the first, and is read alone.
    ///
    /// # Errors
    /// When none of the files is there, or the first that is can't be opened.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut numbers = numbers(path).unwrap_or_default();
        let first = if numbers.is_empty() { 0 } else { numbers.remove(0) };
        let file = nth(path, first);
        let lines = open(&file)?;
        let following = numbers.into_iter().rev().map(|number| (number, nth(path, number))).collect();
        Ok(Self { following, number: first, file, ..Self::of(lines) })
    }

    /// Reads one from anywhere, uncompressed.
    pub fn read(from: impl Read + Send + 'static) -> Self {
        Self::of(Box::new(BufReader::new(from)))
    }

    fn of(lines: Box<dyn BufRead + Send>) -> Self {
        Self { following: Vec::new(), number: 0, file: PathBuf::new(), lines, line: 0, text: Vec::new(), torn: false }
    }

    /// Whether a line was found that is cut short.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn fault(&self, message: String) -> RecordingError {
        RecordingError { file: self.file.clone(), line: self.line, message }
    }

    /// Goes on to the next of the files, if there is one, and says what is wrong with it, or missing before it.
    fn go_on(&mut self) -> Option<Result<(), RecordingError>> {
        let (number, next) = self.following.pop()?;
        let missing = number - self.number - 1;
        (self.file, self.number, self.line) = (next, number, 0);
        self.lines = match open(&self.file) {
            Ok(lines) => lines,
            Err(error) => {
                self.lines = Box::new(io::empty());
                return Some(Err(self.fault(error.to_string())));
            }
        };
        match missing {
            0 => Some(Ok(())),
            missing => Some(Err(self.fault(format!("{missing} files before this one are missing")))),
        }
    }
}

fn open(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(at)?);
    // RFC 8878 section 3.1.1.
    let is_zstd = file.fill_buf().map_err(at)?.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    match is_zstd {
        false => Ok(Box::new(file)),
        #[cfg(feature = "zstd")]
        true => Ok(Box::new(BufReader::new(zstd::Decoder::with_buffer(file).map_err(at)?))),
        #[cfg(not(feature = "zstd"))]
        true => Err(at(io::Error::new(io::ErrorKind::Unsupported, "compressed with zstd: needs the feature `zstd`"))),
    }
}

impl Iterator for Recording {
    type Item = Result<Entry, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.text.clear();
            let mut text = std::mem::take(&mut self.text);
            let read = self.lines.read_until(b'\n', &mut text);
            self.text = text;
            let is_whole = self.text.ends_with(b"\n");
            match read {
                // A frame of zstd that has no end is a torn tail as well.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.torn = true,
                Err(error) => {
                    self.line += 1;
                    let fault = self.fault(error.to_string());
                    // Nothing more can be had of this file.
                    self.lines = Box::new(io::empty());
                    return Some(Err(fault));
                }
                Ok(0) => {}
                Ok(_) => {
                    self.line += 1;
                    let line = String::from_utf8_lossy(&self.text);
                    let line = line.trim_end();
                    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
                    if line.is_empty() {
                        continue;
                    }
                    match entry::read(line) {
                        Ok(entry) => return Some(Ok(entry)),
                        Err(_) if !is_whole => self.torn = true,
                        Err(message) => return Some(Err(self.fault(message))),
                    }
                }
            }
            if let Err(fault) = self.go_on()? {
                return Some(Err(fault));
            }
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("file", &self.file).field("line", &self.line).finish_non_exhaustive()
    }
}
