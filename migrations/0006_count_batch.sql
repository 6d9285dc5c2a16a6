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
