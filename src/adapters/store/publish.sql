-- A publication that follows another ($1): state, time, reason, whether it is a test.
INSERT INTO result_publications (follows, state, not_before, reason, test)
VALUES ($1, $2, $3, $4, $5)
RETURNING id, follows, set_at, set_by, state, not_before, reason, test, NULL::text AS sha256
