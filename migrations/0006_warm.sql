-- How many sandboxes of an agent are kept warm; NULL is the configuration's `[pool] warm`.
ALTER TABLE agents ADD COLUMN warm INTEGER CHECK (warm BETWEEN 0 AND 100);
