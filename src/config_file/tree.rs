//! A file as a tree of values that know their place. Variables of the environment are put in here.

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

/// Reads TOML 1.0. Values that no option can have are added to `flaws` and left out.
///
/// # Errors
/// What is no TOML.
pub(super) fn read(text: &str, flaws: &mut Vec<Flaw>) -> Result<Node, Vec<Flaw>> {
    let lines = Lines::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let flaw = |error: &toml::de::Error| {
            Flaw::new(lines.mark(error.span().map_or(0, |span| span.start)), error.message().replace('\n', ", "))
        };
        return Err(errors.iter().map(flaw).collect());
    }
    let kind = table_of(table.get_ref(), &lines, "", flaws);
    Ok(Node { mark: Mark { line: 1, column: 1 }, kind })
}

/// Where the lines of a text begin.
struct Lines<'t> {
    text: &'t str,
    begins: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, begins: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect() }
    }

    fn mark(&self, at: usize) -> Mark {
        let line = self.begins.partition_point(|begin| *begin <= at);
        let begin = self.begins[line.saturating_sub(1)];
        let column = 1 + self.text.get(begin..at).map_or(0, |before| before.chars().count());
        Mark { line, column }
    }
}

fn table_of(table: &DeTable<'_>, lines: &Lines<'_>, path: &str, flaws: &mut Vec<Flaw>) -> Kind {
    let mut entries = Vec::new();
    for (key, value) in table {
        let (mark, key) = (lines.mark(key.span().start), key.get_ref().to_string());
        let node = node_of(value, lines, &within(path, &key), flaws);
        entries.extend(node.map(|node| Entry { key, mark, node }));
    }
    entries.sort_by_key(|entry| entry.mark);
    Kind::Table(entries)
}

fn node_of(value: &Spanned<DeValue<'_>>, lines: &Lines<'_>, path: &str, flaws: &mut Vec<Flaw>) -> Option<Node> {
    let mark = lines.mark(value.span().start);
    let mut refused = |rule: &str| flaws.push(Flaw { mark, key: path.to_owned(), rule: rule.to_owned() });
    let kind = match value.get_ref() {
        DeValue::String(text) => Kind::Scalar(Value::String(text.to_string())),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Kind::Scalar(Value::from(number)),
            Err(_) => {
                refused("the number is too large");
                return None;
            }
        },
        DeValue::Float(number) => match number.as_str().parse().ok().and_then(Number::from_f64) {
            Some(number) => Kind::Scalar(Value::Number(number)),
            None => {
                refused("must be a finite number");
                return None;
            }
        },
        DeValue::Boolean(value) => Kind::Scalar(Value::Bool(*value)),
        DeValue::Datetime(time) => Kind::Scalar(Value::String(time.to_string())),
        DeValue::Array(list) => {
            let nodes =
                list.iter().enumerate().map(|(n, value)| node_of(value, lines, &within(path, &n.to_string()), flaws));
            // A list without one of its items is not the list that was meant.
            Kind::List(nodes.collect::<Vec<_>>().into_iter().collect::<Option<_>>()?)
        }
        DeValue::Table(table) => table_of(table, lines, path, flaws),
    };
    Some(Node { mark, kind })
}

fn within(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
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

    /// The node that the path leads to.
    pub(super) fn node(&self, path: &[String]) -> Option<&Self> {
        let mut at = self;
        for key in path {
            at = match &at.kind {
                Kind::List(list) => list.get(key.parse::<usize>().ok()?)?,
                _ => &at.get(key)?.node,
            };
        }
        Some(at)
    }

    /// The text that the path leads to, if it is one.
    pub(super) fn text(&self, path: &[String]) -> Option<&str> {
        match &self.node(path)?.kind {
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

    /// Puts in the variables of all texts, as `filled_in`. False where one is not set.
    pub(super) fn fill_in(
        &mut self,
        variable: &dyn Fn(&str) -> Option<String>,
        path: &str,
        flaws: &mut Vec<Flaw>,
    ) -> bool {
        match &mut self.kind {
            Kind::Scalar(Value::String(text)) if text.contains('$') => match filled_in(text, variable) {
                Ok(filled) => *text = filled,
                Err(rule) => {
                    flaws.push(Flaw { mark: self.mark, key: path.to_owned(), rule });
                    return false;
                }
            },
            Kind::Scalar(_) => {}
            // A value that is not there is a fault, and is taken out: what would follow from it is none of its own.
            Kind::List(list) => {
                let mut at = 0;
                list.retain_mut(|node| {
                    at += 1;
                    node.fill_in(variable, &within(path, &(at - 1).to_string()), flaws)
                });
            }
            Kind::Table(table) => {
                table.retain_mut(|entry| entry.node.fill_in(variable, &within(path, &entry.key), flaws));
            }
        }
        true
    }
}

/// Puts in variables as a shell does (POSIX, Shell Command Language, 2.6.2): `${NAME}`; `${NAME:-other}`, where it is not set or
/// empty; `${NAME-other}`, where it is not set. `other` may hold variables too. `$$` is a dollar sign.
pub(super) fn filled_in(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        rest = match after.strip_prefix('{') {
            Some(inner) => {
                let end = closing_brace(inner).ok_or("has a `${` without its `}`")?;
                out += &value_of(&inner[..end], variable)?;
                &inner[end + 1..]
            }
            None => {
                out.push('$');
                after.strip_prefix('$').unwrap_or(after)
            }
        };
    }
    Ok(out + rest)
}

/// Where the `}` is that belongs to the `${` before this text.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let mut from = 0;
    loop {
        let at = from + text[from..].find(['$', '}'])?;
        from = at + 1;
        match &text[at..] {
            rest if rest.starts_with("${") => open += 1,
            rest if rest.starts_with("$$") => from += 1,
            rest if rest.starts_with('}') => match open.checked_sub(1) {
                Some(fewer) => open = fewer,
                None => return Some(at),
            },
            _ => {}
        }
    }
}

/// The value of what stands between `${` and `}`.
fn value_of(inner: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let name_ends = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, operator) = inner.split_at(name_ends);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`${{{inner}}}` has no name of a variable"));
    }
    let found = variable(name);
    if let Some(other) = operator.strip_prefix(":-") {
        return found.filter(|value| !value.is_empty()).map_or_else(|| filled_in(other, variable), Ok);
    }
    if let Some(other) = operator.strip_prefix('-') {
        return found.map_or_else(|| filled_in(other, variable), Ok);
    }
    match operator {
        "" => found.ok_or_else(|| format!("the environment has no `{name}`")),
        _ => Err(format!("`${{{inner}}}`: a name is followed by `:-`, by `-`, or by `}}`")),
    }
}
