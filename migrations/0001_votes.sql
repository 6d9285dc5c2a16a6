-- Totals per law: one row a law, updated by every batch that touches it. The fill factor leaves
-- room on the page, so that an update stays on it (HOT) and touches no index.
CREATE TABLE IF NOT EXISTS vote_results (
    law_id     varchar(50) COLLATE "C" PRIMARY KEY,
    oui_count  bigint      NOT NULL DEFAULT 0 CHECK (oui_count >= 0),
    non_count  bigint      NOT NULL DEFAULT 0 CHECK (non_count >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- One row a counted vote. Its key is its only index: each further one slows counting.
CREATE TABLE IF NOT EXISTS vote_audit (
    vote_hash   varchar(64) COLLATE "C" PRIMARY KEY,
    citizen_id  varchar(100) NOT NULL,
    law_id      varchar(50) COLLATE "C" NOT NULL,
    choice      varchar(3)  NOT NULL CHECK (choice IN ('oui', 'non')),
    "timestamp" timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- One row a distinct vote that came under a vote_hash already counted with other content.
CREATE TABLE IF NOT EXISTS duplicate_attempts (
    vote_hash         varchar(64) COLLATE "C" NOT NULL REFERENCES vote_audit (vote_hash),
    citizen_id        varchar(100) NOT NULL,
    law_id            varchar(50) COLLATE "C" NOT NULL,
    choice            varchar(3)  NOT NULL CHECK (choice IN ('oui', 'non')),
    attempt_timestamp timestamptz NOT NULL
);

-- Tables that the service's predecessor left may have narrower counts, under a view that has to
-- make way, and fewer columns; what it never recorded stays NULL.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = 'vote_results'
          AND column_name IN ('oui_count', 'non_count') AND data_type <> 'bigint'
    ) THEN
        DROP VIEW IF EXISTS vote_statistics;
        ALTER TABLE vote_results
            ALTER COLUMN oui_count TYPE bigint,
            ALTER COLUMN non_count TYPE bigint;
    END IF;
END
$$;
ALTER TABLE vote_audit ADD COLUMN IF NOT EXISTS recorded_at timestamptz;
ALTER TABLE vote_audit ALTER COLUMN recorded_at SET DEFAULT now();
ALTER TABLE duplicate_attempts ADD COLUMN IF NOT EXISTS law_id varchar(50);
ALTER TABLE duplicate_attempts ADD COLUMN IF NOT EXISTS choice varchar(3);

-- A repeated attempt adds no second row. Serves look-ups by vote_hash, too.
CREATE UNIQUE INDEX IF NOT EXISTS duplicate_attempts_key
    ON duplicate_attempts (vote_hash, citizen_id, law_id, choice, attempt_timestamp);

CREATE OR REPLACE VIEW vote_statistics AS
SELECT law_id,
       oui_count,
       non_count,
       oui_count + non_count AS total_votes,
       round(100.0 * oui_count / nullif(oui_count + non_count, 0), 2) AS oui_percentage,
       round(100.0 * non_count / nullif(oui_count + non_count, 0), 2) AS non_percentage,
       updated_at
FROM vote_results;

-- For auditors, not for a hot path: reads all of vote_audit.
CREATE OR REPLACE VIEW citizens_with_multiple_votes AS
SELECT citizen_id, law_id, count(*) AS vote_count
FROM vote_audit
GROUP BY citizen_id, law_id
HAVING count(*) > 1;
