-- Records the hashes in $1 as lost between the timelines $4 and $5: under the alarm that is open
-- already, since all instances meet the same failover, or under a new one called $2. The alarms
-- accepted in $3 are closed. Runs behind an advisory lock, in a statement of its own.
INSERT INTO lost_votes (vote_hash, alarm, timeline_before, timeline_after)
SELECT hash,
       coalesce(
           (
               SELECT alarm
               FROM lost_votes AS l
               WHERE alarm <> ALL ($3::text[])
                 AND NOT EXISTS (SELECT FROM vote_audit AS a WHERE a.vote_hash = l.vote_hash)
               ORDER BY noticed_at DESC
               LIMIT 1
           ),
           $2
       ),
       $4,
       $5
FROM unnest($1::text[]) AS hash
ON CONFLICT DO NOTHING
