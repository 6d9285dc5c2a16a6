-- What the public may see; no row: nothing was ever published. Before the time there is no state.
SELECT id, nullif(state, 'embargoed') AS state, not_before, set_at, test, reason,
       encode(results_sha256, 'hex') AS sha256
FROM published_state
