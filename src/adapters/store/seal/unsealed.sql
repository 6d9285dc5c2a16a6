-- Votes of the transactions from $1 on, and of those of them below $2.
SELECT coalesce(sum(row_count), 0)::bigint AS votes,
       coalesce(sum(row_count) FILTER (WHERE xid < $2::xid8), 0)::bigint AS decided
FROM count_batch
WHERE xid >= $1::xid8 AND xmin = xid::xid
