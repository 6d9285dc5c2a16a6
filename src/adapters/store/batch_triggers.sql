-- The triggers on count_batch that fire on INSERT here, by name: not those of constraints, and none that is disabled.
SELECT coalesce(string_agg(quote_ident(tgname), ', ' ORDER BY tgname), '')
FROM pg_trigger
WHERE tgrelid = to_regclass('count_batch') AND NOT tgisinternal
  AND tgtype & 4 <> 0 AND tgenabled IN ('O', 'A')
