-- Totals for the gauges: the laws named in $1, then those with most votes, $2 in all; one row
-- without a name sums up the rest. A law that is called like the rest belongs to it.
WITH ranked AS (
    SELECT law_id,
           oui_count::bigint AS oui_count,
           non_count::bigint AS non_count,
           CASE
               WHEN law_id = 'other' THEN NULL
               ELSE row_number() OVER (
                   ORDER BY law_id = 'other', law_id = ANY ($1) DESC, oui_count + non_count DESC, law_id
               )
           END AS rank
    FROM vote_results
)
SELECT law_id, oui_count, non_count
FROM ranked
WHERE rank <= $2
UNION ALL
SELECT NULL, coalesce(sum(oui_count), 0)::bigint, coalesce(sum(non_count), 0)::bigint
FROM ranked
WHERE rank IS NULL OR rank > $2
