-- The bridge's durable record. Numbers of zones, keyrings and versions are given once and never reused.

-- One row. Every write checks that it still holds the writer's epoch.
CREATE TABLE leader (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL
);
INSERT INTO leader (one, epoch) VALUES (1, 0);

CREATE TABLE zones (
    id            INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 65535),
    name          TEXT    NOT NULL UNIQUE,
    -- Of the keyring set that members get. Never goes down.
    generation    INTEGER NOT NULL,
    -- Of what the configuration contributes to a keyring set: if it differs, a new generation is due.
    config_digest BLOB    NOT NULL
);

CREATE TABLE keyrings (
    id      INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 4294967295),
    zone_id INTEGER NOT NULL REFERENCES zones (id),
    name    TEXT    NOT NULL,
    UNIQUE (zone_id, name)
);

CREATE TABLE kek_versions (
    keyring_id   INTEGER NOT NULL REFERENCES keyrings (id),
    version      INTEGER NOT NULL CHECK (version BETWEEN 1 AND 65535),
    state        TEXT    NOT NULL
                 CHECK (state IN ('pending', 'accepted', 'primary', 'retired', 'destroyed', 'compromised')),
    created_ms   INTEGER NOT NULL,
    changed_ms   INTEGER NOT NULL,
    -- A whole envelope, and what is in it. Absent until the version is proved.
    known_answer BLOB,
    answer       BLOB,
    PRIMARY KEY (keyring_id, version)
);
-- A keyring has one primary at most, whatever the program does.
CREATE UNIQUE INDEX kek_one_primary ON kek_versions (keyring_id) WHERE state = 'primary';

CREATE TABLE kek_history (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    keyring_id INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    at_ms      INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    actor      TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    FOREIGN KEY (keyring_id, version) REFERENCES kek_versions (keyring_id, version)
);

-- The backends that hold a version, each proved with the version's known answer.
CREATE TABLE kek_places (
    keyring_id  INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    backend     TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    mechanism   INTEGER NOT NULL,
    extractable INTEGER NOT NULL,
    PRIMARY KEY (keyring_id, version, backend),
    FOREIGN KEY (keyring_id, version) REFERENCES kek_versions (keyring_id, version)
);

CREATE TABLE deks (
    id           BLOB    PRIMARY KEY CHECK (length(id) = 16),
    keyring_id   INTEGER NOT NULL REFERENCES keyrings (id),
    -- Who it was issued to: a SPIFFE id; empty for the bridge's own known answers.
    service      TEXT    NOT NULL,
    tenant       TEXT    NOT NULL,
    purpose      TEXT    NOT NULL CHECK (purpose IN ('data', 'known-answer')),
    state        TEXT    NOT NULL CHECK (state IN ('live', 'retired')),
    -- The KEK version of its live wraps.
    live_version INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    FOREIGN KEY (keyring_id, live_version) REFERENCES kek_versions (keyring_id, version)
) WITHOUT ROWID;
CREATE INDEX deks_by_version ON deks (keyring_id, live_version, id) WHERE state = 'live' AND purpose = 'data';

CREATE TABLE wraps (
    dek_id     BLOB    NOT NULL REFERENCES deks (id),
    -- SHA-256 of the 96-byte key block. Outlives the block: an envelope's block is verified against it.
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    version    INTEGER NOT NULL,
    backend    TEXT    NOT NULL,
    mechanism  INTEGER NOT NULL,
    -- The 96 bytes. Emptied when the version is retired.
    block      BLOB,
    state      TEXT    NOT NULL CHECK (state IN ('live', 'superseded')),
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (dek_id, digest),
    CHECK (state = 'superseded' OR length(block) = 96)
) WITHOUT ROWID;

CREATE TABLE rotations (
    id                 TEXT    PRIMARY KEY,
    keyring_id         INTEGER NOT NULL REFERENCES keyrings (id),
    from_version       INTEGER NOT NULL,
    to_version         INTEGER NOT NULL,
    actor              TEXT    NOT NULL,
    reason             TEXT    NOT NULL,
    started_ms         INTEGER NOT NULL,
    updated_ms         INTEGER NOT NULL,
    ended_ms           INTEGER,
    -- What has been done, each with the generation that carries it. The phase is derived from these.
    accept_generation  INTEGER,
    promote_generation INTEGER,
    promoted_ms        INTEGER,
    drain_ms           INTEGER,
    barrier_ms         INTEGER,
    retire_generation  INTEGER,
    deks_total         INTEGER NOT NULL DEFAULT 0,
    deks_rewrapped     INTEGER NOT NULL DEFAULT 0,
    CHECK (to_version > from_version),
    FOREIGN KEY (keyring_id, from_version) REFERENCES kek_versions (keyring_id, version),
    FOREIGN KEY (keyring_id, to_version) REFERENCES kek_versions (keyring_id, version)
);
-- One open rotation per keyring, whatever the program does.
CREATE UNIQUE INDEX rotation_one_open ON rotations (keyring_id) WHERE ended_ms IS NULL;

CREATE TABLE members (
    zone_id            INTEGER NOT NULL REFERENCES zones (id),
    service            TEXT    NOT NULL,
    instance           TEXT    NOT NULL,
    version            TEXT    NOT NULL,
    key_exchange       TEXT    NOT NULL,
    -- The last generation that it has applied with the right known answers, and the digest of those bytes.
    applied_generation INTEGER NOT NULL DEFAULT 0,
    applied_digest     BLOB    NOT NULL DEFAULT x'',
    applied_ms         INTEGER NOT NULL DEFAULT 0,
    seen_ms            INTEGER NOT NULL,
    -- Until then it may seal, whether it is reachable or not. Written before the message that extends it.
    lease_end_ms       INTEGER NOT NULL,
    nack_generation    INTEGER NOT NULL DEFAULT 0,
    nack               TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (zone_id, service, instance)
) WITHOUT ROWID;
