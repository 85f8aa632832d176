//! From the client's (and the agent's) options to claude's launch options, and to the config that
//! the client sees. Pure.

use uuid::Uuid;

use crate::sessions::claude::{LaunchOptions, MODEL_KEYS};
use crate::sessions::{CreateSession, PatchConfig};
use crate::store::Agent;
use ash_model::raw::{self, RawObject};
use ash_model::{RawJson, Variables};

/// Launch options of a new session's claude, and its `config` as the client sees it. The error
/// names the field.
pub fn create(agent: &Agent, body: &CreateSession) -> Result<(LaunchOptions, Option<RawJson>), String> {
    let extra = Variables::parse("extraEnv", body.extra_env.clone());
    let env = extra.and_then(|extra| Variables::stored(agent.env.clone()).with("extraEnv", extra));
    let env = env.map_err(|e| e.to_string())?;
    let permission_mode = body.permission_mode.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    // Exactly one prompt: the session's, else the agent's (its active version's), else CLAUDE.md.
    let mut prompts = [&body.system_prompt, &agent.system_prompt].into_iter().flatten();
    let system_prompt = prompts.find(|prompt| !prompt.is_empty()).cloned();
    let options = LaunchOptions {
        model: body.model.clone().or_else(|| agent.model.clone()),
        system_prompt,
        env,
        mcp_servers: body.mcp_servers.clone(),
        permission_mode,
        allowed_tools: body.allowed_tools.clone().unwrap_or_default(),
        disallowed_tools: body.disallowed_tools.clone().unwrap_or_default(),
        betas: body.betas.clone().unwrap_or_default(),
        subagents: body.subagents.clone(),
        initial_agent: body.initial_agent.clone(),
        credential: None,
    };
    options.check()?;
    let mut config = RawObject::default();
    if !body.mcp_servers.is_empty() {
        config.set("mcpServers", masked_servers(&body.mcp_servers));
    }
    if let Some(mode) = &body.permission_mode {
        config.set("permissionMode", RawJson::of(mode));
    }
    show(
        &mut config,
        [
            ("allowedTools", body.allowed_tools.as_ref().map(RawJson::of)),
            ("disallowedTools", body.disallowed_tools.as_ref().map(RawJson::of)),
            ("betas", body.betas.as_ref().map(RawJson::of)),
            ("subagents", body.subagents.clone()),
            ("initialAgent", body.initial_agent.as_ref().map(RawJson::of)),
        ],
    );
    Ok((options, (!config.is_empty()).then(|| RawJson::of(&config))))
}

/// Servers as the client sees them: possible secrets are `***`.
fn masked_servers(servers: &RawObject) -> RawJson {
    const HIDDEN: &str = "***";
    let each = |object: &RawJson| match RawObject::read(object) {
        Some(members) => {
            let mut masked = RawObject::default();
            members.iter().for_each(|(name, _)| masked.set(name, RawJson::of(HIDDEN)));
            RawJson::of(&masked)
        }
        None => RawJson::of(HIDDEN),
    };
    let mut all = RawObject::default();
    for (name, server) in servers.iter() {
        let mut shown = RawObject::default();
        for (part, value) in RawObject::read(server).iter().flat_map(RawObject::iter) {
            let value = match part {
                "type" | "command" | "args" => value.clone(),
                "url" => {
                    raw::text(value.raw()).map_or_else(|| RawJson::of(HIDDEN), |url| RawJson::of(&masked_url(&url)))
                }
                "env" | "headers" => each(value),
                _ => RawJson::of(HIDDEN),
            };
            shown.set(part, value);
        }
        all.set(name, RawJson::of(&shown));
    }
    RawJson::of(&all)
}

/// A URL without its user, its password and the values of its query.
fn masked_url(url: &str) -> String {
    let (before, query) = url.split_once('?').map_or((url, ""), |(before, query)| (before, query));
    let before = match before.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let host = authority.rsplit_once('@').map(|(_, host)| format!("***@{host}"));
            format!("{scheme}://{}{path}", host.as_deref().unwrap_or(authority))
        }
        None => before.to_owned(),
    };
    if query.is_empty() { before } else { format!("{before}?***") }
}

/// A credential replaces the agent's own model key, and a key in `extraEnv` replaces the
/// credential.
pub fn use_credential(options: &mut LaunchOptions, body: &CreateSession, credential: Option<Uuid>) {
    let own = |name: &&str| body.extra_env.get(*name).is_some_and(|key| !key.is_empty());
    if credential.is_some() && !MODEL_KEYS.iter().any(own) {
        MODEL_KEYS.iter().for_each(|name| drop(options.env.remove(name)));
        options.credential = credential;
    }
}

/// `PATCH .../config`: present fields replace, others stay.
pub fn patch(options: &mut LaunchOptions, config: &mut RawJson, body: &PatchConfig) -> Result<(), String> {
    let set = |to: &mut Vec<String>, from: &Option<Vec<String>>| {
        if let Some(from) = from {
            to.clone_from(from);
        }
    };
    set(&mut options.allowed_tools, &body.allowed_tools);
    set(&mut options.disallowed_tools, &body.disallowed_tools);
    set(&mut options.betas, &body.betas);
    if body.model.is_some() {
        options.model.clone_from(&body.model);
    }
    if body.subagents.is_some() {
        options.subagents.clone_from(&body.subagents);
    }
    if body.initial_agent.is_some() {
        options.initial_agent.clone_from(&body.initial_agent);
    }
    options.check()?;
    if let Some(mut object) = RawObject::read(config) {
        show(
            &mut object,
            [
                ("allowedTools", body.allowed_tools.as_ref().map(RawJson::of)),
                ("disallowedTools", body.disallowed_tools.as_ref().map(RawJson::of)),
                ("betas", body.betas.as_ref().map(RawJson::of)),
                ("subagents", body.subagents.clone()),
                ("initialAgent", body.initial_agent.as_ref().map(RawJson::of)),
            ],
        );
        *config = RawJson::of(&object);
    }
    Ok(())
}

fn show(config: &mut RawObject, fields: [(&str, Option<RawJson>); 5]) {
    for (name, value) in fields {
        if let Some(value) = value {
            config.set(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use ash_model::TenantId;

    #[test]
    fn whose_key_it_is() {
        let id = Some(Uuid::new_v4());
        for (extra, credential, kept, env) in [
            (None, None, None, Some("agent's")),
            (None, id, id, None),
            (Some("own"), id, None, Some("own")),
            (Some("own"), None, None, Some("own")),
            (Some(""), id, id, None),
        ] {
            let mut agent = agent();
            agent.env.insert("ANTHROPIC_API_KEY".into(), "agent's".into());
            let extra_env = extra.map(|key| ("ANTHROPIC_API_KEY".to_owned(), key.to_owned())).into_iter().collect();
            let body = CreateSession { agent: "a".into(), extra_env, ..CreateSession::default() };
            let (mut options, _) = create(&agent, &body).unwrap();
            use_credential(&mut options, &body, credential);
            assert_eq!(options.credential, kept, "{extra:?} {credential:?}");
            assert_eq!(options.env.get("ANTHROPIC_API_KEY").map(String::as_str), env, "{extra:?} {credential:?}");
        }
    }

    fn agent() -> Agent {
        Agent {
            id: uuid::Uuid::nil(),
            tenant: TenantId::default_tenant(),
            name: "a".into(),
            version: 1,
            path_by_admin: false,
            path: "/a".into(),
            env: [("BOTH".into(), "agent".into()), ("AGENT".into(), "1".into())].into(),
            slug: None,
            description: None,
            model: Some("agent-model".into()),
            backend: None,
            system_prompt: Some("You are A.".into()),
            status: None,
            config: None,
            created_at: 0,
            updated_at: 0,
        }
    }

    #[test]
    fn the_session_wins_over_its_agent() {
        let body = CreateSession {
            extra_env: [("BOTH".into(), "session".into())].into(),
            system_prompt: Some("Be brief.".into()),
            ..CreateSession::default()
        };
        let (options, config) = create(&agent(), &body).unwrap();
        assert_eq!(options.env["BOTH"], "session");
        assert_eq!(options.env["AGENT"], "1");
        assert_eq!(options.model.as_deref(), Some("agent-model"));
        assert_eq!(options.system_prompt.as_deref(), Some("Be brief."));
        assert_eq!(config, None);
        let body = CreateSession { system_prompt: Some(String::new()), ..CreateSession::default() };
        assert_eq!(create(&agent(), &body).unwrap().0.system_prompt.as_deref(), Some("You are A."), "none was given");
        let body = CreateSession { model: Some("mine".into()), ..CreateSession::default() };
        assert_eq!(create(&agent(), &body).unwrap().0.model.as_deref(), Some("mine"));
    }

    #[test]
    fn secrets_are_not_in_what_the_client_sees() {
        let body = CreateSession {
            extra_env: [("TOKEN".into(), "hunter2".into())].into(),
            mcp_servers: [
                ("m".into(), json!({ "command": "x", "env": { "K": "hunter2" } }).into()),
                ("h".into(), json!({ "headers": { "A": "hunter2" }, "oauth": { "s": "hunter2" }, "url": "https://u:hunter2@h/p?k=hunter2" }).into()),
            ]
            .into(),
            allowed_tools: Some(vec!["Bash".into()]),
            ..CreateSession::default()
        };
        let (_, config) = create(&agent(), &body).unwrap();
        let shown = config.expect("a config");
        assert!(!shown.get().contains("hunter2"), "{}", shown.get());
        let want = json!({
            "mcpServers": {
                "m": { "command": "x", "env": { "K": "***" } },
                "h": { "headers": { "A": "***" }, "oauth": "***", "url": "https://***@h/p?***" },
            },
            "allowedTools": ["Bash"],
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(shown.get()).unwrap(), want);
    }

    #[test]
    fn errors_name_the_field() {
        for (body, field) in [
            (CreateSession { permission_mode: Some("yolo".into()), ..Default::default() }, "permissionMode"),
            (CreateSession { extra_env: [("A B".into(), String::new())].into(), ..Default::default() }, "extraEnv"),
            (CreateSession { subagents: Some(json!(1).into()), ..Default::default() }, "subagents"),
        ] {
            let error = create(&agent(), &body).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_patch_replaces_what_it_names() {
        let (mut options, _) = create(&agent(), &CreateSession::default()).unwrap();
        let mut config = RawJson::parse(r#"{"permissionMode":"default","allowedTools":["Bash"]}"#).unwrap();
        let body = PatchConfig { allowed_tools: Some(vec![]), betas: Some(vec!["b".into()]), ..Default::default() };
        patch(&mut options, &mut config, &body).unwrap();
        assert_eq!(config.get(), r#"{"permissionMode":"default","allowedTools":[],"betas":["b"]}"#);
        assert_eq!(options.betas, ["b"]);
        assert_eq!(options.model.as_deref(), Some("agent-model"));
    }
}
