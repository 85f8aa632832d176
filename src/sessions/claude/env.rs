//! The environment of a claude process: built from nothing. What ashd's own environment holds never gets in.
//!
//! | who wins | variables |
//! |---|---|
//! | the client (agent, credential, extraEnv) | everything not named below |
//! | fixed | where the model is, whose conversation it is, no traffic beside the model: a client's value is refused |
//! | lifted out | the client's own model key: it goes to the gateway, the sandbox sees the session's token |

use std::collections::BTreeMap;

use super::argv::MAX_ARG_BYTES;
use crate::launcher::init_protocol::MODEL_PORT;

/// Names and values of all variables together, in bytes. Linux gives arguments and environment a quarter of the
/// stack limit (2 MiB of 8); past it execve fails.
pub const MAX_ENV_BYTES: usize = 1 << 20;

/// Set by ashd, whatever the client says: changing one would cut the session from its gateway or its conversation.
const RESERVED: [&str; 14] = [
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_UNIX_SOCKET",
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CONFIG_DIR",
    "DISABLE_AUTOUPDATER",
    "HOME",
    "LOGNAME",
    "PWD",
    "USER",
    "IS_SANDBOX",
];

/// A client's own key for the model, in the order in which claude prefers them.
pub const MODEL_KEYS: [&str; 2] = ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"];

/// Home of the payload inside the sandbox.
pub const HOME: &str = "/home/agent";

/// Why a variable cannot be set. Never holds a value: values are secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{field}: \"{name}\" is not a variable name (letters, digits and _, not beginning with a digit)")]
    Name { field: String, name: String },
    #[error("{field}.{name} cannot be set: ashd sets it for the sandbox")]
    Reserved { field: String, name: String },
    #[error("{field}.{name} cannot be set: it would load other code into claude itself; set it in the command instead")]
    Loader { field: String, name: String },
    #[error("{field}.{name} must not contain a NUL character")]
    Nul { field: String, name: String },
    #[error("{field}.{name} is too long: at most {MAX_ARG_BYTES} bytes with its name")]
    Long { field: String, name: String },
    #[error("{field} is too large: at most {MAX_ENV_BYTES} bytes in all")]
    Large { field: String },
}

/// Checks variables as they come in; `field` is how the client named them (`extraEnv`, `env`).
pub fn check_env(field: &str, vars: &BTreeMap<String, String>) -> Result<(), EnvError> {
    let mut total = 0;
    for (name, value) in vars {
        let mut bytes = name.bytes();
        let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let field = field.to_owned();
        if !starts || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(EnvError::Name { field, name: name.chars().take(80).collect() });
        }
        let name = name.clone();
        if RESERVED.contains(&name.as_str()) {
            return Err(EnvError::Reserved { field, name });
        }
        // LD_LIBRARY_PATH only names where libraries are; agents with native code need it.
        if name.starts_with("LD_") && name != "LD_LIBRARY_PATH" {
            return Err(EnvError::Loader { field, name });
        }
        if value.contains('\0') {
            return Err(EnvError::Nul { field, name });
        }
        let bytes = name.len() + 1 + value.len();
        if bytes > MAX_ARG_BYTES {
            return Err(EnvError::Long { field, name });
        }
        total += bytes + 1;
        if total > MAX_ENV_BYTES {
            return Err(EnvError::Large { field });
        }
    }
    Ok(())
}

/// What [`environment`] makes of the session's variables.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    /// For the process, sorted by name.
    pub vars: Vec<(String, String)>,
    /// The client's own model key, for the gateway (`Register.key`); it is not in `vars`.
    pub key: Option<String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.vars.iter().map(|(name, _)| name).collect();
        f.debug_struct("Environment").field("names", &names).field("own_key", &self.key.is_some()).finish()
    }
}

/// The whole environment of a claude process. `token` is the session's, which the gateway knows; `session` are the
/// session's merged variables, checked when they came in (what slipped through is overridden here).
pub fn environment(session: &BTreeMap<String, String>, token: &str) -> Environment {
    let defaults = [
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SHELL", "/bin/bash"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
    ];
    let base_url = format!("http://127.0.0.1:{MODEL_PORT}");
    let fixed = [
        ("ANTHROPIC_API_KEY", token),
        ("ANTHROPIC_BASE_URL", base_url.as_str()),
        // Without these claude tries hosts that an empty network cannot reach, and waits for them.
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
        ("DISABLE_ERROR_REPORTING", "1"),
        ("DISABLE_TELEMETRY", "1"),
        ("HOME", HOME),
        ("LOGNAME", "agent"),
        ("USER", "agent"),
    ];
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut vars: BTreeMap<String, String> = defaults.into_iter().map(own).collect();
    vars.extend(session.iter().map(|(name, value)| (name.clone(), value.clone())));
    let keys = MODEL_KEYS.map(|name| vars.remove(name));
    vars.retain(|name, _| {
        !RESERVED.contains(&name.as_str()) && (!name.starts_with("LD_") || name == "LD_LIBRARY_PATH")
    });
    vars.extend(fixed.into_iter().map(own));
    let key = keys.into_iter().flatten().find(|key| !key.is_empty());
    Environment { vars: vars.into_iter().collect(), key }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn get<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
        environment.vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn the_client_may_override_defaults_and_nothing_fixed() {
        let env =
            environment(&vars(&[("PATH", "/opt/x"), ("A", "b"), ("HOME", "/root"), ("LD_PRELOAD", "x.so")]), "tok");
        assert_eq!(get(&env, "PATH"), Some("/opt/x"));
        assert_eq!(get(&env, "A"), Some("b"));
        assert_eq!(get(&env, "HOME"), Some("/home/agent"));
        assert_eq!(get(&env, "LD_PRELOAD"), None);
        assert_eq!(get(&env, "ANTHROPIC_BASE_URL"), Some("http://127.0.0.1:4180"));
        assert_eq!(get(&env, "ANTHROPIC_API_KEY"), Some("tok"));
        assert_eq!(env.key, None);
    }

    #[test]
    fn nothing_of_the_daemon_gets_in() {
        let names: Vec<_> = environment(&BTreeMap::new(), "t").vars.into_iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), 14);
        assert!(!names.iter().any(|n| n.starts_with("CARGO") || n.starts_with("ASH_")), "{names:?}");
    }

    #[test]
    fn a_clients_own_key_goes_to_the_gateway_and_never_into_the_sandbox() {
        for (pairs, key) in [
            (vec![("ANTHROPIC_API_KEY", "secret")], "secret"),
            (vec![("ANTHROPIC_AUTH_TOKEN", "secret2")], "secret2"),
            (vec![("ANTHROPIC_API_KEY", ""), ("ANTHROPIC_AUTH_TOKEN", "secret3")], "secret3"),
        ] {
            let env = environment(&vars(&pairs), "tok");
            assert_eq!(env.key.as_deref(), Some(key));
            assert!(!env.vars.iter().any(|(_, value)| value.contains("secret")), "{env:?}");
            assert!(!format!("{env:?}").contains("secret"));
        }
    }

    #[test]
    fn bad_variables_are_refused_by_name_and_never_by_value() {
        let long = "secret".repeat(30_000);
        for (name, value, part) in [
            ("", "secret", "not a variable name"),
            ("1A", "secret", "not a variable name"),
            ("A-B", "secret", "not a variable name"),
            ("HOME", "secret", "ashd sets it"),
            ("ANTHROPIC_BASE_URL", "secret", "ashd sets it"),
            ("LD_PRELOAD", "secret", "load other code"),
            ("A", "secret\0", "NUL"),
            ("A", long.as_str(), "too long"),
        ] {
            let error = check_env("extraEnv", &vars(&[(name, value)])).expect_err(name).to_string();
            assert!(error.starts_with("extraEnv") && error.contains(part) && !error.contains("secret"), "{error}");
        }
        assert_eq!(
            check_env("env", &vars(&[("LD_LIBRARY_PATH", "/x"), ("ANTHROPIC_API_KEY", "k"), ("_a1", "")])),
            Ok(())
        );
        let many = (0..20).map(|i| (format!("V{i}"), "x".repeat(100_000))).collect();
        assert_eq!(check_env("env", &many), Err(EnvError::Large { field: "env".to_owned() }));
    }
}
