CREATE TABLE key (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    usage        TEXT NOT NULL,
    engine       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    backend      TEXT NOT NULL,
    slot         TEXT NOT NULL,
    public_key   TEXT NOT NULL,
    fingerprint  TEXT NOT NULL,
    origin       TEXT NOT NULL,
    protection   TEXT,
    owner_node   TEXT NOT NULL,
    owner_name   TEXT NOT NULL,
    deleted      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX key_by_engine ON key (engine);
CREATE INDEX key_by_fingerprint ON key (fingerprint);
CREATE TABLE identity (
    node         TEXT NOT NULL,
    name         TEXT NOT NULL,
    backend      TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    sign_key     INTEGER REFERENCES key (id),
    decrypt_key  INTEGER REFERENCES key (id),
    lease        TEXT,
    PRIMARY KEY (node, name)
) STRICT;
CREATE TABLE intent (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    action       TEXT NOT NULL,
    lease        TEXT NOT NULL,
    node         TEXT NOT NULL,
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    backend      TEXT NOT NULL,
    slots        TEXT NOT NULL
) STRICT;
