-- What `vote-aggregator check` asks the server and this role about themselves: one row, readable by
-- any role, with the tables in place or not.
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int4 AS version_number,
       pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only') = 'on' AS read_only,
       current_setting('server_encoding') AS encoding,
       (SELECT ssl.version || ', ' || ssl.cipher FROM pg_stat_ssl AS ssl
        WHERE pid = pg_backend_pid() AND ssl.ssl) AS tls,
       rolsuper AS superuser,
       -- A superuser may do all of these.
       ARRAY(
           SELECT privilege
           FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS privilege
           WHERE coalesce(has_table_privilege(to_regclass('vote_audit'), privilege), false)
       ) AS audit_privileges,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create,
       -- Tables that are there are altered by their owner alone.
       coalesce((SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class
                 WHERE oid IN (to_regclass('vote_results'), to_regclass('vote_audit'),
                               to_regclass('duplicate_attempts'), to_regclass('_sqlx_migrations'))),
                true) AS owns_tables,
       current_setting('max_connections')::int8 AS max_connections,
       current_setting('superuser_reserved_connections')::int8
           -- From PostgreSQL 16 on.
           + coalesce(current_setting('reserved_connections', true)::int8, 0) AS reserved,
       (SELECT sum(numbackends)::int8 FROM pg_stat_database) AS used,
       -- Instances that run already, as this role: theirs is no competition.
       (SELECT count(*) FROM pg_stat_activity
        WHERE usename = current_user AND application_name LIKE 'vote-aggregator%') AS ours,
       nullif(rolconnlimit, -1)::int8 AS role_limit,
       (SELECT nullif(datconnlimit, -1)::int8 FROM pg_database
        WHERE datname = current_database()) AS database_limit,
       coalesce((SELECT setting::int8 FROM pg_settings WHERE name = 'transaction_timeout'), 0)
           AS transaction_timeout,
       -- Bound parameters are in the server's log with these, unless their length is 0 there.
       ARRAY(
           SELECT name || '=' || setting
           FROM pg_settings
           WHERE ((name = 'log_statement' AND setting IN ('mod', 'all'))
               OR (name IN ('log_min_duration_statement', 'log_min_duration_sample')
                   AND setting <> '-1')
               OR (name = 'log_parameter_max_length_on_error' AND setting <> '0'))
             AND (name LIKE '%on_error'
               OR coalesce(current_setting('log_parameter_max_length', true), '-1') <> '0')
           ORDER BY name
       ) AS logs_votes
FROM pg_roles
WHERE rolname = current_user
