use super::super::tests::an_item;
use super::*;

fn new(tenant: &str, prompt: &str, priority: i64) -> QueueItem {
    QueueItem { priority, ..an_item(&tenant.parse().unwrap(), prompt) }
}

#[tokio::test]
async fn items_are_claimed_once_and_in_order_and_fairly() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for (tenant, prompt, priority) in
        [("a", "1", 0), ("a", "2", 0), ("a", "urgent", 5), ("a", "3", 0), ("b", "other", -1)]
    {
        store.queue_insert(new(tenant, prompt, priority)).await.unwrap();
    }
    let mut order = Vec::new();
    while let Some(item) = store.queue_claim(8).await.unwrap() {
        assert_eq!(item.status, QueueStatus::Processing);
        order.push(item.prompt);
    }
    // The other tenant is next when the first has a running item, whatever the priorities.
    assert_eq!(order, ["urgent", "other", "1", "2", "3"]);
    assert_eq!(store.queue_processing().await.unwrap().len(), 5);
    // One tenant has its share, so another one's items are claimed.
    store.queue_insert(new("a", "too many", 9)).await.unwrap();
    store.queue_insert(new("c", "third", 0)).await.unwrap();
    assert_eq!(store.queue_claim(4).await.unwrap().unwrap().prompt, "third");
    assert!(store.queue_claim(4).await.unwrap().is_none());
    assert!(
        store
            .queue_cancel(
                &"a".parse().unwrap(),
                store.queue_items(&"a".parse().unwrap(), Some(QueueStatus::Pending), 9).await.unwrap()[0].id
            )
            .await
            .unwrap()
    );
    let cancelled = (QueueStatus::Cancelled, 1);
    assert_eq!(store.queue_counts(&"a".parse().unwrap()).await.unwrap(), [cancelled, (QueueStatus::Processing, 4)]);
}

#[tokio::test]
async fn an_item_changes_only_while_it_is_processed_and_is_cancelled_only_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let item = new("a", "x", 0);
    let (tenant, id, session) = (item.tenant.clone(), item.id, Uuid::new_v4());
    store.queue_insert(item).await.unwrap();
    assert!(!store.queue_change(id, QueueChange::Completed { result: "r".into() }).await.unwrap());
    store.queue_claim(8).await.unwrap().unwrap();
    assert!(!store.queue_cancel(&tenant, id).await.unwrap());
    assert!(store.queue_change(id, QueueChange::Bound { session, turn: session }).await.unwrap());
    let bound = store.queue_item(&tenant, id).await.unwrap().unwrap();
    assert_eq!((bound.session, bound.turn), (Some(session), Some(session)));
    let later = now_ms() + 60_000;
    let back = QueueChange::PutBack { due_at: later, error: Some("why".into()), counted: true };
    assert!(store.queue_change(id, back).await.unwrap());
    let back = store.queue_item(&tenant, id).await.unwrap().unwrap();
    assert_eq!((back.status, back.retry_count, back.session), (QueueStatus::Pending, 1, None));
    assert!(store.queue_claim(8).await.unwrap().is_none(), "it is not due yet");
    assert_eq!(store.queue_next_due(8).await.unwrap(), Some(later));
    // The clock was set back by an hour meanwhile.
    let mut ahead = new("a", "ahead", 0);
    ahead.created_at = now_ms() + 3_600_000;
    store.queue_insert(ahead).await.unwrap();
    assert_eq!(store.queue_claim(8).await.unwrap().unwrap().prompt, "ahead");
    assert!(!store.queue_cancel(&"b".parse().unwrap(), id).await.unwrap());
    assert!(store.queue_cancel(&tenant, id).await.unwrap());
    assert!(!store.queue_cancel(&tenant, id).await.unwrap());
    assert_eq!(store.queue_next_due(8).await.unwrap(), None);
    assert!(store.queue_items(&tenant, Some(QueueStatus::Pending), 10).await.unwrap().is_empty());
    assert_eq!(store.queue_items(&tenant, None, 10).await.unwrap().len(), 2);
    assert!("done".parse::<QueueStatus>().unwrap_err().contains("pending, processing"));
}

/// A query that reaches small columns behind a large text walks all of the text's pages.
#[tokio::test]
async fn frequent_queries_read_indexes_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for (table, query) in [
        ("q", CLAIM),
        ("queue", NEXT_DUE),
        ("eval_runs", crate::store::evals::OPEN),
        ("eval_results", crate::store::evals::COUNTED),
    ] {
        let plan: Vec<String> = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}")))
            .fetch_all(store.reader())
            .await
            .unwrap()
            .iter()
            .map(|row| row.get("detail"))
            .collect();
        let first = plan.iter().find(|step| step.starts_with("SCAN ") || step.starts_with("SEARCH ")).unwrap();
        let of_it = plan.iter().filter(|step| step.contains(&format!(" {table} USING COVERING INDEX")));
        assert!(of_it.count() >= 1, "{query}: {first}: {plan:?}");
    }
}
