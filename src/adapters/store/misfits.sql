-- What the tables that are there have that the service's statements cannot work with, and that no
-- migration changes: one row a problem. Reads the catalogue alone. `zoneless` columns are usable.
WITH ours (relation, name, category, length) AS (VALUES
    ('vote_results',       'law_id',            'S', 50),
    ('vote_results',       'oui_count',         'N', NULL),
    ('vote_results',       'non_count',         'N', NULL),
    ('vote_results',       'updated_at',        'D', NULL),
    ('vote_audit',         'vote_hash',         'S', 64),
    ('vote_audit',         'citizen_id',        'S', 100),
    ('vote_audit',         'law_id',            'S', 50),
    ('vote_audit',         'choice',            'S', 3),
    ('vote_audit',         'timestamp',         'D', NULL),
    ('vote_audit',         'recorded_at',       'D', NULL),
    ('duplicate_attempts', 'vote_hash',         'S', 64),
    ('duplicate_attempts', 'citizen_id',        'S', 100),
    ('duplicate_attempts', 'law_id',            'S', 50),
    ('duplicate_attempts', 'choice',            'S', 3),
    ('duplicate_attempts', 'attempt_timestamp', 'D', NULL)
),
-- Added by the first migration where they are missing.
added (relation, name) AS (VALUES
    ('vote_audit', 'recorded_at'), ('duplicate_attempts', 'law_id'), ('duplicate_attempts', 'choice')
),
there AS (
    SELECT DISTINCT relation, to_regclass(relation)::oid AS oid
    FROM ours
    WHERE to_regclass(relation) IS NOT NULL
),
columns AS (
    SELECT relation, attname::text AS name, attnum, attnotnull, atthasdef, attidentity, attgenerated,
           atttypid, format_type(atttypid, atttypmod) AS type, typcategory,
           CASE WHEN atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND atttypmod >= 4
                THEN atttypmod - 4 END AS length
    FROM there
    JOIN pg_attribute ON attrelid = there.oid AND attnum > 0 AND NOT attisdropped
    JOIN pg_type ON pg_type.oid = coalesce(nullif(atttypid, 0), 'text'::regtype)
)
SELECT format('%I.%I', ours.relation, ours.name) AS place,
       'does not exist' AS problem,
       NULL AS zone
FROM ours JOIN there USING (relation)
LEFT JOIN columns USING (relation, name)
LEFT JOIN added USING (relation, name)
WHERE columns.name IS NULL AND added.name IS NULL

UNION ALL
SELECT format('%I.%I', relation, name),
       'is ' || columns.type || ' and has to hold ' || ours.length || ' characters: ALTER COLUMN '
           || quote_ident(name) || ' TYPE varchar(' || ours.length || ')',
       NULL
FROM ours JOIN columns USING (relation, name)
WHERE columns.length < ours.length

UNION ALL
SELECT format('%I.%I', relation, name),
       'is ' || columns.type || ' and has to be ' || CASE category
           WHEN 'S' THEN 'varchar or text'
           WHEN 'N' THEN 'bigint'
           ELSE 'timestamptz'
       END,
       NULL
FROM ours JOIN columns USING (relation, name)
WHERE typcategory::text <> category
   OR (category = 'D' AND atttypid NOT IN ('timestamptz'::regtype, 'timestamp'::regtype))

UNION ALL
SELECT format('%I.%I', relation, name),
       'is NOT NULL without a default, and the service does not write it: ALTER COLUMN '
           || quote_ident(name) || ' DROP NOT NULL, or SET DEFAULT',
       NULL
FROM columns
LEFT JOIN ours USING (relation, name)
WHERE ours.name IS NULL
  AND attnotnull AND NOT atthasdef AND attidentity::text = '' AND attgenerated::text = ''

UNION ALL
SELECT format('%I.%I', relation, name),
       'has no unique key of its own: ADD UNIQUE (' || quote_ident(name) || ')',
       NULL
FROM columns
JOIN there USING (relation)
WHERE (relation, name) IN (('vote_results', 'law_id'), ('vote_audit', 'vote_hash'))
  AND NOT EXISTS (
      SELECT FROM pg_index
      WHERE indrelid = there.oid AND indisunique AND indisvalid AND indimmediate
        AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = columns.attnum)

UNION ALL
SELECT format('%I.%I', relation, name), 'is timestamp without time zone', current_setting('log_timezone')
FROM ours JOIN columns USING (relation, name)
WHERE atttypid = 'timestamp'::regtype
ORDER BY 1, 2
