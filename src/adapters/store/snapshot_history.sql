-- The last publications, newest first.
SELECT id, set_at, state, not_before, reason, encode(results_sha256, 'hex') AS sha256
FROM published_history
ORDER BY id DESC
LIMIT 1000
