//! Lists of cases, runs and results, as places ([`super::super::pages`]).

use super::super::{Place, Store, StoreError};
use super::{CaseFilter, EvalCase, EvalResult, EvalRun};
use ash_model::TenantId;

impl Store {
    /// Cases, oldest first.
    pub async fn eval_case_places(
        &self,
        tenant: &TenantId,
        agent: &str,
        filter: &CaseFilter,
    ) -> Result<Vec<Place>, StoreError> {
        self.places::<EvalCase>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string());
            query.push(" AND agent_name = ").push_bind(agent.to_owned());
            if let Some(category) = &filter.category {
                query.push(" AND category = ").push_bind(category.clone());
            }
            if let Some(active) = filter.active {
                query.push(" AND is_active = ").push_bind(active);
            }
            query.push(" ORDER BY created_at, rowid LIMIT ").push_bind(filter.limit);
            query.push(" OFFSET ").push_bind(filter.offset);
        })
        .await
    }

    /// Runs, newest first.
    pub async fn eval_run_places(
        &self,
        tenant: &TenantId,
        agent: &str,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<Place>, StoreError> {
        self.places::<EvalRun>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string());
            query.push(" AND agent_name = ").push_bind(agent.to_owned());
            query.push(" ORDER BY created_at DESC, rowid DESC LIMIT ").push_bind(limit);
            query.push(" OFFSET ").push_bind(offset);
        })
        .await
    }

    /// Results of a run, in the order of its cases.
    pub async fn eval_result_places(&self, run: &EvalRun, limit: u32, offset: u32) -> Result<Vec<Place>, StoreError> {
        self.places::<EvalResult>(|query| {
            query.push(" WHERE run = ").push_bind(run.id.to_string());
            query.push(" AND tenant = ").push_bind(run.tenant.to_string());
            query.push(" ORDER BY position LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
        })
        .await
    }
}
