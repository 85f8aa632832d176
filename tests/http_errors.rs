//! Each error case of the API with its status and its text.
#![allow(clippy::unwrap_used)]

mod http_support;

use axum::body::Body;
use http_support::{Api, KEY};
use serde_json::json;

/// (request, body, status, how the text begins)
type Case = (&'static str, &'static str, u16, &'static str);

const WITHOUT_KEY: [Case; 14] = [
    ("GET /", "", 404, "No route for GET /; see /docs"),
    ("GET /api", "", 404, "No route for GET /api; see /docs"),
    ("GET /api/nothing", "", 404, "No route for GET /api/nothing; see /docs"),
    ("GET /api/sessions/", "", 404, "No route for GET /api/sessions/; see /docs"),
    ("GET //api/sessions", "", 404, "No route for GET //api/sessions; see /docs"),
    ("PUT /api/agents", "", 405, "Method PUT is not allowed on /api/agents"),
    ("POST /health", "", 405, "Method POST is not allowed on /health"),
    ("GET /api/agents", "", 401, "Missing Authorization header"),
    ("POST /api/api-keys", r#"{"label":"x"}"#, 401, "Missing Authorization header"),
    ("POST /api/internal/api-keys", r#"{"label":"x","tenantId":"t"}"#, 401, "Missing Authorization header"),
    ("GET /api/agents\nAuthorization: Basic abc", "", 401, "Invalid Authorization header format"),
    ("GET /api/agents\nAuthorization: Bearer", "", 401, "Invalid Authorization header format"),
    ("GET /api/agents\nAuthorization: Bearer nobody", "", 401, "Invalid API key"),
    ("GET /api/agents?key=ash_key-of-the-default-tenant", "", 401, "Missing Authorization header"),
];

const AGENTS: [Case; 19] = [
    ("POST /api/agents", "{", 400, "the request body is not valid JSON: it ends within an object, at line 1 column 1"),
    ("POST /api/agents", "[]", 400, "the request body must be a JSON object, not an array"),
    ("POST /api/agents", "", 400, "name is required: 1 to 255 characters of A-Z a-z 0-9 _ -"),
    ("POST /api/agents", r#"{"name":5}"#, 400, "name must be a string, not the number 5"),
    ("POST /api/agents", r#"{"name":"../up","path":"/"}"#, 400, "name must be 1 to 255 characters"),
    ("POST /api/agents", r#"{"name":"a"}"#, 400, "path is required: a directory on the server"),
    ("POST /api/agents", r#"{"name":"a","path":"/","files":[]}"#, 400, "path and files exclude each other"),
    ("POST /api/agents", r#"{"name":"a","path":"/no/such/place"}"#, 400, "Agent directory must contain CLAUDE.md"),
    ("POST /api/agents", r#"{"name":"a","path":"/usr/bin"}"#, 400, "Agent directory must contain CLAUDE.md"),
    ("POST /api/agents", r#"{"name":"a","path":["/"]}"#, 400, "path must be a string, not an array"),
    ("POST /api/agents", r#"{"name":"a","files":[{"path":"x"}]}"#, 400, "files[0].content is required"),
    (
        "POST /api/agents",
        r#"{"name":"a","files":[{"path":"../CLAUDE.md","content":""}]}"#,
        400,
        "files[0].path: \"../CLAUDE.md\" must not contain \"..\"",
    ),
    (
        "POST /api/agents",
        r#"{"name":"a","systemPrompt":"x","env":{"A":1}}"#,
        400,
        "env.A must be a string, not the number 1",
    ),
    (
        "POST /api/agents",
        r#"{"name":"a","systemPrompt":"x","config":[]}"#,
        400,
        "config must be an object, not an array",
    ),
    ("GET /api/agents/nobody", "", 404, "Agent not found"),
    ("DELETE /api/agents/nobody", "", 404, "Agent not found"),
    ("PATCH /api/agents/nobody", "{}", 404, "Agent not found"),
    ("PATCH /api/agents/nobody", r#"{"env":"A=1"}"#, 400, "env must be an object, not the string \"A=1\""),
    ("GET /api/agents/%ff", "", 400, "URL path: "),
];

const SESSIONS: [Case; 19] = [
    ("POST /api/sessions", "", 400, "agent is required: the name of a deployed agent"),
    ("POST /api/sessions", r#"{"agent":null}"#, 400, "agent must be a string, not null"),
    ("POST /api/sessions", r#"{"agent":"a","permissionMode":"all"}"#, 400, "permissionMode must be one of bypass"),
    ("POST /api/sessions", r#"{"agent":"a","betas":"x"}"#, 400, "betas must be an array, not the string \"x\""),
    ("GET /api/sessions?limit=0", "", 400, "limit must be an integer, from 1 to 10000, not \"0\""),
    ("GET /api/sessions?offset=-1", "", 400, "offset must be an integer, from 0 to"),
    ("GET /api/sessions?status=running", "", 400, "status: \"running\" is not a session status"),
    ("GET /api/sessions?includeTotal=perhaps", "", 400, "includeTotal must be true or false, not \"perhaps\""),
    ("GET /api/sessions/not-a-uuid", "", 404, "Session not found"),
    ("GET /api/sessions/%ff", "", 404, "Session not found"),
    ("POST /api/sessions/not-a-uuid/pause", "", 404, "Session not found"),
    ("POST /api/sessions/not-a-uuid/messages", r#"{"content":"x"}"#, 404, "Session not found"),
    ("GET /api/sessions/not-a-uuid/files/x", "", 404, "Session not found"),
    ("POST /api/sessions/0e0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11/messages", "{", 404, "Session not found"),
    (
        "POST /api/sessions/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11/messages",
        r#"{"content":5}"#,
        400,
        "content must be a string or an array of content blocks, not a number",
    ),
    (
        "POST /api/sessions/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11/messages",
        "{}",
        400,
        "content is required: a string or an array of content blocks",
    ),
    (
        "GET /api/sessions/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11/messages?limit=1001",
        "",
        400,
        "limit must be an integer, from 1 to 1000, not \"1001\"",
    ),
    (
        "GET /api/sessions/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11/events?type=nothing",
        "",
        400,
        "type must be one of lifecycle, text, tool_start, tool_result, reasoning, error, turn_complete",
    ),
    (
        "GET /api/sessions/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11/files/a/../../b?format=json",
        "",
        400,
        "path: \"a/../../b\" must not contain \"..\"",
    ),
];

const KEYS: [Case; 6] = [
    ("POST /api/api-keys", "", 400, "label is required: 1 to 200 bytes"),
    ("POST /api/api-keys", r#"{"label":"x","tenantId":"a/b"}"#, 400, "tenantId: tenant id \"a/b\" must be"),
    ("POST /api/internal/api-keys", r#"{"label":"x"}"#, 400, "tenantId is required"),
    ("DELETE /api/api-keys/not-a-uuid", "", 404, "API key not found"),
    ("DELETE /api/api-keys/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11", "", 404, "API key not found"),
    ("GET /api/api-keys/6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11", "", 405, "Method GET is not allowed on /api/api-keys/"),
];

async fn check(api: &Api, cases: &[Case], key: bool) {
    let mut wrong = Vec::new();
    for (head, body, status, text) in cases {
        let answer = if key { api.own(head, *body).await } else { api.call(head, *body).await };
        let shown = String::from_utf8_lossy(&answer.body).into_owned();
        let right = answer.status == *status
            && answer.headers.get("content-type").is_some_and(|value| value == "application/json")
            && serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok_and(|json| {
                json["statusCode"] == *status && json["error"].as_str().is_some_and(|error| error.starts_with(text))
            });
        if !right {
            wrong.push(format!("{head} {body}\n  expected {status} {text}\n  got {} {shown}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_failure_has_its_code_and_text() {
    let api = Api::start().await;
    api.ended_session("6d0f6c1e-8a53-4b1c-9a64-3c7b4a3f9b11".parse().unwrap()).await;
    check(&api, &WITHOUT_KEY, false).await;
    for cases in [&AGENTS[..], &SESSIONS, &KEYS] {
        check(&api, cases, true).await;
    }
}

#[tokio::test]
async fn headers_that_go_with_a_code() {
    let api = Api::start().await;
    let answer = api.call("PUT /api/agents", "").await;
    let mut allowed: Vec<_> = answer.headers["allow"].to_str().unwrap().split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    let answer = api.call("GET /api/agents", "").await;
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn a_tenant_that_asks_too_often_is_told_when_to_ask_again() {
    let api = Api::with(|config| config.server.requests_per_minute = 2).await;
    for _ in 0..2 {
        assert_eq!(api.own("GET /api/agents", "").await.status, 200);
    }
    let refused = api.own("GET /api/agents", "").await;
    assert_eq!(refused.status, 429);
    // Two per minute: one every 30 s.
    assert!(["29", "30"].contains(&refused.headers["retry-after"].to_str().unwrap()), "{:?}", refused.headers);
    let text = "tenant default has reached the limit of 2 requests per minute (server.requests_per_minute)";
    assert_eq!(refused.json(), json!({"error": text, "statusCode": 429}));
    // Other tenants are not limited, and public routes are not counted.
    assert_eq!(api.other("GET /api/agents", "").await.status, 200);
    for _ in 0..5 {
        assert_eq!(api.own("GET /health", "").await.status, 200);
    }
    assert_eq!(api.own("GET /api/agents", "").await.status, 429);
}

#[tokio::test]
async fn a_body_above_its_limit_is_413_announced_or_not() {
    let api = Api::start().await;
    let large = format!(r#"{{"agent":"{}"}}"#, "x".repeat(5 << 20));
    let announced = format!("POST /api/sessions\nContent-Length: {}", large.len());
    for head in [announced.as_str(), "POST /api/sessions"] {
        let answer = api.own(head, large.clone()).await;
        assert_eq!(answer.status, 413, "{head}");
        assert_eq!(
            answer.json(),
            json!({"error": "the request body is larger than the limit of 4194304 bytes", "statusCode": 413})
        );
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400() {
    let api = Api::start().await;
    let pieces = [Ok("{\"name\":"), Err(std::io::Error::other("gone"))];
    let answer = api.own("POST /api/agents", Body::from_stream(futures_util::stream::iter(pieces))).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().starts_with("the request body is incomplete"));
}

#[tokio::test]
async fn a_single_key_is_the_only_key() {
    let api = Api::with(|config| config.auth.api_key = Some("secret".into())).await;
    for (header, status) in [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer secre", 401),
        ("Bearer secrett", 401),
        ("Bearer x", 401),
    ] {
        let answer = api.call(&format!("GET /api/agents\nAuthorization: {header}"), "").await;
        assert_eq!(answer.status, status, "{header}");
    }
    assert_eq!(api.own("GET /api/agents", "").await.json()["error"], "Invalid API key", "{KEY}");
    let answer = api.call("POST /api/api-keys\nAuthorization: Bearer secret", r#"{"label":"x"}"#).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().starts_with("ASH_API_KEY is set"));
}
