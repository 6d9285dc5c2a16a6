-- Shares a comparison: how long it took, laws, votes, laws and votes that differ.
INSERT INTO reconciliation (compared_at, duration, laws, votes, drift_laws, drift_votes)
VALUES (clock_timestamp(), $1, $2, $3, $4, $5)
ON CONFLICT (id) DO UPDATE
    SET compared_at = excluded.compared_at,
        duration    = excluded.duration,
        laws        = excluded.laws,
        votes       = excluded.votes,
        drift_laws  = excluded.drift_laws,
        drift_votes = excluded.drift_votes
