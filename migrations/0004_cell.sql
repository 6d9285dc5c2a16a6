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
