//! What a start reads, and when a commit is on the disk.

use super::tests::{a_session, fresh, tenant};
use super::*;
use ash_model::SessionStatus;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_commit_is_there_before_the_disk_has_it_and_all_others_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (gate, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    // Each sync waits for a permit.
    let store = Store::open_with(
        dir.path(),
        std::sync::Arc::new(move || held.lock().unwrap().recv().map_err(std::io::Error::other)),
    );
    let store = store.await.unwrap();
    let (owner, letters) = (tenant("default"), gate);
    letters.send(()).unwrap();
    let session = a_session(&owner, "a", 1);
    store.session_insert(&session).await.unwrap();
    let said = |text: &str| {
        let mut commit = Commit::of(&session);
        commit.messages = vec![(Role::User, text.into())];
        commit
    };
    let (done, on_disk) = store.commit_early(said("one"), true).await.unwrap();
    assert_eq!(done.message_sequence, 1);
    assert_eq!(store.messages(&owner, session.id, 10, 0).await.unwrap().len(), 1, "readers see it");
    // Answers only when it is on the disk.
    let mut durable = tokio::spawn({
        let (store, commit) = (store.clone(), said("two"));
        async move { store.commit(commit).await }
    });
    let mut on_disk = tokio::spawn(on_disk.wait());
    let moment = std::time::Duration::from_millis(150);
    assert!(tokio::time::timeout(moment, &mut on_disk).await.is_err(), "the disk does not have it");
    assert!(tokio::time::timeout(moment, &mut durable).await.is_err(), "nor this one");
    letters.send(()).unwrap();
    on_disk.await.unwrap().unwrap();
    letters.send(()).unwrap();
    assert_eq!(durable.await.unwrap().unwrap().message_sequence, 2);
    // A failing disk: the change is refused, the log is moved into the database, and the store
    // continues.
    drop(letters);
    assert!(matches!(store.commit(said("three")).await, Err(StoreError::NotOnDisk(_))));
    let (_, on_disk) = store.commit_early(said("four"), true).await.unwrap();
    on_disk.wait().await.unwrap();
    store.close().await;
    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(store.messages(&owner, session.id, 10, 0).await.unwrap().len(), 4);
}

#[tokio::test]
async fn at_the_start_only_what_needs_a_look_is_read() {
    use SessionStatus::{Active, Ended, Error, Paused, Starting, Stopped};
    let (_dir, store) = fresh().await;
    let (one, two) = (tenant("one"), tenant("two"));
    let mut want = Vec::new();
    for (n, status) in [Active, Paused, Ended, Error, Starting, Stopped, Paused].into_iter().enumerate() {
        let tenant = if n % 2 == 0 { &one } else { &two };
        let session = Session { status, ..a_session(tenant, "a", n as i64) };
        store.session_insert(&session).await.unwrap();
        // Two turns each; the second is open if the session is the last paused one.
        for number in 1..=2 {
            let open = number == 2 && n == 6;
            let turn = Turn {
                session: session.id,
                id: uuid::Uuid::new_v4(),
                number,
                start: 0,
                end: (!open).then_some(1),
                error: None,
                delivered: true,
                unasked: false,
                partial: false,
                started_at: 1,
                ended_at: None,
            };
            store.commit(Commit { turn: Some(turn), ..Commit::of(&session) }).await.unwrap();
        }
        if matches!(n, 0 | 4 | 6) {
            want.push((session.id, tenant.clone(), status));
        }
    }
    let unsettled = store.sessions_unsettled().await.unwrap();
    assert_eq!(unsettled, want);
    let mut counts = store.session_statuses().await.unwrap();
    counts.sort_by_key(|(status, _)| status.as_str());
    assert_eq!(counts, [(Active, 1), (Ended, 1), (Error, 1), (Paused, 2), (Starting, 1), (Stopped, 1)]);
}
