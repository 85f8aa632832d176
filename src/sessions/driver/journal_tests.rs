//! The ledger on a real store.

use uuid::Uuid;

use super::*;
use crate::store::Role;
use ash_model::{SessionStatus, TenantId};

async fn ledger() -> (tempfile::TempDir, Ledger, watch::Receiver<Published>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let session = Session::new(Uuid::new_v4(), TenantId::default_tenant(), "a", SessionStatus::Active);
    store.session_insert(&session).await.unwrap();
    let (sender, published) = watch::channel(Published::default());
    (dir, Ledger::new(store, &session, sender), published)
}

fn turn(ledger: &Ledger, number: i64, start: u64, end: Option<u64>) -> Commit {
    let mut change = ledger.blank();
    change.turn = Some(Turn {
        session: change.session,
        id: Uuid::new_v4(),
        number,
        start,
        end,
        error: None,
        delivered: true,
        unasked: false,
        partial: false,
        started_at: 1,
        ended_at: end.map(|_| 2),
    });
    change
}

#[tokio::test]
async fn nobody_reads_past_the_end_of_a_turn_before_it_is_published() {
    let (_dir, mut ledger, published) = ledger().await;
    drop(ledger.commit_early(turn(&ledger, 1, 0, None)).await.unwrap());
    ledger.saw(60);
    assert_eq!(published.borrow().watermark, 60);
    // In one batch: the turn ends at 100, an unasked one begins after it, and ends too.
    ledger.note(turn(&ledger, 1, 0, Some(100)));
    ledger.note(turn(&ledger, 2, 130, None));
    ledger.note(turn(&ledger, 2, 130, Some(180)));
    ledger.saw(200);
    assert_eq!(published.borrow().watermark, 100, "a line after the result is in no turn");
    ledger.landed().await;
    assert_eq!(published.borrow().turn.as_ref().unwrap().end, Some(100));
    assert_eq!(published.borrow().watermark, 180, "up to the end of the next one");
    while !ledger.is_settled() {
        ledger.landed().await;
    }
    assert_eq!(published.borrow().turn.as_ref().unwrap().end, Some(180));
    assert_eq!(published.borrow().watermark, 200);
}

#[tokio::test]
async fn what_was_noted_comes_before_what_is_committed() {
    let (_dir, mut ledger, _published) = ledger().await;
    for n in 0..3 {
        let mut note = ledger.blank();
        note.messages.push((Role::Assistant, format!("noted {n}").into()));
        ledger.note(note);
    }
    let mut last = ledger.blank();
    last.messages.push((Role::User, "committed".into()));
    let (session, tenant) = (last.session, last.tenant.clone());
    assert_eq!(ledger.commit(last).await.unwrap().message_sequence, 4);
    assert!(ledger.is_settled());
    let messages = ledger.store.messages(&tenant, session, 10, 0).await.unwrap();
    let said: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["noted 0", "noted 1", "noted 2", "committed"]);
}

#[tokio::test]
async fn the_last_words_and_the_end_of_a_turn_are_one_commit() {
    let (_dir, mut ledger, published) = ledger().await;
    drop(ledger.commit_early(turn(&ledger, 1, 0, None)).await.unwrap());
    let mut words = ledger.blank();
    words.messages.push((Role::Assistant, "last words".into()));
    ledger.note(words);
    assert!(tokio::time::timeout(LINGER / 3, ledger.landed()).await.is_err(), "it waits for more");
    let start = Instant::now();
    ledger.note(turn(&ledger, 1, 0, Some(100)));
    assert_eq!(ledger.queue.len(), 1);
    ledger.landed().await;
    assert!(ledger.is_settled() && published.borrow().turn.as_ref().unwrap().end == Some(100));
    // A change that no client waits for is written as well.
    let mut words = ledger.blank();
    words.messages.push((Role::Assistant, "more".into()));
    ledger.note(words);
    ledger.landed().await;
    assert!(ledger.is_settled() && start.elapsed() >= LINGER);
}
