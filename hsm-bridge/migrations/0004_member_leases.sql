-- The longest seal lease that a member may hold: it keeps what an older configuration gave it until it has applied another set.
ALTER TABLE members ADD COLUMN lease_ms INTEGER NOT NULL DEFAULT 0;
