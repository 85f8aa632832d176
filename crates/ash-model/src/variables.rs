//! Environment variables given by a client. They are checked once: when an agent is deployed or
//! changed, and when a session is created.
//!
//! Errors name the field and the variable, never the value: values are secrets.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// `MAX_ARG_STRLEN` of Linux (32 pages): execve refuses a longer argument or environment string,
/// including its terminator.
pub const MAX_STRING: usize = 128 * 1024 - 1;

/// Most bytes of names and values together. Linux limits arguments and environment to a quarter of
/// the stack limit (2 MiB of 8). Beyond it, execve fails.
pub const MAX_TOTAL: usize = 1 << 20;

/// Set by ashd. Changing one would cut the session off from its gateway, its conversation or its
/// directories.
pub const RESERVED: [&str; 17] = [
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_UNIX_SOCKET",
    "ASH_AGENT_NAME",
    "ASH_SESSION_ID",
    "ASH_WORKSPACE_DIR",
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CONFIG_DIR",
    "DISABLE_AUTOUPDATER",
    "HOME",
    "IS_SANDBOX",
    "LOGNAME",
    "PWD",
    "USER",
];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    #[error("{field}: \"{name}\" is not a variable name (letters, digits and _, not beginning with a digit)")]
    Name { field: String, name: String },
    #[error("{field}.{name} cannot be set: ashd sets it for the sandbox. Remove it")]
    Reserved { field: String, name: String },
    #[error("{field}.{name} cannot be set: it would load other code into claude itself; set it in the command instead")]
    Loader { field: String, name: String },
    #[error("{field}.{name} must not contain a NUL character")]
    Nul { field: String, name: String },
    #[error("{field}.{name} is too long: at most {MAX_STRING} bytes with its name")]
    Long { field: String, name: String },
    #[error("{field} is too large: at most {MAX_TOTAL} bytes in all")]
    Large { field: String },
}

/// Variables for a process in a sandbox. Client input goes through [`Variables::parse`] only.
/// Stored variables are read unchecked, and [`Variables::settable`] filters what an earlier version
/// accepted.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Checks variables from a client. `field` is the client's name for them (`extraEnv`, `env`).
    ///
    /// # Errors
    /// The first variable that cannot be set, with the reason; or the total is too large.
    pub fn parse(field: &str, vars: BTreeMap<String, String>) -> Result<Self, VariableError> {
        let mut total = 0;
        for (name, value) in &vars {
            check(field, name, value)?;
            total += name.len() + value.len() + 2;
        }
        if total > MAX_TOTAL {
            return Err(VariableError::Large { field: field.to_owned() });
        }
        Ok(Self(vars))
    }

    /// Variables of a database row, which were checked when they were written.
    #[must_use]
    pub fn stored(vars: BTreeMap<String, String>) -> Self {
        Self(vars)
    }

    /// Merges `over` into these. Each fits alone; together they may not.
    ///
    /// # Errors
    /// [`VariableError::Large`].
    pub fn with(mut self, field: &str, over: Self) -> Result<Self, VariableError> {
        self.0.extend(over.0);
        let total: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if total > MAX_TOTAL { Err(VariableError::Large { field: field.to_owned() }) } else { Ok(self) }
    }

    /// Sets one variable, with the checks of [`Variables::parse`].
    ///
    /// # Errors
    /// The variable cannot be set.
    pub fn set(&mut self, field: &str, name: &str, value: &str) -> Result<(), VariableError> {
        check(field, name, value)?;
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// The variables that may be set.
    pub fn settable(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()) && !is_loaders(name))
    }

    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

impl Deref for Variables {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Prints names only.
impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn check(field: &str, name: &str, value: &str) -> Result<(), VariableError> {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let field = field.to_owned();
    if !starts || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(VariableError::Name { field, name: name.chars().take(80).collect() });
    }
    let name = name.to_owned();
    if name.len() + 1 + value.len() > MAX_STRING {
        return Err(VariableError::Long { field, name: name.chars().take(80).collect() });
    }
    if RESERVED.contains(&name.as_str()) {
        return Err(VariableError::Reserved { field, name });
    }
    if is_loaders(&name) {
        return Err(VariableError::Loader { field, name });
    }
    if value.contains('\0') {
        return Err(VariableError::Nul { field, name });
    }
    Ok(())
}

/// `LD_LIBRARY_PATH` is allowed: it only names library directories, and agents with native code
/// need it.
fn is_loaders(name: &str) -> bool {
    name.starts_with("LD_") && name != "LD_LIBRARY_PATH"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn bad_variables_are_refused_by_name_and_never_by_value() {
        let long = "secret".repeat(30_000);
        for (name, value, part) in [
            ("", "secret", "not a variable name"),
            ("1A", "secret", "not a variable name"),
            ("A-B", "secret", "not a variable name"),
            ("A=B", "secret", "not a variable name"),
            ("HOME", "secret", "ashd sets it"),
            ("ANTHROPIC_BASE_URL", "secret", "ashd sets it"),
            ("ASH_SESSION_ID", "secret", "ashd sets it"),
            ("LD_PRELOAD", "secret", "load other code"),
            ("A", "secret\0", "NUL"),
            ("A", long.as_str(), "too long"),
        ] {
            let error = Variables::parse("extraEnv", vars(&[(name, value)])).expect_err(name).to_string();
            assert!(error.starts_with("extraEnv") && error.contains(part) && !error.contains("secret"), "{error}");
        }
        for (name, value) in [("LD_LIBRARY_PATH", "/x"), ("ANTHROPIC_API_KEY", "k"), ("_a1", ""), ("ASH_OWN", "x")] {
            assert!(Variables::parse("env", vars(&[(name, value)])).is_ok(), "{name}");
        }
    }

    #[test]
    fn all_together_have_a_bound() {
        let some = |from: usize, count: usize| {
            (from..from + count).map(|i| (format!("V{i}"), "x".repeat(100_000))).collect::<BTreeMap<_, _>>()
        };
        let large = Err(VariableError::Large { field: "env".to_owned() });
        assert_eq!(Variables::parse("env", some(0, 11)), large);
        let (one, two) = (Variables::parse("env", some(0, 6)).unwrap(), Variables::parse("env", some(6, 6)).unwrap());
        assert_eq!(one.clone().with("env", two), large);
        assert_eq!(one.clone().with("env", one.clone()), Ok(one));
    }

    #[test]
    fn values_are_not_in_its_debug_text() {
        let some = Variables::parse("env", vars(&[("TOKEN", "hunter2")])).unwrap();
        assert_eq!(format!("{some:?}"), "{\"TOKEN\"}");
    }
}
