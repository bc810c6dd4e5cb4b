-- A key on a token that an identity's engine is bound to. A deleted key keeps its row
-- while a connected identity still refers to it.
CREATE TABLE key (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    usage        TEXT NOT NULL,     -- sign | decrypt
    engine       TEXT NOT NULL,     -- the engine that serves it
    kind         TEXT NOT NULL,     -- the token: kind, manufacturer, serial
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    backend      TEXT NOT NULL,     -- how the token is reached
    slot         TEXT NOT NULL,
    public_key   TEXT NOT NULL,     -- PEM, or bls12-381: and hexadecimal
    fingerprint  TEXT NOT NULL,
    origin       TEXT NOT NULL,     -- generated | adopted
    protection   TEXT,              -- JSON
    attestation  TEXT,              -- JSON
    owner_node   TEXT NOT NULL,
    owner_name   TEXT NOT NULL,
    deleted      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX key_by_engine ON key (engine);
CREATE INDEX key_by_fingerprint ON key (fingerprint);

CREATE TABLE identity (
    node         TEXT NOT NULL,     -- the requester's node; empty for this one
    name         TEXT NOT NULL,
    backend      TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    sign_key     INTEGER REFERENCES key (id),
    decrypt_key  INTEGER REFERENCES key (id),
    lease        TEXT,              -- set where the keys die with the process
    PRIMARY KEY (node, name)
) STRICT;

-- Written before a token is touched, removed when what was intended is done or undone.
CREATE TABLE intent (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    action       TEXT NOT NULL,     -- generate | delete
    lease        TEXT NOT NULL,     -- whose intent it is
    node         TEXT NOT NULL,     -- the identity
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    backend      TEXT NOT NULL,
    slots        TEXT NOT NULL      -- JSON
) STRICT;
