-- As results.sql: times outside 1970-9999 are returned as NULL.
SELECT law_id, oui_count, non_count,
       CASE
           WHEN updated_at BETWEEN timestamptz '1970-01-01 00:00+00' AND timestamptz '9999-12-31 00:00+00'
           THEN updated_at
       END AS updated_at
FROM published_results
ORDER BY law_id
