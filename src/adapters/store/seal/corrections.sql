-- All corrections: there are few. Their ids are taken before COMMIT, so that one may appear behind a later one.
SELECT xmin::text::bigint AS xmin,
       id,
       to_char(corrected_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at,
       law_id::text,
       oui_before,
       non_before,
       oui_after,
       non_after,
       reason
FROM result_corrections
ORDER BY id
