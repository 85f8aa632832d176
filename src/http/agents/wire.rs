//! JSON of agents: requests and answers.

use std::collections::BTreeMap;

use axum::Json;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::check::MAX_FILES;
use crate::store::Agent;
use ash_model::bounded::{Counted, map, some_map};
use ash_model::skipped::{SkippedEntry, is_zero};
use ash_model::{RawJson, iso};

/// An agent as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Agent)]
pub struct AgentView {
    pub id: Uuid,
    #[schema(example = "my-agent")]
    pub name: String,
    #[schema(example = "default")]
    pub tenant_id: String,
    /// Starts at 1; each deployment adds 1.
    pub version: i64,
    /// The directory on the server that sessions are copied from.
    #[schema(example = "/srv/agents/my-agent")]
    pub path: String,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<RawJson>,
    /// Names of the agent's variables. Values are never shown.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, &'static str>,
}

impl From<Agent> for AgentView {
    fn from(agent: Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            tenant_id: agent.tenant.to_string(),
            version: agent.version,
            path: agent.path,
            created_at: iso(agent.created_at),
            updated_at: iso(agent.updated_at),
            slug: agent.slug,
            description: agent.description,
            model: agent.model,
            backend: agent.backend,
            system_prompt: agent.system_prompt,
            status: agent.status,
            config: agent.config,
            env: agent.env.into_keys().map(|name| (name, "***")).collect(),
        }
    }
}

/// One agent.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentBody {
    pub agent: AgentView,
}

impl AgentBody {
    pub fn json(agent: Agent) -> Json<Self> {
        Json(Self { agent: agent.into() })
    }
}

/// A deployed agent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeployedBody {
    pub agent: AgentView,
    /// Entries of the directory that sessions cannot copy: links that lead out of it, sockets,
    /// named pipes, devices. Absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedEntry>,
    /// How many more there are: at most 100 are listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped_more: u64,
}

/// Agents by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentsBody {
    pub agents: Vec<AgentView>,
}

/// Free-form settings of clients.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConfigBody {
    #[schema(value_type = Object)]
    pub config: RawJson,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OkBody {
    pub ok: bool,
}

/// One uploaded file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadedFile {
    /// Relative to the agent's directory.
    #[schema(example = "CLAUDE.md")]
    pub path: String,
    /// Base64.
    #[schema(example = "WW91IGFyZSBoZWxwZnVsLg==")]
    pub content: String,
}

/// Files of an agent, counted.
pub type Files = Counted<UploadedFile, MAX_FILES>;

/// Body of `POST /api/agents`: `path`, or `files` and/or `systemPrompt`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeployAgent {
    /// 1 to 255 of A-Z a-z 0-9 _ -
    pub name: String,
    /// A directory on the server; it must contain a CLAUDE.md.
    pub path: Option<String>,
    #[schema(value_type = Option<Vec<UploadedFile>>)]
    pub files: Option<Files>,
    /// Becomes CLAUDE.md when `files` has none (and is then no field of the agent); otherwise it is
    /// appended to the prompt.
    pub system_prompt: Option<String>,
    #[serde(deserialize_with = "map")]
    pub env: BTreeMap<String, String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub config: Option<RawJson>,
}

/// Body of `PATCH /api/agents/{name}`: absent fields stay, null clears.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchAgent {
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub slug: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub model: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub backend: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub system_prompt: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub status: Option<Option<String>>,
    /// Replaces all variables.
    #[serde(deserialize_with = "some_map")]
    pub env: Option<BTreeMap<String, String>>,
    /// Merged into the config; a null removes its key.
    #[schema(value_type = Option<Object>)]
    pub config: Option<RawJson>,
}

/// Tells `null` (clear) from an absent field (keep).
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_clears_and_absent_leaves() {
        let patch: PatchAgent = serde_json::from_str(r#"{"model":null,"slug":"s"}"#).unwrap();
        assert_eq!(patch.model, Some(None));
        assert_eq!(patch.slug, Some(Some("s".into())));
        assert_eq!(patch.description, None);
    }
}
