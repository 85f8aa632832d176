//! Opening a database: newer, older, in use.

use sqlx::{ConnectOptions, Connection};

use super::{Store, StoreError};

#[tokio::test]
async fn a_newer_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    store.close().await;
    let path = dir.path().join("ashd.db");
    let mut conn = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'x', 1, x'00', 0)")
        .execute(&mut conn)
        .await
        .unwrap();
    conn.close().await.unwrap();
    let error = Store::open(dir.path()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Newer(text) if text.contains("9999") && text.contains("newer ashd")),
        "{error}"
    );
}

#[tokio::test]
async fn an_old_database_is_copied_before_it_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ashd.db");
    let mut conn =
        sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true).connect().await.unwrap();
    let step = |version, sql: &'static str| {
        use sqlx::SqlSafeStr;
        sqlx::migrate::Migration::new(
            version,
            "t".into(),
            sqlx::migrate::MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    };
    let one = step(1, "CREATE TABLE t (x INTEGER) STRICT; INSERT INTO t VALUES (1)");
    let two = step(2, "DELETE FROM t");
    let old = sqlx::migrate::Migrator::with_migrations(vec![one.clone()]);
    super::open::migrate(&mut conn, &path, &old).await.unwrap();
    let copy = dir.path().join("ashd.db.before-2");
    assert!(!copy.exists());
    let new = sqlx::migrate::Migrator::with_migrations(vec![one, two]);
    super::open::migrate(&mut conn, &path, &new).await.unwrap();
    let rows = async |path: &std::path::Path| -> i64 {
        let mut conn = sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        sqlx::query_scalar("SELECT COUNT(*) FROM t").fetch_one(&mut conn).await.unwrap()
    };
    assert_eq!((rows(&path).await, rows(&copy).await), (0, 1));
}

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    assert!(matches!(Store::open(dir.path()).await, Err(StoreError::InUse { .. })));
    drop(store);
    Store::open(dir.path()).await.unwrap();
}
