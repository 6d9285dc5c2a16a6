-- Which cell this database is, as the setting CELL names it (`3/16`), where votes are divided among
-- several databases: one row, written once by `vote-aggregator migrate --cell`, and never changed.
CREATE TABLE IF NOT EXISTS vote_cell (
    id      boolean PRIMARY KEY DEFAULT true CHECK (id),
    setting text    NOT NULL
);

-- Roles that count read it at every start: an update of the service must not fail with 42501 until
-- somebody runs roles.sql.
DO $$
DECLARE
    grantee oid;
BEGIN
    FOR grantee IN
        SELECT DISTINCT acl.grantee
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE oid = 'vote_audit'::regclass
          AND acl.privilege_type = 'INSERT' AND acl.grantee NOT IN (0, relowner)
    LOOP
        EXECUTE 'GRANT SELECT ON vote_cell TO ' || quote_ident(pg_get_userbyid(grantee));
    END LOOP;
END
$$;
