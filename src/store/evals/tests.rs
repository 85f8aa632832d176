use super::super::tests::{fresh, tenant};
use super::super::{NewAgent, Store, StoreError};
use super::*;
use ash_model::now_ms;

async fn agent(store: &Store, tenant: &TenantId, name: &str) {
    let new = NewAgent { name: name.into(), path: "/a".into(), system_prompt: Some("p".into()), ..NewAgent::default() };
    store.agent_upsert(tenant, new).await.unwrap();
}

fn asked(question: &str) -> CaseFields {
    CaseFields { question: Some(question.into()), ..CaseFields::default() }
}

/// An agent with this number of cases, and a run of them.
async fn begun(store: &Store, tenant: &TenantId, name: &str, cases: usize) -> EvalRun {
    agent(store, tenant, name).await;
    let cases = (0..cases).map(|n| asked(&n.to_string())).collect();
    store.eval_cases_insert(tenant, name, cases).await.unwrap().unwrap();
    store.eval_run_insert(tenant, name, NewRun::default()).await.unwrap().unwrap()
}

fn answered(topic_score: f64) -> EvalChange {
    EvalChange::Completed { response: "r".repeat(100), topic_score, safety_score: 1.0, latency_ms: 10 }
}

fn failed(error: &str) -> EvalChange {
    EvalChange::Failed { error: error.into(), latency_ms: None }
}

#[tokio::test]
async fn a_run_is_claimed_case_by_case_and_concluded_once() {
    let (_dir, store) = fresh().await;
    let acme = tenant("acme");
    let run = begun(&store, &acme, "a", 3).await;
    assert_eq!(run.system_prompt.as_deref(), Some("p"));
    let first = store.eval_claim(2).await.unwrap().unwrap();
    let second = store.eval_claim(2).await.unwrap().unwrap();
    assert!(store.eval_claim(2).await.unwrap().is_none(), "two of a tenant");
    assert!(store.eval_next_due(2).await.unwrap().is_none() && store.eval_next_due(3).await.unwrap().is_some());
    assert!(store.eval_change(&first, answered(1.0)).await.unwrap());
    assert!(!store.eval_change(&first, failed("late")).await.unwrap(), "a finished result stays finished");
    let third = store.eval_claim(2).await.unwrap().unwrap();
    assert!(first.id != second.id && second.id != third.id);
    store.eval_change(&second, failed("why")).await.unwrap();
    let half = store.eval_run(&acme, "a", run.id).await.unwrap().unwrap();
    assert_eq!((half.status, half.completed_cases, half.summary.is_none()), (EvalStatus::Running, 2, true));
    store.eval_change(&third, answered(0.4)).await.unwrap();
    let whole = store.eval_run(&acme, "a", run.id).await.unwrap().unwrap();
    assert_eq!((whole.status, whole.completed_cases, whole.error), (EvalStatus::Completed, 3, None));
    let summary = serde_json::from_str::<serde_json::Value>(whole.summary.unwrap().get()).unwrap();
    assert_eq!((&summary["avgTopicScore"], &summary["avgLatencyMs"]), (&0.7.into(), &10.0.into()));
    assert!((summary["passRate"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9, "{summary}");
    assert!(store.eval_claim(2).await.unwrap().is_none());
    assert_eq!(store.tenant_use_check().await.unwrap(), 0, "every row is counted");
}

#[tokio::test]
async fn what_was_put_back_waits_and_what_was_cut_short_is_counted() {
    let (_dir, store) = fresh().await;
    let acme = tenant("acme");
    begun(&store, &acme, "a", 1).await;
    let of = store.eval_claim(1).await.unwrap().unwrap();
    let session = Uuid::new_v4();
    store.eval_change(&of, EvalChange::Asked { session }).await.unwrap();
    store.eval_change(&of, EvalChange::Sent { turn: 1 }).await.unwrap();
    let running = store.eval_running().await.unwrap().remove(0);
    assert_eq!((running.session, running.turn), (Some(session), Some(1)));
    assert_eq!(store.eval_sessions().await.unwrap(), [(acme.clone(), session)]);
    store.eval_change(&of, EvalChange::PutBack { due_at: now_ms() + 30_000, cut_short: false }).await.unwrap();
    assert!(store.eval_claim(1).await.unwrap().is_none(), "it is not due yet");
    assert_eq!(store.eval_sessions().await.unwrap().len(), 1, "until it is gone");
    store.eval_session_gone(&acme, session).await.unwrap();
    assert!(store.eval_sessions().await.unwrap().is_empty() && store.eval_running().await.unwrap().is_empty());

    begun(&store, &acme, "b", 1).await;
    let of = store.eval_claim(1).await.unwrap().unwrap();
    store.eval_change(&of, EvalChange::PutBack { due_at: now_ms(), cut_short: true }).await.unwrap();
    let again = store.eval_claim(1).await.unwrap().unwrap();
    assert_eq!((again.id, again.cut_short, again.session), (of.id, 1, None));
}

#[tokio::test]
async fn the_tenant_with_fewest_goes_first_and_all_goes_with_the_agent() {
    let (_dir, store) = fresh().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    begun(&store, &acme, "a", 9).await;
    begun(&store, &other, "a", 9).await;
    let mut claimed = Vec::new();
    for _ in 0..4 {
        claimed.push(store.eval_claim(8).await.unwrap().unwrap());
    }
    assert_eq!(claimed.iter().filter(|of| of.tenant == acme).count(), 2, "in turn");
    let of = claimed.into_iter().find(|of| of.tenant == acme).unwrap();
    assert!(store.eval_task(&of).await.unwrap().is_some() && store.eval_is_running(of.id).await.unwrap());
    store.agent_delete(&acme, "a").await.unwrap();
    assert!(store.eval_task(&of).await.unwrap().is_none() && !store.eval_is_running(of.id).await.unwrap());
    assert!(!store.eval_change(&of, failed("late")).await.unwrap());
    store.tenant_forget(&other).await.unwrap();
    assert!(store.eval_running().await.unwrap().is_empty());
    assert_eq!(store.tenant_use_check().await.unwrap(), 0, "rows that depend on an agent are subtracted with it");
    for tenant in [&acme, &other] {
        assert_eq!(store.tenant_use(tenant).await.unwrap().database, 0);
    }
}

#[tokio::test]
async fn runs_have_a_number_and_the_oldest_goes() {
    let (_dir, store) = fresh().await;
    let acme = tenant("acme");
    let oldest = begun(&store, &acme, "a", 1).await;
    for n in 0..RUNS_KEPT {
        let of = store.eval_claim(1).await.unwrap().unwrap();
        store.eval_change(&of, failed("x")).await.unwrap();
        let there = store.eval_run(&acme, "a", oldest.id).await.unwrap();
        assert!(there.is_some_and(|run| run.status == EvalStatus::Failed), "{n}");
        store.eval_run_insert(&acme, "a", NewRun::default()).await.unwrap().unwrap();
    }
    assert!(store.eval_run(&acme, "a", oldest.id).await.unwrap().is_none());
    for _ in 1..MAX_OPEN_RUNS.rows {
        store.eval_run_insert(&acme, "a", NewRun::default()).await.unwrap().unwrap();
    }
    let refused = store.eval_run_insert(&acme, "a", NewRun::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooMany(most) if most == MAX_OPEN_RUNS), "{refused}");
    assert_eq!(store.eval_run_places(&acme, "a", 1000, 0).await.unwrap().len() as i64, RUNS_KEPT - 1 + 20);
}
