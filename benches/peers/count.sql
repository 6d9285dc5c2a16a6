-- Audit and totals in one statement, as one writes it without further thought: rows in the order of
-- their arrival, and only what was new is added.
WITH recorded AS (
    INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, "timestamp")
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
    ON CONFLICT (vote_hash) DO NOTHING
    RETURNING law_id, choice
)
INSERT INTO vote_results (law_id, oui_count, non_count)
SELECT law_id, count(*) FILTER (WHERE choice = 'oui'), count(*) FILTER (WHERE choice = 'non')
FROM recorded GROUP BY law_id ORDER BY law_id
ON CONFLICT (law_id) DO UPDATE
SET oui_count = vote_results.oui_count + excluded.oui_count,
    non_count = vote_results.non_count + excluded.non_count,
    updated_at = now()
