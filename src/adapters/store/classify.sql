-- Runs behind count.sql in the same transaction when some hash of the batch was there already. A
-- statement of its own, so that it sees rows which another transaction committed while count.sql
-- waited for them. In come all distinct votes of the batch; out comes one row, how many of them
-- found their stored vote and, by position, which differ from it. Differing votes are recorded
-- in key order, repeats of a recorded one are not. The marker is a vote_hash that this transaction
-- added; where it added none, the one recorded last, which an interrupted COMMIT before it may have.
--
-- PostgreSQL lets a COMMIT wait for standbys only if the transaction wrote WAL. A rerun after an
-- interrupted COMMIT finds its own votes and writes nothing: acknowledged at once, they would be lost
-- with the primary. So this writes a message to the WAL, which PUBLIC may, wherever standbys are
-- named.
WITH vote AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
        WITH ORDINALITY AS v (vote_hash, citizen_id, law_id, choice, cast_at, position)
),
compared AS (
    SELECT vote.*,
           (stored.citizen_id, stored.law_id, stored.choice, stored."timestamp")
               IS DISTINCT FROM (vote.citizen_id, vote.law_id, vote.choice, vote.cast_at) AS differs,
           stored.xmin IS NOT DISTINCT FROM pg_current_xact_id_if_assigned()::xid AS added,
           stored.recorded_at
    FROM vote
    JOIN vote_audit AS stored ON stored.vote_hash = vote.vote_hash
),
attempt AS (
    INSERT INTO duplicate_attempts (vote_hash, citizen_id, law_id, choice, attempt_timestamp)
    SELECT vote_hash, citizen_id, law_id, choice, cast_at
    FROM compared
    WHERE differs
    ORDER BY vote_hash COLLATE "C", citizen_id COLLATE "C", law_id COLLATE "C", choice, cast_at
    ON CONFLICT DO NOTHING
)
SELECT count(*) AS found,
       coalesce(array_agg(position) FILTER (WHERE differs), '{}') AS differing,
       (array_agg(vote_hash ORDER BY added DESC, recorded_at DESC NULLS LAST))[1] AS marker,
       CASE
           WHEN current_setting('synchronous_standby_names') <> ''
           THEN pg_logical_emit_message(true, 'vote-aggregator', '')::text
       END AS written
FROM compared
