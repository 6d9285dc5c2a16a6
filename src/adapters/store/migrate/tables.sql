-- The tables of versions and requirements as the search path finds them now: name, qualified name,
-- and whether this transaction holds a lock on it. Views are left out. Operators are qualified: this
-- runs with the session's search path, before anything is known of the schemas in it.
SELECT class.relname::pg_catalog.text,
       pg_catalog.format('%I.%I', namespace.nspname, class.relname),
       EXISTS (
           SELECT FROM pg_catalog.pg_locks AS lock
           WHERE lock.locktype OPERATOR(pg_catalog.=) 'relation'::pg_catalog.text
             AND lock.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
             AND lock.relation OPERATOR(pg_catalog.=) class.oid
             AND lock.mode OPERATOR(pg_catalog.=) 'AccessShareLock'::pg_catalog.text
             AND lock.granted)
FROM (VALUES (pg_catalog.to_regclass('_sqlx_migrations')),
             (pg_catalog.to_regclass('schema_compatibility'))) AS ours (relation)
JOIN pg_catalog.pg_class AS class
  ON class.oid OPERATOR(pg_catalog.=) ours.relation::pg_catalog.oid
JOIN pg_catalog.pg_namespace AS namespace
  ON namespace.oid OPERATOR(pg_catalog.=) class.relnamespace
WHERE class.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog."char"
   OR class.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog."char"
