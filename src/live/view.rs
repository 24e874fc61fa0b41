//! The model of the live view: it is fed with statuses and keys, and drawn. No terminal, no clock.

use std::collections::{BTreeMap, VecDeque};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState};

use crate::status_server::{ClientStatus, Status, StatusCommand};

/// So many steps of the restarts' sparkline are kept.
const STEPS: usize = 16;

/// The meaning of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Char(char),
    Escape,
}

/// What is to be done about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    None,
    Quit,
    Do(StatusCommand),
}

/// What is known of a client beyond its latest status.
#[derive(Debug, Default)]
struct History {
    seen: Option<(f64, u64, u64, u64)>,
    /// Messages a second, in and out.
    rates: (f64, f64),
    /// Restarts in each of the latest steps.
    restarts: VecDeque<u64>,
}

#[derive(Debug, Default)]
pub(super) struct View {
    status: Status,
    histories: BTreeMap<String, History>,
    selected: usize,
    /// A question that waits for its answer.
    asked: Option<StatusCommand>,
    /// The result of the last command, or why no status comes.
    notice: Option<String>,
}

impl View {
    pub(super) fn update(&mut self, status: Status) {
        for client in &status.clients {
            let history = self.histories.entry(client.name.clone()).or_default();
            if let Some((at, received, sent, restarts)) = history.seen {
                let time = status.at - at;
                if time <= 0.0 {
                    continue;
                }
                // A name that is another client's by now begins anew.
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / time;
                history.rates = (rate(client.received, received), rate(client.sent, sent));
                history.restarts.push_back(client.restarts.saturating_sub(restarts));
                if history.restarts.len() > STEPS {
                    history.restarts.pop_front();
                }
            }
            history.seen = Some((status.at, client.received, client.sent, client.restarts));
        }
        self.histories.retain(|name, _| status.clients.iter().any(|client| client.name == *name));
        self.status = status;
        self.selected = self.selected.min(self.status.clients.len().saturating_sub(1));
    }

    pub(super) fn notice(&mut self, text: impl Into<String>) {
        self.notice = Some(text.into());
    }

    pub(super) fn key(&mut self, key: Key) -> Reaction {
        if let Some(command) = self.asked.take() {
            return match key {
                Key::Char('y' | 'Y') => Reaction::Do(command),
                _ => Reaction::None,
            };
        }
        let last = self.status.clients.len().saturating_sub(1);
        match key {
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected = (self.selected + 1).min(last),
            Key::Char('q') | Key::Escape => return Reaction::Quit,
            Key::Char(key @ ('r' | 'u' | 's')) => {
                let client = self.status.clients.get(self.selected).map(|client| client.name.clone());
                self.asked = client.map(|client| match key {
                    'r' => StatusCommand::Restart { client },
                    'u' => StatusCommand::Resume { client },
                    _ => StatusCommand::Stop { client },
                });
            }
            Key::Char(_) => {}
        }
        Reaction::None
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let clients = self.status.clients.len() as u16;
        let events = (frame.area().height / 3).clamp(4, 12);
        let [head, table, detail, below, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(clients.min(frame.area().height / 2) + 1),
            Constraint::Length(1),
            Constraint::Length(events),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_clients(frame, table);
        self.draw_detail(frame, detail);
        self.draw_events(frame, below);
        let keys = " ↑↓ choose   r restart   u resume   s stop   q leave";
        let text = self.notice.as_deref().map_or(keys.to_owned(), |notice| format!(" {notice}"));
        frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::DIM)), foot);
        if let Some(command) = &self.asked {
            self.draw_question(frame, command);
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let count = |state: &str| self.status.clients.iter().filter(|client| client.state == state).count();
        let (all, open, parked) = (self.status.clients.len(), count("open"), count("parked"));
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut spans = vec![Span::styled(" ws-supervisor", bold), Span::raw(format!("   {all} clients, {open} open"))];
        if parked > 0 {
            spans.push(Span::styled(format!(", {parked} parked"), bold.fg(Color::Red)));
        }
        spans.push(Span::raw(format!("   {} UTC", clock(self.status.at))));
        frame.render_widget(Paragraph::new(Line::from(spans)), area);
    }

    fn draw_clients(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = columns(area.width, &self.status);
        let widths = columns.iter().map(|column| match column.width {
            0 => Constraint::Fill(1),
            width => Constraint::Length(width),
        });
        let head = columns.iter().map(|column| Cell::from(align(column.name, column)));
        let rows = self.status.clients.iter().map(|client| {
            let history = self.histories.get(&client.name);
            let cells = columns.iter().map(|column| {
                let text = (column.text)(client, history);
                let style = if column.name == "STATE" { Style::new().fg(color(&client.state)) } else { Style::new() };
                Cell::from(align(&text, column)).style(style)
            });
            Row::new(cells.collect::<Vec<_>>())
        });
        let table = Table::new(rows.collect::<Vec<_>>(), widths.collect::<Vec<_>>())
            .header(
                Row::new(head.collect::<Vec<_>>())
                    .style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)),
            )
            .column_spacing(1)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::default().with_selected(Some(self.selected));
        frame.render_stateful_widget(table, area, &mut state);
    }

    /// All that there is to say of the one chosen, which its row may have no room for.
    fn draw_detail(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(client) = self.status.clients.get(self.selected) else { return };
        let open = client.open_for.map(|time| format!("open for {}", seconds(time)));
        let error = Some(error(client, None)).filter(|error| !error.is_empty());
        let age = client.message_age.map(|age| format!("latest message {} ago", seconds(age)));
        let lost = [("uncertain", client.uncertain), ("unsent", client.unsent), ("dropped", client.dropped)];
        let lost = lost.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}"));
        let url = Some(client.url.clone()).filter(|url| !url.is_empty());
        let all: Vec<_> = [error, url, open, age].into_iter().flatten().chain(lost).collect();
        let text = format!(" {}: {}", client.name, all.join(", "));
        frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::ITALIC)), area);
    }

    fn draw_events(&self, frame: &mut Frame<'_>, area: Rect) {
        let fits = usize::from(area.height.saturating_sub(1));
        let latest = self.status.events.iter().rev().take(fits).rev();
        let lines = latest.map(|event| {
            let who = if event.client.is_empty() { "supervisor" } else { &event.client };
            Line::from(vec![
                Span::styled(format!(" {} ", clock(event.at)), Style::new().add_modifier(Modifier::DIM)),
                Span::styled(format!("{who} "), Style::new().add_modifier(Modifier::BOLD)),
                Span::raw(event.what.clone()),
            ])
        });
        let block = Block::new().borders(Borders::TOP).title(" what happened ");
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
    }

    fn draw_question(&self, frame: &mut Frame<'_>, command: &StatusCommand) {
        let (what, client) = match command {
            StatusCommand::Restart { client } => ("Restart", client),
            StatusCommand::Resume { client } => ("Resume", client),
            StatusCommand::Stop { client } => ("Stop for good", client),
        };
        let text = format!("{what}: {client}?   y yes   any other key no");
        let width = (text.chars().count() as u16 + 4).min(frame.area().width);
        let area = Rect {
            x: (frame.area().width - width) / 2,
            y: frame.area().height.saturating_sub(3) / 2,
            width,
            height: 3.min(frame.area().height),
        };
        frame.render_widget(Clear, area);
        let block = Block::bordered().border_style(Style::new().fg(Color::Red));
        frame.render_widget(Paragraph::new(format!(" {text}")).block(block), area);
    }
}

struct Column {
    name: &'static str,
    /// 0: what is left.
    width: u16,
    right: bool,
    text: fn(&ClientStatus, Option<&History>) -> String,
}

/// Those that there is room for, the most telling first.
fn columns(width: u16, status: &Status) -> Vec<Column> {
    let longest = |of: fn(&ClientStatus) -> &str| {
        let lengths = status.clients.iter().map(|client| of(client).chars().count());
        lengths.max().unwrap_or(0).clamp(6, 24) as u16
    };
    let column = |name, width, right, text| Column { name, width, right, text };
    // With the width from which on each is shown.
    let all: [(u16, Column); 13] = [
        (0, column("CLIENT", longest(|client| &client.name), false, |client, _| client.name.clone())),
        (110, column("VENUE", longest(|client| &client.venue), false, |client, _| client.venue.clone())),
        (0, column("STATE", 12, false, state)),
        (0, column("EPOCH", 5, true, |client, _| client.epoch.to_string())),
        (0, column("IN/s", 6, true, |_, history| history.map_or(String::new(), |history| number(history.rates.0)))),
        (0, column("OUT/s", 6, true, |_, history| history.map_or(String::new(), |history| number(history.rates.1)))),
        (100, column("QUEUE", 5, true, |client, _| count(client.queued))),
        (100, column("UNREAD", 6, true, |client, _| count(client.unread))),
        (90, column("BEAT", 8, true, heartbeat)),
        (0, column("p50", 7, true, |client, _| micros(client.rtt_p50_us))),
        (0, column("p99", 7, true, |client, _| micros(client.rtt_p99_us))),
        (0, column("RESTARTS", if width < 110 { 8 } else { 3 + STEPS as u16 }, false, restarts)),
        (0, column("LAST ERROR", 0, false, error)),
    ];
    all.into_iter().filter(|(from, _)| width >= *from).map(|(_, column)| column).collect()
}

fn align(text: &str, column: &Column) -> String {
    if column.right { format!("{text:>width$}", width = usize::from(column.width)) } else { text.to_owned() }
}

fn color(state: &str) -> Color {
    match state {
        "open" => Color::Green,
        "parked" | "closed" => Color::Red,
        _ => Color::Yellow,
    }
}

fn heartbeat(client: &ClientStatus, _: Option<&History>) -> String {
    match (client.heartbeat_failures, client.heartbeat_age) {
        (0, age) => age.map_or("-".into(), seconds),
        (missed, _) => format!("{missed} lost"),
    }
}

fn restarts(client: &ClientStatus, history: Option<&History>) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    // The latest first: what there is no room for is the oldest.
    let steps = history.into_iter().flat_map(|history| history.restarts.iter().rev());
    let bars: String = steps.map(|step| BARS[(*step as usize).min(8)]).collect();
    format!("{:<3}{bars}", client.restarts)
}

fn state(client: &ClientStatus, _: Option<&History>) -> String {
    // It waits for the next attempt.
    let next = client.next_attempt.map_or(String::new(), |wait| format!(" {}", seconds(wait)));
    format!("{}{next}", client.state)
}

fn error(client: &ClientStatus, _: Option<&History>) -> String {
    client.error.clone().filter(|_| client.state != "open").unwrap_or_default()
}

fn count(value: usize) -> String {
    if value < 10_000 { value.to_string() } else { number(value as f64) }
}

fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if value < 10.0 => format!("{value:.1}"),
        value if value < 10_000.0 => format!("{value:.0}"),
        value if value < 1e7 => format!("{:.0}k", value / 1e3),
        value => format!("{:.0}M", value / 1e6),
    }
}

fn micros(value: f64) -> String {
    match value {
        0.0 => "-".into(),
        value if value < 1e3 => format!("{value:.0}µs"),
        value if value < 1e5 => format!("{:.1}ms", value / 1e3),
        value if value < 1e6 => format!("{:.0}ms", value / 1e3),
        value => format!("{:.1}s", value / 1e6),
    }
}

fn seconds(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.1}s"),
        value if value < 600.0 => format!("{value:.0}s"),
        value => format!("{:.0}min", value / 60.0),
    }
}

/// The time of the day, UTC.
fn clock(at: f64) -> String {
    let of_day = at as u64 % 86_400;
    format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
