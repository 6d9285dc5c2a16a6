-- The schema of vote-aggregator in one script: psql -d election_votes -f init_db.sql
-- Generated from migrations/ by `vote-aggregator migrate --print`; do not edit.
\set ON_ERROR_STOP on
BEGIN;

CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version bigint PRIMARY KEY,
    description text NOT NULL,
    installed_on timestamptz NOT NULL DEFAULT now(),
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);

-- 0001 votes

-- Totals per law: one row a law, updated by every batch that touches it. The fill factor leaves
-- room on the page, so that an update stays on it (HOT) and touches no index.
CREATE TABLE IF NOT EXISTS vote_results (
    law_id     varchar(50) COLLATE "C" PRIMARY KEY,
    oui_count  bigint      NOT NULL DEFAULT 0 CHECK (oui_count >= 0),
    non_count  bigint      NOT NULL DEFAULT 0 CHECK (non_count >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- One row a counted vote. Its key is its only index: each further one slows counting.
CREATE TABLE IF NOT EXISTS vote_audit (
    vote_hash   varchar(64) COLLATE "C" PRIMARY KEY,
    citizen_id  varchar(100) NOT NULL,
    law_id      varchar(50) COLLATE "C" NOT NULL,
    choice      varchar(3)  NOT NULL CHECK (choice IN ('oui', 'non')),
    "timestamp" timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- One row a distinct vote that came under a vote_hash already counted with other content.
CREATE TABLE IF NOT EXISTS duplicate_attempts (
    vote_hash         varchar(64) COLLATE "C" NOT NULL REFERENCES vote_audit (vote_hash),
    citizen_id        varchar(100) NOT NULL,
    law_id            varchar(50) COLLATE "C" NOT NULL,
    choice            varchar(3)  NOT NULL CHECK (choice IN ('oui', 'non')),
    attempt_timestamp timestamptz NOT NULL
);

-- Tables that the service's predecessor left may have narrower counts, under a view that has to
-- make way, and fewer columns; what it never recorded stays NULL.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = 'vote_results'
          AND column_name IN ('oui_count', 'non_count') AND data_type <> 'bigint'
    ) THEN
        DROP VIEW IF EXISTS vote_statistics;
        ALTER TABLE vote_results
            ALTER COLUMN oui_count TYPE bigint,
            ALTER COLUMN non_count TYPE bigint;
    END IF;
END
$$;
ALTER TABLE vote_audit ADD COLUMN IF NOT EXISTS recorded_at timestamptz;
ALTER TABLE vote_audit ALTER COLUMN recorded_at SET DEFAULT now();
ALTER TABLE duplicate_attempts ADD COLUMN IF NOT EXISTS law_id varchar(50);
ALTER TABLE duplicate_attempts ADD COLUMN IF NOT EXISTS choice varchar(3);

-- A repeated attempt adds no second row. Serves look-ups by vote_hash, too.
CREATE UNIQUE INDEX IF NOT EXISTS duplicate_attempts_key
    ON duplicate_attempts (vote_hash, citizen_id, law_id, choice, attempt_timestamp);

CREATE OR REPLACE VIEW vote_statistics AS
SELECT law_id,
       oui_count,
       non_count,
       oui_count + non_count AS total_votes,
       round(100.0 * oui_count / nullif(oui_count + non_count, 0), 2) AS oui_percentage,
       round(100.0 * non_count / nullif(oui_count + non_count, 0), 2) AS non_percentage,
       updated_at
FROM vote_results;

-- For auditors, not for a hot path: reads all of vote_audit.
CREATE OR REPLACE VIEW citizens_with_multiple_votes AS
SELECT citizen_id, law_id, count(*) AS vote_count
FROM vote_audit
GROUP BY citizen_id, law_id
HAVING count(*) > 1;
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (1, 'votes', true, '\xbc229564682cff17e0f73ba4e595508b28ac75b9c1cd5c67c261949568d7a661d3c519afab05fe577123a3a2cd1d7607', 0)
ON CONFLICT (version) DO NOTHING;

-- 0002 result corrections

-- One row a law whose totals `vote-aggregator recount --repair` put right: when, as whom, why, and
-- what they were before and after. Written in the transaction that corrects them.
CREATE TABLE IF NOT EXISTS result_corrections (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    corrected_at timestamptz NOT NULL DEFAULT now(),
    corrected_by text        NOT NULL DEFAULT session_user,
    reason       text,
    law_id       varchar(50) COLLATE "C" NOT NULL,
    oui_before   bigint      NOT NULL,
    non_before   bigint      NOT NULL,
    oui_after    bigint      NOT NULL,
    non_after    bigint      NOT NULL
);
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (2, 'result corrections', true, '\xd75846f118faf7fe14c0edeb74cff115122431a1367e1c59de47cdb2c7c0279c4164af97c0f2588421f1be0c9521a478', 0)
ON CONFLICT (version) DO NOTHING;

-- 0003 shared state

-- State that every instance of the service reads from the database, so that all of them show the
-- same.

-- One row a migration that an older release cannot run on: such a release has to know the migration
-- `requires`, or it does not start. A release ignores newer migrations that have no row here.
CREATE TABLE IF NOT EXISTS schema_compatibility (
    migration bigint PRIMARY KEY,
    requires  bigint NOT NULL
);

-- The last comparison of vote_results with vote_audit: at most one row.
CREATE TABLE IF NOT EXISTS reconciliation (
    id          boolean     PRIMARY KEY DEFAULT true CHECK (id),
    compared_at timestamptz NOT NULL,
    duration    interval    NOT NULL,
    laws        bigint      NOT NULL,
    votes       bigint      NOT NULL,
    drift_laws  bigint      NOT NULL,
    drift_votes bigint      NOT NULL
);

-- Acknowledged votes that were found missing from vote_audit, after a failover or a restore lost
-- their commits: one vote_hash stands for its batch. A row stays when its vote is there again.
CREATE TABLE IF NOT EXISTS lost_votes (
    vote_hash       varchar(64) COLLATE "C" NOT NULL,
    alarm           text        NOT NULL,
    noticed_at      timestamptz NOT NULL DEFAULT now(),
    timeline_before bigint      NOT NULL,
    timeline_after  bigint      NOT NULL,
    PRIMARY KEY (vote_hash, alarm)
);

-- Roles that count may use these tables as well: an update of the service must not fail with 42501
-- until somebody runs roles.sql.
DO $$
DECLARE
    grantee oid;
    role    text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT acl.grantee
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE oid = 'vote_audit'::regclass
          AND acl.privilege_type = 'INSERT' AND acl.grantee NOT IN (0, relowner)
    LOOP
        role := quote_ident(pg_get_userbyid(grantee));
        EXECUTE 'GRANT SELECT ON schema_compatibility TO ' || role;
        EXECUTE 'GRANT SELECT, INSERT, UPDATE ON reconciliation TO ' || role;
        EXECUTE 'GRANT SELECT, INSERT ON lost_votes TO ' || role;
    END LOOP;
END
$$;
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (3, 'shared state', true, '\xd07555846accd16ef496d7781d5caef842c6366311676f396b912145e2e78da3a2de2292609c01ed2788c5b237062aa1', 0)
ON CONFLICT (version) DO NOTHING;

-- 0004 cell

-- Which cell this database is, as the setting CELL names it (`3/16`), where votes are divided among
-- several databases: one row, written once by `vote-aggregator migrate --cell`, and never changed.
CREATE TABLE IF NOT EXISTS vote_cell (
    id      boolean PRIMARY KEY DEFAULT true CHECK (id),
    setting text    NOT NULL
);

-- Whoever may insert votes reads it at every start, the owner of vote_audit included: an update of the service must not
-- fail with 42501 until somebody runs roles.sql.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT CASE role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(role)) END
        FROM (
            SELECT relowner AS role FROM pg_class WHERE oid = 'vote_audit'::regclass
            UNION ALL
            SELECT acl.grantee FROM pg_class, aclexplode(relacl) AS acl
            WHERE oid = 'vote_audit'::regclass AND acl.privilege_type = 'INSERT'
            UNION ALL
            SELECT acl.grantee FROM pg_attribute, aclexplode(attacl) AS acl
            WHERE attrelid = 'vote_audit'::regclass AND acl.privilege_type = 'INSERT'
        ) AS inserting
        WHERE role <> (SELECT relowner FROM pg_class WHERE oid = 'vote_cell'::regclass)
    LOOP
        EXECUTE 'GRANT SELECT ON vote_cell TO ' || grantee;
    END LOOP;
END
$$;
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (4, 'cell', true, '\x62b5a87fc1f66203526aecb8029979740d39ca439c54681f7785ab5d1fb250bfc457f1902f640c017b624dc926dd46cb', 0)
ON CONFLICT (version) DO NOTHING;

-- 0005 publication

-- What the public may see of the results, and from when on.

-- One row a change; the last one holds. Append only: roles.sql grants no UPDATE or DELETE. `follows` is the row
-- before, and unique, so that of two changes at the same time one is refused, whatever its snapshot shows. A database
-- is for a test, or it is not, from its first row on.
CREATE TABLE IF NOT EXISTS result_publications (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    follows        bigint      UNIQUE,
    set_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    set_by         text        NOT NULL DEFAULT session_user,
    state          text        NOT NULL CHECK (state IN ('withheld', 'counting', 'provisional', 'final')),
    not_before     timestamptz NOT NULL CHECK (not_before BETWEEN timestamptz '1970-01-01 00:00+00' AND timestamptz '9999-01-01 00:00+00'),
    reason         text        NOT NULL CHECK (reason <> ''),
    test           boolean     NOT NULL,
    results_sha256 bytea       CHECK ((results_sha256 IS NOT NULL) = (state = 'final')),
    UNIQUE (id, test),
    FOREIGN KEY (follows, test) REFERENCES result_publications (id, test)
);
CREATE UNIQUE INDEX IF NOT EXISTS result_publications_first
    ON result_publications ((follows IS NULL)) WHERE follows IS NULL;

-- The frozen copy that each `final` publishes.
CREATE TABLE IF NOT EXISTS certified_results (
    publication_id bigint      NOT NULL REFERENCES result_publications (id),
    law_id         varchar(50) COLLATE "C" NOT NULL,
    oui_count      bigint      NOT NULL CHECK (oui_count >= 0),
    non_count      bigint      NOT NULL CHECK (non_count >= 0),
    PRIMARY KEY (publication_id, law_id)
);

-- What the public may see. The views run with their owner's rights: a role that may read only them learns nothing
-- before the time. now() is when the transaction began, so that all of them are of one moment, and never too early.

-- One row once there is a publication. Before its time it says only when that is: reason and hash may tell results.
CREATE OR REPLACE VIEW published_state WITH (security_barrier) AS
SELECT p.id,
       CASE WHEN p.opened THEN p.state ELSE 'embargoed' END AS state,
       p.not_before,
       p.set_at,
       p.test,
       CASE WHEN p.opened THEN p.reason END AS reason,
       CASE WHEN p.opened THEN p.results_sha256 END AS results_sha256
FROM (SELECT *, now() >= not_before AS opened FROM result_publications ORDER BY id DESC LIMIT 1) AS p;

CREATE OR REPLACE VIEW published_results WITH (security_barrier) AS
SELECT r.law_id::text COLLATE "C"           AS law_id,
       coalesce(r.oui_count, 0)::bigint     AS oui_count,
       coalesce(r.non_count, 0)::bigint     AS non_count,
       r.updated_at::timestamptz            AS updated_at
FROM published_state AS p, vote_results AS r
WHERE p.state IN ('counting', 'provisional')
UNION ALL
SELECT c.law_id::text COLLATE "C", c.oui_count, c.non_count, p.set_at
FROM published_state AS p
JOIN certified_results AS c ON c.publication_id = p.id
WHERE p.state = 'final';

-- A final copy is not changed by what is corrected after it.
CREATE OR REPLACE VIEW published_corrections WITH (security_barrier) AS
SELECT c.id, c.corrected_at, c.law_id, c.oui_before, c.non_before, c.oui_after, c.non_after, c.reason
FROM published_state AS p, result_corrections AS c
WHERE p.state IN ('counting', 'provisional')
   OR (p.state = 'final' AND c.corrected_at <= p.set_at);

-- Every publication, without who made it. Nothing before the time. The reason, and the hash of a frozen copy, only while
-- results are public, and not before the row's own time: both may tell results. The last row says why it is withheld.
CREATE OR REPLACE VIEW published_history WITH (security_barrier) AS
SELECT h.id, h.set_at, h.state, h.not_before,
       CASE WHEN h.shown OR h.id = h.last THEN h.reason END AS reason,
       CASE WHEN h.shown THEN h.results_sha256 END AS results_sha256
FROM (
    SELECT r.*, p.id AS last, p.state IN ('counting', 'provisional', 'final') AND now() >= r.not_before AS shown
    FROM published_state AS p, result_publications AS r
    WHERE p.state <> 'embargoed'
) AS h;

-- The frozen copies of those publications whose hash is shown above.
CREATE OR REPLACE VIEW published_finals WITH (security_barrier) AS
SELECT c.publication_id, c.law_id::text COLLATE "C" AS law_id, c.oui_count, c.non_count
FROM published_history AS h
JOIN certified_results AS c ON c.publication_id = h.id
WHERE h.results_sha256 IS NOT NULL;

-- How many votes were counted after the frozen copy that is shown; no row in any other state.
CREATE OR REPLACE VIEW published_since_final WITH (security_barrier) AS
SELECT (
           (SELECT coalesce(sum(oui_count::numeric + non_count), 0) FROM vote_results)
           - (SELECT coalesce(sum(oui_count::numeric + non_count), 0) FROM published_results)
       )::bigint AS votes
FROM published_state AS p
WHERE p.state = 'final';

-- Whether and when results are public is no secret, and every role that reads results has to know it.
GRANT SELECT ON published_state TO PUBLIC;
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (5, 'publication', true, '\x4da3c25843a3af8d0c70a1473e1c356e9d386a529812bac6669d6b8d63e3c4c322abaa54f9775d563f21017e60442ba0', 0)
ON CONFLICT (version) DO NOTHING;

-- 0006 count batch

-- One row a transaction that counted new votes: its id, and where its rows lie in vote_audit, so that these can be read
-- batch by batch without another index on vote_audit. `first_row` and `last_row` are hints: VACUUM FULL and a dump move
-- rows, and then fewer than `row_count` rows with this xmin lie between them.
CREATE TABLE IF NOT EXISTS count_batch (
    xid       xid8    NOT NULL,
    first_row tid     NOT NULL,
    last_row  tid     NOT NULL,
    row_count integer NOT NULL CHECK (row_count > 0)
);

-- Not unique: a dump restored on another server contains ids that this server assigns again, and counting must not stop
-- at them. Rows that were counted here have xmin = xid::xid; restored ones do not, except by chance.
CREATE INDEX IF NOT EXISTS count_batch_xid ON count_batch (xid);

-- Whoever may insert votes writes it with every batch, the owner of vote_audit included: an update of the service must
-- not fail with 42501 until somebody runs roles.sql.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT CASE role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(role)) END
        FROM (
            SELECT relowner AS role FROM pg_class WHERE oid = 'vote_audit'::regclass
            UNION ALL
            SELECT acl.grantee FROM pg_class, aclexplode(relacl) AS acl
            WHERE oid = 'vote_audit'::regclass AND acl.privilege_type = 'INSERT'
            UNION ALL
            SELECT acl.grantee FROM pg_attribute, aclexplode(attacl) AS acl
            WHERE attrelid = 'vote_audit'::regclass AND acl.privilege_type = 'INSERT'
        ) AS inserting
        WHERE role <> (SELECT relowner FROM pg_class WHERE oid = 'count_batch'::regclass)
    LOOP
        EXECUTE 'GRANT INSERT ON count_batch TO ' || grantee;
    END LOOP;
END
$$;
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (6, 'count batch', true, '\x68b42806a779e454f3db4541ed1c0518497242fa8b0e16c4f0ebc66d908baa75527d4433cbcacd55864201871255fe04', 0)
ON CONFLICT (version) DO NOTHING;

COMMIT;
