//! From what the client sends (and the agent says) to how claude is started, and to what the client may see of it. Pure.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::sessions::claude::{LaunchOptions, MODEL_KEYS, check_env};
use crate::sessions::{CreateSession, PatchConfig};
use crate::store::Agent;

/// How a new session's claude is started, and its `config` as the client sees it. The error names the field.
pub fn create(agent: &Agent, body: &CreateSession) -> Result<(LaunchOptions, Option<Value>), String> {
    check_env("env of the agent", &agent.env).map_err(|e| e.to_string())?;
    check_env("extraEnv", &body.extra_env).map_err(|e| e.to_string())?;
    let mut env = agent.env.clone();
    env.extend(body.extra_env.clone());
    let permission_mode = body.permission_mode.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    // Both speak: the agent's says what it is, the session's what is wanted now.
    let prompts: Vec<&str> =
        [&agent.system_prompt, &body.system_prompt].into_iter().flatten().map(String::as_str).collect();
    let options = LaunchOptions {
        model: body.model.clone().or_else(|| agent.model.clone()),
        system_prompt: (!prompts.is_empty()).then(|| prompts.join("\n\n")),
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
    let mut config = Map::new();
    if let Some(mode) = &body.permission_mode {
        config.insert("permissionMode".to_owned(), json!(mode));
    }
    show(
        &mut config,
        [
            ("allowedTools", body.allowed_tools.as_ref().map(|v| json!(v))),
            ("disallowedTools", body.disallowed_tools.as_ref().map(|v| json!(v))),
            ("betas", body.betas.as_ref().map(|v| json!(v))),
            ("subagents", body.subagents.clone()),
            ("initialAgent", body.initial_agent.as_ref().map(|v| json!(v))),
        ],
    );
    Ok((options, (!config.is_empty()).then_some(Value::Object(config))))
}

/// A credential takes the place of the agent's own model key, and a key in `extraEnv` that of the credential.
pub fn use_credential(options: &mut LaunchOptions, body: &CreateSession, credential: Option<Uuid>) {
    let own = |name: &&str| body.extra_env.get(*name).is_some_and(|key| !key.is_empty());
    if credential.is_some() && !MODEL_KEYS.iter().any(own) {
        MODEL_KEYS.iter().for_each(|name| drop(options.env.remove(*name)));
        options.credential = credential;
    }
}

/// `PATCH .../config`: fields that are there replace, the others stay.
pub fn patch(options: &mut LaunchOptions, config: &mut Value, body: &PatchConfig) -> Result<(), String> {
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
    if let Value::Object(config) = config {
        show(
            config,
            [
                ("allowedTools", body.allowed_tools.as_ref().map(|v| json!(v))),
                ("disallowedTools", body.disallowed_tools.as_ref().map(|v| json!(v))),
                ("betas", body.betas.as_ref().map(|v| json!(v))),
                ("subagents", body.subagents.clone()),
                ("initialAgent", body.initial_agent.as_ref().map(|v| json!(v))),
            ],
        );
    }
    Ok(())
}

fn show(config: &mut Map<String, Value>, fields: [(&str, Option<Value>); 5]) {
    for (name, value) in fields {
        if let Some(value) = value {
            config.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TenantId;

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
        assert_eq!(options.system_prompt.as_deref(), Some("You are A.\n\nBe brief."));
        assert_eq!(config, None);
        let body = CreateSession { model: Some("mine".into()), ..CreateSession::default() };
        assert_eq!(create(&agent(), &body).unwrap().0.model.as_deref(), Some("mine"));
    }

    #[test]
    fn secrets_are_not_in_what_the_client_sees() {
        let body = CreateSession {
            extra_env: [("TOKEN".into(), "hunter2".into())].into(),
            mcp_servers: [("m".into(), json!({ "command": "x", "env": { "K": "hunter2" } }))].into(),
            allowed_tools: Some(vec!["Bash".into()]),
            ..CreateSession::default()
        };
        let (_, config) = create(&agent(), &body).unwrap();
        assert_eq!(config, Some(json!({ "allowedTools": ["Bash"] })));
    }

    #[test]
    fn errors_name_the_field() {
        for (body, field) in [
            (CreateSession { permission_mode: Some("yolo".into()), ..Default::default() }, "permissionMode"),
            (CreateSession { extra_env: [("A B".into(), String::new())].into(), ..Default::default() }, "extraEnv"),
            (CreateSession { subagents: Some(json!(1)), ..Default::default() }, "subagents"),
        ] {
            let error = create(&agent(), &body).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_patch_replaces_what_it_names() {
        let (mut options, _) = create(&agent(), &CreateSession::default()).unwrap();
        let mut config = json!({ "allowedTools": ["Bash"], "permissionMode": "default" });
        let body = PatchConfig { allowed_tools: Some(vec![]), betas: Some(vec!["b".into()]), ..Default::default() };
        patch(&mut options, &mut config, &body).unwrap();
        assert_eq!(config, json!({ "allowedTools": [], "betas": ["b"], "permissionMode": "default" }));
        assert_eq!(options.betas, ["b"]);
        assert_eq!(options.model.as_deref(), Some("agent-model"));
    }
}
