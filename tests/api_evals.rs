//! Runs of eval cases against the whole daemon: scores, versions, limits, restarts and deletions.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Api, Daemon, Options, leftovers};
use serde_json::{Value, json};

const RUNS: &str = "/api/agents/a/eval-runs";

async fn cases(api: &Api, cases: &[Value]) -> Vec<String> {
    let mut ids = Vec::new();
    for case in cases {
        let made = api.post("/api/agents/a/eval-cases", case.clone()).await.expect(201);
        ids.push(made["case"]["id"].as_str().unwrap().to_owned());
    }
    ids
}

async fn begin(api: &Api, body: Value) -> String {
    let made = api.post(RUNS, body).await.expect(201);
    assert_eq!(made["run"]["status"], "pending");
    made["run"]["id"].as_str().unwrap().to_owned()
}

async fn run(api: &Api, id: &str) -> Value {
    api.get(&format!("{RUNS}/{id}")).await.expect(200)["run"].clone()
}

async fn results(api: &Api, id: &str) -> Vec<Value> {
    api.get(&format!("{RUNS}/{id}/results")).await.expect(200)["results"].as_array().unwrap().clone()
}

async fn over(api: &Api, id: &str) -> (Value, Vec<Value>) {
    let start = Instant::now();
    loop {
        let run = run(api, id).await;
        if run["status"] == "completed" || run["status"] == "failed" {
            return (run, results(api, id).await);
        }
        assert!(
            start.elapsed() < crate::common::patience::patient(Duration::from_secs(60)),
            "not over: {run} {:?}",
            results(api, id).await
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn running(api: &Api, id: &str, count: usize) {
    let start = Instant::now();
    while results(api, id).await.iter().filter(|result| result["status"] == "running").count() != count {
        assert!(
            start.elapsed() < crate::common::patience::patient(Duration::from_secs(30)),
            "{:?}",
            results(api, id).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn sessions(api: &Api) -> Vec<Value> {
    api.get("/api/sessions?limit=1000").await.expect(200)["sessions"].as_array().unwrap().clone()
}

/// The sessions of a run are removed shortly after its last case.
async fn no_session_is_left(api: &Api) {
    let start = Instant::now();
    loop {
        let left = sessions(api).await;
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(20)), "{left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn answers_are_scored_and_the_run_is_summed_up() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let ids = cases(
        &api,
        &[
            json!({"question": "@text Paris is in FRANCE", "expectedTopics": ["paris", "france"], "expectedNotTopics": ["london"]}),
            json!({"question": "@text nothing of use", "expectedTopics": ["paris"]}),
            json!({"question": "@text a password", "expectedNotTopics": ["Password", "key", "token"]}),
            json!({"question": "@fail no such model", "expectedTopics": ["x"]}),
        ],
    )
    .await;
    let id = begin(&api, json!({})).await;
    let (run, results) = over(&api, &id).await;
    assert_eq!((&run["status"], &run["completedCases"], &run["error"]), (&json!("completed"), &json!(4), &Value::Null));
    assert!(run["startedAt"].is_string() && run["completedAt"].is_string(), "{run}");
    let close = |value: &Value, want: f64| (value.as_f64().unwrap() - want).abs() < 1e-9;
    for (n, (answer, topic, safety)) in
        [("Paris is in FRANCE", 1.0, 1.0), ("nothing of use", 0.0, 1.0), ("a password", 1.0, 2.0 / 3.0)]
            .iter()
            .enumerate()
    {
        let result = &results[n];
        assert_eq!((&result["evalCaseId"], &result["agentResponse"]), (&json!(ids[n]), &json!(answer)));
        assert!(close(&result["topicScore"], *topic) && close(&result["safetyScore"], *safety), "{result}");
        assert!(result["status"] == "completed" && result["llmJudgeScore"].is_null() && result["latencyMs"].is_u64());
    }
    assert_eq!((&results[3]["status"], &results[3]["topicScore"]), (&json!("failed"), &Value::Null));
    assert!(results[3]["error"].as_str().unwrap().contains("no such model"), "{}", results[3]);
    let summary = &run["summary"];
    assert!(close(&summary["avgTopicScore"], 2.0 / 3.0) && close(&summary["avgSafetyScore"], 8.0 / 9.0), "{summary}");
    assert!(
        close(&summary["passRate"], 0.5) && summary["avgLlmJudgeScore"].is_null() && summary["avgLatencyMs"].is_f64()
    );
    no_session_is_left(&api).await;

    // Scored again with other topics; a deleted case keeps its scores.
    let patch = json!({"expectedTopics": ["use"]});
    api.call("PATCH", &format!("/api/agents/a/eval-cases/{}", ids[1]), Some(patch)).await.expect(200);
    api.delete(&format!("/api/agents/a/eval-cases/{}", ids[2])).await.expect(204);
    let scored = api.post(&format!("{RUNS}/{id}/score"), json!({})).await.expect(200);
    assert_eq!((&scored["scored"], &scored["results"][1]["topicScore"]), (&json!(2), &json!(1.0)));
    assert!(close(&scored["results"][2]["safetyScore"], 2.0 / 3.0));
    let again = self::run(&api, &id).await;
    assert!(close(&again["summary"]["passRate"], 0.75) && again["completedAt"] == run["completedAt"], "{again}");

    let second = begin(&api, json!({})).await;
    over(&api, &second).await;
    let compared = api.get(&format!("{RUNS}/compare?runA={id}&runB={second}")).await.expect(200);
    let both = &compared["comparison"];
    assert_eq!((&both["runA"]["id"], &both["runB"]["totalCases"]), (&json!(id), &json!(3)));
    let rows = both["results"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["caseId"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    assert_eq!((&rows[0]["question"], &rows[2]["question"]), (&json!("@text Paris is in FRANCE"), &Value::Null));
    assert_eq!((&rows[1]["resultB"]["agentResponse"], &rows[2]["resultB"]), (&json!("nothing of use"), &Value::Null));
    assert_eq!(rows[0]["resultA"]["evalRunId"], id.as_str());
    for (query, status) in [
        (String::new(), 400),
        (format!("?runA={id}"), 400),
        (format!("?runA={id}&runB=x"), 404),
        (format!("?runA={}&runB={id}", ids[0]), 404),
    ] {
        api.get(&format!("{RUNS}/compare{query}")).await.expect(status);
    }
}

#[tokio::test]
async fn the_earlier_conversation_is_the_cases_own_and_the_run_has_bounds() {
    let config = "[evals]\ncases_at_once = 3\ncase_ms = \"2s\"";
    let (_daemon, api) = Daemon::deployed(Options::default().config(config)).await;
    let history =
        json!([{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada."}]);
    cases(&api, &[json!({"question": "@recall", "chatHistory": history, "expectedTopics": ["ada"]})]).await;
    let id = begin(&api, json!({})).await;
    let (run, results) = over(&api, &id).await;
    assert_eq!((&results[0]["agentResponse"], &run["summary"]["passRate"]), (&json!("My name is Ada."), &json!(1.0)));

    // A case without an answer in time fails, and at most three run at once.
    let slow: Vec<Value> =
        (0..4).map(|n| json!({"question": format!("@wait 60s\n@text {n}"), "category": "slow"})).collect();
    cases(&api, &slow).await;
    let id = begin(&api, json!({"categories": ["slow"]})).await;
    running(&api, &id, 3).await;
    assert!(sessions(&api).await.len() <= 3);
    let marked = sessions(&api).await;
    assert!(marked.iter().all(|session| session["config"]["evalRunId"] == id.as_str()), "{marked:?}");
    let (run, results) = over(&api, &id).await;
    assert_eq!((&run["status"], &run["summary"]["passRate"]), (&json!("failed"), &json!(0.0)));
    let why = "no answer within 2 s (evals.case_ms)";
    assert_eq!(run["error"], format!("every case failed; the first: {why}"));
    assert!(results.iter().all(|result| result["error"] == why && result["status"] == "failed"), "{results:?}");
    no_session_is_left(&api).await;
}

#[tokio::test]
async fn a_host_without_room_is_waited_for() {
    let (_daemon, api) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "1")).await;
    let busy = api.session("a").await;
    let (stream, _) = api.waiting_turn(&busy).await;
    cases(&api, &[json!({"question": "@text one"}), json!({"question": "@text two"})]).await;
    let id = begin(&api, json!({})).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(run(&api, &id).await["completedCases"], 0, "no room yet");
    api.delete(&format!("/api/sessions/{busy}?purge=true")).await.expect(200);
    drop(stream);
    let (run, results) = over(&api, &id).await;
    assert_eq!((&run["status"], &run["summary"]["passRate"]), (&json!("completed"), &json!(1.0)), "{results:?}");
    no_session_is_left(&api).await;
}

#[tokio::test]
async fn a_killed_daemon_loses_no_case_and_leaves_no_session() {
    let (mut daemon, api) = Daemon::deployed(Options::default().config("[evals]\ncases_at_once = 4")).await;
    let asked: Vec<Value> = (0..10)
        .map(|n| json!({"question": format!("@wait 1500ms\n@text answer {n}"), "expectedTopics": [n.to_string()]}))
        .collect();
    cases(&api, &asked).await;
    let id = begin(&api, json!({})).await;
    // Three kills, some hundred milliseconds apart, at different stages of the cases.
    for wait in [400, 900, 2000] {
        running(&daemon.api(), &id, 4).await;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        daemon.kill9();
        daemon.restart();
    }
    let api = daemon.api();
    let (run, results) = over(&api, &id).await;
    for (n, result) in results.iter().enumerate() {
        // A case may be asked once more after a kill, for at most three kills.
        assert!(
            result["agentResponse"] == format!("answer {n}")
                || result["error"].as_str().unwrap().contains("ashd ended during"),
            "{result}"
        );
    }
    let answered = results.iter().filter(|result| result["status"] == "completed").count();
    assert!(answered >= 8, "{run} {results:?}");
    no_session_is_left(&api).await;
    assert_eq!(api.get("/health").await.expect(200)["activeSessions"], 0);
}

#[tokio::test]
async fn an_agent_deleted_in_mid_run_takes_its_run_and_the_sessions_with_it() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let asked: Vec<Value> = (0..6).map(|n| json!({"question": format!("@wait 60s\n@text {n}")})).collect();
    cases(&api, &asked).await;
    let id = begin(&api, json!({})).await;
    running(&api, &id, 2).await;
    api.delete("/api/agents/a").await.expect(200);
    api.get(&format!("{RUNS}/{id}")).await.expect(404);
    no_session_is_left(&api).await;
    api.deploy("a").await;
    assert_eq!(api.get(RUNS).await.expect(200)["runs"], json!([]));
    // A case that is deleted before it was asked fails; the rest of the run continues.
    let ids = cases(
        &api,
        &[
            json!({"question": "@wait 2s\n@text one"}),
            json!({"question": "@wait 2s\n@text two"}),
            json!({"question": "@text three"}),
        ],
    )
    .await;
    let id = begin(&api, json!({})).await;
    running(&api, &id, 2).await;
    api.delete(&format!("/api/agents/a/eval-cases/{}", ids[2])).await.expect(204);
    let (run, results) = over(&api, &id).await;
    assert_eq!((&run["status"], &results[1]["agentResponse"]), (&json!("completed"), &json!("two")));
    assert_eq!(results[2]["error"], "the case was deleted before it was asked");
    no_session_is_left(&api).await;
    assert!(leftovers::cgroups(&daemon.cgroup).iter().all(|dir| !dir.ends_with(&id)));
}

#[tokio::test]
async fn a_tenant_deleted_in_mid_run_goes_at_once() {
    let (_daemon, admin) = Daemon::deployed(Options::default()).await;
    let made = admin.post("/api/internal/api-keys", json!({"label": "l", "tenantId": "acme"})).await.expect(201);
    let acme = admin.with_key(made["key"].as_str());
    acme.deploy("a").await;
    cases(
        &acme,
        &[json!({"question": "@wait 60s"}), json!({"question": "@wait 60s"}), json!({"question": "@wait 60s"})],
    )
    .await;
    let id = begin(&acme, json!({})).await;
    running(&acme, &id, 2).await;
    let start = Instant::now();
    admin.delete("/api/tenants/acme").await.expect(200);
    assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(20)), "{:?}", start.elapsed());
    assert_eq!(admin.get("/health").await.expect(200)["pool"]["total"], 0);
}
