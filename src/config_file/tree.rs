//! A file as a tree of values that know their place: the same from TOML, JSON and YAML. What is in the environment is put in
//! here.

use std::cell::RefCell;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in a file: line and column, from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What is wrong at a place.
#[derive(Clone, Debug)]
pub(super) struct Flaw {
    pub(super) mark: Mark,
    pub(super) key: String,
    pub(super) rule: String,
}

impl Flaw {
    fn new(mark: Mark, rule: impl Into<String>) -> Self {
        Self { mark, key: String::new(), rule: rule.into() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Scalar(Value),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) mark: Mark,
    pub(super) node: Node,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// TOML 1.0.
    Toml,
    /// JSON (RFC 8259).
    Json,
    /// YAML 1.2, one document, without anchors and tags.
    Yaml,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Toml => "TOML",
            Self::Json => "JSON",
            Self::Yaml => "YAML",
        })
    }
}

pub(super) fn read(text: &str, format: Format) -> Result<Node, Vec<Flaw>> {
    match format {
        Format::Toml => from_toml(text),
        Format::Yaml => from_yaml(text).map_err(|flaw| vec![flaw]),
        Format::Json => {
            // What is no JSON, though it be YAML, is refused in JSON's words.
            let is_json = serde_json::from_str::<Value>(text);
            is_json.map_err(|error| {
                let words = error.to_string();
                let rule = words.split(" at line ").next().unwrap_or_default();
                vec![Flaw::new(Mark { line: error.line(), column: error.column() }, rule)]
            })?;
            // A tab is no more than a space to JSON, and none to YAML where lines begin.
            from_yaml(&text.replace('\t', " ")).map_err(|flaw| vec![flaw])
        }
    }
}

fn from_toml(text: &str) -> Result<Node, Vec<Flaw>> {
    let flaws = RefCell::new(Vec::new());
    let begins: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let mark = |at: usize| {
        let line = begins.partition_point(|begin| *begin <= at);
        let begin = begins[line.saturating_sub(1)];
        let column = 1 + text.get(begin..at).map_or(0, |before| before.chars().count());
        Mark { line, column }
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let flaw = |error: &toml::de::Error| {
            Flaw::new(mark(error.span().map_or(0, |span| span.start)), error.message().replace('\n', ", "))
        };
        return Err(errors.iter().map(flaw).collect());
    }
    fn table_of(table: &DeTable<'_>, mark: &dyn Fn(usize) -> Mark, flaws: &RefCell<Vec<Flaw>>) -> Kind {
        let entries = table.iter().map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            mark: mark(key.span().start),
            node: node_of(value, mark, flaws),
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|entry| entry.mark);
        Kind::Table(entries)
    }
    fn node_of(value: &Spanned<DeValue<'_>>, mark: &dyn Fn(usize) -> Mark, flaws: &RefCell<Vec<Flaw>>) -> Node {
        let refuse = |rule: &str| {
            flaws.borrow_mut().push(Flaw::new(mark(value.span().start), rule));
            Value::Null
        };
        let kind = match value.get_ref() {
            DeValue::String(text) => Kind::Scalar(Value::String(text.to_string())),
            DeValue::Integer(number) => {
                let number = i64::from_str_radix(number.as_str(), number.radix());
                Kind::Scalar(number.map_or_else(|_| refuse("the number is too large"), Value::from))
            }
            DeValue::Float(number) => {
                let number = number.as_str().parse().ok().and_then(Number::from_f64);
                Kind::Scalar(number.map_or_else(|| refuse("must be a finite number"), Value::Number))
            }
            DeValue::Boolean(value) => Kind::Scalar(Value::Bool(*value)),
            DeValue::Datetime(time) => Kind::Scalar(Value::String(time.to_string())),
            DeValue::Array(list) => Kind::List(list.iter().map(|value| node_of(value, mark, flaws)).collect()),
            DeValue::Table(table) => table_of(table, mark, flaws),
        };
        Node { mark: mark(value.span().start), kind }
    }
    let kind = table_of(table.get_ref(), &mark, &flaws);
    let flaws = flaws.into_inner();
    if flaws.is_empty() { Ok(Node { mark: Mark { line: 1, column: 1 }, kind }) } else { Err(flaws) }
}

/// A collection that is being read.
enum Open {
    List(Mark, Vec<Node>),
    /// With the key whose value comes next.
    Table(Mark, Vec<Entry>, Option<(String, Mark)>),
}

fn from_yaml(text: &str) -> Result<Node, Flaw> {
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let mark = Mark { line: error.marker().line(), column: error.marker().col() + 1 };
            Flaw::new(mark, error.info())
        })?;
        let mark = Mark { line: span.start.line(), column: span.start.col() + 1 };
        let node = match event {
            Event::Alias(_) => return Err(Flaw::new(mark, "anchors and aliases are not taken")),
            Event::SequenceStart(..) => {
                open.push(Open::List(mark, Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(mark, Vec::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(mark, list)) => Node { mark, kind: Kind::List(list) },
                Some(Open::Table(mark, table, _)) => Node { mark, kind: Kind::Table(table) },
                None => continue,
            },
            Event::Scalar(text, style, ..) => {
                if let Some(Open::Table(_, table, key @ None)) = open.last_mut() {
                    if table.iter().any(|entry| entry.key == *text) {
                        return Err(Flaw { key: text.into(), ..Flaw::new(mark, "the key is there twice") });
                    }
                    *key = Some((text.into(), mark));
                    continue;
                }
                Node { mark, kind: Kind::Scalar(scalar(&text, style)) }
            }
            Event::DocumentStart(_) if root.is_some() => return Err(Flaw::new(mark, "must be one document")),
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(node),
            Some(Open::List(_, list)) => list.push(node),
            Some(Open::Table(_, table, key)) => match key.take() {
                Some((key, mark)) => table.push(Entry { key, mark, node }),
                None => return Err(Flaw::new(node.mark, "a key must be a name")),
            },
        }
    }
    root.ok_or_else(|| Flaw::new(Mark { line: 1, column: 1 }, "is empty"))
}

/// By YAML's core schema (section 10.3.2).
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.into());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        text => {
            let is_number = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
            let whole = text.parse::<i64>().ok().map(Value::from);
            let number = || text.parse().ok().and_then(Number::from_f64).map(Value::Number);
            whole.or_else(number).filter(|_| is_number).unwrap_or_else(|| Value::String(text.into()))
        }
    }
}

impl Node {
    pub(super) fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(list) => Value::Array(list.iter().map(Self::value).collect()),
            Kind::Table(table) => {
                Value::Object(table.iter().map(|entry| (entry.key.clone(), entry.node.value())).collect::<Map<_, _>>())
            }
        }
    }

    /// The text that the path leads to, if it is one.
    pub(super) fn text(&self, path: &[String]) -> Option<&str> {
        let mut at = self;
        for key in path {
            at = match &at.kind {
                Kind::List(list) => list.get(key.parse::<usize>().ok()?)?,
                _ => &at.get(key)?.node,
            };
        }
        match &at.kind {
            Kind::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Table(table) => table.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The place of what the path leads to, or of as much of it as is there.
    pub(super) fn place(&self, path: &[String]) -> Mark {
        self.find(path).unwrap_or(self.mark)
    }

    fn find(&self, path: &[String]) -> Option<Mark> {
        let (first, rest) = path.split_first()?;
        match &self.kind {
            Kind::List(list) => {
                let node = list.get(first.parse::<usize>().ok()?)?;
                Some(node.place(rest))
            }
            _ => self.get(first).map(|entry| entry.node.find(rest).unwrap_or(entry.mark)),
        }
    }

    /// What is not set here is taken from there; tables are taken together, all else as a whole.
    pub(super) fn over(&mut self, defaults: &Self) {
        let (Kind::Table(own), Kind::Table(theirs)) = (&mut self.kind, &defaults.kind) else { return };
        for entry in theirs {
            match own.iter_mut().find(|own| own.key == entry.key) {
                Some(own) => own.node.over(&entry.node),
                None => own.push(entry.clone()),
            }
        }
    }

    /// False where that is not to be had. Puts in what stands for it: `${NAME}`, or `${NAME:-this, where it is not set}`; `$$` is a dollar sign.
    pub(super) fn fill_in(
        &mut self,
        variable: &dyn Fn(&str) -> Option<String>,
        path: &str,
        flaws: &mut Vec<Flaw>,
    ) -> bool {
        let within = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match &mut self.kind {
            Kind::Scalar(Value::String(text)) if text.contains('$') => match filled_in(text, variable) {
                Ok(filled) => *text = filled,
                Err(rule) => {
                    flaws.push(Flaw { mark: self.mark, key: path.to_owned(), rule });
                    return false;
                }
            },
            Kind::Scalar(_) => {}
            // What is not there is told, and taken out: what would follow from it is no fault of its own.
            Kind::List(list) => {
                let mut at = 0;
                list.retain_mut(|node| {
                    at += 1;
                    node.fill_in(variable, &within(&(at - 1).to_string()), flaws)
                });
            }
            Kind::Table(table) => {
                table.retain_mut(|entry| entry.node.fill_in(variable, &within(&entry.key), flaws));
            }
        }
        true
    }
}

pub(super) fn filled_in(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        rest = match after.strip_prefix('{') {
            Some(inner) => {
                let (name, after) = inner.split_once('}').ok_or("has a `${` without its `}`")?;
                let (name, instead) =
                    name.split_once(":-").map_or((name, None), |(name, instead)| (name, Some(instead)));
                let found = variable(name).or_else(|| instead.map(str::to_owned));
                out += &found.ok_or_else(|| format!("the environment has no `{name}`"))?;
                after
            }
            None => {
                out.push('$');
                after.strip_prefix('$').unwrap_or(after)
            }
        };
    }
    Ok(out + rest)
}
