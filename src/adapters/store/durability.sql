-- What could lose committed votes: one row a setting or table, with what to do about it. Any role may
-- read all of this. $1: the tables that counting writes to.
SELECT name || '=' || setting AS risk,
       'set ' || name || ' to on' AS remedy
FROM pg_settings AS setting
WHERE (name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off')
   -- `local` does not wait for the standbys that are named: their promotion loses commits.
   OR (name = 'synchronous_commit' AND setting = 'local'
       AND btrim(current_setting('synchronous_standby_names')) <> '')

UNION ALL
-- The tables and their partitions. A crash empties an unlogged table; what a foreign table keeps is
-- not known here.
SELECT kind || ' ' || relation.relid::regclass::text,
       CASE kind
           WHEN 'unlogged table' THEN 'ALTER TABLE ' || relation.relid::regclass::text || ' SET LOGGED'
           ELSE 'replace it by a table'
       END
FROM (
    WITH RECURSIVE relation AS (
        SELECT to_regclass(name)::oid AS relid
        FROM unnest($1::text[]) AS name
        UNION
        SELECT inhrelid FROM pg_inherits JOIN relation ON inhparent = relid
    )
    SELECT relid FROM relation WHERE relid IS NOT NULL
) AS relation
JOIN pg_class AS class ON class.oid = relation.relid
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN relkind = 'f' THEN 'foreign table'
        WHEN relkind NOT IN ('r', 'p') THEN 'relation that is not a table:'
        WHEN relpersistence = 'u' THEN 'unlogged table'
        WHEN relpersistence = 't' THEN 'temporary table'
    END AS kind
) AS kinds
WHERE kind IS NOT NULL
ORDER BY 1
