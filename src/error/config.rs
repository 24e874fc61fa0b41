//! A configuration that cannot be meant.

use std::error::Error;
use std::fmt;

/// A configuration that cannot be meant: names the option and the rule that it breaks.
///
/// ```
/// use std::time::Duration;
/// use ws_supervisor::{ClientConfig, Supervisor};
///
/// let supervisor = Supervisor::start()?;
/// let config = ClientConfig::new("ws://127.0.0.1:9")?.connect_timeout(Duration::ZERO);
/// let refused = supervisor.spawn_client(config).unwrap_err();
/// assert_eq!(refused.to_string(), "option `connect_timeout`: must be greater than zero");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    option: &'static str,
    rule: Box<str>,
}

impl ConfigError {
    pub(crate) fn new(option: &'static str, rule: impl Into<String>) -> Self {
        Self { option, rule: rule.into().into_boxed_str() }
    }

    /// The option, by the name of the method that sets it.
    pub fn option(&self) -> &'static str {
        self.option
    }

    /// The rule that was broken, as a sentence.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option `{}`: {}", self.option, self.rule)
    }
}

impl Error for ConfigError {}
