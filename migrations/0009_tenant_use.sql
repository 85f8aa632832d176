-- What each tenant stores in this database, by kind: rows and bytes. Kept by triggers, in the transaction of the change itself, so it is
-- true after any crash; `tenant_use_counted` counts the same from the tables, for the check at the start. A row costs 256 bytes beside its
-- texts: its numbers and ids, its entries in the indexes, and of a row of the history its share of the turn's row.
--
-- `files` is written by ashd: bytes below the tenant's directories, as they were measured last.
CREATE TABLE tenant_use (
    tenant TEXT NOT NULL,
    kind   TEXT NOT NULL,
    rows   INTEGER NOT NULL,
    bytes  INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind)
) STRICT, WITHOUT ROWID;

-- What an admin says of a tenant as a whole (`storageBytes`).
CREATE TABLE tenant_limits (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    value  INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

-- Finished items of a tenant by their end, for those that are not kept any longer.
CREATE INDEX queue_finished ON queue (tenant, completed_at) WHERE status IN ('completed', 'failed', 'cancelled');

CREATE TRIGGER messages_use_more AFTER INSERT ON messages BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'history', 1, 256 + octet_length(NEW.content))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER messages_use_less AFTER DELETE ON messages BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.content))
    WHERE tenant = OLD.tenant AND kind = 'history';
END;

CREATE TRIGGER events_use_more AFTER INSERT ON events BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'history', 1, 256 + octet_length(NEW.data))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER events_use_less AFTER DELETE ON events BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.data))
    WHERE tenant = OLD.tenant AND kind = 'history';
END;

CREATE TRIGGER sessions_use_more AFTER INSERT ON sessions BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'sessions', 1, 256 + octet_length(NEW.launch) + COALESCE(octet_length(NEW.config), 0)
        + COALESCE(octet_length(NEW.error), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER sessions_use_less AFTER DELETE ON sessions BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.launch) + COALESCE(octet_length(OLD.config), 0)
        + COALESCE(octet_length(OLD.error), 0))
    WHERE tenant = OLD.tenant AND kind = 'sessions';
END;
CREATE TRIGGER sessions_use_changed AFTER UPDATE OF launch, config, error ON sessions BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.launch) + COALESCE(octet_length(NEW.config), 0)
        + COALESCE(octet_length(NEW.error), 0))
        - (octet_length(OLD.launch) + COALESCE(octet_length(OLD.config), 0)
        + COALESCE(octet_length(OLD.error), 0))
    WHERE tenant = NEW.tenant AND kind = 'sessions';
END;

CREATE TRIGGER agents_use_more AFTER INSERT ON agents BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'agents', 1, 256 + octet_length(NEW.path) + octet_length(NEW.env) + COALESCE(octet_length(NEW.slug), 0)
        + COALESCE(octet_length(NEW.description), 0) + COALESCE(octet_length(NEW.system_prompt), 0)
        + COALESCE(octet_length(NEW.config), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER agents_use_less AFTER DELETE ON agents BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.path) + octet_length(OLD.env) + COALESCE(octet_length(OLD.slug), 0)
        + COALESCE(octet_length(OLD.description), 0) + COALESCE(octet_length(OLD.system_prompt), 0)
        + COALESCE(octet_length(OLD.config), 0))
    WHERE tenant = OLD.tenant AND kind = 'agents';
END;
CREATE TRIGGER agents_use_changed AFTER UPDATE OF path, env, slug, description, system_prompt, config ON agents BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.path) + octet_length(NEW.env) + COALESCE(octet_length(NEW.slug), 0)
        + COALESCE(octet_length(NEW.description), 0) + COALESCE(octet_length(NEW.system_prompt), 0)
        + COALESCE(octet_length(NEW.config), 0))
        - (octet_length(OLD.path) + octet_length(OLD.env) + COALESCE(octet_length(OLD.slug), 0)
        + COALESCE(octet_length(OLD.description), 0) + COALESCE(octet_length(OLD.system_prompt), 0)
        + COALESCE(octet_length(OLD.config), 0))
    WHERE tenant = NEW.tenant AND kind = 'agents';
END;

CREATE TRIGGER agent_versions_use_more AFTER INSERT ON agent_versions BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'versions', 1, 256 + octet_length(NEW.name) + COALESCE(octet_length(NEW.system_prompt), 0)
        + COALESCE(octet_length(NEW.release_notes), 0) + octet_length(NEW.knowledge_files)
        + COALESCE(octet_length(NEW.created_by), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER agent_versions_use_less AFTER DELETE ON agent_versions BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.name) + COALESCE(octet_length(OLD.system_prompt), 0)
        + COALESCE(octet_length(OLD.release_notes), 0) + octet_length(OLD.knowledge_files)
        + COALESCE(octet_length(OLD.created_by), 0))
    WHERE tenant = OLD.tenant AND kind = 'versions';
END;
CREATE TRIGGER agent_versions_use_changed AFTER UPDATE OF name, system_prompt, release_notes, knowledge_files, created_by ON agent_versions BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.name) + COALESCE(octet_length(NEW.system_prompt), 0)
        + COALESCE(octet_length(NEW.release_notes), 0) + octet_length(NEW.knowledge_files)
        + COALESCE(octet_length(NEW.created_by), 0))
        - (octet_length(OLD.name) + COALESCE(octet_length(OLD.system_prompt), 0)
        + COALESCE(octet_length(OLD.release_notes), 0) + octet_length(OLD.knowledge_files)
        + COALESCE(octet_length(OLD.created_by), 0))
    WHERE tenant = NEW.tenant AND kind = 'versions';
END;

CREATE TRIGGER api_keys_use_more AFTER INSERT ON api_keys BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'keys', 1, 256 + octet_length(NEW.label))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER api_keys_use_less AFTER DELETE ON api_keys BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.label))
    WHERE tenant = OLD.tenant AND kind = 'keys';
END;

CREATE TRIGGER credentials_use_more AFTER INSERT ON credentials BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'credentials', 1, 256 + octet_length(NEW.label) + octet_length(NEW.sealed))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER credentials_use_less AFTER DELETE ON credentials BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.label) + octet_length(OLD.sealed))
    WHERE tenant = OLD.tenant AND kind = 'credentials';
END;

CREATE TRIGGER attachments_use_more AFTER INSERT ON attachments BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'attachments', 1, 256 + octet_length(NEW.filename) + octet_length(NEW.mime_type) + COALESCE(octet_length(NEW.message_id), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER attachments_use_less AFTER DELETE ON attachments BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.filename) + octet_length(OLD.mime_type) + COALESCE(octet_length(OLD.message_id), 0))
    WHERE tenant = OLD.tenant AND kind = 'attachments';
END;

CREATE TRIGGER queue_use_more AFTER INSERT ON queue BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'queue', 1, 256 + octet_length(NEW.prompt) + COALESCE(octet_length(NEW.result), 0)
        + COALESCE(octet_length(NEW.error), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER queue_use_less AFTER DELETE ON queue BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.prompt) + COALESCE(octet_length(OLD.result), 0)
        + COALESCE(octet_length(OLD.error), 0))
    WHERE tenant = OLD.tenant AND kind = 'queue';
END;
CREATE TRIGGER queue_use_changed AFTER UPDATE OF result, error ON queue BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.prompt) + COALESCE(octet_length(NEW.result), 0)
        + COALESCE(octet_length(NEW.error), 0))
        - (octet_length(OLD.prompt) + COALESCE(octet_length(OLD.result), 0)
        + COALESCE(octet_length(OLD.error), 0))
    WHERE tenant = NEW.tenant AND kind = 'queue';
END;

CREATE TRIGGER idempotency_use_more AFTER INSERT ON idempotency BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'idempotency', 1, 256 + octet_length(NEW.key) + COALESCE(octet_length(NEW.answer), 0))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER idempotency_use_less AFTER DELETE ON idempotency BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.key) + COALESCE(octet_length(OLD.answer), 0))
    WHERE tenant = OLD.tenant AND kind = 'idempotency';
END;
CREATE TRIGGER idempotency_use_changed AFTER UPDATE OF answer ON idempotency BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.key) + COALESCE(octet_length(NEW.answer), 0))
        - (octet_length(OLD.key) + COALESCE(octet_length(OLD.answer), 0))
    WHERE tenant = NEW.tenant AND kind = 'idempotency';
END;

CREATE TRIGGER limits_use_more AFTER INSERT ON limits BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'limits', 1, 256 + octet_length(NEW.name) + octet_length(NEW.limits))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER limits_use_less AFTER DELETE ON limits BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.name) + octet_length(OLD.limits))
    WHERE tenant = OLD.tenant AND kind = 'limits';
END;
CREATE TRIGGER limits_use_changed AFTER UPDATE OF limits ON limits BEGIN
    UPDATE tenant_use SET bytes = bytes + (octet_length(NEW.name) + octet_length(NEW.limits))
        - (octet_length(OLD.name) + octet_length(OLD.limits))
    WHERE tenant = NEW.tenant AND kind = 'limits';
END;

CREATE TRIGGER usage_use_more AFTER INSERT ON usage BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES
        (NEW.tenant, 'usage', 1, 256 + octet_length(NEW.agent_name))
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER usage_use_less AFTER DELETE ON usage BEGIN
    UPDATE tenant_use SET rows = rows - 1, bytes = bytes - (256 + octet_length(OLD.agent_name))
    WHERE tenant = OLD.tenant AND kind = 'usage';
END;

-- Items that wait, so that their number is known without counting them.
CREATE TRIGGER queue_pending_more AFTER INSERT ON queue WHEN NEW.status = 'pending' BEGIN
    INSERT INTO tenant_use (tenant, kind, rows, bytes) VALUES (NEW.tenant, 'pending', 1, 0)
    ON CONFLICT (tenant, kind) DO UPDATE SET rows = rows + 1;
END;
CREATE TRIGGER queue_pending_less AFTER DELETE ON queue WHEN OLD.status = 'pending' BEGIN
    UPDATE tenant_use SET rows = rows - 1 WHERE tenant = OLD.tenant AND kind = 'pending';
END;
CREATE TRIGGER queue_pending_changed AFTER UPDATE OF status ON queue WHEN (NEW.status = 'pending') <> (OLD.status = 'pending') BEGIN
    UPDATE tenant_use SET rows = rows + (NEW.status = 'pending') - (OLD.status = 'pending')
    WHERE tenant = NEW.tenant AND kind = 'pending';
END;

CREATE VIEW tenant_use_counted AS
SELECT tenant, 'history' AS kind, SUM(n) AS rows, SUM(b) AS bytes FROM (
    SELECT tenant, COUNT(*) AS n, SUM(256 + octet_length(content)) AS b FROM messages GROUP BY tenant
    UNION ALL SELECT tenant, COUNT(*), SUM(256 + octet_length(data)) FROM events GROUP BY tenant
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

INSERT INTO tenant_use (tenant, kind, rows, bytes) SELECT tenant, kind, rows, bytes FROM tenant_use_counted;
