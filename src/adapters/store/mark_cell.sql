-- Marks a database without votes as the cell $1. Returns the cell that it is then; NULL: none, as it has
-- votes, some of which may belong to another cell. Releases that know no cells ($2 is the migration) do not
-- start on it any more.
WITH marked AS (
    INSERT INTO vote_cell (setting)
    SELECT $1
    WHERE NOT EXISTS (SELECT FROM vote_audit)
    ON CONFLICT (id) DO NOTHING
    RETURNING setting
),
required AS (
    INSERT INTO schema_compatibility (migration, requires)
    SELECT $2, $2
    FROM marked
    ON CONFLICT (migration) DO NOTHING
)
SELECT coalesce((SELECT setting FROM marked), (SELECT setting FROM vote_cell))
