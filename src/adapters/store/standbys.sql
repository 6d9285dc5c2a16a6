-- Standbys that stream from this server, and whether commits of this session wait for one. Of a
-- walsender of another role, a role without pg_read_all_stats sees that it is there and no details; a
-- base backup and logical replication are left out where that can be seen.
SELECT btrim(current_setting('synchronous_standby_names')) <> '' AS named,
       current_setting('synchronous_commit') NOT IN ('off', 'local') AS waits,
       (SELECT count(*) FROM pg_stat_replication AS sender
        WHERE coalesce(sender.state, '') <> 'backup'
          AND NOT EXISTS (SELECT FROM pg_replication_slots AS slot
                          WHERE slot.active_pid = sender.pid AND slot.slot_type = 'logical'))
           AS connected
