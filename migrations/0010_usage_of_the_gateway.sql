-- The gateway counts tokens, ashd counts results: what was one row of both is now a row of the one or of the other.
-- A row of before has both, and is of one result.
ALTER TABLE usage ADD COLUMN messages INTEGER NOT NULL DEFAULT 1;
-- Answers of the model that were begun; unknown for rows of before.
ALTER TABLE usage ADD COLUMN requests INTEGER NOT NULL DEFAULT 0;

-- The newest entry of each of the gateway's ledgers whose usage is stored above. In the same transaction as that.
CREATE TABLE usage_ledgers (
    id       TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL CHECK (sequence >= 1)
) STRICT;
