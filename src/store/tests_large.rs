use super::tests::{a_session, a_turn, fresh, tenant};
use super::*;

#[tokio::test]
async fn a_large_message_is_rows_of_a_mib_and_one_text() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let (session, copy) = (a_session(&owner, "a", 1), a_session(&owner, "a", 2));
    store.session_insert(&session).await.unwrap();
    store.session_insert(&copy).await.unwrap();
    // Two-byte characters, one of which crosses the end of a row.
    let texts: Vec<String> = vec![
        "a".repeat(LARGE),
        "a".repeat(LARGE + 1),
        format!("a{}", "ü".repeat(LARGE)),
        format!("{}ü", "a".repeat(2 * LARGE - 1)),
        "short".to_owned(),
    ];
    for (n, text) in (1..).zip(&texts) {
        let mut turn = Turn { number: n, ..a_turn(session.id) };
        let mut commit = Commit::of(&session);
        commit.messages = vec![(Role::User, text.as_str().into())];
        commit.turn = Some(turn.clone());
        store.commit(commit).await.unwrap();
        assert!(store.message_of(&turn).await.unwrap().as_ref() == Some(text), "{n}");
        turn.number = 0;
        assert_eq!(store.message_of(&turn).await.unwrap(), None);
    }
    store.messages_copy(&owner, session.id, copy.id).await.unwrap();
    for session in [&session, &copy] {
        let places = store.message_places(&owner, session.id, Window::first(10)).await.unwrap();
        assert_eq!(places.len(), texts.len());
        for (place, text) in places.iter().zip(&texts) {
            assert_eq!(place.bytes, text.len() as u64);
            let mut read = Vec::new();
            loop {
                let piece = store.text_piece::<Message>(&owner, *place, read.len() as u64).await.unwrap().unwrap();
                if piece.is_empty() {
                    break;
                }
                assert!(piece.len() <= LARGE);
                read.extend(piece);
            }
            assert!(read == text.as_bytes());
            let other = tenant("other");
            assert_eq!(store.text_piece::<Message>(&other, *place, 1 << 20).await.unwrap(), None, "of another tenant");
        }
        let bytes: usize = texts.iter().map(|text| 256 + text.len()).sum();
        assert_eq!(store.history_bytes(session.id).await.unwrap(), bytes as u64);
    }
    let large: i64 = scalar(&store, "SELECT MAX(octet_length(content)) FROM messages").await;
    assert!(large <= LARGE as i64);
    assert_eq!(store.tenant_use_check().await.unwrap(), 0);
    let used = store.tenant_use(&owner).await.unwrap().database;
    store.session_remove(&owner, copy.id).await.unwrap();
    let bytes: usize = texts.iter().map(|text| 256 + text.len()).sum();
    assert!(store.tenant_use(&owner).await.unwrap().database <= used - bytes as u64);
    assert_eq!(scalar(&store, "SELECT COUNT(DISTINCT session) FROM message_rest").await, 1);
    assert_eq!(store.tenant_use_check().await.unwrap(), 0);
}

async fn scalar(store: &Store, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(store.reader()).await.unwrap()
}
