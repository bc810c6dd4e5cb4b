-- Run on every registry of an older version: what is there already stays as it is.
-- `digest` is over the row, see digests.rs.

-- A key on a token that an identity's engine is bound to. A deleted key keeps its row
-- while a connected identity still refers to it.
CREATE TABLE IF NOT EXISTS key (
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
    deleted      INTEGER NOT NULL DEFAULT 0,
    derived      INTEGER NOT NULL DEFAULT 0, -- whether it can be derived again
    digest       BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS key_by_engine ON key (engine);
CREATE INDEX IF NOT EXISTS key_by_fingerprint ON key (fingerprint);

CREATE TABLE IF NOT EXISTS identity (
    node         TEXT NOT NULL,     -- the requester's node; empty for this one
    name         TEXT NOT NULL,
    backend      TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    sign_key     INTEGER REFERENCES key (id),
    decrypt_key  INTEGER REFERENCES key (id),
    lease        TEXT,              -- set where the keys die with the process
    digest       BLOB,
    PRIMARY KEY (node, name)
) STRICT;
CREATE INDEX IF NOT EXISTS identity_by_sign_key ON identity (sign_key);
CREATE INDEX IF NOT EXISTS identity_by_decrypt_key ON identity (decrypt_key);

-- Written before a token is touched, removed when what was intended is done or undone.
CREATE TABLE IF NOT EXISTS intent (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    action       TEXT NOT NULL,     -- generate | delete | name
    lease        TEXT NOT NULL,     -- whose intent it is
    node         TEXT NOT NULL,     -- the identity
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    backend      TEXT NOT NULL,
    slots        TEXT NOT NULL,     -- JSON
    keys         TEXT,              -- JSON: slot, mark and public key of each
    digest       BLOB
) STRICT;

-- What the digests of all rows of a table add up to, for each table but this one.
CREATE TABLE IF NOT EXISTS seal (
    name         TEXT PRIMARY KEY,
    digests      BLOB NOT NULL
) STRICT;

-- Which home this is, in one row, to tell it from a copy.
CREATE TABLE IF NOT EXISTS home (
    id           TEXT NOT NULL,     -- random
    inode        INTEGER NOT NULL,  -- of the folder
    machine      TEXT NOT NULL,     -- a digest of the machine's id; empty where it has none
    first_account INTEGER,          -- the first that is taken of a seed; NULL is 0
    digest       BLOB
) STRICT;

-- What was tried on a token, or on tokens of one model and version.
CREATE TABLE IF NOT EXISTS tried (
    model        TEXT NOT NULL,     -- as the driver names what it is true of
    what         TEXT NOT NULL,     -- a kind of key: `p256 (sign)`; a slot: `slot 84`
    works        INTEGER NOT NULL,
    digest       BLOB,
    PRIMARY KEY (model, what)
) STRICT;

-- What is left of PINs that tokens refused: slow hashes (scrypt). None is sent again.
CREATE TABLE IF NOT EXISTS refused_pin (
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    salt         BLOB NOT NULL,     -- random, the same for all of a token
    log_n        INTEGER NOT NULL,  -- the parameters of scrypt
    r            INTEGER NOT NULL,
    p            INTEGER NOT NULL,
    hash         BLOB NOT NULL,
    length_in    INTEGER,           -- 1: of the PIN with its length in front; NULL: of the PIN alone
    digest       BLOB,
    PRIMARY KEY (kind, manufacturer, serial, hash)
) STRICT;

-- Written before a PIN is sent, removed when the token has answered. It says nothing of
-- the PIN, which may be the right one.
CREATE TABLE IF NOT EXISTS sent_pin (
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    tries        INTEGER,           -- how many were left before, where the token says
    digest       BLOB,
    PRIMARY KEY (kind, manufacturer, serial)
) STRICT;

-- Slots of tokens that derive their keys, whose identities were deleted. The keys can be
-- derived again, so these slots are never handed out again.
CREATE TABLE IF NOT EXISTS spent_slot (
    kind         TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    serial       TEXT NOT NULL,
    slot         TEXT NOT NULL,
    digest       BLOB,
    PRIMARY KEY (kind, manufacturer, serial, slot)
) STRICT;

-- Evidence that one identity reads for another, verified before it came here. It is about
-- keys: `*_keys` is a digest over both keys of an identity.
CREATE TABLE IF NOT EXISTS evidence (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    statement    BLOB NOT NULL UNIQUE,  -- a digest over what was signed
    from_name    TEXT NOT NULL,     -- the reader
    from_sign    TEXT,              -- keys as in `key`
    from_decrypt TEXT,
    from_keys    BLOB NOT NULL,
    to_name      TEXT NOT NULL,     -- for whom it reads; who signed
    to_sign      TEXT NOT NULL,
    to_decrypt   TEXT,
    to_keys      BLOB NOT NULL,
    scheme       TEXT NOT NULL,
    signature    BLOB NOT NULL,
    number       BLOB,              -- NULL: of version 1, which does not count
    until        INTEGER,           -- its end, in seconds since the beginning of 1970 (UTC)
    digest       BLOB
) STRICT;

-- That a piece of evidence does not count any more, verified before it came here. It may be
-- here before what it revokes.
CREATE TABLE IF NOT EXISTS revocation (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    statement    BLOB NOT NULL,     -- as in `evidence`
    signer       TEXT NOT NULL,     -- the key, as in `key`; it counts if it is that of `to_sign`
    scheme       TEXT NOT NULL,
    signature    BLOB NOT NULL,
    digest       BLOB,
    UNIQUE (statement, signer)
) STRICT;

-- Identities of others, known by their public keys only.
CREATE TABLE IF NOT EXISTS contact (
    name         TEXT PRIMARY KEY,
    sign         TEXT,
    decrypt      TEXT,
    digest       BLOB
) STRICT;

-- The user whom a daemon made an identity for.
CREATE TABLE IF NOT EXISTS owner (
    node         TEXT NOT NULL,     -- the identity
    name         TEXT NOT NULL,
    uid          INTEGER NOT NULL,
    digest       BLOB,
    PRIMARY KEY (node, name)
) STRICT;

-- What a daemon lets others do.
CREATE TABLE IF NOT EXISTS grants (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    subject      TEXT NOT NULL,     -- uid | gid
    number       INTEGER NOT NULL,
    socket       TEXT NOT NULL,     -- empty: on all
    identity     TEXT NOT NULL,     -- of this node; empty: what is about none
    operation    TEXT NOT NULL,     -- as in grants.rs
    purpose      TEXT NOT NULL,
    digest       BLOB
) STRICT;

-- The certificates of keys, each with those that issued it.
CREATE TABLE IF NOT EXISTS certificate (
    fingerprint  TEXT PRIMARY KEY,  -- of the key, as in `key`
    chain        BLOB NOT NULL,     -- DER, one behind the other, that of the key first
    digest       BLOB
) STRICT;
