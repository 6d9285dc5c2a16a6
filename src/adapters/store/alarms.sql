-- The alarms about lost votes that are still missing, except for those accepted in $1.
SELECT DISTINCT alarm
FROM lost_votes AS l
WHERE alarm <> ALL ($1::text[])
  AND NOT EXISTS (SELECT FROM vote_audit AS a WHERE a.vote_hash = l.vote_hash)
ORDER BY alarm
