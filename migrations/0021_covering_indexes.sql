-- Indexes that hold every column that a frequent query reads. Without them SQLite walks the overflow pages of each row's texts (a
-- prompt of 10 MiB, an answer of 256 KiB) to reach the small columns behind them.

-- The next item of the queue, and when one is due.
CREATE INDEX queue_pending ON queue (tenant, due_at, priority, created_at, id, status) WHERE status = 'pending';
-- The next run, and the counts of runs.
DROP INDEX eval_runs_open;
CREATE INDEX eval_runs_open ON eval_runs (created_at, due_at, tenant, id, status) WHERE status IN ('pending', 'running');
CREATE INDEX eval_runs_by_status ON eval_runs (tenant, status, created_at);
-- The summary of a run, computed when each of its cases ends.
DROP INDEX eval_results_of_run;
CREATE INDEX eval_results_of_run ON eval_results (run, status, position, topic_score, safety_score, latency_ms);
-- The counts of sessions.
CREATE INDEX sessions_counted ON sessions (tenant, status, created_at);
-- Events of one type.
CREATE INDEX events_of_type ON events (session, type, sequence);
