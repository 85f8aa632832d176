//! The contents of the database, read without code of ashd.

use std::collections::HashMap;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Row};

#[derive(Debug)]
pub struct TurnRow {
    pub number: i64,
    pub from: u64,
    pub to: Option<u64>,
    pub error: Option<String>,
}

#[derive(Debug, Default)]
pub struct Rows {
    pub turns: Vec<TurnRow>,
    /// Sequence and content.
    pub messages: Vec<(i64, String)>,
    /// Sequence, type and data.
    pub events: Vec<(i64, String, String)>,
    /// Results that are counted as usage.
    pub results: usize,
}

pub async fn read(data: &Path) -> HashMap<String, Rows> {
    let options = SqliteConnectOptions::new().filename(data.join("ashd.db")).read_only(true);
    let mut db = SqliteConnection::connect_with(&options).await.unwrap();
    let mut all: HashMap<String, Rows> = HashMap::new();
    let turns = "SELECT session, number, from_offset, to_offset, error FROM turns ORDER BY session, number";
    for row in sqlx::query(turns).fetch_all(&mut db).await.unwrap() {
        let turn = TurnRow {
            number: row.get(1),
            from: u64::try_from(row.get::<i64, _>(2)).unwrap(),
            to: row.get::<Option<i64>, _>(3).map(|n| u64::try_from(n).unwrap()),
            error: row.get(4),
        };
        all.entry(row.get(0)).or_default().turns.push(turn);
    }
    let messages = "SELECT session, sequence, content FROM messages ORDER BY session, sequence";
    for row in sqlx::query(messages).fetch_all(&mut db).await.unwrap() {
        all.entry(row.get(0)).or_default().messages.push((row.get(1), row.get(2)));
    }
    let events = "SELECT session, sequence, type, data FROM events ORDER BY session, sequence";
    for row in sqlx::query(events).fetch_all(&mut db).await.unwrap() {
        all.entry(row.get(0)).or_default().events.push((row.get(1), row.get(2), row.get(3)));
    }
    let usage = "SELECT session, SUM(messages) FROM usage GROUP BY session";
    for row in sqlx::query(usage).fetch_all(&mut db).await.unwrap() {
        all.entry(row.get(0)).or_default().results = usize::try_from(row.get::<i64, _>(1)).unwrap();
    }
    all
}
