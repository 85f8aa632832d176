-- Where in the workspace a copy of it was put, for the agent to see; NULL for one of before, and of a session without files.
ALTER TABLE attachments ADD COLUMN path TEXT;
