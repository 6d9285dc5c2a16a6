-- The transaction with the id $1, in whichever database of the server: the horizon is that of all of them.
SELECT pid,
       NULL::text AS gid,
       usename::text AS role,
       application_name AS application,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision AS age
FROM pg_stat_activity
WHERE backend_xid = $1::xid
UNION ALL
SELECT NULL,
       gid,
       owner::text,
       NULL,
       extract(epoch FROM clock_timestamp() - prepared)::double precision
FROM pg_prepared_xacts
WHERE transaction = $1::xid
LIMIT 1
