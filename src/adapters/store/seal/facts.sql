-- The horizon below which every transaction is decided, and which server says so. pg_snapshot_xmin alone is used: the
-- list of transactions in progress was wrong on standbys.
SELECT pg_snapshot_xmin(snapshot)::text::bigint AS horizon,
       pg_snapshot_xmax(snapshot)::text::bigint AS next,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       -- Other ones in another database of the server, or after a dump was restored; VACUUM FULL keeps them.
       'vote_audit'::regclass::oid::bigint AS vote_audit,
       'count_batch'::regclass::oid::bigint AS count_batch,
       pg_is_in_recovery() AS is_standby,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
       END AS timeline
FROM pg_current_snapshot() AS snapshot
