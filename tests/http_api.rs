//! Agents, keys and the OpenAPI description, through the router.
#![allow(clippy::unwrap_used)]

mod http_support;

use http_support::Api;
use serde_json::{Value, json};

#[tokio::test]
async fn an_agent_is_deployed_changed_and_deleted() {
    let api = Api::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("CLAUDE.md"), "You are brief.").unwrap();
    let body = json!({"name": "a", "path": dir.path(), "env": {"TOKEN": "hunter2"}, "more": 1}).to_string();
    let answer = api.own("POST /api/agents\nContent-Type: application/json", body.clone()).await;
    assert_eq!(answer.status, 201);
    let first = answer.json()["agent"].clone();
    assert_eq!(first["name"], "a");
    assert_eq!(first["tenantId"], "default");
    assert_eq!(first["version"], 1);
    assert_eq!(first["path"], dir.path().to_str().unwrap());
    assert_eq!(first["env"], json!({"TOKEN": "***"}));
    assert!(first.get("model").is_none(), "what is not set is not there: {first}");
    assert_eq!(first["createdAt"].as_str().unwrap().len(), "2026-01-15T10:00:00.000Z".len());

    let second = api.own("POST /api/agents", body).await.json()["agent"].clone();
    assert_eq!(
        (&second["id"], &second["createdAt"], &second["version"]),
        (&first["id"], &first["createdAt"], &json!(2))
    );

    let patch = json!({"description": "d", "env": {"B": "1"}, "config": {"x": 1}}).to_string();
    let patched = api.own("PATCH /api/agents/a", patch).await.json()["agent"].clone();
    assert_eq!(patched["description"], "d");
    assert_eq!(patched["env"], json!({"B": "***"}));
    assert_eq!(
        api.own("PATCH /api/agents/a/config", r#"{"config":{"y":2}}"#).await.json(),
        json!({"config": {"x": 1, "y": 2}})
    );
    assert_eq!(api.own("PATCH /api/agents/a/config", r#"{"x":null}"#).await.json(), json!({"config": {"y": 2}}));
    assert_eq!(api.own("GET /api/agents/a/config", "").await.json(), json!({"config": {"y": 2}}));

    assert_eq!(api.own("GET /api/agents", "").await.json()["agents"].as_array().unwrap().len(), 1);
    assert_eq!(api.own("DELETE /api/agents/a", "").await.json(), json!({"ok": true}));
    assert_eq!(api.own("GET /api/agents/a", "").await.status, 404);
    assert!(dir.path().join("CLAUDE.md").exists(), "the directory of a path agent is its owner's");
}

#[tokio::test]
async fn an_uploaded_agent_lives_below_the_data_directory() {
    let api = Api::start().await;
    let body = json!({"name": "up", "files": [
        {"path": "CLAUDE.md", "content": "aGVsbG8="}, {"path": "skills/a.md", "content": "YQ=="}]});
    let answer = api.other("POST /api/agents", body.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    let path = std::path::PathBuf::from(answer.json()["agent"]["path"].as_str().unwrap());
    assert!(path.starts_with(api.data.path().join("agents/acme/up")), "{}", path.display());
    assert_eq!(std::fs::read(path.join("CLAUDE.md")).unwrap(), b"hello");
    assert_eq!(std::fs::read(path.join("skills/a.md")).unwrap(), b"a");

    let answer = api.other("POST /api/agents", r#"{"name":"up","systemPrompt":"Be kind."}"#).await.json();
    let next = std::path::PathBuf::from(answer["agent"]["path"].as_str().unwrap());
    assert_ne!(next, path);
    assert_eq!(std::fs::read(next.join("CLAUDE.md")).unwrap(), b"Be kind.");

    // A path that escapes: 400, and nothing is written.
    let before = tree(api.data.path());
    let body = json!({"name": "bad", "files": [
        {"path": "CLAUDE.md", "content": ""}, {"path": "a/../../../x", "content": ""}]});
    assert_eq!(api.other("POST /api/agents", body.to_string()).await.status, 400);
    assert_eq!(tree(api.data.path()), before);

    assert_eq!(api.other("DELETE /api/agents/up", "").await.status, 200);
    assert!(!api.data.path().join("agents/acme/up").exists());
}

fn tree(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = walkdir::WalkDir::new(dir.join("agents")).sort_by_file_name().into_iter();
    entries.map(|entry| entry.unwrap().into_path()).collect()
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let api = Api::start().await;
    assert_eq!(api.own("POST /api/agents", r#"{"name":"a","systemPrompt":"x"}"#).await.status, 201);
    assert_eq!(api.other("GET /api/agents", "").await.json(), json!({"agents": []}));
    for request in ["GET /api/agents/a", "DELETE /api/agents/a", "PATCH /api/agents/a", "GET /api/agents/a/config"] {
        let answer = api.other(request, "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"].as_str()),
            (404, Some("Agent not found")),
            "{request}"
        );
    }
    // Only the default tenant names directories of the server.
    let answer = api.other("POST /api/agents", r#"{"name":"b","path":"/tmp"}"#).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("upload the agent with files"));
}

#[tokio::test]
async fn keys_are_made_used_and_revoked() {
    let api = Api::start().await;
    let answer = api.own("POST /api/api-keys", r#"{"label":"ci"}"#).await;
    assert_eq!(answer.status, 201);
    let (id, key) =
        (answer.json()["id"].as_str().unwrap().to_owned(), answer.json()["key"].as_str().unwrap().to_owned());
    assert!(key.starts_with("ash_") && key.len() == 47, "{key}");
    let with_new = format!("GET /api/api-keys\nAuthorization: Bearer {key}");
    let keys = api.call(&with_new, "").await;
    assert!(!String::from_utf8_lossy(&keys.body).contains(&key), "a key is shown once");
    let keys = keys.json()["keys"].as_array().unwrap().clone();
    let listed = keys.iter().find(|entry| entry["id"] == *id).unwrap();
    assert_eq!((listed["label"].as_str(), listed["keyPrefix"].as_str()), (Some("ci"), Some(&key[..8])));

    // Another tenant neither sees nor revokes it.
    let others = api.other("GET /api/api-keys", "").await.json();
    assert_eq!(others["keys"].as_array().unwrap().len(), 1);
    assert_eq!(api.other(&format!("DELETE /api/api-keys/{id}"), "").await.status, 404);
    assert_eq!(api.call(&with_new, "").await.status, 200);
    assert_eq!(api.own(&format!("DELETE /api/api-keys/{id}"), "").await.status, 204);
    assert_eq!(api.call(&with_new, "").await.status, 401);

    // For another tenant: only the admin.
    let body = r#"{"label":"x","tenantId":"acme"}"#;
    let made = api.own("POST /api/internal/api-keys", body).await.json();
    assert_eq!(made["tenantId"], "acme");
    assert_eq!(api.other("POST /api/internal/api-keys", body).await.status, 403);
    assert_eq!(api.other("POST /api/api-keys", r#"{"label":"x","tenantId":"default"}"#).await.status, 403);
    assert_eq!(api.other("POST /api/api-keys", body).await.status, 201, "its own tenant by name");
}

#[tokio::test]
async fn every_route_is_documented_and_the_page_needs_no_network() {
    let api = Api::start().await;
    let answer = api.call("GET /docs/json", "").await;
    assert_eq!(answer.status, 200);
    let spec = answer.json();
    let expected = include_str!("http_routes.txt");
    let mut documented = Vec::new();
    for (path, item) in spec["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            documented.push(format!("{} {path}", method.to_uppercase()));
            check_operation(path, method, operation);
        }
    }
    documented.sort();
    let mut expected: Vec<_> = expected.lines().map(str::to_owned).collect();
    expected.sort();
    assert_eq!(documented, expected, "a route was added or lost: change tests/http_routes.txt with it");

    for reference in references(&spec) {
        let pointer = reference.trim_start_matches('#');
        assert!(spec.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    // Members of the tables in http::schemas exist.
    let schemas = &spec["components"]["schemas"];
    for (schema, member) in [
        ("CreateSession", "agent"),
        ("Credential", "lastUsedAt"),
        ("Session", "parentSessionId"),
        ("SendMessage", "content"),
    ] {
        let required = schemas[schema]["required"].as_array().unwrap();
        assert!(required.contains(&json!(member)), "{schema}.{member} is always there: {required:?}");
    }
    for (schema, member) in
        [("Event", "type"), ("Message", "role"), ("QueueItem", "status"), ("UsageEvent", "eventType")]
    {
        assert!(schemas[schema]["properties"][member]["enum"].is_array(), "{schema}.{member} is one of a few words");
    }
    let text = spec.to_string();
    assert!(
        !text.contains("\"default\":null"),
        "a default of null is sent by generated clients, and clears what it names"
    );
    assert!(!text.contains("BTreeMap") && !text.contains("Vec<"), "a type of this program is named in the description");
    let page = api.call("GET /docs/", "").await;
    let html = String::from_utf8(page.body).unwrap();
    assert!(page.status == 200 && html.contains("swagger-ui"), "{html}");
    assert!(!html.contains("src=\"http") && !html.contains("href=\"http"), "{html}");
    assert_eq!(api.call("GET /docs/swagger-ui-bundle.js", "").await.status, 200);
    assert!(api.call("GET /docs", "").await.status.is_redirection());
}

fn check_operation(path: &str, method: &str, operation: &Value) {
    let at = format!("{method} {path}");
    assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{at} has no summary");
    assert!(operation["tags"].as_array().is_some_and(|tags| !tags.is_empty()), "{at} has no tag");
    let responses = operation["responses"].as_object().unwrap();
    // Routes of runners answer with the reason.
    let refuses = path.starts_with("/api/internal/runners/") && responses.contains_key("403");
    assert!(refuses || responses.keys().any(|code| code.starts_with('2')), "{at} never succeeds");
    for (code, response) in responses {
        let empty = code == "204";
        assert!(empty || response["content"].is_object(), "{at} {code} has no schema");
        assert!(
            response["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{at} {code} does not say what it means"
        );
    }
    if path.starts_with("/api/") {
        assert!(responses.contains_key("401"), "{at} does not name 401");
    } else {
        assert_eq!(operation["security"], json!([{}]), "{at} is public");
    }
    if let Some(body) = operation.get("requestBody") {
        assert!(body["content"]["application/json"]["schema"].is_object(), "{at} has no body schema");
        assert!(body["content"]["application/json"]["example"].is_object(), "{at} has no example");
    }
    for name in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        let known = operation["parameters"].as_array().into_iter().flatten().any(|p| p["name"] == name);
        assert!(known, "{at} does not describe {name}");
    }
}

fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(map.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn cors_is_off_unless_configured() {
    let preflight = "OPTIONS /api/agents\nOrigin: https://app.example\nAccess-Control-Request-Method: POST";
    let off = Api::start().await.call(preflight, "").await;
    assert!(off.headers.get("access-control-allow-origin").is_none());
    let api = Api::with(|config| config.server.cors_origins = vec!["https://app.example".into()]).await;
    let on = api.call(preflight, "").await;
    assert_eq!(on.status, 200);
    assert_eq!(on.headers["access-control-allow-origin"], "https://app.example");
    let stranger = api.call(&preflight.replace("app.example", "evil.example"), "").await;
    assert!(stranger.headers.get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn versions_of_an_agent() {
    let api = Api::start().await;
    let body =
        json!({"name": "a", "systemPrompt": "You are brief.", "files": [{"path": "CLAUDE.md", "content": "WA=="}]});
    assert_eq!(api.own("POST /api/agents", body.to_string()).await.status, 201);
    assert_eq!(api.own("GET /api/agents/a/versions", "").await.json(), json!({"versions": []}));
    let made = api.own("POST /api/agents/a/versions", r#"{"releaseNotes":"as it was","createdBy":"me"}"#).await;
    assert_eq!(made.status, 201);
    let first = made.json()["version"].clone();
    assert_eq!((&first["versionNumber"], &first["name"], &first["isActive"]), (&json!(1), &json!("v1"), &json!(false)));
    assert_eq!((&first["systemPrompt"], &first["createdBy"]), (&json!("You are brief."), &json!("me")));
    assert_eq!(
        (&first["agentName"], &first["tenantId"], &first["knowledgeFiles"]),
        (&json!("a"), &json!("default"), &json!([]))
    );
    let second = r#"{"name":"long","systemPrompt":"You are long.","knowledgeFiles":["x.md"]}"#;
    let second = api.own("POST /api/agents/a/versions", second).await.json()["version"].clone();
    assert_eq!((&second["versionNumber"], &second["knowledgeFiles"]), (&json!(2), &json!(["x.md"])));
    let activated = api.own("POST /api/agents/a/versions/2/activate", "").await;
    assert_eq!(activated.json(), json!({"activated": true, "versionNumber": 2}));
    assert_eq!(api.own("GET /api/agents/a", "").await.json()["agent"]["systemPrompt"], "You are long.");
    assert_eq!(api.own("GET /api/agents/a/versions/2", "").await.json()["version"]["isActive"], true);
    let patched = api.own("PATCH /api/agents/a/versions/2", r#"{"releaseNotes":"n","systemPrompt":"Longer."}"#).await;
    assert_eq!(patched.json()["version"]["releaseNotes"], "n");
    assert_eq!(api.own("GET /api/agents/a", "").await.json()["agent"]["systemPrompt"], "Longer.");
    let numbers = api.own("GET /api/agents/a/versions", "").await.json();
    assert_eq!(
        (&numbers["versions"][0]["versionNumber"], &numbers["versions"][1]["versionNumber"]),
        (&json!(2), &json!(1))
    );

    for (head, status, text) in [
        ("DELETE /api/agents/a/versions/2", 400, "Cannot delete the active version; activate another one first"),
        ("DELETE /api/agents/a/versions/9", 404, "Version not found"),
        ("GET /api/agents/a/versions/x", 404, "Version not found"),
        ("POST /api/agents/a/versions/9/activate", 404, "Version not found"),
        ("GET /api/agents/b/versions", 404, "Agent not found"),
        ("POST /api/agents/b/versions", 404, "Agent not found"),
    ] {
        let answer = api.own(head, "").await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str().unwrap()), (status, text), "{head}");
    }
    assert_eq!(api.own("POST /api/agents/a/versions", r#"{"name":""}"#).await.status, 400);
    assert_eq!(api.own("POST /api/agents/a/versions", r#"{"knowledgeFiles":"x"}"#).await.status, 400);
    assert_eq!(api.own("DELETE /api/agents/a/versions/1", "").await.status, 204);
}
