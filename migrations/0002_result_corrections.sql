-- One row a law whose totals `vote-aggregator recount --repair` put right: when, as whom, why, and
-- what they were before and after. Written in the transaction that corrects them.
CREATE TABLE IF NOT EXISTS result_corrections (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    corrected_at timestamptz NOT NULL DEFAULT now(),
    corrected_by text        NOT NULL DEFAULT session_user,
    reason       text,
    law_id       varchar(50) COLLATE "C" NOT NULL,
    oui_before   bigint      NOT NULL,
    non_before   bigint      NOT NULL,
    oui_after    bigint      NOT NULL,
    non_after    bigint      NOT NULL
);
