-- What became of acknowledged votes: those of the hashes in $1 that are not in vote_audit, and the
-- alarms about lost votes that are still not there, except for the alarms accepted in $2. No row on a
-- standby, which may lag behind.
SELECT ARRAY(
           SELECT hash
           FROM unnest($1::text[]) AS hash
           WHERE NOT EXISTS (SELECT FROM vote_audit AS a WHERE a.vote_hash = hash)
       ) AS missing,
       ARRAY(
           SELECT DISTINCT alarm
           FROM lost_votes AS l
           WHERE alarm <> ALL ($2::text[])
             AND NOT EXISTS (SELECT FROM vote_audit AS a WHERE a.vote_hash = l.vote_hash)
           ORDER BY alarm
       ) AS alarms
WHERE NOT pg_is_in_recovery()
