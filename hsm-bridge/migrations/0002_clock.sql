-- What the clock of the last writer said at its last write. The next process measures what was left of each lease from it,
-- not from its own clock: that one may have been set since.
ALTER TABLE leader ADD COLUMN clock_ms INTEGER NOT NULL DEFAULT 0;
UPDATE leader SET clock_ms = coalesce((SELECT max(seen_ms) FROM members), 0);
