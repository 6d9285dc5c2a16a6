-- The schema in which this role creates tables, the search path, whether it may create there, and the
-- owner of vote_audit. Operators are qualified: this runs with the session's search path.
SELECT pg_catalog.current_schema() AS schema,
       pg_catalog.array_to_json(pg_catalog.current_schemas(true))::pg_catalog.text AS path,
       coalesce(
           pg_catalog.has_schema_privilege(pg_catalog.current_schema()::pg_catalog.text, 'CREATE'),
           false
       ) AS may_create,
       (SELECT pg_catalog.pg_get_userbyid(relowner)::pg_catalog.text
        FROM pg_catalog.pg_class
        WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('vote_audit')::pg_catalog.oid)
           AS tables_owner
