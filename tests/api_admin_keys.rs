//! An ordinary key cannot affect the admin, and the admin cannot lock itself out.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

async fn keys(api: &Api) -> Vec<Value> {
    api.get("/api/api-keys").await.expect(200)["keys"].as_array().unwrap().clone()
}

fn ids(keys: &[Value]) -> Vec<&str> {
    keys.iter().map(|key| key["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_ordinary_key_neither_sees_nor_revokes_the_admins() {
    let daemon = Daemon::start(Options::default());
    let admin = daemon.api();
    let first = keys(&admin).await[0]["id"].as_str().unwrap().to_owned();
    let minted = admin.post("/api/api-keys", json!({"label": "ordinary"})).await.expect(201);
    let (user, own) = (admin.with_key(minted["key"].as_str()), minted["id"].as_str().unwrap());
    // An ordinary key sees only ordinary keys; the admin sees all, and which of them are admins.
    assert_eq!(ids(&keys(&user).await), [own]);
    let all = keys(&admin).await;
    assert_eq!(ids(&all), [first.as_str(), own]);
    assert_eq!((&all[0]["admin"], all[1].get("admin")), (&json!(true), None));

    let second = admin.post("/api/api-keys", json!({"label": "second", "admin": true})).await.expect(201);
    for id in [first.as_str(), second["id"].as_str().unwrap()] {
        let error = user.delete(&format!("/api/api-keys/{id}")).await.expect(404);
        assert_eq!(error["error"], "API key not found");
    }
    admin.get("/api/agents").await.expect(200);
    // It cannot become an admin.
    for body in [json!({"label": "x", "admin": true}), json!({"label": "x", "admin": true, "tenantId": "default"})] {
        for path in ["/api/api-keys", "/api/internal/api-keys"] {
            let error = user.post(path, body.clone()).await.expect(403);
            assert!(error["error"].as_str().unwrap().contains("admin role"), "{error}");
        }
    }
    user.post("/api/api-keys", json!({"label": "x", "admin": "yes"})).await.expect(400);
    let error = admin.post("/api/api-keys", json!({"label": "x", "admin": true, "tenantId": "acme"})).await.expect(400);
    assert!(error["error"].as_str().unwrap().contains("tenant \"default\""), "{error}");
    // Ordinary keys of one tenant may revoke one another, and themselves.
    let third = user.post("/api/api-keys", json!({"label": "third"})).await.expect(201);
    user.delete(&format!("/api/api-keys/{}", third["id"].as_str().unwrap())).await.expect(204);
    user.delete(&format!("/api/api-keys/{own}")).await.expect(204);
    user.get("/api/agents").await.expect(401);
}

#[tokio::test]
async fn the_last_admin_key_stays() {
    let daemon = Daemon::start(Options::default());
    let admin = daemon.api();
    let first = keys(&admin).await[0]["id"].as_str().unwrap().to_owned();
    let error = admin.delete(&format!("/api/api-keys/{first}")).await.expect(409);
    let text = error["error"].as_str().unwrap();
    assert!(text.contains("last") && text.contains("ashctl keys create") && text.contains("--admin"), "{text}");
    admin.get("/api/agents").await.expect(200);

    let second = admin.post("/api/api-keys", json!({"label": "second", "admin": true})).await.expect(201);
    let other = admin.with_key(second["key"].as_str());
    // Two admin keys that revoke each other at the same moment: one of them stays.
    let (a, b) = tokio::join!(
        async { admin.delete(&format!("/api/api-keys/{}", second["id"].as_str().unwrap())).await.status },
        async { other.delete(&format!("/api/api-keys/{first}")).await.status },
    );
    let mut statuses = [a, b];
    statuses.sort_unstable();
    assert!(statuses[0] == 204 && [401, 404, 409].contains(&statuses[1]), "{statuses:?}");
    let left = if admin.get("/api/agents").await.status == 200 { admin } else { other };
    assert_eq!(keys(&left).await.len(), 1);
    let last = keys(&left).await[0]["id"].as_str().unwrap().to_owned();
    left.delete(&format!("/api/api-keys/{last}")).await.expect(409);
}

#[tokio::test]
async fn an_answer_to_the_admin_is_not_replayed_to_an_ordinary_key() {
    let daemon = Daemon::start(Options::default());
    let admin = daemon.api();
    let minted = admin.post("/api/api-keys", json!({"label": "ordinary"})).await.expect(201);
    let user = admin.with_key(minted["key"].as_str());
    let dir = daemon.agent_dir("agent", &[("CLAUDE.md", "x")]);
    let body = json!({"name": "named-by-the-admin", "path": dir});
    assert_eq!(admin.post_once("/api/agents", body.clone(), "k").await.status, 201);
    let again = admin.post_once("/api/agents", body.clone(), "k").await;
    assert_eq!((again.status, again.headers.contains_key("idempotent-replayed")), (201, true));
    // The rules of the key that sent the request apply: it may not name a directory.
    let refused = user.post_once("/api/agents", body, "k").await;
    assert_eq!((refused.status, refused.headers.contains_key("idempotent-replayed")), (400, false), "{}", refused.text);
    // An idempotency key of an ordinary key does not collide with that of the admin.
    let mine = json!({"name": "b", "systemPrompt": "Be brief."});
    assert_eq!(user.post_once("/api/agents", mine.clone(), "l").await.status, 201);
    let other = json!({"name": "c", "systemPrompt": "Be brief."});
    assert_eq!(admin.post_once("/api/agents", other, "l").await.status, 201);
}
