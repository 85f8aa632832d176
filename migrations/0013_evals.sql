-- Questions that an agent is measured with, runs of them, and what the agent answered.
CREATE TABLE eval_cases (
    id                  TEXT PRIMARY KEY,
    tenant              TEXT NOT NULL,
    agent               TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    agent_name          TEXT NOT NULL,
    question            TEXT NOT NULL,
    -- JSON: arrays of strings, and an array of {"role","content"}.
    expected_topics     TEXT,
    expected_not_topics TEXT,
    reference_answer    TEXT,
    category            TEXT,
    tags                TEXT,
    chat_history        TEXT,
    is_active           INTEGER NOT NULL CHECK (is_active IN (0, 1)),
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL
) STRICT;
CREATE INDEX eval_cases_of_agent ON eval_cases (agent);
CREATE INDEX eval_cases_by_name ON eval_cases (tenant, agent_name, created_at);

CREATE TABLE eval_runs (
    id              TEXT PRIMARY KEY,
    tenant          TEXT NOT NULL,
    agent           TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    agent_name      TEXT NOT NULL,
    version_number  INTEGER,
    -- The prompt of that version when the run was created: all cases of a run get the same.
    system_prompt   TEXT,
    status          TEXT NOT NULL CHECK (status IN ('pending', 'running', 'completed', 'failed')),
    error           TEXT,
    total_cases     INTEGER NOT NULL,
    completed_cases INTEGER NOT NULL DEFAULT 0,
    -- JSON, when all cases are done.
    summary         TEXT,
    -- No case is begun before this time: the host had no room.
    due_at          INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    started_at      INTEGER,
    completed_at    INTEGER
) STRICT;
CREATE INDEX eval_runs_of_agent ON eval_runs (agent, created_at);
CREATE INDEX eval_runs_by_name ON eval_runs (tenant, agent_name, created_at);
CREATE INDEX eval_runs_open ON eval_runs (created_at) WHERE status IN ('pending', 'running');

CREATE TABLE eval_results (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL,
    run          TEXT NOT NULL REFERENCES eval_runs (id) ON DELETE CASCADE,
    -- No reference: a result outlives its case.
    case_id      TEXT NOT NULL,
    -- Order of the cases in the run.
    position     INTEGER NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('pending', 'running', 'completed', 'failed')),
    -- Tries that an end of ashd cut short.
    cut_short    INTEGER NOT NULL DEFAULT 0,
    -- Where the question was asked, and as which turn. Written before it is sent.
    session      TEXT,
    turn         INTEGER,
    response     TEXT,
    topic_score  REAL,
    safety_score REAL,
    latency_ms   INTEGER,
    error        TEXT,
    human_score  INTEGER CHECK (human_score BETWEEN 1 AND 5),
    human_notes  TEXT,
    created_at   INTEGER NOT NULL,
    completed_at INTEGER,
    UNIQUE (run, case_id)
) STRICT;
CREATE INDEX eval_results_of_run ON eval_results (run, status, position);
CREATE INDEX eval_results_running ON eval_results (tenant) WHERE status = 'running';

-- Sessions that runs made and that are to be removed. Written before the session is created, removed after it is gone, so that no
-- session is left behind by an end of ashd at any moment.
CREATE TABLE eval_sessions (
    session TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER eval_cases_use_more AFTER INSERT ON eval_cases BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'evals', 1, 256 + octet_length(NEW.question) + COALESCE(octet_length(NEW.expected_topics), 0)
        + COALESCE(octet_length(NEW.expected_not_topics), 0) + COALESCE(octet_length(NEW.reference_answer), 0)
        + COALESCE(octet_length(NEW.category), 0) + COALESCE(octet_length(NEW.tags), 0)
        + COALESCE(octet_length(NEW.chat_history), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER eval_cases_use_less AFTER DELETE ON eval_cases BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.question) + COALESCE(octet_length(OLD.expected_topics), 0)
        + COALESCE(octet_length(OLD.expected_not_topics), 0) + COALESCE(octet_length(OLD.reference_answer), 0)
        + COALESCE(octet_length(OLD.category), 0) + COALESCE(octet_length(OLD.tags), 0)
        + COALESCE(octet_length(OLD.chat_history), 0))
    WHERE tenant = OLD.tenant AND kind = 'evals';
END;
CREATE TRIGGER eval_cases_use_changed AFTER UPDATE OF question, expected_topics, expected_not_topics, reference_answer, category, tags, chat_history ON eval_cases BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.question) + COALESCE(octet_length(NEW.expected_topics), 0)
        + COALESCE(octet_length(NEW.expected_not_topics), 0) + COALESCE(octet_length(NEW.reference_answer), 0)
        + COALESCE(octet_length(NEW.category), 0) + COALESCE(octet_length(NEW.tags), 0)
        + COALESCE(octet_length(NEW.chat_history), 0))
        - (octet_length(OLD.question) + COALESCE(octet_length(OLD.expected_topics), 0)
        + COALESCE(octet_length(OLD.expected_not_topics), 0) + COALESCE(octet_length(OLD.reference_answer), 0)
        + COALESCE(octet_length(OLD.category), 0) + COALESCE(octet_length(OLD.tags), 0)
        + COALESCE(octet_length(OLD.chat_history), 0))
    WHERE tenant = NEW.tenant AND kind = 'evals';
END;

CREATE TRIGGER eval_runs_use_more AFTER INSERT ON eval_runs BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'evals', 1, 256 + COALESCE(octet_length(NEW.system_prompt), 0) + COALESCE(octet_length(NEW.error), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER eval_runs_use_less AFTER DELETE ON eval_runs BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + COALESCE(octet_length(OLD.system_prompt), 0) + COALESCE(octet_length(OLD.error), 0))
    WHERE tenant = OLD.tenant AND kind = 'evals';
END;
CREATE TRIGGER eval_runs_use_changed AFTER UPDATE OF system_prompt, error ON eval_runs BEGIN
    UPDATE tenant_use SET bytes = bytes + (COALESCE(octet_length(NEW.system_prompt), 0) + COALESCE(octet_length(NEW.error), 0))
        - (COALESCE(octet_length(OLD.system_prompt), 0) + COALESCE(octet_length(OLD.error), 0))
    WHERE tenant = NEW.tenant AND kind = 'evals';
END;

CREATE TRIGGER eval_results_use_more AFTER INSERT ON eval_results BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'evals', 1, 256 + COALESCE(octet_length(NEW.response), 0) + COALESCE(octet_length(NEW.error), 0)
        + COALESCE(octet_length(NEW.human_notes), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER eval_results_use_less AFTER DELETE ON eval_results BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + COALESCE(octet_length(OLD.response), 0) + COALESCE(octet_length(OLD.error), 0)
        + COALESCE(octet_length(OLD.human_notes), 0))
    WHERE tenant = OLD.tenant AND kind = 'evals';
END;
CREATE TRIGGER eval_results_use_changed AFTER UPDATE OF response, error, human_notes ON eval_results BEGIN
    UPDATE tenant_use SET bytes = bytes + (COALESCE(octet_length(NEW.response), 0) + COALESCE(octet_length(NEW.error), 0)
        + COALESCE(octet_length(NEW.human_notes), 0))
        - (COALESCE(octet_length(OLD.response), 0) + COALESCE(octet_length(OLD.error), 0)
        + COALESCE(octet_length(OLD.human_notes), 0))
    WHERE tenant = NEW.tenant AND kind = 'evals';
END;

DROP VIEW tenant_use_counted;
CREATE VIEW tenant_use_counted AS
SELECT tenant, 'history' AS kind, SUM(n) AS rows, SUM(b) AS bytes FROM (
    SELECT tenant, COUNT(*) AS n, SUM(256 + octet_length(content)) AS b FROM messages GROUP BY tenant
    UNION ALL SELECT tenant, COUNT(*), SUM(256 + octet_length(data)) FROM events GROUP BY tenant
    UNION ALL SELECT tenant, 0, SUM(octet_length(text)) FROM message_rest GROUP BY tenant
) GROUP BY tenant
UNION ALL SELECT tenant, 'sessions', COUNT(*), SUM(256 + octet_length(launch) + COALESCE(octet_length(config), 0) + COALESCE(octet_length(error), 0))
    FROM sessions GROUP BY tenant
UNION ALL SELECT tenant, 'agents', COUNT(*), SUM(256 + octet_length(path) + octet_length(env) + COALESCE(octet_length(slug), 0)
    + COALESCE(octet_length(description), 0) + COALESCE(octet_length(system_prompt), 0)
    + COALESCE(octet_length(config), 0))
    FROM agents GROUP BY tenant
UNION ALL SELECT tenant, 'versions', COUNT(*), SUM(256 + octet_length(name) + COALESCE(octet_length(system_prompt), 0)
    + COALESCE(octet_length(release_notes), 0) + octet_length(knowledge_files)
    + COALESCE(octet_length(created_by), 0))
    FROM agent_versions GROUP BY tenant
UNION ALL SELECT tenant, 'keys', COUNT(*), SUM(256 + octet_length(label))
    FROM api_keys GROUP BY tenant
UNION ALL SELECT tenant, 'credentials', COUNT(*), SUM(256 + octet_length(label) + octet_length(sealed))
    FROM credentials GROUP BY tenant
UNION ALL SELECT tenant, 'attachments', COUNT(*), SUM(256 + octet_length(filename) + octet_length(mime_type) + COALESCE(octet_length(message_id), 0))
    FROM attachments GROUP BY tenant
UNION ALL SELECT tenant, 'queue', COUNT(*), SUM(256 + octet_length(prompt) + COALESCE(octet_length(result), 0) + COALESCE(octet_length(error), 0))
    FROM queue GROUP BY tenant
UNION ALL SELECT tenant, 'idempotency', COUNT(*), SUM(256 + octet_length(key) + COALESCE(octet_length(answer), 0))
    FROM idempotency GROUP BY tenant
UNION ALL SELECT tenant, 'limits', COUNT(*), SUM(256 + octet_length(name) + octet_length(limits))
    FROM limits GROUP BY tenant
UNION ALL SELECT tenant, 'usage', COUNT(*), SUM(256 + octet_length(agent_name))
    FROM usage GROUP BY tenant
UNION ALL SELECT tenant, 'pending', COUNT(*), 0 FROM queue WHERE status = 'pending' GROUP BY tenant
UNION ALL SELECT tenant, 'evals', SUM(n), SUM(b) FROM (
    SELECT tenant, COUNT(*) AS n, SUM(256 + octet_length(question) + COALESCE(octet_length(expected_topics), 0)
        + COALESCE(octet_length(expected_not_topics), 0) + COALESCE(octet_length(reference_answer), 0)
        + COALESCE(octet_length(category), 0) + COALESCE(octet_length(tags), 0)
        + COALESCE(octet_length(chat_history), 0)) AS b
        FROM eval_cases GROUP BY tenant
    UNION ALL SELECT tenant, COUNT(*), SUM(256 + COALESCE(octet_length(system_prompt), 0) + COALESCE(octet_length(error), 0))
        FROM eval_runs GROUP BY tenant
    UNION ALL SELECT tenant, COUNT(*), SUM(256 + COALESCE(octet_length(response), 0) + COALESCE(octet_length(error), 0)
        + COALESCE(octet_length(human_notes), 0))
        FROM eval_results GROUP BY tenant
) GROUP BY tenant;
