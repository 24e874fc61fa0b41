//! The live view: a supervisor's clients in the terminal, in the same process or another. Drawn by ratatui.

mod view;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use serde_json::Value;

use self::view::{Key, Reaction, View};
use crate::status_server::{Status, StatusCommand};
use crate::supervisor::Supervisor;

/// How often what is shown is brought up to date.
const EVERY: Duration = Duration::from_millis(500);

/// Shows this process's supervisor until `q` is pressed. Takes the terminal, and gives it back however it ends.
///
/// # Errors
/// When the terminal can't be used.
pub fn show(supervisor: &Supervisor) -> io::Result<()> {
    run(&mut Own { supervisor, next: Instant::now() })
}

/// Shows the supervisor that serves its status at this path, in whichever process, until `q` is pressed or that ends.
///
/// # Errors
/// When nobody serves there, or the terminal can't be used.
pub fn attach(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let stream = UnixStream::connect(path).map_err(at)?;
    let (news, came) = channel();
    let lines = BufReader::new(stream.try_clone()?);
    std::thread::Builder::new().name("status".into()).spawn(move || {
        lines.lines().map_while(Result::ok).all(|line| news.send(line).is_ok());
    })?;
    run(&mut Other { stream, came })
}

/// What the view looks like for these statuses, one after the other, at this size: for a picture, or a test of your own.
///
/// # Panics
/// Never, whatever the size.
#[doc(hidden)]
pub fn picture(statuses: impl IntoIterator<Item = Status>, width: u16, height: u16) -> Buffer {
    let mut view = View::default();
    statuses.into_iter().for_each(|status| view.update(status));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory takes any size");
    terminal.draw(|frame| view.draw(frame)).expect("memory takes everything");
    terminal.backend().buffer().clone()
}

/// Where statuses come from and commands go.
trait Source {
    /// What is new; an error: nothing comes any more.
    fn news(&mut self) -> io::Result<Vec<News>>;
    fn command(&mut self, command: &StatusCommand) -> io::Result<Option<String>>;
}

enum News {
    Status(Status),
    Notice(String),
}

struct Own<'s> {
    supervisor: &'s Supervisor,
    next: Instant,
}

impl Source for Own<'_> {
    fn news(&mut self) -> io::Result<Vec<News>> {
        let now = Instant::now();
        if now < self.next {
            return Ok(Vec::new());
        }
        self.next = now + EVERY;
        Ok(vec![News::Status(self.supervisor.status())])
    }

    fn command(&mut self, command: &StatusCommand) -> io::Result<Option<String>> {
        Ok(Some(self.supervisor.obey(command).unwrap_or_else(|refused| refused)))
    }
}

struct Other {
    stream: UnixStream,
    came: Receiver<String>,
}

impl Source for Other {
    fn news(&mut self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            match self.came.try_recv() {
                Ok(line) => match serde_json::from_str(&line) {
                    Ok(status) => news.push(News::Status(status)),
                    Err(_) => {
                        let answer: Value = serde_json::from_str(&line)?;
                        let text = answer["done"].as_str().or(answer["refused"].as_str()).unwrap_or(&line);
                        news.push(News::Notice(text.to_owned()));
                    }
                },
                Err(TryRecvError::Empty) => return Ok(news),
                Err(TryRecvError::Disconnected) if news.is_empty() => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor has ended"));
                }
                Err(TryRecvError::Disconnected) => return Ok(news),
            }
        }
    }

    fn command(&mut self, command: &StatusCommand) -> io::Result<Option<String>> {
        writeln!(self.stream, "{}", serde_json::to_string(command)?)?;
        Ok(None)
    }
}

fn run(source: &mut dyn Source) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = show_on(&mut terminal, source);
    ratatui::restore();
    result
}

fn show_on(terminal: &mut DefaultTerminal, source: &mut dyn Source) -> io::Result<()> {
    let mut view = View::default();
    loop {
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
                if let Some(said) = source.command(&command)? {
                    view.notice(said);
                }
            }
        }
    }
}
