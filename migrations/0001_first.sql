-- The first schema. Times are milliseconds since the epoch; ids are UUIDs as text, so that `sqlite3` shows what the API
-- shows; STRICT makes SQLite refuse a value of the wrong type instead of keeping it.

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    label      TEXT NOT NULL,
    -- SHA-256 of the whole token. The token is 256 random bits, so a slow hash would add nothing.
    hash       BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    prefix     TEXT NOT NULL,
    admin      INTEGER NOT NULL CHECK (admin IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, created_at);

CREATE TABLE agents (
    id            TEXT PRIMARY KEY,
    tenant        TEXT NOT NULL,
    name          TEXT NOT NULL,
    version       INTEGER NOT NULL,
    path          TEXT NOT NULL,
    env           TEXT NOT NULL,
    slug          TEXT,
    description   TEXT,
    model         TEXT,
    backend       TEXT,
    system_prompt TEXT,
    status        TEXT,
    config        TEXT,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    UNIQUE (tenant, name)
) STRICT;

CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    tenant         TEXT NOT NULL,
    -- A name and not a reference: deleting an agent leaves its sessions running.
    agent_name     TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('starting', 'active', 'paused', 'stopped', 'ended', 'error')),
    error          TEXT,
    model          TEXT,
    config         TEXT,
    launch         TEXT NOT NULL,
    limits         TEXT NOT NULL,
    parent         TEXT,
    -- Bytes of the stdout file whose messages are below; moves only together with them.
    stdout_offset  INTEGER NOT NULL DEFAULT 0,
    created_at     INTEGER NOT NULL,
    last_active_at INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_newest ON sessions (tenant, created_at);
CREATE INDEX sessions_of_agent ON sessions (tenant, agent_name, created_at);
CREATE INDEX sessions_by_status ON sessions (status, tenant, created_at);

CREATE TABLE turns (
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL CHECK (number >= 1),
    -- Range of the stdout file that holds the answer; to_offset is null while the turn runs.
    from_offset INTEGER NOT NULL,
    to_offset  INTEGER,
    error      TEXT,
    delivered  INTEGER NOT NULL CHECK (delivered IN (0, 1)),
    unasked    INTEGER NOT NULL CHECK (unasked IN (0, 1)),
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE messages (
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    sequence   INTEGER NOT NULL CHECK (sequence >= 1),
    id         TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    -- A JSON text, kept byte for byte.
    content    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (session, sequence)
) STRICT;

CREATE TABLE events (
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    sequence   INTEGER NOT NULL CHECK (sequence >= 1),
    id         TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    type       TEXT NOT NULL,
    data       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (session, sequence)
) STRICT;

-- One row per `result` message of claude. Kept when a session's rows go: it is what was paid for.
CREATE TABLE usage (
    id                    TEXT PRIMARY KEY,
    session               TEXT NOT NULL,
    tenant                TEXT NOT NULL,
    agent_name            TEXT NOT NULL,
    input_tokens          INTEGER NOT NULL,
    output_tokens         INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    cache_read_tokens     INTEGER NOT NULL,
    tool_calls            INTEGER NOT NULL,
    compute_ms            INTEGER NOT NULL,
    created_at            INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_newest ON usage (tenant, created_at);
CREATE INDEX usage_of_session ON usage (session);

CREATE TABLE credentials (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    type       TEXT NOT NULL CHECK (type IN ('anthropic', 'openai', 'bedrock', 'custom')),
    label      TEXT NOT NULL,
    -- The key, sealed; this database never holds it open.
    sealed     BLOB NOT NULL,
    active     INTEGER NOT NULL CHECK (active IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX credentials_by_tenant ON credentials (tenant, created_at);

-- The bytes are a file below the data directory, named by the id.
CREATE TABLE attachments (
    id         TEXT PRIMARY KEY,
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    tenant     TEXT NOT NULL,
    filename   TEXT NOT NULL,
    mime_type  TEXT NOT NULL,
    size       INTEGER NOT NULL,
    message_id TEXT,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX attachments_of_session ON attachments (session, created_at);
