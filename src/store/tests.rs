//! The store on a real database in a temporary directory.

use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use ash_model::{Limits, SessionStatus, TenantId, now_ms};

pub(super) async fn fresh() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    (dir, store)
}

pub(super) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub(super) fn a_session(tenant: &TenantId, agent: &str, created_at: i64) -> Session {
    Session {
        model: Some("m".to_owned()),
        config: Some(json!({"allowedTools": ["Bash"]}).into()),
        launch: json!({"extraEnv": {"A": "ü\u{2028}\""}}).into(),
        limits: Limits { pids: 7, ..Limits::default() },
        parent: Some(Uuid::nil()),
        created_at,
        last_active_at: created_at,
        ..Session::new(Uuid::now_v7(), tenant.clone(), agent, SessionStatus::Active)
    }
}

fn a_key(tenant: &TenantId, hash: u8) -> ApiKey {
    ApiKey {
        id: Uuid::new_v4(),
        tenant: tenant.clone(),
        label: "l".to_owned(),
        hash: [hash; 32],
        prefix: "ash_abcd".to_owned(),
        admin: false,
        created_at: now_ms(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_tasks_commit_without_a_gap_or_a_loss() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let mut sessions = Vec::new();
    for n in 0..5 {
        let session = a_session(&owner, "a", n);
        store.session_insert(&session).await.unwrap();
        sessions.push(session);
    }
    let tasks: Vec<_> = (0..50_usize)
        .map(|task| {
            let store = store.clone();
            let session = sessions[task % 5].clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    let mut commit = Commit::of(&session);
                    commit.messages = vec![
                        (Role::User, format!("{task}.{n}.u").into()),
                        (Role::Assistant, format!("{task}.{n}.a").into()),
                    ];
                    commit.events = vec![("text", format!("{task}.{n}").into())];
                    let done = store.commit(commit).await.unwrap();
                    assert!(done.message_sequence >= 2 * (n + 1));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for (at, session) in sessions.iter().enumerate() {
        let messages = store.messages(&owner, session.id, 10_000, 0).await.unwrap();
        let sequences: Vec<i64> = messages.iter().map(|m| m.sequence).collect();
        assert_eq!(sequences, (1..=2000).collect::<Vec<_>>());
        let mut contents: Vec<String> = messages.iter().map(|m| m.content.clone()).collect();
        let mut expected: Vec<String> = (0..50)
            .filter(|task| task % 5 == at)
            .flat_map(|task| (0..100).flat_map(move |n| [format!("{task}.{n}.u"), format!("{task}.{n}.a")]))
            .collect();
        contents.sort();
        expected.sort();
        assert_eq!(contents, expected);
        // The two messages of one commit are adjacent.
        assert!(messages.chunks(2).all(|two| two[0].role == "user" && two[1].role == "assistant"));
        let events = store.events(&owner, session.id, 10_000, 0, Some("text")).await.unwrap();
        assert_eq!(events.iter().map(|e| e.sequence).collect::<Vec<_>>(), (1..=1000).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_write_does_not_fail_its_neighbours() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let session = a_session(&owner, "a", 1);
    store.session_insert(&session).await.unwrap();
    let mut writes = Vec::new();
    for n in 0..200 {
        let store = store.clone();
        // Every third commit is for a session that does not exist, or belongs to another tenant.
        let mut commit = Commit::of(&session);
        match n % 6 {
            0 => commit.session = Uuid::new_v4(),
            3 => commit.tenant = tenant("other"),
            _ => {}
        }
        commit.messages = vec![(Role::User, n.to_string().into())];
        writes.push(tokio::spawn(async move { (n, store.commit(commit).await) }));
    }
    let mut kept = 0;
    for write in writes {
        let (n, result) = write.await.unwrap();
        match result {
            Ok(_) => {
                assert!(n % 3 != 0);
                kept += 1;
            }
            Err(StoreError::NoSession(_)) => assert!(n % 3 == 0),
            Err(other) => panic!("{other}"),
        }
    }
    let messages = store.messages(&owner, session.id, 1000, 0).await.unwrap();
    assert_eq!(messages.iter().map(|m| m.sequence).collect::<Vec<_>>(), (1..=kept).collect::<Vec<_>>());
    assert!(messages.iter().all(|m| m.content.parse::<i64>().unwrap() % 3 != 0));
}

#[tokio::test]
async fn a_commit_changes_what_it_names_and_nothing_else_and_survives_a_reopen() {
    let (dir, store) = fresh().await;
    let owner = tenant("default");
    let before = a_session(&owner, "a", 5);
    store.session_insert(&before).await.unwrap();
    let turn = a_turn(before.id);
    let mut commit = Commit::of(&before);
    commit.turn = Some(turn.clone());
    commit.messages = vec![(Role::User, "begins it".into())];
    commit.stdout_offset = Some(99);
    commit.status = Some((SessionStatus::Error, Some("why".to_owned())));
    store.commit(commit).await.unwrap();
    let mut commit = Commit::of(&before);
    let ended = Turn { end: Some(99), ended_at: Some(4), delivered: true, ..turn };
    commit.turn = Some(ended.clone());
    commit.messages = vec![(Role::User, "a tool's result".into())];
    commit.model = Some(None);
    commit.usage = Some(Usage { input_tokens: 3, tool_calls: 2, messages: 1, ..Usage::default() });
    commit.touch = true;
    store.commit(commit).await.unwrap();
    store.close().await;
    assert!(matches!(store.commit(Commit::of(&before)).await, Err(StoreError::Closed)));

    let store = Store::open(dir.path()).await.unwrap();
    let shown = store.session(&owner, before.id).await.unwrap().unwrap();
    assert_eq!((shown.id, shown.launch.get()), (before.id, "{}"), "launch options are for the driver alone");
    let after = store.session_of_any_tenant(before.id).await.unwrap().unwrap();
    assert_eq!((after.status, after.error.as_deref()), (SessionStatus::Error, Some("why")));
    assert_eq!((after.stdout_offset, after.model), (99, None));
    assert_eq!((after.config, after.launch, after.limits), (before.config, before.launch, before.limits));
    assert_eq!((after.parent, after.created_at), (before.parent, before.created_at));
    assert!(after.last_active_at > before.last_active_at);
    assert_eq!(store.last_turn(before.id).await.unwrap(), Some(ended.clone()));
    assert_eq!(store.message_of(&ended).await.unwrap().as_deref(), Some("begins it"));
    assert_eq!(store.turn(before.id, 1).await.unwrap(), Some(ended));
    assert_eq!(store.turn(before.id, 2).await.unwrap(), None);
    // Sequences continue.
    let mut commit = Commit::of(&a_session(&owner, "a", 5));
    commit.session = before.id;
    commit.events = vec![("text", "{}".into())];
    assert_eq!(store.commit(commit).await.unwrap().event_sequence, 1);
    let totals = store.usage_totals(&owner, &UsageFilter::default()).await.unwrap();
    assert_eq!((totals.results, totals.usage.input_tokens, totals.usage.tool_calls), (1, 3, 2));
}

#[tokio::test]
async fn no_read_or_write_crosses_tenants() {
    let (_dir, store) = fresh().await;
    let (mine, other) = (tenant("mine"), tenant("other"));
    let session = a_session(&mine, "a", 1);
    store.session_insert(&session).await.unwrap();
    let mut commit = Commit::of(&session);
    commit.messages = vec![(Role::User, "m".into())];
    commit.events = vec![("text", "{}".into())];
    commit.usage = Some(Usage { messages: 1, ..Usage::default() });
    store.commit(commit).await.unwrap();
    let agent = store.agent_upsert(&mine, NewAgent { name: "a".to_owned(), ..NewAgent::default() }).await.unwrap();
    let key = a_key(&mine, 1);
    store.key_insert(key.clone()).await.unwrap();
    let credential = Credential {
        id: Uuid::new_v4(),
        tenant: mine.clone(),
        kind: "custom".to_owned(),
        label: String::new(),
        sealed: vec![1],
        active: true,
        created_at: 1,
        last_used_at: None,
    };
    store.credential_insert(credential.clone()).await.unwrap();
    let attachment = Attachment {
        id: Uuid::new_v4(),
        session: session.id,
        tenant: mine.clone(),
        filename: "f".to_owned(),
        mime_type: "text/plain".to_owned(),
        size: 1,
        message_id: None,
        path: None,
        created_at: 1,
    };
    store.attachment_insert(attachment.clone()).await.unwrap();
    let foreign = Attachment { id: Uuid::new_v4(), tenant: other.clone(), ..attachment.clone() };
    assert!(matches!(store.attachment_insert(foreign).await, Err(StoreError::NoSession(_))));

    let all = SessionFilter::default();
    for (who, n) in [(&mine, 1), (&other, 0)] {
        assert_eq!(usize::from(store.session(who, session.id).await.unwrap().is_some()), n);
        assert_eq!(store.sessions(who, &all).await.unwrap().len(), n);
        assert_eq!(store.session_count(who, &all).await.unwrap() as usize, n);
        assert_eq!(store.messages(who, session.id, 10, 0).await.unwrap().len(), n);
        assert_eq!(store.events(who, session.id, 10, 0, None).await.unwrap().len(), n);
        assert_eq!(store.usage(who, &UsageFilter::default()).await.unwrap().len(), n);
        assert_eq!(store.usage_totals(who, &UsageFilter::default()).await.unwrap().results as usize, n);
        assert_eq!(usize::from(store.agent(who, "a").await.unwrap().is_some()), n);
        assert_eq!(store.agents(who).await.unwrap().len(), n);
        assert_eq!(store.key_list(who, true).await.unwrap().len(), n);
        assert_eq!(usize::from(store.credential(who, credential.id).await.unwrap().is_some()), n);
        assert_eq!(store.credentials(who).await.unwrap().len(), n);
        assert_eq!(usize::from(store.attachment(who, attachment.id).await.unwrap().is_some()), n);
        assert_eq!(store.attachments(who, session.id).await.unwrap().len(), n);
    }
    assert!(store.agent_update(&other, &agent).await.unwrap().is_none());
    for (who, done) in [(&other, false), (&mine, true)] {
        assert_eq!(store.agent_delete(who, "a").await.unwrap(), done);
        assert_eq!(store.key_delete(who, key.id, true).await.unwrap() == KeyDelete::Done, done);
        assert_eq!(store.credential_delete(who, credential.id).await.unwrap(), done);
        assert_eq!(store.attachment_delete(who, attachment.id).await.unwrap(), done);
    }
}

#[tokio::test]
async fn a_deployment_again_keeps_the_id_and_what_it_leaves_out() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let new = NewAgent {
        name: "a".to_owned(),
        path: "/one".to_owned(),
        env: BTreeMap::from([("K".to_owned(), "v".to_owned())]),
        model: Some("m1".to_owned()),
        ..NewAgent::default()
    };
    let first = store.agent_upsert(&owner, new.clone()).await.unwrap();
    let again = store
        .agent_upsert(&owner, NewAgent { path: "/two".to_owned(), env: BTreeMap::new(), model: None, ..new })
        .await
        .unwrap();
    assert_eq!((first.version, again.version), (1, 2));
    assert_eq!((again.id, again.created_at, again.path.as_str()), (first.id, first.created_at, "/two"));
    assert_eq!((again.env.clone(), again.model.clone()), (first.env, first.model));
    let patched = Agent { env: BTreeMap::new(), model: None, config: Some(json!({"a": 1}).into()), ..again };
    let patched = store.agent_update(&owner, &patched).await.unwrap().unwrap();
    assert_eq!((patched.env.len(), patched.model, patched.version), (0, None, 2));
    assert_eq!(store.agent(&owner, "a").await.unwrap().unwrap().config, Some(json!({"a": 1}).into()));
}

#[tokio::test]
async fn sessions_are_listed_newest_first_by_filter_and_page() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let mut ids = Vec::new();
    for n in 0..10 {
        // Five of them share a millisecond: the order of insertion decides.
        let mut session = a_session(&owner, if n % 2 == 0 { "even" } else { "odd" }, n / 5);
        if n == 9 {
            session.status = SessionStatus::Paused;
        }
        store.session_insert(&session).await.unwrap();
        ids.insert(0, session.id);
    }
    let list = async |filter: SessionFilter| {
        store.sessions(&owner, &filter).await.unwrap().into_iter().map(|s| s.id).collect::<Vec<_>>()
    };
    assert_eq!(list(SessionFilter::default()).await, ids);
    assert_eq!(list(SessionFilter { limit: Some(3), offset: 2, ..SessionFilter::default() }).await, ids[2..5]);
    let odd = SessionFilter { agent: Some("odd".to_owned()), limit: Some(2), ..SessionFilter::default() };
    assert_eq!(list(odd.clone()).await, [ids[0], ids[2]]);
    assert_eq!(store.session_count(&owner, &odd).await.unwrap(), 5);
    let paused = SessionFilter { status: Some(SessionStatus::Paused), ..SessionFilter::default() };
    assert_eq!(list(paused).await, [ids[0]]);
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_though_it_was_cached() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let key = a_key(&owner, 7);
    assert_eq!(store.key_count().await.unwrap(), 0);
    assert!(store.key_by_hash(key.hash).await.unwrap().is_none());
    store.key_insert(key.clone()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.key_by_hash(key.hash).await.unwrap().unwrap().id, key.id);
    }
    assert!(store.key_insert(a_key(&owner, 7)).await.is_err());
    assert_eq!(store.key_count().await.unwrap(), 1);
    assert_eq!(store.key_delete(&owner, key.id, false).await.unwrap(), KeyDelete::Done);
    assert!(store.key_by_hash(key.hash).await.unwrap().is_none());
}

#[tokio::test]
async fn a_full_disk_is_said_and_writing_goes_on_when_there_is_room_again() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let session = a_session(&owner, "a", 1);
    store.session_insert(&session).await.unwrap();
    // SQLite's own limit on the file fails in the same place and with the same code (SQLITE_FULL)
    // as a full disk.
    let pages: i64 = store.write(Pages(None)).await.unwrap();
    store.write(Pages(Some(pages + 8))).await.unwrap();
    let big = |n: usize| {
        let mut commit = Commit::of(&session);
        commit.messages = vec![(Role::User, "x".repeat(n).into())];
        commit
    };
    assert!(matches!(store.commit(big(1 << 20)).await, Err(StoreError::Full)));
    assert_eq!(store.commit(big(10)).await.unwrap().message_sequence, 1);
    store.write(Pages(Some(1 << 30))).await.unwrap();
    assert_eq!(store.commit(big(1 << 20)).await.unwrap().message_sequence, 2);
    assert_eq!(store.messages(&owner, session.id, 10, 1).await.unwrap()[0].content.len(), 1 << 20);
}

pub(super) fn an_item(tenant: &TenantId, prompt: &str) -> QueueItem {
    QueueItem {
        id: Uuid::new_v4(),
        tenant: tenant.clone(),
        agent_name: "a".into(),
        prompt: prompt.into(),
        priority: 0,
        status: QueueStatus::Pending,
        retry_count: 0,
        max_retries: 3,
        wanted: None,
        session: None,
        turn: None,
        result: None,
        error: None,
        due_at: 0,
        created_at: now_ms(),
        started_at: None,
        completed_at: None,
    }
}

pub(super) fn a_turn(session: Uuid) -> Turn {
    Turn {
        session,
        id: Uuid::new_v4(),
        number: 1,
        start: 10,
        end: None,
        error: None,
        delivered: false,
        unasked: false,
        partial: false,
        started_at: 3,
        ended_at: None,
    }
}

/// Sets the maximum number of pages of the database file; returns the current (`None`) or maximum
/// number.
struct Pages(Option<i64>);

impl writer::Write for Pages {
    type Out = i64;
    async fn apply(&self, conn: &mut sqlx::SqliteConnection, _: &mut writer::Counters) -> Result<i64, StoreError> {
        let sql = self.0.map_or("PRAGMA page_count".to_owned(), |n| format!("PRAGMA max_page_count = {n}"));
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(conn).await?)
    }
}
