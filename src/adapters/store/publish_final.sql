-- As publish.sql, with a frozen copy of the results. The hash is that of the lines `law_id,oui,non`, sorted bytewise,
-- so that anybody can compute it from the published counts.
WITH result AS (
    SELECT law_id::text COLLATE "C"         AS law_id,
           coalesce(oui_count, 0)::bigint   AS oui_count,
           coalesce(non_count, 0)::bigint   AS non_count
    FROM vote_results
),
publication AS (
    INSERT INTO result_publications (follows, state, not_before, reason, test, results_sha256)
    SELECT $1, $2, $3, $4, $5,
           sha256(convert_to(
               string_agg(format(E'%s,%s,%s\n', law_id, oui_count, non_count), '' ORDER BY law_id), 'UTF8'))
    FROM result
    RETURNING id, follows, set_at, set_by, state, not_before, reason, test, encode(results_sha256, 'hex') AS sha256
),
copied AS (
    INSERT INTO certified_results (publication_id, law_id, oui_count, non_count)
    SELECT publication.id, result.law_id, result.oui_count, result.non_count
    FROM publication, result
)
SELECT * FROM publication
