-- Sessions of this database that hold a lock on one of the service's tables, or for which a session
-- that uses these tables waits: one row each, the one that keeps most others waiting first. Queries
-- are left out: they may hold a citizen_id. Without pg_monitor a role sees of other roles' sessions
-- the process id, the user, the application and the locks. A prepared transaction has no process.
WITH RECURSIVE lock AS MATERIALIZED (
    SELECT pid, virtualtransaction, relation::regclass::text AS relation, mode, granted
    FROM pg_locks
    WHERE locktype IN ('relation', 'tuple')
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid IS DISTINCT FROM pg_backend_pid()
      AND relation IN (
          SELECT oid FROM pg_class
          WHERE relname IN ('_sqlx_migrations', 'vote_results', 'vote_audit', 'duplicate_attempts',
                            'result_corrections', 'schema_compatibility', 'reconciliation',
                            'lost_votes', 'vote_cell', 'count_batch', 'vote_statistics',
                            'citizens_with_multiple_votes'))
    UNION ALL
    SELECT pid, virtualtransaction, 'migrations', mode, granted
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1
      AND (classid::bigint << 32) | objid::bigint = 8462109873254410594
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid <> pg_backend_pid()
),
-- Each waiting session that uses the tables, with all that it waits for, at first or second hand.
waiting (waiter, blocker) AS (
    SELECT pid, unnest(pg_blocking_pids(pid))
    FROM (SELECT DISTINCT pid FROM pg_locks
          WHERE NOT granted AND pid IN (SELECT lock.pid FROM lock)) AS waiter
    UNION
    SELECT waiter, unnest(pg_blocking_pids(blocker))
    FROM waiting
    WHERE blocker <> 0
),
found AS (
    SELECT pid, virtualtransaction FROM lock WHERE granted
    UNION
    SELECT pid, virtualtransaction FROM pg_locks
    WHERE granted AND locktype = 'virtualxid' AND pid IN (SELECT blocker FROM waiting)
)
SELECT found.pid,
       coalesce(found.virtualtransaction, '') AS virtualtransaction,
       prepared.gid,
       coalesce(session.usename, prepared.owner)::text AS role,
       application_name,
       host(client_addr) AS client,
       state,
       nullif(wait_event, 'ClientRead') AS wait_event,
       extract(epoch FROM now() - coalesce(xact_start, prepared.prepared))::float8 AS age,
       -- Shown of each session that this role may see.
       found.pid IS NOT NULL AND backend_type IS NULL AS hidden,
       coalesce(role.rolsuper, false) AS superuser,
       (SELECT string_agg(DISTINCT mode || ' on ' || relation, ', ') FROM lock
        WHERE lock.granted AND lock.virtualtransaction = found.virtualtransaction) AS holds,
       -- With what counting does, all but these go together.
       EXISTS (SELECT FROM lock
               WHERE lock.granted AND lock.virtualtransaction = found.virtualtransaction
                 AND mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock', 'SIReadLock')
                 AND relation <> 'migrations') AS exclusive,
       EXISTS (SELECT FROM lock
               WHERE lock.granted AND lock.virtualtransaction = found.virtualtransaction
                 AND relation = 'migrations') AS migrates,
       coalesce(pg_blocking_pids(found.pid), '{}') AS waits_for,
       ARRAY(SELECT waiter FROM waiting WHERE blocker = coalesce(found.pid, 0)) AS blocks
FROM found
LEFT JOIN pg_stat_activity AS session ON session.pid = found.pid
LEFT JOIN pg_prepared_xacts AS prepared
    ON found.pid IS NULL AND prepared.transaction IN (
        SELECT transactionid FROM pg_locks AS own
        WHERE own.pid IS NULL AND own.virtualtransaction = found.virtualtransaction)
LEFT JOIN pg_roles AS role ON role.rolname = session.usename
ORDER BY cardinality(ARRAY(SELECT waiter FROM waiting WHERE blocker = coalesce(found.pid, 0))) DESC,
         age DESC NULLS LAST, pid
