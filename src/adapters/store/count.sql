-- One batch, counted: one row a distinct vote_hash comes in as five arrays, sorted by hash; only
-- the rows that were new are grouped and added to the totals; two rows a law touched come out: what
-- was added, and the totals. One row in count_batch says where the new rows lie; without new rows there is none.
--
-- Why the sorts: concurrent batches take their row locks in one order, so they cannot deadlock.
-- Why no join of the two: it costs batches of 100 a twelfth of their time.
WITH vote AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
        AS v (vote_hash, citizen_id, law_id, choice, cast_at)
),
recorded AS (
    INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, "timestamp")
    SELECT vote_hash, citizen_id, law_id, choice, cast_at
    FROM vote
    ORDER BY vote_hash COLLATE "C"
    ON CONFLICT (vote_hash) DO NOTHING
    RETURNING law_id, choice, ctid AS place
),
addition AS (
    SELECT law_id,
           count(*) FILTER (WHERE choice = 'oui') AS oui,
           count(*) FILTER (WHERE choice = 'non') AS non
    FROM recorded
    GROUP BY law_id
),
total AS (
    INSERT INTO vote_results AS r (law_id, oui_count, non_count)
    SELECT law_id, oui, non
    FROM addition
    ORDER BY law_id COLLATE "C"
    ON CONFLICT (law_id) DO UPDATE
        SET oui_count  = r.oui_count + excluded.oui_count,
            non_count  = r.non_count + excluded.non_count,
            updated_at = now()
    RETURNING law_id, oui_count, non_count
),
batch AS (
    INSERT INTO count_batch (xid, first_row, last_row, row_count)
    SELECT pg_current_xact_id(), min(place), max(place), count(*)
    FROM recorded
    HAVING count(*) > 0
)
SELECT law_id, oui, non, false AS is_total
FROM addition
UNION ALL
SELECT law_id, oui_count, non_count, true
FROM total
