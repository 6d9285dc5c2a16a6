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
