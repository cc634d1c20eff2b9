-- Written before a backend is asked to make a version. A KEK of that name without this line is not ours: it is an older key
-- that the catalog has forgotten.
CREATE TABLE kek_attempts (
    keyring_id INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    backend    TEXT    NOT NULL,
    PRIMARY KEY (keyring_id, version, backend),
    FOREIGN KEY (keyring_id, version) REFERENCES kek_versions (keyring_id, version)
) WITHOUT ROWID;
-- Whatever is pending now was begun without such a line.
INSERT INTO kek_attempts SELECT v.keyring_id, v.version, w.backend
  FROM kek_versions v, (SELECT DISTINCT backend FROM kek_places) w WHERE v.state = 'pending';
