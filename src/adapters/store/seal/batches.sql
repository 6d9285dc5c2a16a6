-- Transactions in [$1, $2) that counted votes, $3 at most. A row that another transaction wrote is of a restored dump,
-- or was forged.
SELECT xid::text::bigint AS xid,
       ((first_row::text::point)[0])::bigint AS first_page,
       ((last_row::text::point)[0])::bigint AS last_page,
       row_count
FROM count_batch
WHERE xid >= $1::xid8 AND xid < $2::xid8 AND xmin = xid::xid
ORDER BY count_batch.xid
LIMIT $3
