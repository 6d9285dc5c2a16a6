-- Objects under our names that the migrating role must not touch: one row a problem. Reads the
-- catalogue alone. $1 is the search path, $2 the schema in which tables are created. Runs with
-- search_path = pg_catalog, so that no object of another role is called or read here.
WITH
-- Every relation that the migrations make. A test compares it with the catalogue.
ours (name, kind) AS (VALUES
    ('_sqlx_migrations', 'table'),
    ('vote_results', 'table'),
    ('vote_audit', 'table'),
    ('duplicate_attempts', 'table'),
    ('result_corrections', 'table'),
    ('schema_compatibility', 'table'),
    ('reconciliation', 'table'),
    ('lost_votes', 'table'),
    ('vote_cell', 'table'),
    ('result_publications', 'table'),
    ('certified_results', 'table'),
    ('count_batch', 'table'),
    ('vote_statistics', 'view'),
    ('citizens_with_multiple_votes', 'view'),
    ('published_state', 'view'),
    ('published_results', 'view'),
    ('published_corrections', 'view'),
    ('published_history', 'view'),
    ('published_finals', 'view'),
    ('published_since_final', 'view'),
    ('result_corrections_id_seq', 'sequence'),
    ('result_publications_id_seq', 'sequence'),
    ('_sqlx_migrations_pkey', 'index'),
    ('vote_results_pkey', 'index'),
    ('vote_audit_pkey', 'index'),
    ('duplicate_attempts_key', 'index'),
    ('result_corrections_pkey', 'index'),
    ('schema_compatibility_pkey', 'index'),
    ('reconciliation_pkey', 'index'),
    ('lost_votes_pkey', 'index'),
    ('vote_cell_pkey', 'index'),
    ('result_publications_pkey', 'index'),
    ('result_publications_follows_key', 'index'),
    ('result_publications_id_test_key', 'index'),
    ('result_publications_first', 'index'),
    ('certified_results_pkey', 'index'),
    ('count_batch_xid', 'index'),
    -- The predecessor's, where it created the audit.
    ('vote_audit_vote_hash_key', 'index')
),
me AS (
    SELECT oid, rolsuper, has_schema_privilege($2, 'CREATE') AS may_create
    FROM pg_roles
    WHERE rolname = current_user
),
-- An object runs code of its owner's as whoever writes to it (triggers, defaults, constraints). The
-- privileges of a superuser cannot be inherited by membership, so a superuser trusts superusers alone. A
-- role that creates nothing can only see whether all objects belong to the owner of the audit.
trusted AS (
    SELECT role.oid
    FROM pg_roles AS role, me
    WHERE role.oid = me.oid
       OR role.rolsuper
       OR (NOT me.rolsuper AND pg_has_role(role.oid, 'USAGE'))
       OR (NOT me.may_create AND role.oid = (
              SELECT relowner
              FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
              WHERE nspname = $2::name AND relname = 'vote_audit'))
),
path AS (
    SELECT schema::name, nth
    FROM unnest($1::text[]) WITH ORDINALITY AS p (schema, nth)
),
found AS (
    SELECT class.oid, relname, relkind, relowner, nspname, ours.kind, path.nth
    FROM ours
    JOIN pg_class AS class ON relname = ours.name::name
    JOIN pg_namespace AS namespace ON namespace.oid = relnamespace
    JOIN path ON path.schema = nspname
),
here AS (
    SELECT * FROM found WHERE nspname = $2::name
)
-- `ownership`: it is another's, or not what it should be; also without a pending migration.
-- `unreadable`: reading it may run code.
SELECT 'schema ' || quote_ident(nspname) AS object,
       'belongs to ' || quote_ident(pg_get_userbyid(nspowner)) AS problem,
       true AS ownership,
       false AS unreadable
FROM pg_namespace
WHERE nspname = $2::name
  AND nspowner NOT IN (SELECT oid FROM trusted)
  AND nspowner <> (SELECT datdba FROM pg_database WHERE datname = current_database())
  AND pg_get_userbyid(nspowner) <> 'pg_database_owner'

UNION ALL
SELECT kind || ' ' || quote_ident(relname),
       'belongs to ' || quote_ident(pg_get_userbyid(relowner)),
       true,
       false
FROM here
WHERE relowner NOT IN (SELECT oid FROM trusted)

UNION ALL
SELECT kind || ' ' || quote_ident(relname),
       'is not ' || CASE kind WHEN 'index' THEN 'an ' ELSE 'a ' END || kind
           || ' (relkind ' || relkind::text || ')',
       true,
       relname IN ('_sqlx_migrations', 'schema_compatibility')
FROM here
WHERE relkind::text <> ALL (CASE kind
    WHEN 'table' THEN ARRAY['r', 'p']
    WHEN 'view' THEN ARRAY['v']
    WHEN 'index' THEN ARRAY['i', 'I']
    ELSE ARRAY['S']
END)

UNION ALL
SELECT kind || ' ' || quote_ident(relname),
       'is found in schema ' || quote_ident(nspname) || ' by the search path, and not in '
           || quote_ident($2),
       relowner NOT IN (SELECT oid FROM trusted),
       relname IN ('_sqlx_migrations', 'schema_compatibility')
           AND (relkind NOT IN ('r', 'p')
                OR EXISTS (SELECT FROM pg_policy WHERE polrelid = found.oid))
FROM found
WHERE kind IN ('table', 'view')
  AND nspname <> $2::name
  AND (nth < (SELECT min(path.nth) FROM path WHERE schema = $2::name)
       OR relname NOT IN (SELECT here.relname FROM here))

UNION ALL
SELECT kind || ' ' || quote_ident(relname),
       'has the trigger ' || quote_ident(tgname) || ', whose function '
           || quote_ident(proname) || ' belongs to ' || quote_ident(pg_get_userbyid(proowner)),
       false,
       false
FROM here
JOIN pg_trigger ON tgrelid = here.oid AND NOT tgisinternal
JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE proowner NOT IN (SELECT oid FROM trusted)

UNION ALL
SELECT kind || ' ' || quote_ident(relname),
       'has the rule ' || quote_ident(rulename),
       false,
       false
FROM here
JOIN pg_rewrite ON ev_class = here.oid
WHERE NOT (relkind = 'v' AND rulename = '_RETURN')

UNION ALL
SELECT kind || ' ' || quote_ident(relname),
       'has the row security policy ' || quote_ident(polname),
       false,
       relname IN ('_sqlx_migrations', 'schema_compatibility')
FROM here
JOIN pg_policy ON polrelid = here.oid

-- An overload that fits the arguments better than the built-in one would be called in its place.
UNION ALL
SELECT 'function ' || quote_ident(proname) || '(' || pg_get_function_identity_arguments(other.oid) || ')',
       'belongs to ' || quote_ident(pg_get_userbyid(proowner))
           || ' and has the name of a built-in function',
       false,
       false
FROM pg_proc AS other
JOIN pg_namespace AS namespace ON namespace.oid = pronamespace
JOIN path ON path.schema = nspname
WHERE nspname <> 'pg_catalog'
  AND proowner NOT IN (SELECT oid FROM trusted)
  AND EXISTS (SELECT FROM pg_proc AS builtin
              WHERE builtin.proname = other.proname
                AND builtin.pronamespace = 'pg_catalog'::regnamespace)

UNION ALL
SELECT 'operator ' || other.oid::regoperator::text,
       'belongs to ' || quote_ident(pg_get_userbyid(oprowner))
           || ' and has the name of a built-in operator',
       false,
       false
FROM pg_operator AS other
JOIN pg_namespace AS namespace ON namespace.oid = oprnamespace
JOIN path ON path.schema = nspname
WHERE nspname <> 'pg_catalog'
  AND oprowner NOT IN (SELECT oid FROM trusted)
  AND EXISTS (SELECT FROM pg_operator AS builtin
              WHERE builtin.oprname = other.oprname
                AND builtin.oprnamespace = 'pg_catalog'::regnamespace)
ORDER BY 1, 2
