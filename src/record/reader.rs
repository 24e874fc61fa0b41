//! A recording, read entry by entry.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::entry::{self, Entry};
use super::files::nth;

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

/// The entries of a recording in their order, through all its files. A last line that is cut short, as a crash leaves it, is
/// passed over; [`is_torn`](Recording::is_torn) says so.
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
    base: Option<PathBuf>,
    number: u64,
    file: PathBuf,
    lines: Box<dyn BufRead + Send>,
    line: u64,
    text: Vec<u8>,
    torn: bool,
}

impl Recording {
    /// Opens a recording, compressed with zstd or not (the feature `zstd`): this file, and those that it was rotated into.
    ///
    /// # Errors
    /// When the first file can't be opened.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let lines = open(path)?;
        Ok(Self { base: Some(path.to_owned()), file: path.to_owned(), ..Self::of(lines) })
    }

    /// Reads one from anywhere, uncompressed.
    pub fn read(from: impl Read + Send + 'static) -> Self {
        Self::of(Box::new(BufReader::new(from)))
    }

    fn of(lines: Box<dyn BufRead + Send>) -> Self {
        Self { base: None, number: 0, file: PathBuf::new(), lines, line: 0, text: Vec::new(), torn: false }
    }

    /// Whether a line was found that is cut short.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn fault(&self, message: String) -> RecordingError {
        RecordingError { file: self.file.clone(), line: self.line, message }
    }

    /// The next of the files, if there is one.
    fn go_on(&mut self) -> Option<io::Result<()>> {
        let next = nth(self.base.as_ref()?, self.number + 1);
        if !next.exists() {
            return None;
        }
        let opened = open(&next);
        (self.file, self.number, self.line) = (next, self.number + 1, 0);
        Some(opened.map(|lines| self.lines = lines))
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
                        Err(message) => {
                            // A recorder that went on after a crash has ended the torn line.
                            if line.starts_with("{\"ts\"") && !line.ends_with('}') {
                                self.torn = true;
                                continue;
                            }
                            return Some(Err(self.fault(message)));
                        }
                    }
                }
            }
            match self.go_on()? {
                Ok(()) => {}
                Err(error) => return Some(Err(self.fault(error.to_string()))),
            }
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("file", &self.file).field("line", &self.line).finish_non_exhaustive()
    }
}
