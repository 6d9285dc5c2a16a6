-- Sets the totals of some laws and records what they were; all comes in as arrays, and the reason.
WITH correction AS (
    SELECT *
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
        AS c (law_id, oui_before, non_before, oui_after, non_after)
),
total AS (
    INSERT INTO vote_results (law_id, oui_count, non_count)
    SELECT law_id, oui_after, non_after
    FROM correction
    ORDER BY law_id COLLATE "C"
    ON CONFLICT (law_id) DO UPDATE
        SET oui_count  = excluded.oui_count,
            non_count  = excluded.non_count,
            updated_at = now()
)
INSERT INTO result_corrections (reason, law_id, oui_before, non_before, oui_after, non_after)
SELECT $6, law_id, oui_before, non_before, oui_after, non_after
FROM correction
ORDER BY law_id COLLATE "C"
RETURNING id
