-- Whether a key with the admin role named the agent's directory: without `[agents] roots` only such a directory is used. What tenant
-- `default` has was allowed by the rule until now, and stays.
ALTER TABLE agents ADD COLUMN path_by_admin INTEGER NOT NULL DEFAULT 0;
UPDATE agents SET path_by_admin = 1 WHERE tenant = 'default';
-- An Idempotency-Key of an admin key is kept under a name of its own, so that an ordinary key of the same tenant is never given its
-- answer. Which of the kept ones were the admin's is not known: each is found by both, for the day that it is kept.
INSERT INTO idempotency SELECT tenant, char(1) || 'admin:' || key, request, session, turn, status, answer, created_at
    FROM idempotency WHERE tenant = 'default';
