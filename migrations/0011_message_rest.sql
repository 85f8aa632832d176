-- What follows the first MiB of a large message, in pieces of at most 1 MiB: SQLite holds a row in memory whole, several times over when
-- it copies one, so no row of the history is larger than a piece. `at` is the offset in bytes of the piece in the whole text; `text` is
-- its bytes. Messages of an earlier ashd stay one row.
CREATE TABLE message_rest (
    session  TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    at       INTEGER NOT NULL CHECK (at > 0),
    tenant   TEXT NOT NULL,
    text     BLOB NOT NULL,
    PRIMARY KEY (session, sequence, at),
    FOREIGN KEY (session, sequence) REFERENCES messages (session, sequence) ON DELETE CASCADE
) STRICT;

CREATE TRIGGER message_rest_use_more AFTER INSERT ON message_rest BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES (NEW.tenant, 'history', 0, octet_length(NEW.text))
    ON CONFLICT (tenant, kind) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER message_rest_use_less AFTER DELETE ON message_rest BEGIN
    UPDATE tenant_use SET bytes = bytes - octet_length(OLD.text) WHERE tenant = OLD.tenant AND kind = 'history';
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
UNION ALL SELECT tenant, 'pending', COUNT(*), 0 FROM queue WHERE status = 'pending' GROUP BY tenant;
