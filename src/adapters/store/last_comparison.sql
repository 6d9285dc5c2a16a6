-- The last comparison of totals and audit. `ahead`: in the future by more than two reads of a clock can
-- differ, after the database's clock was set back or after a restore on a server whose clock is behind.
SELECT extract(epoch FROM clock_timestamp() - least(compared_at, clock_timestamp()))::float8 AS age,
       compared_at > clock_timestamp() + interval '5 seconds' AS ahead,
       extract(epoch FROM duration)::float8 AS duration,
       laws,
       votes,
       drift_laws,
       drift_votes
FROM reconciliation
