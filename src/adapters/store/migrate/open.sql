-- The schema, quoted, if PUBLIC may create objects in it, and whether this role owns it.
SELECT pg_catalog.quote_ident(nspname) AS schema,
       pg_catalog.pg_has_role(nspowner, 'USAGE') AS owner
FROM pg_catalog.pg_namespace
WHERE nspname = pg_catalog.current_schema()
  AND EXISTS (SELECT FROM pg_catalog.aclexplode(nspacl) AS acl
              WHERE acl.grantee = '0'::pg_catalog.oid AND acl.privilege_type = 'CREATE')
