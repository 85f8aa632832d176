//! Table `idempotency`: answers to requests with a client's key, so that a repeated request is not
//! executed again.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::id_or_none;
use super::tenant_use::{MAX_ONCE, check_rows};
use super::writer::{Counters, Write};
use super::{Most, Store, StoreError};
use ash_model::{Millis, TenantId, now_ms, past_ms};

/// Milliseconds an answer is kept: one day.
pub const KEEP_MS: Millis = 24 * 60 * 60 * 1000;

/// An earlier request with the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// SHA-256 of method, path and body.
    pub request: [u8; 32],
    /// The session of a message, and its intended turn.
    pub turn: Option<(Uuid, Uuid)>,
    /// Status and body, once answered.
    pub answer: Option<(u16, Vec<u8>)>,
}

impl Store {
    /// Claims the key for this request; returns the earlier request if there is one. Keys older
    /// than [`KEEP_MS`] are free.
    pub async fn idempotency_begin(
        &self,
        tenant: &TenantId,
        key: &str,
        request: [u8; 32],
    ) -> Result<Option<Earlier>, StoreError> {
        self.write(Begin { tenant: tenant.clone(), key: key.to_owned(), request, now: now_ms() }).await
    }

    /// Stores that this request's message will be sent to this session, as this turn.
    pub async fn idempotency_turn(
        &self,
        tenant: &TenantId,
        key: &str,
        session: Uuid,
        turn: Uuid,
    ) -> Result<(), StoreError> {
        self.note(tenant, key, Note::Turn(session, turn)).await
    }

    pub async fn idempotency_answer(
        &self,
        tenant: &TenantId,
        key: &str,
        status: u16,
        body: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.note(tenant, key, Note::Answer(status, body)).await
    }

    /// Frees the key of a request that changed nothing.
    pub async fn idempotency_forget(&self, tenant: &TenantId, key: &str) -> Result<(), StoreError> {
        self.note(tenant, key, Note::Forget).await
    }

    async fn note(&self, tenant: &TenantId, key: &str, note: Note) -> Result<(), StoreError> {
        self.write(NoteOf { tenant: tenant.clone(), key: key.to_owned(), note }).await
    }
}

struct Begin {
    tenant: TenantId,
    key: String,
    request: [u8; 32],
    now: Millis,
}

impl Write for Begin {
    type Out = Option<Earlier>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        sqlx::query("DELETE FROM idempotency WHERE created_at < ?1")
            .bind(past_ms() - KEEP_MS)
            .execute(&mut *conn)
            .await?;
        let made = sqlx::query(
            "INSERT INTO idempotency (tenant, key, request, created_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        )
        .bind(self.tenant.as_str())
        .bind(&self.key)
        .bind(&self.request[..])
        .bind(self.now)
        .execute(&mut *conn)
        .await?;
        if made.rows_affected() > 0 {
            // Its own row is already counted.
            check_rows(conn, &self.tenant, "idempotency", Most { rows: MAX_ONCE.rows + 1, ..MAX_ONCE }).await?;
            return Ok(None);
        }
        let row = sqlx::query("SELECT * FROM idempotency WHERE tenant = ?1 AND key = ?2")
            .bind(self.tenant.as_str())
            .bind(&self.key)
            .fetch_one(conn)
            .await?;
        earlier(&row).map(Some)
    }
}

enum Note {
    Turn(Uuid, Uuid),
    Answer(u16, Vec<u8>),
    Forget,
}

struct NoteOf {
    tenant: TenantId,
    key: String,
    note: Note,
}

impl Write for NoteOf {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let query = match &self.note {
            Note::Turn(session, turn) => {
                sqlx::query("UPDATE idempotency SET session = ?3, turn_id = ?4 WHERE tenant = ?1 AND key = ?2")
                    .bind(self.tenant.as_str())
                    .bind(&self.key)
                    .bind(session.to_string())
                    .bind(turn.to_string())
            }
            Note::Answer(status, body) => {
                sqlx::query("UPDATE idempotency SET status = ?3, answer = ?4 WHERE tenant = ?1 AND key = ?2")
                    .bind(self.tenant.as_str())
                    .bind(&self.key)
                    .bind(status)
                    .bind(body)
            }
            Note::Forget => sqlx::query("DELETE FROM idempotency WHERE tenant = ?1 AND key = ?2")
                .bind(self.tenant.as_str())
                .bind(&self.key),
        };
        query.execute(conn).await?;
        Ok(())
    }
}

fn earlier(row: &SqliteRow) -> Result<Earlier, StoreError> {
    let request: Vec<u8> = row.try_get("request")?;
    let turn = id_or_none(row, "turn_id")?;
    let status: Option<u16> = row.try_get("status")?;
    let answer: Option<Vec<u8>> = row.try_get("answer")?;
    Ok(Earlier {
        request: request.try_into().unwrap_or_default(),
        turn: id_or_none(row, "session")?.zip(turn),
        answer: status.zip(answer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_taken_once_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(store.idempotency_begin(&a, "k", [1; 32]).await.unwrap(), None);
        assert_eq!(store.idempotency_begin(&b, "k", [2; 32]).await.unwrap(), None, "each tenant has its own keys");
        let open = Earlier { request: [1; 32], turn: None, answer: None };
        assert_eq!(store.idempotency_begin(&a, "k", [9; 32]).await.unwrap(), Some(open.clone()));
        let (session, turn) = (Uuid::new_v4(), Uuid::new_v4());
        store.idempotency_turn(&a, "k", session, turn).await.unwrap();
        store.idempotency_answer(&a, "k", 201, b"{}".to_vec()).await.unwrap();
        let done = Earlier { turn: Some((session, turn)), answer: Some((201, b"{}".to_vec())), ..open };
        assert_eq!(store.idempotency_begin(&a, "k", [1; 32]).await.unwrap(), Some(done));
        store.idempotency_forget(&a, "k").await.unwrap();
        assert_eq!(store.idempotency_begin(&a, "k", [3; 32]).await.unwrap(), None);
        // The next request removes keys older than a day.
        let ancient = Begin { tenant: a.clone(), key: "old".into(), request: [0; 32], now: now_ms() - KEEP_MS - 1000 };
        assert_eq!(store.write(ancient).await.unwrap(), None);
        assert_eq!(store.idempotency_begin(&a, "old", [0; 32]).await.unwrap(), None);
    }
}
