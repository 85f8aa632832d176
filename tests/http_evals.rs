//! Eval cases, runs and results through the router: requests, answers, and tenants. Nothing
//! executes runs here; see `api_evals.rs`.
#![allow(clippy::unwrap_used)]

mod http_support;

use http_support::Api;
use serde_json::{Value, json};

async fn deploy(api: &Api, name: &str) {
    let body = json!({"name": name, "systemPrompt": "Be kind."}).to_string();
    assert_eq!(api.own("POST /api/agents", body).await.status, 201);
}

async fn post(api: &Api, path: &str, body: Value) -> (u16, Value) {
    let answer = api.own(&format!("POST /api/agents/{path}"), body.to_string()).await;
    (answer.status.as_u16(), answer.json())
}

async fn get(api: &Api, path: &str) -> Value {
    let answer = api.own(&format!("GET /api/agents/{path}"), "").await;
    assert_eq!(answer.status, 200, "{path}");
    answer.json()
}

/// Field names, null for absent values, defaults.
#[tokio::test]
async fn a_case_is_kept_changed_and_deleted() {
    let api = Api::start().await;
    deploy(&api, "a").await;
    let (status, made) = post(&api, "a/eval-cases", json!({"question": "q?"})).await;
    assert_eq!(status, 201);
    let case = &made["case"];
    let id = case["id"].as_str().unwrap().to_owned();
    let expected = json!({
        "id": id, "tenantId": "default", "agentName": "a", "question": "q?", "expectedTopics": null, "expectedNotTopics": null,
        "referenceAnswer": null, "category": null, "tags": null, "chatHistory": null, "isActive": true,
        "createdAt": case["createdAt"], "updatedAt": case["updatedAt"],
    });
    assert_eq!(*case, expected);
    let whole = json!({
        "question": "ü\u{2028}\"", "expectedTopics": ["a", "B"], "expectedNotTopics": [], "referenceAnswer": "r",
        "category": "c", "tags": ["t"], "isActive": false,
        "chatHistory": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}],
    });
    let (status, second) = post(&api, "a/eval-cases", whole.clone()).await;
    assert_eq!(status, 201);
    for (name, value) in whole.as_object().unwrap() {
        assert_eq!(second["case"][name], *value, "{name}");
    }
    let path = format!("a/eval-cases/{id}");
    assert_eq!(get(&api, &path).await, made);

    for (query, count) in [
        ("", 2),
        ("?category=c", 1),
        ("?category=none", 0),
        ("?isActive=true", 1),
        ("?isActive=false&category=c", 1),
        ("?limit=1", 1),
        ("?offset=1", 1),
        ("?limit=1000&offset=2", 0),
    ] {
        let list = get(&api, &format!("a/eval-cases{query}")).await;
        assert_eq!(list["cases"].as_array().unwrap().len(), count, "{query}");
    }
    for bad in ["?isActive=maybe", "?limit=0", "?limit=1001", "?offset=-1"] {
        assert_eq!(api.own(&format!("GET /api/agents/a/eval-cases{bad}"), "").await.status, 400, "{bad}");
    }

    // Absent fields stay, null clears.
    let patch = async |body: &str| api.own(&format!("PATCH /api/agents/{path}"), body.to_owned()).await;
    let answer =
        patch(r#"{"category":"x","tags":["t"],"expectedTopics":["e"],"chatHistory":[{"role":"user","content":"u"}]}"#)
            .await;
    assert_eq!((answer.status.as_u16(), &answer.json()["case"]["tags"]), (200, &json!(["t"])));
    let cleared = patch(r#"{"category":null,"expectedTopics":null,"chatHistory":null,"isActive":false}"#).await.json();
    assert_eq!((&cleared["case"]["category"], &cleared["case"]["isActive"]), (&Value::Null, &json!(false)));
    assert!(cleared["case"]["expectedTopics"].is_null() && cleared["case"]["chatHistory"].is_null());
    assert_eq!((&cleared["case"]["tags"], &cleared["case"]["question"]), (&json!(["t"]), &json!("q?")));
    for bad in [r#"{"question":null}"#, r#"{"isActive":null}"#, r#"{"question":7}"#, r#"{"tags":"x"}"#] {
        assert_eq!(patch(bad).await.status, 400, "{bad}");
    }
    assert_eq!(get(&api, &path).await, cleared, "a refusal changes nothing");

    assert_eq!(api.own(&format!("DELETE /api/agents/{path}"), "").await.status, 204);
    for request in ["GET", "PATCH", "DELETE"] {
        let answer = api.own(&format!("{request} /api/agents/{path}"), "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"].as_str()),
            (404, Some("Eval case not found")),
            "{request}"
        );
    }
}

#[tokio::test]
async fn what_is_exported_can_be_imported_and_a_bad_case_takes_none() {
    let api = Api::start().await;
    deploy(&api, "a").await;
    deploy(&api, "b").await;
    let cases: Vec<Value> = (0..1000).map(|n| json!({"question": format!("q{n}"), "tags": ["t"]})).collect();
    let body = json!({"cases": cases});
    let (status, text) = {
        let mut bad = cases.clone();
        bad[700]["question"] = json!("");
        post(&api, "a/eval-cases/import", json!({"cases": bad})).await
    };
    assert_eq!((status, text["error"].as_str()), (400, Some("cases[700].question must have 1 to 65536 bytes")));
    assert_eq!(get(&api, "a/eval-cases").await, json!({"cases": []}));
    assert_eq!(post(&api, "a/eval-cases/import", body.clone()).await, (200, json!({"imported": 1000})));
    // The same again, and one more: above the limit of an agent.
    for again in [body, json!({"cases": [{"question": "one more"}]})] {
        let (status, text) = post(&api, "a/eval-cases/import", again).await;
        assert_eq!(status, 409, "{text}");
        assert!(text["error"].as_str().unwrap().contains("limit reached: 1000 eval cases of the agent"), "{text}");
    }
    assert_eq!(post(&api, "a/eval-cases", json!({"question": "q"})).await.0, 409);
    let export = get(&api, "a/eval-cases/export").await;
    let questions: Vec<&str> =
        export["cases"].as_array().unwrap().iter().map(|c| c["question"].as_str().unwrap()).collect();
    assert!(questions.len() == 1000 && questions[0] == "q0" && questions[999] == "q999", "in their order");
    assert_eq!(post(&api, "b/eval-cases/import", export).await, (200, json!({"imported": 1000})));
    assert_eq!(get(&api, "b/eval-cases?limit=1").await["cases"][0]["agentName"], "b");
    for bad in [
        json!({}),
        json!({"cases": []}),
        json!({"cases": [7]}),
        json!({"cases": "x"}),
        json!({"cases": [{"question": 1}]}),
    ] {
        assert_eq!(post(&api, "a/eval-cases/import", bad.clone()).await.0, 400, "{bad}");
    }
    let large = format!(r#"{{"cases":[{{"question":"{}"}}]}}"#, "x".repeat(17 << 20));
    assert_eq!(api.own("POST /api/agents/a/eval-cases/import", large).await.status, 413);
}

#[tokio::test]
async fn a_run_has_the_cases_that_match_and_the_version_that_was_asked_for() {
    let api = Api::start().await;
    deploy(&api, "a").await;
    let (status, refused) = post(&api, "a/eval-runs", json!({})).await;
    assert_eq!(status, 400);
    assert!(refused["error"].as_str().unwrap().starts_with("no active eval case matches"), "{refused}");
    for case in [
        json!({"question": "1", "category": "x", "tags": ["s", "t"]}),
        json!({"question": "2", "category": "y", "tags": ["t"]}),
        json!({"question": "3", "category": "x"}),
        json!({"question": "4", "category": "x", "tags": ["t"], "isActive": false}),
    ] {
        post(&api, "a/eval-cases", case).await;
    }
    let (status, made) = post(&api, "a/eval-runs", json!({"more": 1})).await;
    assert_eq!(status, 201);
    let run = &made["run"];
    let expected = json!({
        "id": run["id"], "tenantId": "default", "agentName": "a", "versionNumber": null, "status": "pending", "totalCases": 3,
        "completedCases": 0, "summary": null, "error": null, "createdAt": run["createdAt"], "startedAt": null, "completedAt": null,
    });
    assert_eq!(*run, expected);
    for (body, count) in [
        (json!({"categories": ["x"]}), 2),
        (json!({"categories": ["x", "y"], "tags": ["t"]}), 2),
        (json!({"tags": ["s"]}), 1),
        (json!({"tags": null, "categories": []}), 3),
    ] {
        let (status, made) = post(&api, "a/eval-runs", body.clone()).await;
        assert_eq!((status, &made["run"]["totalCases"]), (201, &json!(count)), "{body}");
    }
    let (status, refused) = post(&api, "a/eval-runs", json!({"versionNumber": 1})).await;
    assert_eq!((status, refused["error"].as_str()), (400, Some("versionNumber: the agent has no version 1")));
    for _ in 0..2 {
        post(&api, "a/versions", json!({"systemPrompt": "v"})).await;
    }
    assert_eq!(post(&api, "a/eval-runs", json!({"versionNumber": 1})).await.1["run"]["versionNumber"], 1);
    post(&api, "a/versions/2/activate", json!({})).await;
    assert_eq!(post(&api, "a/eval-runs", json!({})).await.1["run"]["versionNumber"], 2, "the active one");
    for bad in
        [json!({"versionNumber": 0}), json!({"versionNumber": "1"}), json!({"tags": [""]}), json!({"categories": "x"})]
    {
        assert_eq!(post(&api, "a/eval-runs", bad.clone()).await.0, 400, "{bad}");
    }

    let runs = get(&api, "a/eval-runs").await["runs"].clone();
    assert_eq!(
        (runs.as_array().unwrap().len(), &runs[0]["versionNumber"], &runs[6]),
        (7, &json!(2), run),
        "newest first"
    );
    assert_eq!(get(&api, "a/eval-runs?limit=1&offset=6").await["runs"][0], *run);
    let id = run["id"].as_str().unwrap();
    assert_eq!(get(&api, &format!("a/eval-runs/{id}")).await["run"], *run);
    let results = get(&api, &format!("a/eval-runs/{id}/results")).await["results"].clone();
    let first = &results[0];
    let expected = json!({
        "id": first["id"], "tenantId": "default", "evalRunId": id, "evalCaseId": first["evalCaseId"], "agentResponse": null,
        "topicScore": null, "safetyScore": null, "llmJudgeScore": null, "latencyMs": null, "status": "pending", "error": null,
        "humanScore": null, "humanNotes": null, "createdAt": first["createdAt"], "completedAt": null,
    });
    assert_eq!((results.as_array().unwrap().len(), first), (3, &expected));

    // Judgements by people.
    let path = format!("PATCH /api/agents/a/eval-results/{}", first["id"].as_str().unwrap());
    let judged = api.own(&path, r#"{"humanScore":5,"humanNotes":"good"}"#).await.json();
    assert_eq!((&judged["result"]["humanScore"], &judged["result"]["humanNotes"]), (&json!(5), &json!("good")));
    let judged = api.own(&path, r#"{"humanNotes":null}"#).await.json();
    assert_eq!((&judged["result"]["humanScore"], &judged["result"]["humanNotes"]), (&json!(5), &Value::Null));
    for bad in [r#"{"humanScore":0}"#, r#"{"humanScore":6}"#, r#"{"humanScore":2.5}"#, r#"{"humanScore":"3"}"#] {
        assert_eq!(api.own(&path, bad).await.status, 400, "{bad}");
    }
    // The same id below another agent does not exist.
    deploy(&api, "b").await;
    assert_eq!(api.own(&path.replace("/a/", "/b/"), r#"{"humanScore":1}"#).await.status, 404);
    assert_eq!(api.own(&format!("GET /api/agents/b/eval-runs/{id}"), "").await.status, 404);

    // The number of runs is limited.
    let mut status = 201;
    for _ in 0..20 {
        status = post(&api, "a/eval-runs", json!({})).await.0;
    }
    assert_eq!(status, 429);
    assert_eq!(get(&api, "a/eval-runs").await["runs"].as_array().unwrap().len(), 20);
    // All of it is deleted with the agent.
    assert_eq!(api.own("DELETE /api/agents/a", "").await.status, 200);
    assert_eq!(api.own("GET /api/agents/a/eval-runs", "").await.status, 404);
    deploy(&api, "a").await;
    for (list, empty) in [("eval-runs", json!({"runs": []})), ("eval-cases", json!({"cases": []}))] {
        assert_eq!(get(&api, &format!("a/{list}")).await, empty, "an agent that is deployed anew has none");
    }
}

#[tokio::test]
async fn another_tenants_agent_and_ids_are_not_found_on_every_route() {
    let api = Api::start().await;
    deploy(&api, "a").await;
    let case = post(&api, "a/eval-cases", json!({"question": "secret?"})).await.1["case"]["id"].clone();
    let run = post(&api, "a/eval-runs", json!({})).await.1["run"]["id"].clone();
    let result = get(&api, &format!("a/eval-runs/{}/results", run.as_str().unwrap())).await["results"][0]["id"].clone();
    let own = json!({"name": "a", "systemPrompt": "x"}).to_string();
    assert_eq!(api.other("POST /api/agents", own).await.status, 201);
    let before = (get(&api, "a/eval-cases").await, get(&api, "a/eval-runs").await);
    let mut tried = 0;
    for route in include_str!("http_routes.txt").lines().filter(|route| route.contains("/eval-")) {
        let id = if route.contains("eval-cases") {
            &case
        } else if route.contains("eval-runs") {
            &run
        } else {
            &result
        };
        let path = route.replace("{id}", id.as_str().unwrap());
        let query = if route.ends_with("compare") {
            format!("?runA={0}&runB={0}", run.as_str().unwrap())
        } else {
            String::new()
        };
        for body in
            [json!({"question": "x", "humanScore": 1, "cases": [{"question": "x"}]}).to_string(), "[".to_owned()]
        {
            // An agent that only the first tenant has, or that no tenant has.
            let answer = api.other(&format!("{}{query}", path.replace("{name}", "none")), body.clone()).await;
            assert_eq!(
                (answer.status.as_u16(), answer.json()["error"].as_str()),
                (404, Some("Agent not found")),
                "{route} {body}"
            );
            if route.contains("{id}") || route.ends_with("compare") {
                let answer = api.other(&format!("{}{query}", path.replace("{name}", "a")), body.clone()).await;
                let bad_body = body == "[" && answer.status == 400;
                assert!(answer.status == 404 || bad_body, "{route} {body}: {}", answer.status);
            }
        }
        if route.contains("{id}") {
            let nobody = api.own(&route.replace("{id}", "..%2f").replace("{name}", "a"), "{}").await;
            assert_eq!(nobody.status, 404, "{route}");
        }
        tried += 1;
    }
    assert_eq!(tried, 14);
    assert_eq!((get(&api, "a/eval-cases").await, get(&api, "a/eval-runs").await), before);
    assert_eq!(api.other("GET /api/agents/a/eval-cases", "").await.json(), json!({"cases": []}));
}
