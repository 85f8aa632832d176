-- What a tenant, an agent or a session may use, as far as somebody said so: a JSON object of the limits that level sets.
-- `name` is the agent's name, the session's id, or empty for the tenant itself. `sessions.limits` keeps what came out of
-- all levels when it was last put in force.
CREATE TABLE limits (
    tenant TEXT NOT NULL,
    scope  TEXT NOT NULL CHECK (scope IN ('tenant', 'agent', 'session')),
    name   TEXT NOT NULL,
    limits TEXT NOT NULL,
    PRIMARY KEY (tenant, scope, name)
) STRICT, WITHOUT ROWID;
