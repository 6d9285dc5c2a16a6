-- The last publication ($1), or all of them, oldest first.
SELECT id, follows, set_at, set_by, state, not_before, reason, test, encode(results_sha256, 'hex') AS sha256
FROM result_publications
WHERE NOT $1 OR id = (SELECT max(id) FROM result_publications)
ORDER BY id
