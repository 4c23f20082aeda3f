-- Keys with values; `version` is the revision of the commit that wrote the value.
CREATE TABLE entries (
    key     TEXT    NOT NULL PRIMARY KEY,
    value   BLOB    NOT NULL,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: the newest revision, and the term of the newest leadership.
CREATE TABLE counters (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,
    term     INTEGER NOT NULL
) STRICT;

INSERT INTO counters (id, revision, term) VALUES (1, 0, 0);
