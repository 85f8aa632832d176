//! The command line and options of a claude process.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use ash_model::bounded::raw_map;
use ash_model::raw::RawObject;
use ash_model::{RawJson, Variables};

/// Maximum bytes of one argument.
pub const MAX_ARG_BYTES: usize = ash_model::variables::MAX_STRING;

/// Tools that schedule work for later. An idle session is frozen and its process may be stopped, so
/// the work would not happen. They are disallowed.
const WAKE_UPS: [&str; 4] = ["CronCreate", "CronDelete", "CronList", "ScheduleWakeup"];

/// How a session's claude is started, for all its processes. Stored as `Session.launch`. Holds the
/// client's secrets (`env`): never shown, never logged.
///
/// New fields need a default. Do not rename fields: newer daemons read stored rows.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LaunchOptions {
    pub model: Option<String>,
    /// Appended to claude's own prompt, in place of the agent's CLAUDE.md: the session's prompt,
    /// else that of the agent's active version.
    pub system_prompt: Option<String>,
    /// The session's variables, merged: agent, then extraEnv.
    pub env: Variables,
    /// Id of the tenant's credential that the gateway uses for this session.
    pub credential: Option<Uuid>,
    /// Servers by name, each `{"url",...}` or `{"command","args","env"}`. The agent's `.mcp.json`
    /// stays in force.
    #[serde(deserialize_with = "raw_map")]
    pub mcp_servers: RawObject,
    pub permission_mode: PermissionMode,
    pub allowed_tools: Vec<String>,
    pub disallowed_tools: Vec<String>,
    pub betas: Vec<String>,
    /// Subagents by name: `{"description","prompt","tools","model"}`.
    pub subagents: Option<RawJson>,
    /// The subagent that leads the conversation.
    pub initial_agent: Option<String>,
}

impl std::fmt::Debug for LaunchOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaunchOptions")
            .field("model", &self.model)
            .field("permission_mode", &self.permission_mode)
            .field("env", &format_args!("{} variables", self.env.len()))
            .field("mcp_servers", &format_args!("{} servers", self.mcp_servers.len()))
            .finish_non_exhaustive()
    }
}

/// Who decides whether a tool may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PermissionMode {
    /// Everything may run: the sandbox is the boundary.
    #[default]
    BypassPermissions,
    /// The agent's `.claude/settings.json` decides, including `permissions.defaultMode`; the rest
    /// is denied.
    PermissionsByAgent,
    /// claude's default rules and the session's lists decide; the rest is denied.
    Default,
}

impl std::str::FromStr for PermissionMode {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "bypassPermissions" => Ok(Self::BypassPermissions),
            "permissionsByAgent" => Ok(Self::PermissionsByAgent),
            "default" => Ok(Self::Default),
            _ => {
                let shown: String = word.chars().take(80).collect();
                Err(format!(
                    "permissionMode must be one of bypassPermissions, permissionsByAgent, default, not \"{shown}\""
                ))
            }
        }
    }
}

/// Options that no control request can change. A message with other values needs a new process with
/// [`Conversation::Resumed`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessFlags {
    /// Model calls of one turn. Above it the turn ends with `error_max_turns`.
    pub max_turns: Option<u32>,
    /// US dollars since the process started. Above it the turn ends with `error_max_budget_usd`.
    pub max_budget_usd: Option<f64>,
    /// The answer is the `structured_output` of the result.
    pub json_schema: Option<RawJson>,
}

/// The conversation of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// A new one. claude exits when one with that id exists.
    New(Uuid),
    /// The one with that id. claude ends its first turn with an error when there is none.
    Resumed(Uuid),
    /// A copy of `from` under the id `to`.
    Forked { from: Uuid, to: Uuid },
}

impl LaunchOptions {
    /// Checks what would make the start fail. `Err` is a message for the client that names the
    /// field.
    pub fn check(&self) -> Result<(), String> {
        if let Some(subagents) = &self.subagents
            && !subagents.is_object()
        {
            return Err("subagents must be an object of subagents by name".to_owned());
        }
        for (name, server) in self.mcp_servers.iter() {
            let is_string = |name| server.member(name).is_some_and(|value| value.get().starts_with('"'));
            let fits = ["url", "command"].into_iter().any(is_string);
            if !fits {
                return Err(format!("mcpServers.{name} must have a \"url\" or a \"command\" (a string)"));
            }
        }
        for arg in argv("", self, Conversation::New(Uuid::nil()), &ProcessFlags::default()) {
            let field = arg.split('=').next().unwrap_or_default().trim_start_matches('-');
            if arg.contains('\0') {
                return Err(format!("{field} must not contain a NUL character"));
            }
            if arg.len() > MAX_ARG_BYTES {
                return Err(format!("{field} is too long: {} bytes, maximum {MAX_ARG_BYTES}", arg.len()));
            }
        }
        Ok(())
    }
}

/// The command line. Values are bound with `=`, so that claude never reads a client's value as an
/// option.
pub fn argv(binary: &str, options: &LaunchOptions, conversation: Conversation, flags: &ProcessFlags) -> Vec<String> {
    let mut argv: Vec<String> = [
        binary,
        "-p",
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--verbose",
        // No request switches this on for one turn, so it is always on and the reader filters.
        "--include-partial-messages",
        // Otherwise a resumed conversation keeps its first system prompt.
        "--system-prompt-snapshot=off",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut flag = |name: &str, value: &str| argv.push(format!("--{name}={value}"));

    match options.permission_mode {
        PermissionMode::BypassPermissions => flag("permission-mode", "bypassPermissions"),
        // With stdio, ashd tells claude why a tool is denied; see `permissions`.
        PermissionMode::PermissionsByAgent => flag("permission-prompt-tool", "stdio"),
        PermissionMode::Default => {
            flag("permission-mode", "default");
            flag("permission-prompt-tool", "stdio");
        }
    }
    if let Some(model) = &options.model {
        flag("model", model);
    }
    if !options.allowed_tools.is_empty() {
        flag("allowedTools", &options.allowed_tools.join(","));
    }
    let disallowed: Vec<&str> = options.disallowed_tools.iter().map(String::as_str).chain(WAKE_UPS).collect();
    flag("disallowedTools", &disallowed.join(","));
    // Unlike tools, betas are not split at commas.
    for beta in &options.betas {
        flag("betas", beta);
    }
    if !options.mcp_servers.is_empty() {
        flag("mcp-config", &mcp_servers(&options.mcp_servers));
    }
    if let Some(subagents) = &options.subagents {
        flag("agents", subagents.get());
    }
    if let Some(agent) = &options.initial_agent {
        flag("agent", agent);
    }
    if let Some(turns) = flags.max_turns {
        flag("max-turns", &turns.to_string());
    }
    if let Some(budget) = flags.max_budget_usd {
        flag("max-budget-usd", &budget.to_string());
    }
    if let Some(schema) = &flags.json_schema {
        flag("json-schema", schema.get());
    }
    match conversation {
        Conversation::New(id) => flag("session-id", &id.to_string()),
        Conversation::Resumed(id) => flag("resume", &id.to_string()),
        Conversation::Forked { from, to } => {
            flag("resume", &from.to_string());
            flag("session-id", &to.to_string());
            argv.push("--fork-session".to_owned());
        }
    }
    argv
}

/// Adds `"type":"http"` to servers with a `url` and no `type`: claude requires it. Changes nothing
/// else.
fn mcp_servers(servers: &RawObject) -> String {
    let mut json = String::from(r#"{"mcpServers":{"#);
    for (n, (name, server)) in servers.iter().enumerate() {
        json.push_str(if n == 0 { "" } else { "," });
        json.push_str(RawJson::of(name).get());
        json.push(':');
        match server.get().strip_prefix('{') {
            Some(rest) if server.member("url").is_some() && server.member("type").is_none() => {
                json.push_str(r#"{"type":"http","#);
                json.push_str(rest);
            }
            _ => json.push_str(server.get()),
        }
    }
    json.push_str("}}");
    json
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn args(options: &LaunchOptions) -> Vec<String> {
        argv("/claude", options, Conversation::New(ID), &ProcessFlags::default())
    }

    #[test]
    fn a_plain_session() {
        let argv = args(&LaunchOptions::default());
        assert_eq!(argv[0], "/claude");
        assert!(argv.contains(&"--permission-mode=bypassPermissions".to_owned()));
        assert!(argv.contains(&format!("--session-id={ID}")));
        assert!(argv.contains(&"--disallowedTools=CronCreate,CronDelete,CronList,ScheduleWakeup".to_owned()));
        assert!(!argv.iter().any(|a| a.starts_with("--model") || a.starts_with("--mcp") || a.starts_with("--allowed")));
    }

    #[test]
    fn every_option_is_one_argument_that_cannot_become_another() {
        let options = LaunchOptions {
            model: Some("--resume".into()),
            allowed_tools: vec!["--dangerously-skip-permissions".into(), "Bash(git *)".into()],
            disallowed_tools: vec!["WebFetch".into()],
            initial_agent: Some("-p".into()),
            mcp_servers: [("s".to_owned(), json!({ "url": "http://x" }).into())].into(),
            ..LaunchOptions::default()
        };
        let argv = args(&options);
        for expected in [
            "--model=--resume",
            "--allowedTools=--dangerously-skip-permissions,Bash(git *)",
            "--disallowedTools=WebFetch,CronCreate,CronDelete,CronList,ScheduleWakeup",
            "--agent=-p",
            r#"--mcp-config={"mcpServers":{"s":{"type":"http","url":"http://x"}}}"#,
        ] {
            assert!(argv.contains(&expected.to_owned()), "{expected} in {argv:?}");
        }
    }

    #[test]
    fn what_the_client_sent_is_passed_on_as_it_is() {
        let raw = |text: &str| RawJson::parse(text).unwrap();
        let options = LaunchOptions {
            mcp_servers: [
                ("z".to_owned(), raw(r#"{"command":"c"}"#)),
                ("a\"b".to_owned(), raw(r#"{"url":"u","headers":{"z":1,"a":"\ud99c"}}"#)),
                ("c".to_owned(), raw(r#"{"type":"sse","url":"u"}"#)),
            ]
            .into(),
            subagents: Some(raw(r#"{"zebra":{"prompt":"x"},"apple":1e999}"#)),
            ..LaunchOptions::default()
        };
        let stored: LaunchOptions = serde_json::from_str(RawJson::of(&options).get()).unwrap();
        let argv = args(&stored);
        for expected in [
            r#"--mcp-config={"mcpServers":{"z":{"command":"c"},"a\"b":{"type":"http","url":"u","headers":{"z":1,"a":"\ud99c"}},"c":{"type":"sse","url":"u"}}}"#,
            r#"--agents={"zebra":{"prompt":"x"},"apple":1e999}"#,
        ] {
            assert!(argv.contains(&expected.to_owned()), "{expected} in {argv:?}");
        }
    }

    #[test]
    fn conversations() {
        let of = |c| argv("/claude", &LaunchOptions::default(), c, &ProcessFlags::default()).join(" ");
        let other = Uuid::from_u128(8);
        assert!(of(Conversation::New(ID)).ends_with(&format!("--session-id={ID}")));
        assert!(of(Conversation::Resumed(ID)).ends_with(&format!("--resume={ID}")));
        let forked = of(Conversation::Forked { from: ID, to: other });
        assert!(forked.ends_with(&format!("--resume={ID} --session-id={other} --fork-session")), "{forked}");
    }

    #[test]
    fn what_cannot_be_started_is_refused_by_name() {
        let table: [(LaunchOptions, &str); 4] = [
            (LaunchOptions { subagents: Some(json!([]).into()), ..Default::default() }, "subagents"),
            (
                LaunchOptions { mcp_servers: [("x".into(), json!({}).into())].into(), ..Default::default() },
                "mcpServers.x",
            ),
            (LaunchOptions { model: Some("a\0b".into()), ..Default::default() }, "model"),
            (LaunchOptions { allowed_tools: vec!["x".repeat(200_000)], ..Default::default() }, "allowedTools"),
        ];
        for (options, field) in table {
            let error = options.check().expect_err(field);
            assert!(error.starts_with(field), "{error}");
        }
        assert_eq!(LaunchOptions::default().check(), Ok(()));
    }

    #[test]
    fn stored_options_of_an_older_daemon_are_read() {
        let options: LaunchOptions = serde_json::from_str("{}").expect("every field has a default");
        assert_eq!(options, LaunchOptions::default());
        let back = serde_json::to_string(&options).and_then(|text| serde_json::from_str::<LaunchOptions>(&text));
        assert_eq!(back.ok(), Some(options));
    }
}
