-- Requests with an Idempotency-Key, and what was answered. Kept for a day.
CREATE TABLE idempotency (
    tenant     TEXT NOT NULL,
    key        TEXT NOT NULL,
    -- SHA-256 of method, path and body.
    request    BLOB NOT NULL CHECK (length(request) = 32),
    -- Which turn a message became; written before it is sent.
    session    TEXT,
    turn       INTEGER,
    -- Null until the request was answered.
    status     INTEGER,
    answer     BLOB,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_oldest ON idempotency (created_at);
