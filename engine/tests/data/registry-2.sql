CREATE TABLE IF NOT EXISTS key (
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
    attestation  TEXT,
    owner_node   TEXT NOT NULL,
    owner_name   TEXT NOT NULL,
    deleted      INTEGER NOT NULL DEFAULT 0,
    derived      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS key_by_engine ON key (engine);
CREATE INDEX IF NOT EXISTS key_by_fingerprint ON key (fingerprint);
CREATE TABLE IF NOT EXISTS identity (
    node         TEXT NOT NULL,
    name         TEXT NOT NULL,
    backend      TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    sign_key     INTEGER REFERENCES key (id),
    decrypt_key  INTEGER REFERENCES key (id),
    lease        TEXT,
    PRIMARY KEY (node, name)
) STRICT;
CREATE TABLE IF NOT EXISTS intent (
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
CREATE TABLE IF NOT EXISTS refused_pin (
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    salt         BLOB NOT NULL,
    log_n        INTEGER NOT NULL,
    r            INTEGER NOT NULL,
    p            INTEGER NOT NULL,
    hash         BLOB NOT NULL,
    PRIMARY KEY (kind, manufacturer, serial, hash)
) STRICT;
CREATE TABLE IF NOT EXISTS sent_pin (
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    tries        INTEGER,
    PRIMARY KEY (kind, manufacturer, serial)
) STRICT;
CREATE TABLE IF NOT EXISTS spent_slot (
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    slot         TEXT NOT NULL,
    PRIMARY KEY (kind, manufacturer, serial, slot)
) STRICT;
CREATE TABLE IF NOT EXISTS evidence (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    statement    BLOB NOT NULL UNIQUE,
    from_name    TEXT NOT NULL,
    from_sign    TEXT,
    from_decrypt TEXT,
    from_keys    BLOB NOT NULL,
    to_name      TEXT NOT NULL,
    to_sign      TEXT NOT NULL,
    to_decrypt   TEXT,
    to_keys      BLOB NOT NULL,
    scheme       TEXT NOT NULL,
    signature    BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS contact (
    name         TEXT PRIMARY KEY,
    sign         TEXT,
    decrypt      TEXT
) STRICT;
