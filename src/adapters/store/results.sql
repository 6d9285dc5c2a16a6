-- The totals of all laws, or of those named in $1: one statement, so one snapshot. The clock's row is
-- there without any law, too. Times outside 1970-9999 are returned as NULL.
SELECT clock.at,
       r.law_id::text                          AS law_id,
       coalesce(r.oui_count, 0)::bigint        AS oui_count,
       coalesce(r.non_count, 0)::bigint        AS non_count,
       CASE
           WHEN r.updated_at BETWEEN timestamptz '1970-01-01 00:00+00' AND timestamptz '9999-12-31 00:00+00'
           THEN r.updated_at::timestamptz
       END                                     AS updated_at
FROM (SELECT now() AS at) AS clock
LEFT JOIN vote_results AS r ON $1::text[] IS NULL OR r.law_id = ANY ($1)
