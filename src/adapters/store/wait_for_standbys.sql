-- A transaction that writes WAL, so that its COMMIT waits for the standbys that are named, and with it for all that was
-- committed before, as in classify.sql.
SELECT CASE
    WHEN current_setting('synchronous_standby_names') <> ''
    THEN pg_logical_emit_message(true, 'vote-aggregator', '')::text
END
