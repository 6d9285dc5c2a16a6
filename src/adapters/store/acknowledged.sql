-- What became of acknowledged votes: those of the hashes in $1 that are not in vote_audit, and whether
-- this role may use lost_votes. No row on a standby, which may lag behind.
SELECT ARRAY(
           SELECT hash
           FROM unnest($1::text[]) AS hash
           WHERE NOT EXISTS (SELECT FROM vote_audit AS a WHERE a.vote_hash = hash)
       ) AS missing,
       (
           SELECT coalesce(
               bool_and(has_table_privilege(to_regclass('lost_votes'), privilege)), false
           )
           FROM unnest(ARRAY['SELECT', 'INSERT']) AS privilege
       ) AS recordable
WHERE NOT pg_is_in_recovery()
