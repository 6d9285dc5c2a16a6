-- Group roles with the least privileges for vote-aggregator's tables: psql -d election_votes -f roles.sql
-- Run it after init_db.sql (or `vote-aggregator migrate`), as the owner of the tables, who must be
-- allowed to create roles; and again after an upgrade. Then grant the groups to login roles:
--
--   CREATE ROLE counter LOGIN PASSWORD '...' IN ROLE vote_service;
--
-- An operator who has to see and end sessions that block counting also needs pg_monitor and pg_signal_backend
-- (docs/runbook.md, "Who blocks counting").
--
-- Only the owner can change or delete an audit row, and no group owns anything.
\set ON_ERROR_STOP on
BEGIN;

-- Roles belong to the whole server: another database may have created them, or be creating them concurrently.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['vote_service', 'vote_results_reader', 'vote_auditor', 'vote_publisher',
                                'vote_board', 'vote_sealer'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

-- Revoke earlier grants first, so that only the grants below remain.
REVOKE ALL ON _sqlx_migrations, vote_results, vote_audit, duplicate_attempts, result_corrections,
    schema_compatibility, reconciliation, lost_votes, vote_cell, vote_statistics, citizens_with_multiple_votes,
    result_publications, certified_results, published_state, published_results, published_corrections,
    published_history, published_finals, published_since_final, count_batch
    FROM PUBLIC, vote_service, vote_results_reader, vote_auditor, vote_publisher, vote_board, vote_sealer;

-- The service: counts, records attempts, reads which migrations are applied and which cell this is, and shares
-- findings with other instances.
GRANT SELECT ON _sqlx_migrations, schema_compatibility, vote_cell TO vote_service;
GRANT SELECT, INSERT ON vote_audit, duplicate_attempts, lost_votes TO vote_service;
GRANT INSERT ON count_batch TO vote_service;
GRANT SELECT, INSERT, UPDATE ON vote_results, reconciliation TO vote_service;

-- Results, which contain no citizens, also before they are published, and the cell that they are of.
GRANT SELECT ON vote_results, vote_statistics, vote_cell TO vote_results_reader;

-- Auditors read everything, including who voted what. Only the owner may correct results.
GRANT SELECT ON _sqlx_migrations, vote_results, vote_audit, duplicate_attempts, result_corrections,
    schema_compatibility, reconciliation, lost_votes, vote_cell, vote_statistics, citizens_with_multiple_votes,
    result_publications, certified_results, published_results, published_corrections, published_history,
    published_finals, published_since_final, count_batch
    TO vote_auditor;

-- Publishers decide what the public sees, and cannot take back that they did; the server writes who and when. For
-- `final` they recount, and need vote_auditor as well. A cell has a part of the results, and publishes nothing.
GRANT SELECT ON vote_cell TO vote_publisher;
GRANT SELECT, INSERT (follows, state, not_before, reason, test, results_sha256) ON result_publications
    TO vote_publisher;
GRANT INSERT ON certified_results TO vote_publisher;

-- A board shows what is published, and can read nothing else.
GRANT SELECT ON published_results, published_corrections, published_history, published_finals, published_since_final
    TO vote_publisher, vote_board;

-- The sealer reads what the log of counted votes is made of, who voted what included, and writes nothing.
GRANT SELECT ON _sqlx_migrations, vote_audit, vote_results, result_corrections, count_batch TO vote_sealer;

-- Whether the results are published is no secret: `results`, `recount` and `check` warn while they are not.
GRANT SELECT ON published_state TO PUBLIC;

DO $$
DECLARE
    sequence text;
BEGIN
    -- Databases created before PostgreSQL 15 let every role create tables in the schema public.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC, vote_service, vote_results_reader, '
                   'vote_auditor, vote_publisher, vote_board, vote_sealer', current_schema());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO vote_service, vote_results_reader, vote_auditor, '
                   'vote_publisher, vote_board, vote_sealer', current_schema());
    -- Tables of the predecessor have serial numbers: inserting requires USAGE on their sequences.
    FOR sequence IN
        SELECT pg_get_serial_sequence(format('%I.%I', table_schema, table_name), column_name)
        FROM information_schema.columns
        WHERE table_schema = current_schema()
          AND table_name IN ('vote_audit', 'duplicate_attempts', 'vote_results')
    LOOP
        IF sequence IS NOT NULL THEN
            EXECUTE 'GRANT USAGE ON SEQUENCE ' || sequence || ' TO vote_service';
        END IF;
    END LOOP;
END
$$;

COMMIT;
