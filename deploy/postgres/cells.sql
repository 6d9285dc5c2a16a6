-- The results of all cells as one view, which `vote-aggregator results` reads. It fails while a cell is away, or if a
-- server leads to another cell than its own: the sum is never one of some cells.
--
--   createdb election_sum
--   CELLS_PASSWORD=... psql -d election_sum -v cells=16 -v host=pg -v port=5432 -v database=votes_ -v role=reader \
--       -f deploy/postgres/cells.sql
--
-- The databases are votes_0 to votes_15, all on one server at first. `role` is a role of theirs in vote_results_reader
-- (roles.sql). Run it as the role that will own the view. Grant SELECT on vote_results to those who read the sum;
-- they need nothing on the cells' databases. When a cell has moved to another server, lead its server there:
--
--   ALTER SERVER cell_3 OPTIONS (SET host 'pg2', SET port '5432')
\set ON_ERROR_STOP on
\getenv password CELLS_PASSWORD
BEGIN;
CREATE EXTENSION IF NOT EXISTS postgres_fdw;

-- Of the value of CELL that a database was marked with; NULL if it was not.
CREATE FUNCTION is_cell(setting text, cell text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF regexp_replace(setting, '^crc32:', '') IS DISTINCT FROM cell THEN
        RAISE EXCEPTION 'the foreign server of cell % leads to a database that is %', cell,
            coalesce('cell ' || setting, 'not marked as a cell')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN true;
END
$$;

SELECT format($$ CREATE SERVER %1$I FOREIGN DATA WRAPPER postgres_fdw
           OPTIONS (host %2$L, port %3$L, dbname %4$L, connect_timeout '5', async_capable 'true') $$,
           name, :'host', :'port', :'database' || cell),
       format($$ CREATE USER MAPPING FOR CURRENT_USER SERVER %1$I OPTIONS (user %2$L, password %3$L) $$,
           name, :'role', :'password'),
       format($$ CREATE SCHEMA %1$I $$, name),
       format($$ CREATE FOREIGN TABLE %1$I.vote_results (
               law_id varchar(50) COLLATE "C" NOT NULL, oui_count bigint NOT NULL, non_count bigint NOT NULL,
               updated_at timestamptz
           ) SERVER %1$I OPTIONS (schema_name 'public', table_name 'vote_results') $$, name),
       format($$ CREATE FOREIGN TABLE %1$I.vote_cell (setting text NOT NULL)
           SERVER %1$I OPTIONS (schema_name 'public', table_name 'vote_cell') $$, name)
FROM generate_series(0, :cells - 1) AS cell, format('cell_%s', cell) AS name
\gexec

SELECT 'CREATE VIEW vote_results AS
    SELECT law_id, sum(oui_count)::bigint AS oui_count, sum(non_count)::bigint AS non_count,
           max(updated_at) AS updated_at
    FROM (' || string_agg(
        format($$ SELECT * FROM %1$I.vote_results WHERE is_cell((SELECT setting FROM %1$I.vote_cell), %2$L) $$,
            format('cell_%s', cell), format('%s/%s', cell, :cells)),
        ' UNION ALL ' ORDER BY cell) || ') AS cells
    GROUP BY law_id'
FROM generate_series(0, :cells - 1) AS cell
\gexec
COMMIT;
