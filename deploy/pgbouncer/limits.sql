-- What the service sets at the start of a session, set on its role instead, since a transaction pooler drops
-- it: psql -d DATABASE -v role=vote_counter -f limits.sql
ALTER ROLE :"role" SET statement_timeout = '10s';
ALTER ROLE :"role" SET lock_timeout = '3s';
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE :"role" SET default_transaction_isolation = 'read committed';
ALTER ROLE :"role" SET tcp_keepalives_idle = 10;
ALTER ROLE :"role" SET tcp_keepalives_interval = 5;
ALTER ROLE :"role" SET tcp_keepalives_count = 3;
