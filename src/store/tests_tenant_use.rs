use super::super::tests::{a_session, an_item, fresh, tenant};
use super::super::{Attachment, Commit, NewAgent, QueueChange, Role, StoreError, Usage, VersionFields};
use super::*;
use crate::store::LimitScope;
use ash_model::{Limit as SandboxLimit, PartialLimits, now_ms};

#[tokio::test]
async fn every_change_is_counted_in_its_own_transaction() {
    let (_dir, store) = fresh().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let wrong = async || store.tenant_use_check().await.unwrap();
    let used = async |tenant: &TenantId| store.tenant_use(tenant).await.unwrap().database;

    let session = a_session(&acme, "a", 1);
    store.session_insert(&session).await.unwrap();
    let empty = used(&acme).await;
    let said = Commit {
        messages: vec![(Role::User, "m".repeat(1000).into()), (Role::Assistant, "ü".repeat(500).into())],
        events: vec![("lifecycle", "e".repeat(100).into())],
        usage: Some(Usage::default()),
        config: Some(Some(ash_model::RawJson::of(&serde_json::json!({"k": "v".repeat(64)})))),
        ..Commit::of(&session)
    };
    store.commit(said).await.unwrap();
    assert!(used(&acme).await >= empty + 2100, "bytes, not characters");
    assert_eq!(wrong().await, 0);

    let new = NewAgent { name: "a".into(), path: "/a".into(), ..NewAgent::default() };
    store.agent_upsert(&acme, new.clone()).await.unwrap();
    store.agent_upsert(&acme, NewAgent { description: Some("d".repeat(99)), ..new }).await.unwrap();
    let prompt = VersionFields { system_prompt: Some(Some("p".repeat(50))), ..VersionFields::default() };
    store.version_insert(&acme, "a", prompt.clone()).await.unwrap().unwrap();
    store.version_update(&acme, "a", 1, VersionFields::default()).await.unwrap().unwrap();
    store.version_activate(&acme, "a", 1).await.unwrap().unwrap();
    assert_eq!(wrong().await, 0, "an update of an update");

    for n in 0..2 {
        let said =
            PartialLimits::from([(SandboxLimit::Pids, 100 + n), (SandboxLimit::DiskFiles, 10_u64.pow(3 + n as u32))]);
        store.limits_put(&acme, LimitScope::Agent("a".into()), said).await.unwrap();
    }
    store.idempotency_begin(&acme, "k", [0; 32]).await.unwrap();
    store.idempotency_begin(&acme, "k", [0; 32]).await.unwrap();
    store.idempotency_answer(&acme, "k", 201, vec![1; 77]).await.unwrap();
    let attachment = Attachment {
        id: uuid::Uuid::new_v4(),
        session: session.id,
        tenant: acme.clone(),
        filename: "f".into(),
        mime_type: "a/b".into(),
        size: 5,
        message_id: None,
        path: None,
        created_at: 1,
    };
    store.attachment_insert(attachment).await.unwrap();
    for n in 0..3 {
        store.queue_insert(an_item(&acme, &format!("p{n}"))).await.unwrap();
    }
    let claimed = store.queue_claim(8).await.unwrap().unwrap();
    store.queue_change(claimed.id, QueueChange::Completed { result: "r".repeat(300) }).await.unwrap();
    let claimed = store.queue_claim(8).await.unwrap().unwrap();
    let back = QueueChange::PutBack { due_at: now_ms(), error: Some("why".into()), counted: true };
    store.queue_change(claimed.id, back).await.unwrap();
    assert_eq!(wrong().await, 0);
    assert_eq!(used(&other).await, 0);

    // The session's messages, events and attachments are deleted with it; its usage stays.
    assert!(store.session_remove(&acme, session.id).await.unwrap());
    assert_eq!(wrong().await, 0, "rows that depend on a row are subtracted with it");
    store.tenant_forget(&acme).await.unwrap();
    assert_eq!(wrong().await, 0);
    assert!(used(&acme).await < 512, "one row of usage: {}", used(&acme).await);
}

#[tokio::test]
async fn a_database_changed_by_hand_is_counted_anew() {
    let (_dir, store) = fresh().await;
    let acme = tenant("acme");
    store.session_insert(&a_session(&acme, "a", 1)).await.unwrap();
    store.tenant_files_put(&acme, 12_345).await.unwrap();
    let right = store.tenant_use(&acme).await.unwrap();
    assert_eq!(right.files, Some(12_345));
    store.write(ByHand).await.unwrap();
    assert_ne!(store.tenant_use(&acme).await.unwrap(), right);
    assert_ne!(store.tenant_use_check().await.unwrap(), 0);
    assert_eq!((store.tenant_use(&acme).await.unwrap(), store.tenant_use_check().await.unwrap()), (right, 0));
}

/// Inserts many rows in one statement.
struct Many(&'static str);

impl Write for Many {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        sqlx::query(self.0).execute(conn).await?;
        Ok(())
    }
}

struct ByHand;

impl Write for ByHand {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        sqlx::query("UPDATE tenant_use SET bytes = 1 WHERE kind <> 'files'").execute(conn).await?;
        Ok(())
    }
}

#[tokio::test]
async fn the_rows_of_a_kind_have_a_number() {
    let (_dir, store) = fresh().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let new = |n: u64| NewAgent { name: format!("a{n}"), path: "/a".into(), ..NewAgent::default() };
    store.agent_upsert(&acme, new(0)).await.unwrap();
    store.agent_upsert(&acme, new(1)).await.unwrap();
    store
        .write(Many(
            "WITH RECURSIVE n(n) AS (VALUES (2) UNION ALL SELECT n + 1 FROM n WHERE n < 999)
             INSERT INTO agents (id, tenant, name, version, path, env, created_at, updated_at)
             SELECT 'i' || n, 'acme', 'a' || n, 1, '/a', '{}', 1, 1 FROM n",
        ))
        .await
        .unwrap();
    let refused = store.agent_upsert(&acme, new(MAX_AGENTS.rows)).await.unwrap_err();
    assert_eq!(refused.to_string(), "limit reached: 1000 agents of the tenant; delete some");
    store.agent_upsert(&acme, new(0)).await.unwrap();
    store.agent_upsert(&other, new(0)).await.unwrap();
    store.version_insert(&acme, "a0", VersionFields::default()).await.unwrap().unwrap();
    store
        .write(Many(
            "WITH RECURSIVE n(n) AS (VALUES (-1000) UNION ALL SELECT n + 1 FROM n WHERE n < -2)
             INSERT INTO agent_versions (id, tenant, agent, agent_name, number, name, is_active, knowledge_files, created_at, updated_at)
             SELECT 'v' || n, 'acme', id, 'a0', 5000 + n, 'v', 0, '[]', 1, 1 FROM n, agents WHERE tenant = 'acme' AND name = 'a0'",
        ))
        .await
        .unwrap();
    let refused = store.version_insert(&acme, "a0", VersionFields::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooMany(most) if most == MAX_VERSIONS), "{refused}");
    store.version_delete(&acme, "a0", 1).await.unwrap();
    store.version_insert(&acme, "a0", VersionFields::default()).await.unwrap().unwrap();
    store.version_insert(&acme, "a1", VersionFields::default()).await.unwrap().unwrap();
    assert_eq!(store.tenant_use_check().await.unwrap(), 0);
}
