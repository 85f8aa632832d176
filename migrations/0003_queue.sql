-- Prompts that wait for a session of their agent.
CREATE TABLE queue (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL,
    -- A name and not a reference: an agent that is deleted meanwhile is the item's failure, with a text.
    agent_name   TEXT NOT NULL,
    prompt       TEXT NOT NULL,
    priority     INTEGER NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    retry_count  INTEGER NOT NULL DEFAULT 0,
    max_retries  INTEGER NOT NULL,
    -- The client's own session, where it named one.
    wanted       TEXT,
    -- Where the prompt runs or ran, and as which turn. Written before the prompt is sent: a daemon that is killed in
    -- between finds out whether it was.
    session      TEXT,
    turn         INTEGER,
    result       TEXT,
    error        TEXT,
    -- Not before this time.
    due_at       INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    started_at   INTEGER,
    completed_at INTEGER
) STRICT;
CREATE INDEX queue_of_tenant ON queue (tenant, created_at);
CREATE INDEX queue_by_status ON queue (status, due_at);
CREATE INDEX queue_tenant_status ON queue (tenant, status);
