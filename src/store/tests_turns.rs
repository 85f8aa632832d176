//! Turns by id, and the rows that belong to them.

use super::super::tests::{a_session, a_turn, fresh, tenant};
use super::*;
use crate::store::{Commit, Role, Usage};

#[tokio::test]
async fn an_answer_is_found_by_its_turn_and_not_by_the_clock() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let session = a_session(&owner, "a", 1);
    store.session_insert(&session).await.unwrap();
    // All within one millisecond, and the second turn begins before the first ends: times are no
    // help.
    let turns: Vec<Turn> = (1..=3)
        .map(|number| Turn { number, id: Uuid::new_v4(), end: Some(20), started_at: now_ms(), ..a_turn(session.id) })
        .collect();
    for turn in turns.iter().rev() {
        let mut commit = Commit { turn: Some(turn.clone()), of_turn: Some(turn.number), ..Commit::of(&session) };
        commit.messages.push((Role::Assistant, "{}".into()));
        commit.events.push(("turn_complete", format!(r#"{{"result":"{}"}}"#, turn.number).into()));
        commit.usage = Some(Usage { messages: 1, ..Usage::default() });
        store.commit(commit).await.unwrap();
    }
    for turn in &turns {
        let data = store.result_of(&owner, session.id, turn).await.unwrap();
        assert_eq!(data, Some(format!(r#"{{"result":"{}"}}"#, turn.number)));
        assert_eq!(store.turn_of_id(session.id, turn.id).await.unwrap().as_ref(), Some(turn));
        assert_eq!(
            store.turn_of_id(Uuid::new_v4(), turn.id).await.unwrap(),
            None,
            "another session's turn is not found"
        );
        for table in ["messages", "events", "usage"] {
            let count = format!("SELECT COUNT(*) FROM {table} WHERE session = ?1 AND turn = ?2");
            let count = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(count));
            let rows = count.bind(session.id.to_string()).bind(turn.number).fetch_one(store.reader()).await.unwrap();
            assert_eq!(rows, 1, "{table}");
        }
    }
    assert_eq!(store.result_of(&tenant("other"), session.id, &turns[0]).await.unwrap(), None);
}

#[tokio::test]
async fn a_turn_begins_behind_those_of_claudes_own_that_came_before_it() {
    let (_dir, store) = fresh().await;
    let session = a_session(&tenant("default"), "a", 1);
    store.session_insert(&session).await.unwrap();
    let asked = Turn { id: Uuid::new_v4(), ..a_turn(session.id) };
    let own = |number, start, end| Turn {
        id: Uuid::new_v4(),
        number,
        start,
        end,
        unasked: true,
        delivered: true,
        ..a_turn(session.id)
    };
    for turn in [asked.clone(), own(2, 15, Some(40)), own(3, 40, None)] {
        store.commit(Commit { turn: Some(turn), ..Commit::of(&session) }).await.unwrap();
    }
    let open = store.open_turns(session.id).await.unwrap();
    assert_eq!(open.iter().map(|turn| (turn.number, turn.start)).collect::<Vec<_>>(), [(1, 40), (3, 40)]);
    assert_eq!(open[0].id, asked.id);
}

#[tokio::test]
async fn a_session_knows_the_conversation_it_is_in() {
    let (_dir, store) = fresh().await;
    let owner = tenant("default");
    let session = a_session(&owner, "a", 1);
    store.session_insert(&session).await.unwrap();
    let row = || async { store.session(&owner, session.id).await.unwrap().unwrap() };
    assert_eq!((row().await.conversation, row().await.conversation_turn), (session.id, 0));
    let other = Uuid::new_v4();
    store.commit(Commit { conversation: Some((other, 7)), ..Commit::of(&session) }).await.unwrap();
    assert_eq!((row().await.conversation, row().await.conversation_turn), (other, 7));
}
