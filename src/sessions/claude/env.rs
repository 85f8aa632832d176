//! The environment of a claude process, built from nothing. Variables of ashd itself never get in.
//!
//! | source | variables |
//! |---|---|
//! | the client (agent, credential, extraEnv) | everything not named below |
//! | fixed | model URL, session ids, no traffic beside the model: a client's value is refused |
//! | removed | the client's model key: the gateway gets it, the sandbox gets the session's token |

use std::collections::BTreeMap;

use uuid::Uuid;

use super::argv::LaunchOptions;
use crate::store::Session;
use ash_model::Variables;
use ash_protocol::init::MODEL_PORT;

/// A client's model key, in the order in which claude prefers them.
pub const MODEL_KEYS: [&str; 2] = ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"];

/// The shell of claude's Bash tool, written by [`ash_model::processes`].
const SHELL_OF_TOOLS: &str = ash_model::processes::SHELL;

/// Home of the payload in the sandbox.
pub const HOME: &str = "/home/agent";

/// Result of [`environment`].
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    /// For the process, sorted by name.
    pub vars: Vec<(String, String)>,
    /// The client's model key, for the gateway (`Register.key`); not in `vars`.
    pub key: Option<String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.vars.iter().map(|(name, _)| name).collect();
        f.debug_struct("Environment").field("names", &names).field("own_key", &self.key.is_some()).finish()
    }
}

/// Owner of the process, visible in its environment.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    pub session: Uuid,
    pub agent: &'a str,
}

impl<'a> Whose<'a> {
    #[must_use]
    pub fn of(session: &'a Session) -> Self {
        Self { session: session.id, agent: &session.agent_name }
    }
}

/// The client's model key, used instead of the host's.
#[must_use]
pub fn own_key(session: &Variables) -> Option<String> {
    MODEL_KEYS.iter().filter_map(|name| session.get(*name)).find(|key| !key.is_empty()).cloned()
}

/// The complete environment of a process of a session: claude, a command, a script of the agent.
/// `token` identifies the session to the gateway. `session` holds the merged variables, checked on
/// input; fixed ones override what an earlier version accepted.
#[must_use]
pub fn environment(session: &Variables, whose: &Whose<'_>, token: &str) -> Environment {
    let defaults = [
        // Reserves a part of the session's processes for claude itself (`docs/limits.md`).
        ("CLAUDE_CODE_SHELL", SHELL_OF_TOOLS),
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SHELL", "/bin/bash"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
    ];
    let (base_url, id) = (format!("http://127.0.0.1:{MODEL_PORT}"), whose.session.to_string());
    let fixed = [
        ("ANTHROPIC_API_KEY", token),
        ("ANTHROPIC_BASE_URL", base_url.as_str()),
        ("ASH_AGENT_NAME", whose.agent),
        ("ASH_SESSION_ID", id.as_str()),
        ("ASH_WORKSPACE_DIR", "/workspace"),
        // An idle session is frozen: scheduled work would not happen.
        ("CLAUDE_CODE_DISABLE_CRON", "1"),
        // Without these claude contacts hosts that an empty network cannot reach, and waits for
        // them.
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
    let settable = session.settable().filter(|(name, _)| !MODEL_KEYS.contains(&name.as_str()));
    vars.extend(settable.map(|(name, value)| (name.clone(), value.clone())));
    vars.extend(fixed.into_iter().map(own));
    Environment { vars: vars.into_iter().collect(), key: own_key(session) }
}

/// The environment of claude, with the variables of its options.
#[must_use]
pub fn environment_of_claude(options: &LaunchOptions, whose: &Whose<'_>, token: &str) -> Environment {
    const NO_CLAUDE_MD: &str = "CLAUDE_CODE_DISABLE_CLAUDE_MDS";
    let mut all = environment(&options.env, whose, token);
    if options.system_prompt.is_some() {
        // The prompt takes the place of CLAUDE.md.
        all.vars.retain(|(name, _)| name != NO_CLAUDE_MD);
        all.vars.push((NO_CLAUDE_MD.to_owned(), "1".to_owned()));
        all.vars.sort();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: Whose<'_> = Whose { session: Uuid::nil(), agent: "a" };

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        Variables::stored(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_prompt_takes_the_place_of_claude_md() {
        let with = |prompt: Option<&str>| {
            let options = LaunchOptions { system_prompt: prompt.map(str::to_owned), ..LaunchOptions::default() };
            let environment = environment_of_claude(&options, &WHOSE, "t");
            get(&environment, "CLAUDE_CODE_DISABLE_CLAUDE_MDS").map(str::to_owned)
        };
        assert_eq!((with(None), with(Some("You are A.")).as_deref()), (None, Some("1")));
    }

    fn get<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
        environment.vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn the_client_may_override_defaults_and_nothing_fixed() {
        let env = environment(
            &vars(&[("PATH", "/opt/x"), ("A", "b"), ("HOME", "/root"), ("LD_PRELOAD", "x.so")]),
            &WHOSE,
            "tok",
        );
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
        let names: Vec<_> = environment(&Variables::default(), &WHOSE, "t").vars.into_iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), 19);
        assert!(!names.iter().any(|n| n.starts_with("CARGO")), "{names:?}");
        let own: Vec<_> = names.iter().filter(|n| n.starts_with("ASH_")).collect();
        assert_eq!(own, ["ASH_AGENT_NAME", "ASH_SESSION_ID", "ASH_WORKSPACE_DIR"]);
    }

    #[test]
    fn a_clients_own_key_goes_to_the_gateway_and_never_into_the_sandbox() {
        for (pairs, key) in [
            (vec![("ANTHROPIC_API_KEY", "secret")], "secret"),
            (vec![("ANTHROPIC_AUTH_TOKEN", "secret2")], "secret2"),
            (vec![("ANTHROPIC_API_KEY", ""), ("ANTHROPIC_AUTH_TOKEN", "secret3")], "secret3"),
        ] {
            let env = environment(&vars(&pairs), &WHOSE, "tok");
            assert_eq!(env.key.as_deref(), Some(key));
            assert!(!env.vars.iter().any(|(_, value)| value.contains("secret")), "{env:?}");
            assert!(!format!("{env:?}").contains("secret"));
        }
    }
}
