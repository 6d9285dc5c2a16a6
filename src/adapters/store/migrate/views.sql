-- Views on the tables that counting writes to, and views on those: ones under our names, and others.
WITH RECURSIVE uses (oid) AS (
    SELECT class.oid
    FROM pg_catalog.pg_class AS class
    WHERE class.oid IN {oids}
    UNION
    SELECT ev_class
    FROM uses
    JOIN pg_catalog.pg_depend ON refobjid = uses.oid AND deptype = 'n'
        AND classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
    JOIN pg_catalog.pg_rewrite AS rule ON rule.oid = objid
),
view (name, ours) AS (
    SELECT oid::pg_catalog.regclass::pg_catalog.text,
           relname IN ('vote_statistics', 'citizens_with_multiple_votes', 'published_results',
                       'published_since_final')
    FROM uses JOIN pg_catalog.pg_class AS class USING (oid)
    WHERE relkind IN ('v', 'm')
)
SELECT coalesce(pg_catalog.string_agg(name, ', ' ORDER BY name) FILTER (WHERE ours), 'none'),
       coalesce(pg_catalog.string_agg(name, ', ' ORDER BY name) FILTER (WHERE NOT ours), 'none')
FROM view
