-- What the public may see of the results, and from when on.

-- One row a change; the last one holds. Append only: roles.sql grants no UPDATE or DELETE. `follows` is the row
-- before, and unique, so that of two changes at the same time one is refused, whatever its snapshot shows. A database
-- is for a test, or it is not, from its first row on.
CREATE TABLE IF NOT EXISTS result_publications (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    follows        bigint      UNIQUE,
    set_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    set_by         text        NOT NULL DEFAULT session_user,
    state          text        NOT NULL CHECK (state IN ('withheld', 'counting', 'provisional', 'final')),
    not_before     timestamptz NOT NULL CHECK (not_before BETWEEN timestamptz '1970-01-01 00:00+00' AND timestamptz '9999-01-01 00:00+00'),
    reason         text        NOT NULL CHECK (reason <> ''),
    test           boolean     NOT NULL,
    results_sha256 bytea       CHECK ((results_sha256 IS NOT NULL) = (state = 'final')),
    UNIQUE (id, test),
    FOREIGN KEY (follows, test) REFERENCES result_publications (id, test)
);
CREATE UNIQUE INDEX IF NOT EXISTS result_publications_first
    ON result_publications ((follows IS NULL)) WHERE follows IS NULL;

-- The frozen copy that each `final` publishes.
CREATE TABLE IF NOT EXISTS certified_results (
    publication_id bigint      NOT NULL REFERENCES result_publications (id),
    law_id         varchar(50) COLLATE "C" NOT NULL,
    oui_count      bigint      NOT NULL CHECK (oui_count >= 0),
    non_count      bigint      NOT NULL CHECK (non_count >= 0),
    PRIMARY KEY (publication_id, law_id)
);

-- What the public may see. The views run with their owner's rights: a role that may read only them learns nothing
-- before the time. now() is when the transaction began, so that all of them are of one moment, and never too early.

-- One row once there is a publication. Before its time it says only when that is: reason and hash may tell results.
CREATE OR REPLACE VIEW published_state WITH (security_barrier) AS
SELECT p.id,
       CASE WHEN p.opened THEN p.state ELSE 'embargoed' END AS state,
       p.not_before,
       p.set_at,
       p.test,
       CASE WHEN p.opened THEN p.reason END AS reason,
       CASE WHEN p.opened THEN p.results_sha256 END AS results_sha256
FROM (SELECT *, now() >= not_before AS opened FROM result_publications ORDER BY id DESC LIMIT 1) AS p;

CREATE OR REPLACE VIEW published_results WITH (security_barrier) AS
SELECT r.law_id::text COLLATE "C"           AS law_id,
       coalesce(r.oui_count, 0)::bigint     AS oui_count,
       coalesce(r.non_count, 0)::bigint     AS non_count,
       r.updated_at::timestamptz            AS updated_at
FROM published_state AS p, vote_results AS r
WHERE p.state IN ('counting', 'provisional')
UNION ALL
SELECT c.law_id::text COLLATE "C", c.oui_count, c.non_count, p.set_at
FROM published_state AS p
JOIN certified_results AS c ON c.publication_id = p.id
WHERE p.state = 'final';

-- A final copy is not changed by what is corrected after it.
CREATE OR REPLACE VIEW published_corrections WITH (security_barrier) AS
SELECT c.id, c.corrected_at, c.law_id, c.oui_before, c.non_before, c.oui_after, c.non_after, c.reason
FROM published_state AS p, result_corrections AS c
WHERE p.state IN ('counting', 'provisional')
   OR (p.state = 'final' AND c.corrected_at <= p.set_at);

-- Every publication, without who made it. Nothing before the time. The reason, and the hash of a frozen copy, only while
-- results are public, and not before the row's own time: both may tell results. The last row says why it is withheld.
CREATE OR REPLACE VIEW published_history WITH (security_barrier) AS
SELECT h.id, h.set_at, h.state, h.not_before,
       CASE WHEN h.shown OR h.id = h.last THEN h.reason END AS reason,
       CASE WHEN h.shown THEN h.results_sha256 END AS results_sha256
FROM (
    SELECT r.*, p.id AS last, p.state IN ('counting', 'provisional', 'final') AND now() >= r.not_before AS shown
    FROM published_state AS p, result_publications AS r
    WHERE p.state <> 'embargoed'
) AS h;

-- The frozen copies of those publications whose hash is shown above.
CREATE OR REPLACE VIEW published_finals WITH (security_barrier) AS
SELECT c.publication_id, c.law_id::text COLLATE "C" AS law_id, c.oui_count, c.non_count
FROM published_history AS h
JOIN certified_results AS c ON c.publication_id = h.id
WHERE h.results_sha256 IS NOT NULL;

-- How many votes were counted after the frozen copy that is shown; no row in any other state.
CREATE OR REPLACE VIEW published_since_final WITH (security_barrier) AS
SELECT (
           (SELECT coalesce(sum(oui_count::numeric + non_count), 0) FROM vote_results)
           - (SELECT coalesce(sum(oui_count::numeric + non_count), 0) FROM published_results)
       )::bigint AS votes
FROM published_state AS p
WHERE p.state = 'final';

-- Whether and when results are public is no secret, and every role that reads results has to know it.
GRANT SELECT ON published_state TO PUBLIC;
