-- A turn is identified by its id: the uuid of the message that began it, or one of its own where claude began it by itself.
-- What belongs to a turn names it, so that nothing has to be matched by the wall clock.
ALTER TABLE turns ADD COLUMN id TEXT;
UPDATE turns SET id = lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-a'
    || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)));
-- Whether its sender asked for partial messages: a stream that is joined again in the turn has them too.
ALTER TABLE turns ADD COLUMN partial INTEGER NOT NULL DEFAULT 0 CHECK (partial IN (0, 1));
CREATE UNIQUE INDEX turns_by_id ON turns (id);
CREATE INDEX turns_open ON turns (session) WHERE to_offset IS NULL;

-- The number of the turn in its session. NULL: between turns, of an earlier ashd, or copied from another session.
ALTER TABLE messages ADD COLUMN turn INTEGER;
ALTER TABLE events ADD COLUMN turn INTEGER;
ALTER TABLE usage ADD COLUMN turn INTEGER;
CREATE INDEX events_of_turn ON events (session, turn) WHERE type = 'turn_complete';

-- Written before the message is sent: whoever takes over finds out whether it was. They replace the numbers, which another message
-- could have taken meanwhile.
ALTER TABLE queue ADD COLUMN turn_id TEXT;
UPDATE queue SET turn_id = (SELECT id FROM turns WHERE turns.session = queue.session AND number = queue.turn)
    WHERE turn IS NOT NULL;
ALTER TABLE idempotency ADD COLUMN turn_id TEXT;
UPDATE idempotency SET turn_id = (SELECT id FROM turns WHERE turns.session = idempotency.session AND number = idempotency.turn)
    WHERE turn IS NOT NULL;

-- claude's id of the conversation, where it is no longer the session's own, and the turn in which it changed.
ALTER TABLE sessions ADD COLUMN conversation TEXT;
ALTER TABLE sessions ADD COLUMN conversation_turn INTEGER NOT NULL DEFAULT 0;
