//! Table `eval_cases`.

use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::super::writer::{Counters, Write};
use super::super::{Store, StoreError};
use super::{EvalCase, MAX_CASES, case};
use ash_model::{Millis, RawJson, TenantId, now_ms};

/// Fields of a request for a case; outer `None` leaves a field unchanged (absent in a new case).
#[derive(Clone, Debug, Default)]
pub struct CaseFields {
    /// Required for a new case.
    pub question: Option<String>,
    pub expected_topics: Option<Option<RawJson>>,
    pub expected_not_topics: Option<Option<RawJson>>,
    pub reference_answer: Option<Option<String>>,
    pub category: Option<Option<String>>,
    pub tags: Option<Option<RawJson>>,
    pub chat_history: Option<Option<RawJson>>,
    pub active: Option<bool>,
}

/// Filter of a list of cases.
#[derive(Clone, Debug)]
pub struct CaseFilter {
    pub category: Option<String>,
    pub active: Option<bool>,
    pub limit: u32,
    pub offset: u32,
}

impl Store {
    /// Inserts all cases or none, and returns them in order. `None` when the tenant has no such
    /// agent.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] beyond [`MAX_CASES`].
    pub async fn eval_cases_insert(
        &self,
        tenant: &TenantId,
        agent: &str,
        cases: Vec<CaseFields>,
    ) -> Result<Option<Vec<EvalCase>>, StoreError> {
        let (tenant, agent) = (tenant.clone(), agent.to_owned());
        self.write(Insert { tenant, agent, cases, now: now_ms() }).await
    }

    pub async fn eval_case(&self, tenant: &TenantId, agent: &str, id: Uuid) -> Result<Option<EvalCase>, StoreError> {
        let row = sqlx::query("SELECT * FROM eval_cases WHERE id = ?1 AND tenant = ?2 AND agent_name = ?3")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .bind(agent)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(case).transpose()
    }

    /// `None` when there is no such case.
    pub async fn eval_case_update(
        &self,
        tenant: &TenantId,
        agent: &str,
        id: Uuid,
        fields: CaseFields,
    ) -> Result<Option<EvalCase>, StoreError> {
        let (tenant, agent) = (tenant.clone(), agent.to_owned());
        self.write(Update { tenant, agent, id, fields, now: now_ms() }).await
    }

    /// `true` when there was one.
    pub async fn eval_case_delete(&self, tenant: &TenantId, agent: &str, id: Uuid) -> Result<bool, StoreError> {
        self.write(Delete { tenant: tenant.clone(), agent: agent.to_owned(), id }).await
    }
}

struct Insert {
    tenant: TenantId,
    agent: String,
    cases: Vec<CaseFields>,
    now: Millis,
}

impl Write for Insert {
    type Out = Option<Vec<EvalCase>>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let agent = sqlx::query("SELECT id FROM agents WHERE tenant = ?1 AND name = ?2")
            .bind(self.tenant.as_str())
            .bind(&self.agent)
            .fetch_optional(&mut *conn)
            .await?;
        let Some(agent) = agent else { return Ok(None) };
        let agent: String = agent.try_get("id")?;
        let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM eval_cases WHERE agent = ?1")
            .bind(&agent)
            .fetch_one(&mut *conn)
            .await?;
        if kept.unsigned_abs() + self.cases.len() as u64 > MAX_CASES.rows {
            return Err(StoreError::TooMany(MAX_CASES));
        }
        let mut made = Vec::with_capacity(self.cases.len());
        for new in &self.cases {
            let row = sqlx::query(
                "INSERT INTO eval_cases (id, tenant, agent, agent_name, question, expected_topics, expected_not_topics,
                     reference_answer, category, tags, chat_history, is_active, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?13) RETURNING *",
            )
            .bind(Uuid::new_v4().to_string())
            .bind(self.tenant.as_str())
            .bind(&agent)
            .bind(&self.agent)
            .bind(new.question.as_deref().unwrap_or_default())
            .bind(json(&new.expected_topics))
            .bind(json(&new.expected_not_topics))
            .bind(new.reference_answer.as_ref().and_then(Option::as_deref))
            .bind(new.category.as_ref().and_then(Option::as_deref))
            .bind(json(&new.tags))
            .bind(json(&new.chat_history))
            .bind(new.active.unwrap_or(true))
            .bind(self.now)
            .fetch_one(&mut *conn)
            .await?;
            made.push(case(&row)?);
        }
        Ok(Some(made))
    }
}

fn json(field: &Option<Option<RawJson>>) -> Option<&str> {
    field.as_ref().and_then(|value| value.as_ref().map(RawJson::get))
}

struct Update {
    tenant: TenantId,
    agent: String,
    id: Uuid,
    fields: CaseFields,
    now: Millis,
}

impl Write for Update {
    type Out = Option<EvalCase>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let new = &self.fields;
        let row = sqlx::query(
            "UPDATE eval_cases SET question = COALESCE(?4, question),
                 expected_topics = CASE ?5 WHEN 1 THEN ?6 ELSE expected_topics END,
                 expected_not_topics = CASE ?7 WHEN 1 THEN ?8 ELSE expected_not_topics END,
                 reference_answer = CASE ?9 WHEN 1 THEN ?10 ELSE reference_answer END,
                 category = CASE ?11 WHEN 1 THEN ?12 ELSE category END,
                 tags = CASE ?13 WHEN 1 THEN ?14 ELSE tags END,
                 chat_history = CASE ?15 WHEN 1 THEN ?16 ELSE chat_history END,
                 is_active = COALESCE(?17, is_active), updated_at = ?18
             WHERE id = ?1 AND tenant = ?2 AND agent_name = ?3 RETURNING *",
        )
        .bind(self.id.to_string())
        .bind(self.tenant.as_str())
        .bind(&self.agent)
        .bind(&new.question)
        .bind(new.expected_topics.is_some())
        .bind(json(&new.expected_topics))
        .bind(new.expected_not_topics.is_some())
        .bind(json(&new.expected_not_topics))
        .bind(new.reference_answer.is_some())
        .bind(new.reference_answer.as_ref().and_then(Option::as_deref))
        .bind(new.category.is_some())
        .bind(new.category.as_ref().and_then(Option::as_deref))
        .bind(new.tags.is_some())
        .bind(json(&new.tags))
        .bind(new.chat_history.is_some())
        .bind(json(&new.chat_history))
        .bind(new.active)
        .bind(self.now)
        .fetch_optional(conn)
        .await?;
        row.as_ref().map(case).transpose()
    }
}

struct Delete {
    tenant: TenantId,
    agent: String,
    id: Uuid,
}

impl Write for Delete {
    type Out = bool;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM eval_cases WHERE id = ?1 AND tenant = ?2 AND agent_name = ?3")
            .bind(self.id.to_string())
            .bind(self.tenant.as_str())
            .bind(&self.agent)
            .execute(conn)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
