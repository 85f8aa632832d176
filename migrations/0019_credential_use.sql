-- When a request to the model was last made with a credential; null: never, or only before this column was there.
ALTER TABLE credentials ADD COLUMN last_used_at INTEGER;
