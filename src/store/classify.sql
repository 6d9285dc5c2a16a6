-- Runs behind count.sql in the same transaction when some hash of the batch was there already. A
-- statement of its own, so that it sees rows which another transaction committed while count.sql
-- waited for them. In come all distinct votes of the batch; out comes one row, how many of them
-- found their stored vote and, by position, which differ from it. Differing votes are recorded
-- in key order, repeats of a recorded one are not.
WITH vote AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
        WITH ORDINALITY AS v (vote_hash, citizen_id, law_id, choice, cast_at, position)
),
compared AS (
    SELECT vote.*,
           (stored.citizen_id, stored.law_id, stored.choice, stored."timestamp")
               IS DISTINCT FROM (vote.citizen_id, vote.law_id, vote.choice, vote.cast_at) AS differs
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
       coalesce(array_agg(position) FILTER (WHERE differs), '{}') AS differing
FROM compared
