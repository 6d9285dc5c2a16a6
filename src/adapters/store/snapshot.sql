-- The moment that a snapshot shows. A standby may lag; one that has replayed all it received shows this moment.
SELECT CASE
    WHEN pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS DISTINCT FROM pg_last_wal_replay_lsn()
    THEN coalesce(pg_last_xact_replay_timestamp(), now())
    ELSE now()
END
