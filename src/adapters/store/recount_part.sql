-- Votes by law in the part of vote_audit that lies on the pages from $1 to before $2, each as the
-- place of its first row. Read in the order of the disk; PostgreSQL 14 and later read nothing else.
SELECT law_id,
       count(*) FILTER (WHERE choice = 'oui') AS oui,
       count(*) FILTER (WHERE choice = 'non') AS non
FROM vote_audit
WHERE ctid >= $1::text::tid AND ctid < $2::text::tid
  AND law_id IS NOT NULL
GROUP BY law_id
