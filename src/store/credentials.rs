//! Table `credentials`: keys of tenants, sealed by the caller.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{id_of, tenant_of};
use super::owned::{DeleteOwned, OwnedTable};
use super::tenant_use::{MAX_CREDENTIALS, check_rows};
use super::writer::{Counters, Write};
use super::{Credential, Store, StoreError};
use ash_model::{Millis, TenantId};

impl Store {
    pub async fn credential_insert(&self, credential: Credential) -> Result<(), StoreError> {
        self.write(Insert(credential)).await
    }

    pub async fn credential(&self, tenant: &TenantId, id: Uuid) -> Result<Option<Credential>, StoreError> {
        let row = sqlx::query("SELECT * FROM credentials WHERE id = ?1 AND tenant = ?2")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(credential).transpose()
    }

    pub async fn credentials(&self, tenant: &TenantId) -> Result<Vec<Credential>, StoreError> {
        let rows = sqlx::query("SELECT * FROM credentials WHERE tenant = ?1 ORDER BY created_at, rowid")
            .bind(tenant.as_str())
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(credential).collect()
    }

    /// `true` when the tenant had that credential.
    pub async fn credential_delete(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        self.write(DeleteOwned { table: OwnedTable::Credentials, tenant: tenant.clone(), id }).await
    }
}

/// Records requests to the model at these times as uses of the sessions' credentials. Ignores
/// sessions without one.
pub(super) async fn used(
    conn: &mut SqliteConnection,
    sessions: impl Iterator<Item = (Uuid, Millis)>,
) -> Result<(), StoreError> {
    for (session, at) in sessions {
        // SQLite cannot read JSON nested more than a thousand levels; most sessions have no
        // credential.
        let put = "UPDATE credentials SET last_used_at = MAX(COALESCE(last_used_at, 0), ?2)
                   WHERE (id, tenant) = (SELECT json_extract(launch, '$.credential'), tenant FROM sessions WHERE id = ?1
                       AND CASE WHEN instr(launch, '\"credential\":\"') > 0 THEN json_valid(launch) ELSE 0 END)";
        sqlx::query(put).bind(session.to_string()).bind(at).execute(&mut *conn).await?;
    }
    Ok(())
}

struct Insert(Credential);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let new = &self.0;
        check_rows(conn, &self.0.tenant, "credentials", MAX_CREDENTIALS).await?;
        sqlx::query(
            "INSERT INTO credentials (id, tenant, type, label, sealed, active, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(new.id.to_string())
        .bind(new.tenant.as_str())
        .bind(&new.kind)
        .bind(&new.label)
        .bind(&new.sealed)
        .bind(new.active)
        .bind(new.created_at)
        .execute(conn)
        .await?;
        Ok(())
    }
}

pub(super) fn credential(row: &SqliteRow) -> Result<Credential, StoreError> {
    Ok(Credential {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        kind: row.try_get("type")?,
        label: row.try_get("label")?,
        sealed: row.try_get("sealed")?,
        active: row.try_get("active")?,
        created_at: row.try_get("created_at")?,
        last_used_at: row.try_get("last_used_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{a_session, fresh, tenant};
    use super::super::{Usage, UsageEntry};
    use super::*;
    use ash_model::RawJson;

    #[tokio::test]
    async fn the_last_use_is_that_of_its_sessions_requests() {
        let (_dir, store) = fresh().await;
        let acme = tenant("acme");
        let credential = |id: u128| Credential {
            id: Uuid::from_u128(id),
            tenant: acme.clone(),
            kind: "anthropic".into(),
            label: "team".into(),
            sealed: vec![1],
            active: true,
            created_at: 1,
            last_used_at: None,
        };
        store.credential_insert(credential(1)).await.unwrap();
        store.credential_insert(credential(2)).await.unwrap();
        let mut number = 0;
        let ledger = Uuid::now_v7();
        let mut entry = |session, at| {
            number += 1;
            let (tenant, agent_name) = ("acme".to_owned(), "a".to_owned());
            UsageEntry { ledger, number, session, tenant, agent_name, at, requests: 1, usage: Usage::default() }
        };
        let mut sessions = Vec::new();
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        for launch in [
            format!(r#"{{"env":{{"credential":"{}"}},"credential":"{}"}}"#, Uuid::from_u128(2), Uuid::from_u128(1)),
            r#"{"credential":null}"#.to_owned(),
            format!(r#"{{"credential":"{}","subagents":{deep}}}"#, Uuid::from_u128(2)),
        ] {
            let mut session = a_session(&acme, "a", 1);
            session.launch = RawJson::parse(launch).unwrap();
            store.session_insert(&session).await.unwrap();
            sessions.push(session.id);
        }
        // A credential of another tenant.
        let mut foreign = a_session(&tenant("other"), "a", 1);
        foreign.launch = RawJson::parse(format!(r#"{{"credential":"{}"}}"#, Uuid::from_u128(2))).unwrap();
        store.session_insert(&foreign).await.unwrap();
        let entries = vec![
            entry(sessions[0], 50),
            entry(sessions[0], 40),
            entry(sessions[1], 60),
            entry(sessions[2], 70),
            entry(foreign.id, 80),
            entry(Uuid::new_v4(), 90),
        ];
        store.usage_collect(entries, vec![ledger]).await.unwrap();
        let last = async |id: u128| store.credential(&acme, Uuid::from_u128(id)).await.unwrap().unwrap().last_used_at;
        assert_eq!((last(1).await, last(2).await), (Some(50), None));
        store.usage_collect(vec![entry(sessions[0], 45)], vec![ledger]).await.unwrap();
        assert_eq!(last(1).await, Some(50), "it never goes back");
    }
}
