-- Kept prompts of an agent, one of which may be active: the agent's own prompt is then a copy of it.
CREATE TABLE agent_versions (
    id              TEXT PRIMARY KEY,
    tenant          TEXT NOT NULL,
    agent           TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    agent_name      TEXT NOT NULL,
    number          INTEGER NOT NULL CHECK (number >= 1),
    name            TEXT NOT NULL,
    is_active       INTEGER NOT NULL CHECK (is_active IN (0, 1)),
    system_prompt   TEXT,
    release_notes   TEXT,
    knowledge_files TEXT NOT NULL,
    created_by      TEXT,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    UNIQUE (agent, number)
) STRICT;
CREATE UNIQUE INDEX agent_versions_active ON agent_versions (agent) WHERE is_active = 1;

-- The number of the newest version, so that none is given twice.
ALTER TABLE agents ADD COLUMN versions_made INTEGER NOT NULL DEFAULT 0;
