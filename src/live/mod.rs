//! The live view: a supervisor's clients in the terminal, in the same process or another. Drawn by ratatui.

mod view;

use std::io::{self, BufRead, BufReader, Stdout, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::{CrosstermBackend, TestBackend};
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use rustix::event::{PollFlags, Timespec};
use serde_json::Value;

use self::view::{Key, Reaction, View};
use crate::status_server::{Status, StatusCommand, obey};
use crate::supervisor::{Supervisor, Table};

/// How often what is shown is brought up to date.
const EVERY: Duration = Duration::from_millis(500);

/// Shows this process's supervisor until `q` is pressed or `ends` says so, which is asked ten times a second: after a signal, for
/// example. Takes the terminal, and gives it back however it ends. Blocks.
///
/// # Errors
/// When the terminal can't be used, or is gone.
pub fn show(supervisor: &Supervisor, ends: impl Fn() -> bool) -> io::Result<()> {
    let (said, came) = channel();
    run(&mut Own { table: supervisor.table().clone(), next: Instant::now(), said, came }, &ends)
}

/// Shows the supervisor that serves its status at this path, in this process or another, as [`show`] does.
///
/// # Errors
/// When no process serves there, it ends or refuses one more reader, or the terminal can't be used.
pub fn attach(path: impl AsRef<Path>, ends: impl Fn() -> bool) -> io::Result<()> {
    let stream = connect(path.as_ref())?;
    let (news, came) = channel();
    let lines = BufReader::new(stream.try_clone()?);
    std::thread::Builder::new().name("status".into()).spawn(move || {
        lines.lines().map_while(Result::ok).all(|line| news.send(line).is_ok());
    })?;
    run(&mut Other { stream, came, closing: None }, &ends)
}

/// Draws the view for these statuses, one after the other, at this size: for a picture, or a test of your own.
///
/// # Panics
/// Never: every size is drawn.
#[doc(hidden)]
pub fn picture(statuses: impl IntoIterator<Item = Status>, width: u16, height: u16) -> Buffer {
    let mut view = View::default();
    statuses.into_iter().for_each(|status| view.update(status));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory takes any size");
    terminal.draw(|frame| view.draw(frame)).expect("memory takes everything");
    terminal.backend().buffer().clone()
}

/// The next statuses that are served at a path.
///
/// # Errors
/// As for [`attach`].
#[doc(hidden)]
pub fn statuses(path: impl AsRef<Path>, count: usize) -> io::Result<Vec<Status>> {
    let path = path.as_ref();
    let mut statuses = Vec::new();
    for line in BufReader::new(connect(path)?).lines() {
        match Line::read(&line?)? {
            Line::News(News::Status(status)) => statuses.push(status),
            Line::News(News::Notice(text)) | Line::Closing(text) => return Err(at(path, io::Error::other(text))),
        }
        if statuses.len() == count {
            break;
        }
    }
    Ok(statuses)
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).map_err(|error| at(path, error))
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Where statuses come from and commands go.
trait Source {
    /// What is new; an error: nothing comes any more.
    fn news(&mut self) -> io::Result<Vec<News>>;
    fn command(&mut self, command: &StatusCommand) -> io::Result<()>;
}

/// A line of the status socket.
enum Line {
    News(News),
    /// Why the other side ends the connection.
    Closing(String),
}

impl Line {
    fn read(line: &str) -> io::Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        if let Some(reason) = value["closing"].as_str() {
            return Ok(Self::Closing(reason.to_owned()));
        }
        if let Some(answer) = value["done"].as_str().or(value["refused"].as_str()) {
            return Ok(Self::News(News::Notice(answer.to_owned())));
        }
        Ok(Self::News(match serde_json::from_value(value) {
            Ok(status) => News::Status(status),
            Err(fault) => News::Notice(format!("the desk is of another version, its status can't be read: {fault}")),
        }))
    }
}

enum News {
    Status(Status),
    Notice(String),
}

struct Own {
    table: Arc<Table>,
    next: Instant,
    /// Results of commands: a stop takes its time, and the view goes on meanwhile.
    said: Sender<String>,
    came: Receiver<String>,
}

impl Source for Own {
    fn news(&mut self) -> io::Result<Vec<News>> {
        let mut news: Vec<_> = self.came.try_iter().map(News::Notice).collect();
        let now = Instant::now();
        if now >= self.next {
            self.next = now + EVERY;
            news.push(News::Status(self.table.status()));
        }
        Ok(news)
    }

    fn command(&mut self, command: &StatusCommand) -> io::Result<()> {
        let (table, command, said) = (self.table.clone(), command.clone(), self.said.clone());
        let obey = move || drop(said.send(obey(&table, &command).unwrap_or_else(|refused| refused)));
        std::thread::Builder::new().name("command".into()).spawn(obey).map(drop)
    }
}

struct Other {
    stream: UnixStream,
    came: Receiver<String>,
    /// Why the other side ends the connection, if it said so.
    closing: Option<String>,
}

impl Source for Other {
    fn news(&mut self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            match self.came.try_recv() {
                Ok(line) => match Line::read(&line)? {
                    Line::News(one) => news.push(one),
                    Line::Closing(reason) => self.closing = Some(reason),
                },
                Err(TryRecvError::Empty) => return Ok(news),
                Err(TryRecvError::Disconnected) if news.is_empty() => {
                    let reason =
                        self.closing.take().unwrap_or_else(|| "the desk has ended, or its status socket".into());
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
                }
                Err(TryRecvError::Disconnected) => return Ok(news),
            }
        }
    }

    fn command(&mut self, command: &StatusCommand) -> io::Result<()> {
        writeln!(self.stream, "{}", serde_json::to_string(command)?)
    }
}

/// The terminal while it is ours. Not by `ratatui::init`, which gives it back at a panic of any thread: a client's is no reason.
struct Taken;

impl Taken {
    fn new() -> io::Result<Self> {
        enable_raw_mode()?;
        let taken = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

fn run(source: &mut dyn Source, ends: &dyn Fn() -> bool) -> io::Result<()> {
    let _taken = Taken::new()?;
    show_on(&mut Terminal::new(CrosstermBackend::new(io::stdout()))?, source, ends)
}

/// Whether the other end of the terminal is closed. crossterm would ask it for keys again and again without a pause.
fn is_gone(terminal: &Stdout) -> bool {
    let mut polled = [rustix::event::PollFd::new(terminal, PollFlags::empty())];
    let polled = rustix::event::poll(&mut polled, Some(&Timespec::default())).map(|_| polled[0].revents());
    polled.is_ok_and(|events| events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
}

fn show_on(
    terminal: &mut Terminal<CrosstermBackend<Stdout>>,
    source: &mut dyn Source,
    ends: &dyn Fn() -> bool,
) -> io::Result<()> {
    let mut view = View::default();
    let out = io::stdout();
    loop {
        if ends() {
            return Ok(());
        }
        if is_gone(&out) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the terminal is gone"));
        }
        for news in source.news()? {
            match news {
                News::Status(status) => view.update(status),
                News::Notice(text) => view.notice(text),
            }
        }
        terminal.draw(|frame| view.draw(frame))?;
        if !event::poll(EVERY / 5)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        let key = match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Escape,
            KeyCode::Char(key) => Key::Char(key),
            KeyCode::Up => Key::Up,
            KeyCode::Down => Key::Down,
            KeyCode::Esc => Key::Escape,
            _ => continue,
        };
        match view.key(key) {
            Reaction::None => {}
            Reaction::Quit => return Ok(()),
            Reaction::Do(command) => {
                view.notice("…");
                source.command(&command)?;
            }
        }
    }
}
