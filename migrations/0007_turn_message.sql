-- The message that began the turn, by its number in `messages`: an ashd that starts again hands it over when init does not have
-- it. NULL: claude began the turn by itself.
ALTER TABLE turns ADD COLUMN message INTEGER;
