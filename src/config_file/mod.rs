//! Supervisor and clients from a file in TOML.
//!
//! ```toml
//! [supervisor]
//! intensity = { max_restarts = 10, window = "60s" }
//!
//! [limits.dials]                    # shared by all clients that name it
//! window = { limit = 300, period = "5m" }
//!
//! [defaults]                        # of every client, where it does not say otherwise
//! dial_limit = "dials"
//! heartbeat = { kind = "ping_pong", interval = "10s" }
//!
//! [clients.book]
//! url = "wss://venue.example/ws"
//! header = { Authorization = "Bearer ${VENUE_TOKEN}" }
//! stale_after = "5s"
//! ```
//!
//! Every key of a client is the option of [`ClientConfig`] of that name, but for those that are code of yours (delivery,
//! callbacks, a resolver, a venue of your own), which you add to the configurations that [`Desk`] has. Times are written with
//! their unit: `ns`, `us`, `ms`, `s`, `m`, `h` or `d`. In a text `${NAME}` is a variable of the environment, `${NAME:-other}` has a value
//! where the variable is not set or empty, as in a shell, and `$$` is a dollar sign. A key that is not known is a fault, and all faults
//! of a file are reported at once, each with its place.

mod tree;
mod words;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use self::tree::{Entry, Flaw, Kind, Mark, Node};
use self::words::{missing_keys, refuse_lists, resolve, unknown_key, without_values};
use crate::client::Client;
use crate::config::ClientConfig;
use crate::config::effective::effective;
use crate::config::file::ClientFile;
use crate::config::file_parts::{LimitFile, Time};
use crate::error::ConfigError;
use crate::lifecycle::StartError;
use crate::policy::rate_limit::RateLimit;
use crate::state::{ClientId, Tag};
use crate::supervisor::{IntensityScope, RestartCounting, Supervisor, SupervisorBuilder};

/// Something that is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileFault {
    /// The line, from 1 on.
    pub line: usize,
    /// The column, from 1 on, in characters.
    pub column: usize,
    /// The key, as `clients.book.jitter`; empty where it is the whole file.
    pub key: String,
    /// The rule that it breaks.
    pub rule: String,
}

/// All that is wrong in a file, in the order of its lines.
///
/// ```
/// use ws_supervisor::config_file::Desk;
///
/// let wrong = "[clients.book]\nurl = \"wss://venue.example\"\njitter = 2.0\nconect_timeout = \"5s\"\n";
/// let error = Desk::parse(wrong).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "3:1: clients.book.jitter: must be between 0 and 1\n\
///      4:1: clients.book.conect_timeout: unknown key; did you mean `connect_timeout`?"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileError {
    /// The file; empty for a text.
    pub file: PathBuf,
    /// What is wrong.
    pub faults: Vec<FileFault>,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.faults.iter().enumerate() {
            let FileFault { line, column, key, rule } = fault;
            let end = if at > 0 { "\n" } else { "" };
            let file = self.file.display().to_string();
            let place = if file.is_empty() { String::new() } else { format!("{file}:") };
            let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
            write!(f, "{end}{place}{line}:{column}: {key}{rule}")?;
        }
        Ok(())
    }
}

impl Error for FileError {}

/// The file as a whole.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct DeskFile {
    /// Where the schema is: for editors.
    #[serde(rename = "$schema")]
    #[allow(dead_code)]
    schema: Option<String>,
    supervisor: SupervisorFile,
    /// Records all clients. Needs the feature `record`.
    #[cfg(feature = "record")]
    recorder: Option<RecorderFile>,
    /// Rate limits that clients share by their names.
    limits: BTreeMap<String, LimitFile>,
    /// Options of every client that does not set them itself.
    defaults: ClientFile,
    /// The clients by their names.
    clients: BTreeMap<String, ClientFile>,
}

/// The supervisor. Each key is the setting of `SupervisorBuilder` of that name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct SupervisorFile {
    intensity: Option<Intensity>,
    intensity_scope: Option<IntensityScope>,
    restart_counting: Option<RestartCounting>,
    max_clients: Option<usize>,
    shutdown_grace: Option<Time>,
    #[cfg(feature = "metrics")]
    metrics_interval: Option<Time>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Intensity {
    max_restarts: usize,
    window: Time,
}

/// A recorder, as `record::Recorder::builder`.
#[cfg(feature = "record")]
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct RecorderFile {
    /// The file. Must be there.
    path: Option<PathBuf>,
    rotate_bytes: Option<u64>,
    rotate_every: Option<Time>,
    #[cfg(feature = "zstd")]
    zstd: Option<i32>,
    buffer: Option<usize>,
    with_secrets: bool,
    /// Names of your own whose values are secrets.
    redact: Option<Vec<String>>,
}

/// The content of a file: to be started as it is, or to be added to first.
///
/// ```
/// use ws_supervisor::config_file::Desk;
/// # let server = ws_supervisor::testing::Server::echo()?;
/// # let url = server.url();
///
/// let desk = Desk::parse(&format!("[clients.echo]\nurl = \"{url}\"\nconnect_timeout = \"5s\"\n"))?;
/// assert_eq!(desk.clients[0].0, "echo");
/// let (supervisor, clients) = desk.start()?;
/// clients[0].wait_until_open(std::time::Duration::from_secs(10))?;
/// # drop(supervisor);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Desk {
    /// The supervisor's settings.
    pub supervisor: SupervisorBuilder,
    /// The recorder of all clients, if the file has one.
    #[cfg(feature = "record")]
    pub recorder: Option<crate::record::RecorderBuilder>,
    /// The clients, in the order of their names, each with its key.
    pub clients: Vec<(String, ClientConfig)>,
}

impl Desk {
    /// Reads a file.
    ///
    /// # Errors
    /// All faults of the file at once; or why the file can't be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let whole = |rule: String| FileError {
            file: path.to_owned(),
            faults: vec![FileFault { line: 1, column: 1, key: String::new(), rule }],
        };
        if let Some(ending @ ("json" | "yaml" | "yml")) = path.extension().and_then(|ending| ending.to_str()) {
            return Err(whole(format!("must be TOML, and its name must not end in .{ending}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| whole(error.to_string()))?;
        Self::parse(&text).map_err(|error| FileError { file: path.to_owned(), ..error })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// All faults of the text at once.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        parse(text, &|name| std::env::var(name).ok()).map_err(|mut flaws| {
            flaws.sort_by_key(|flaw| flaw.mark);
            let fault = |Flaw { mark: Mark { line, column }, key, rule }| FileFault { line, column, key, rule };
            FileError { file: PathBuf::new(), faults: flaws.into_iter().map(fault).collect() }
        })
    }

    /// Starts the recorder, the supervisor and all clients, and returns at once, as
    /// [`spawn_client`](Supervisor::spawn_client) does.
    ///
    /// # Errors
    /// When one of them can't be started; those before it are ended again.
    pub fn start(self) -> Result<(Supervisor, Vec<Client>), StartError> {
        let supervisor = self.supervisor.clone().start()?;
        let clients = self.spawn(&supervisor)?;
        Ok((supervisor, clients))
    }

    /// Starts the recorder, and all clients under this supervisor.
    ///
    /// # Errors
    /// When one of them can't be started; those before it run.
    pub fn spawn(self, supervisor: &Supervisor) -> Result<Vec<Client>, StartError> {
        #[cfg(feature = "record")]
        let recorder = self.recorder.map(|recorder| recorder.start()).transpose();
        #[cfg(feature = "record")]
        let recorder = recorder.map_err(|error| StartError::Os(error.to_string().into()))?;
        let spawn = |(_, config): (String, ClientConfig)| {
            #[cfg(feature = "record")]
            let config = recorder.iter().fold(config, |config, recorder| config.record(recorder));
            supervisor.spawn_client(config)
        };
        self.clients.into_iter().map(spawn).collect()
    }

    /// Files and folders that the options name and that are not there, one line each: a recorder can't start, and a client can't
    /// connect, before they are.
    ///
    /// ```
    /// let text = "[clients.book]\nurl = \"wss://venue.example\"\ntls = { root_file = [\"/no/ca.pem\"] }\n";
    /// let desk = ws_supervisor::config_file::Desk::parse(text)?;
    /// assert_eq!(desk.missing_files(), ["clients.book.tls: /no/ca.pem does not exist"]);
    /// # Ok::<(), ws_supervisor::config_file::FileError>(())
    /// ```
    pub fn missing_files(&self) -> Vec<String> {
        let mut missing = Vec::new();
        #[cfg(feature = "record")]
        if let Some(folder) = self.recorder.as_ref().map(crate::record::RecorderBuilder::folder) {
            if !folder.is_dir() {
                missing.push(format!("recorder.path: the folder {} does not exist", folder.display()));
            }
        }
        for (name, config) in &self.clients {
            let absent = config.tls.files().filter(|file| !file.exists());
            missing.extend(absent.map(|file| format!("clients.{name}.tls: {} does not exist", file.display())));
        }
        missing
    }

    /// The effective settings of each client, by its key: as [`Client::effective_settings`].
    pub fn effective_settings(&self) -> Value {
        let all = self.clients.iter().filter_map(|(key, config)| {
            let settings = config.resolve().ok()?;
            let name = settings.name.clone().unwrap_or_else(|| key.clone()).into();
            let tag = Tag { id: ClientId(0), name, venue: settings.hooks.venue_or(&settings.target.host).into() };
            Some((key.clone(), effective(&tag, &settings)))
        });
        Value::Object(all.collect())
    }

    /// The JSON schema (draft 2020-12) of such a file: for editors, and for checks before it is deployed.
    ///
    /// ```
    /// let schema = ws_supervisor::config_file::Desk::schema();
    /// assert!(schema["properties"]["clients"].is_object());
    /// ```
    pub fn schema() -> Value {
        let mut schema = schemars::schema_for!(DeskFile).to_value();
        close(&mut schema);
        schema
    }
}

/// No object takes keys that it does not name.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".into(), Value::Bool(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

/// Puts in variables of the environment, as in a file: `${NAME}`; `${NAME:-other}`, where it is not set or empty; `$$` is a dollar
/// sign.
///
/// # Errors
/// The name that is not set, or how the text breaks the rule, in words.
///
/// ```
/// use ws_supervisor::config_file::filled_in;
/// assert_eq!(filled_in("Bearer ${NOT_SET_ANYWHERE:-none}"), Ok("Bearer none".to_owned()));
/// assert_eq!(filled_in("${NOT_SET_ANYWHERE}"), Err("the environment has no `NOT_SET_ANYWHERE`".to_owned()));
/// ```
pub fn filled_in(text: &str) -> Result<String, String> {
    tree::filled_in(text, &|name| std::env::var(name).ok())
}

/// Reads a time as in a file: numbers with their units, such as `30s` or `1h 30m`.
///
/// # Errors
/// The rule, in words.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::config_file::time;
/// assert_eq!(time("1m 30s"), Ok(Duration::from_secs(90)));
/// assert!(time("5M").is_err() && time("5").is_err());
/// ```
pub fn time(text: &str) -> Result<Duration, String> {
    crate::config::file_parts::time(text).ok_or_else(|| crate::config::file_parts::TIME_RULE.to_owned())
}

fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Desk, Vec<Flaw>> {
    let mut flaws = Vec::new();
    let mut tree = tree::read(text.strip_prefix('\u{feff}').unwrap_or(text), &mut flaws)?;
    let as_written = tree.clone();
    tree.fill_in(variable, "", &mut flaws);
    inherit(&mut tree);
    let schema = Desk::schema();
    refuse_lists(&schema, &resolve(&schema, &schema), &tree, &mut Vec::new(), &mut flaws);
    let file = read(&tree, &as_written, &schema, &mut flaws);
    let flaw = |path: &[&str], rule: &str| {
        let path: Vec<_> = path.iter().map(|key| (*key).to_owned()).collect();
        Flaw { mark: tree.place(&path), key: path.join("."), rule: rule.to_owned() }
    };
    let mut limits = BTreeMap::<String, RateLimit>::new();
    for (name, limit) in &file.limits {
        match limit.build() {
            Ok(limit) => drop(limits.insert(name.clone(), limit)),
            Err(fault) => flaws.push(flaw(&["limits", name], fault.rule())),
        }
    }
    let mut clients = Vec::new();
    for (name, client) in file.clients {
        // Where a value is missing since it was wrong, what follows from that is no fault of its own.
        let prefix = format!("clients.{name}.");
        let known: Vec<_> = flaws.iter().filter_map(|flaw| flaw.key.strip_prefix(&prefix)).map(str::to_owned).collect();
        match client.build(&name, &limits) {
            Ok(config) => clients.push((name, config)),
            Err(faults) => {
                let is_new =
                    |fault: &ConfigError| !known.iter().any(|key| key.split('.').next() == Some(fault.option()));
                for fault in faults.into_iter().filter(is_new) {
                    let found = flaw(&["clients", &name, fault.option()], fault.rule());
                    // A fault of `defaults` is reported once, not for each client.
                    if !flaws.iter().any(|flaw| flaw.mark == found.mark && flaw.rule == found.rule) {
                        flaws.push(found);
                    }
                }
            }
        }
    }
    let supervisor = supervisor(&file.supervisor);
    if let Err(fault) = supervisor.check() {
        flaws.push(flaw(&["supervisor", fault.option()], fault.rule()));
    }
    #[cfg(feature = "record")]
    let recorder = file.recorder.and_then(|file| {
        if file.path.is_none() {
            flaws.push(flaw(&["recorder"], "a recorder must have a `path`"));
        }
        recorder(file)
    });
    if supervisor.max_clients.is_some_and(|most| most > 0 && clients.len() > most) {
        flaws.push(flaw(&["supervisor", "max_clients"], &format!("there are {} clients", clients.len())));
    }
    let mut names = BTreeMap::<String, String>::new();
    for (key, config) in &clients {
        let name = config.name.clone().unwrap_or_default();
        if let Some(other) = names.insert(name, key.clone()) {
            let rule = format!("the client `{other}` has this name already");
            flaws.push(flaw(&["clients", key, "name"], &rule));
        }
    }
    if clients.is_empty() && flaws.is_empty() {
        flaws.push(flaw(&["clients"], "must have at least one client"));
    }
    if !flaws.is_empty() {
        return Err(flaws);
    }
    Ok(Desk {
        supervisor,
        #[cfg(feature = "record")]
        recorder,
        clients,
    })
}

/// Every client has what `defaults` says, where it does not say otherwise itself.
fn inherit(tree: &mut Node) {
    let Some(defaults) = tree.get("defaults").map(|entry| entry.node.clone()) else { return };
    let Kind::Table(entries) = &mut tree.kind else { return };
    let Some(Entry { node: Node { kind: Kind::Table(clients), .. }, .. }) =
        entries.iter_mut().find(|entry| entry.key == "clients")
    else {
        return;
    };
    clients.iter_mut().for_each(|client| client.node.over(&defaults));
}

/// Reads the tree. A value that can't be read is reported and left out, until the rest is whole.
fn read(tree: &Node, as_written: &Node, schema: &Value, flaws: &mut Vec<Flaw>) -> DeskFile {
    let mut value = tree.value();
    loop {
        let mut unknown: Vec<Vec<String>> = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(ignored(&path));
        let read: Result<DeskFile, _> =
            serde_path_to_error::deserialize(serde_ignored::Deserializer::new(&value, &mut note));
        match read {
            Ok(file) => {
                // A key that clients have from `defaults` is reported there.
                unknown.sort_by_key(|path| path.first().is_some_and(|first| first != "defaults"));
                for path in unknown {
                    let (mark, key) = (tree.place(&path), path.join("."));
                    if !flaws.iter().any(|flaw| flaw.mark == mark) {
                        flaws.push(Flaw { mark, key, rule: unknown_key(schema, &path) });
                    }
                }
                return file;
            }
            Err(error) => {
                let segments =
                    error.path().iter().map(|segment| segment.to_string().trim_matches(['[', ']']).to_owned());
                let mut path: Vec<String> = segments.collect();
                let (mark, key) = (tree.place(&path), path.join("."));
                let words = error.inner().to_string();
                // Keys that were taken out since they are wrong are not missing.
                let missing = words.starts_with("missing field").then(|| missing_keys(schema, tree, &path));
                let rule = match missing {
                    Some(missing) if missing.is_empty() => None,
                    Some(missing) => Some(format!("must have {}", missing.join(" and "))),
                    None => Some(without_values(&words, as_written.text(&path) == tree.text(&path))),
                };
                if let Some(rule) = rule.filter(|_| !flaws.iter().any(|flaw| flaw.mark == mark)) {
                    flaws.push(Flaw { mark, key, rule });
                }
                // An item of a list takes the list with it, so that the places of the others stay right.
                while path.last().is_some_and(|last| last.parse::<usize>().is_ok()) {
                    path.pop();
                }
                if path.is_empty() || !take_out(&mut value, &path) {
                    return DeskFile::default();
                }
            }
        }
    }
}

fn take_out(value: &mut Value, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    match value {
        Value::Object(fields) if rest.is_empty() => fields.remove(first).is_some(),
        Value::Object(fields) => match fields.get_mut(first) {
            // An enum's variant is not a key everywhere: then what holds it goes.
            Some(inner) => take_out(inner, rest) || fields.remove(first).is_some(),
            None => false,
        },
        Value::Array(_) => false,
        _ => false,
    }
}

fn ignored(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path::*;
    let (mut of, last) = match path {
        Root => return Vec::new(),
        Seq { parent, index } => (ignored(parent), Some(index.to_string())),
        Map { parent, key } => (ignored(parent), Some(key.clone())),
        Some { parent } | NewtypeStruct { parent } | NewtypeVariant { parent } => (ignored(parent), None),
    };
    of.extend(last);
    of
}

fn supervisor(file: &SupervisorFile) -> SupervisorBuilder {
    let mut builder = Supervisor::builder();
    if let Some(Intensity { max_restarts, window }) = &file.intensity {
        builder = builder.intensity(*max_restarts, window.0);
    }
    builder = file.intensity_scope.into_iter().fold(builder, SupervisorBuilder::intensity_scope);
    builder = file.restart_counting.into_iter().fold(builder, SupervisorBuilder::restart_counting);
    builder = file.max_clients.into_iter().fold(builder, SupervisorBuilder::max_clients);
    #[cfg(feature = "metrics")]
    {
        builder = file.metrics_interval.into_iter().fold(builder, |builder, time| builder.metrics_interval(time.0));
    }
    file.shutdown_grace.into_iter().fold(builder, |builder, time| builder.shutdown_grace(time.0))
}

#[cfg(feature = "record")]
fn recorder(file: RecorderFile) -> Option<crate::record::RecorderBuilder> {
    use crate::record::RecorderBuilder;
    let mut builder = crate::record::Recorder::builder(file.path?);
    builder = file.rotate_bytes.into_iter().fold(builder, RecorderBuilder::rotate_bytes);
    builder = file.rotate_every.into_iter().fold(builder, |builder, time| builder.rotate_every(time.0));
    #[cfg(feature = "zstd")]
    {
        builder = file.zstd.into_iter().fold(builder, RecorderBuilder::zstd);
    }
    builder = file.buffer.into_iter().fold(builder, RecorderBuilder::buffer);
    let builder = builder.redact(file.redact.unwrap_or_default());
    Some(if file.with_secrets { builder.with_secrets() } else { builder })
}

#[cfg(test)]
#[path = "config_file_tests.rs"]
mod tests;
