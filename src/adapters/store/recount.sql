-- Both counts of every law, those that only one of the tables has, too: one statement, so one
-- snapshot. A count writes audit rows and totals in one transaction, so that a snapshot holds both
-- or neither, however many votes are being counted meanwhile.
--
-- The collations are named because tables that the service's predecessor left have others. Such an
-- audit may also hold rows without a law, which are in no law's count.
SELECT coalesce(audit.law_id, r.law_id)      AS law_id,
       coalesce(audit.oui, 0)                AS audit_oui,
       coalesce(audit.non, 0)                AS audit_non,
       coalesce(r.oui_count, 0)::bigint      AS results_oui,
       coalesce(r.non_count, 0)::bigint      AS results_non
FROM vote_results AS r
FULL JOIN (
    SELECT law_id,
           count(*) FILTER (WHERE choice = 'oui') AS oui,
           count(*) FILTER (WHERE choice = 'non') AS non
    FROM vote_audit
    WHERE law_id IS NOT NULL
    GROUP BY law_id
) AS audit ON audit.law_id COLLATE "C" = r.law_id COLLATE "C"
ORDER BY coalesce(audit.law_id, r.law_id) COLLATE "C"
