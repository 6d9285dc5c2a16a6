//! What a board can read: nothing before the time, whatever is counted.

use vote_aggregator::model::ports::{Store, Votes};

use super::{counted, insert, public, read_as};
use crate::support::{eventually, votes};

#[tokio::test]
async fn a_board_reads_nothing_before_the_time_and_everything_from_then_on() {
    let stage = counted("boardrole").await;
    let correction = "INSERT INTO result_corrections \
        (law_id, oui_before, non_before, oui_after, non_after) VALUES ('law-001', 1, 2, 3, 4)";
    stage.execute(correction).await;
    insert(&stage, "counting", "now() + interval '3 seconds'", "NULL").await;
    let look = "SELECT concat_ws(' ', now() >= not_before, state, \
                    (SELECT count(*) FROM published_results), \
                    (SELECT count(*) FROM published_corrections)) FROM published_state";
    let mut seen = Vec::new();
    let opened = async || {
        let now = read_as(&stage, "vote_board", look).await.expect("may").expect("a row");
        seen.push(now.clone());
        now.starts_with('t')
    };
    eventually("the time has come", opened).await;
    let opened = seen.pop();
    assert_eq!(opened.as_deref(), Some("t counting 5 1"));
    assert!(!seen.is_empty() && seen.iter().all(|now| now == "f embargoed 0 0"), "{seen:?}");

    for table in "vote_results vote_audit duplicate_attempts result_corrections lost_votes \
                  vote_statistics citizens_with_multiple_votes result_publications certified_results"
        .split(' ')
        .filter(|table| !table.is_empty())
    {
        let read = format!("SELECT count(*)::text FROM {table}");
        assert_eq!(read_as(&stage, "vote_board", &read).await, Err("42501".to_owned()), "{table}");
    }
}

#[tokio::test]
async fn what_is_public_is_the_same_whatever_is_counted() {
    let few = counted("leakfew").await;
    let many = counted("leakmany").await;
    many.store().await.count(Votes::new(votes(50, 1_950))).await.expect("counted");
    let correct = "UPDATE vote_results SET oui_count = oui_count + 7; \
                   INSERT INTO vote_results (law_id, oui_count) VALUES ('law-nowhere', 3)";
    many.execute(correct).await;
    many.run("recount", &["--repair", "--yes"]).await.assert(0, &["corrected"]);
    assert_ne!(few.results().await, many.results().await);
    assert_eq!(public(&few).await, public(&many).await, "without a publication");

    let later = "'2099-01-01Z'";
    let of_results = "(SELECT sha256(string_agg(r::text, '')::bytea) FROM vote_results AS r)";
    for (state, not_before, sha256, shown) in [
        ("counting", later, "NULL", "embargoed"),
        ("provisional", later, "NULL", "embargoed"),
        ("final", later, of_results, "embargoed"),
        ("withheld", later, "NULL", "embargoed"),
        ("withheld", "'2020-01-01Z'", "NULL", "withheld"),
    ] {
        for stage in [&few, &many] {
            insert(stage, state, not_before, sha256).await;
            let copy = "INSERT INTO certified_results SELECT id, law_id, oui_count, non_count \
                        FROM vote_results, (SELECT max(id) AS id FROM result_publications \
                        HAVING max(id) IN (SELECT id FROM result_publications WHERE state = 'final')) AS f";
            stage.execute(copy).await;
        }
        let public = super::public(&few).await;
        assert_eq!(public, super::public(&many).await, "{state}");
        assert!(
            public.contains(shown)
                && public.ends_with(
                    "results: \npublished_corrections: \npublished_finals: \n\
                     published_since_final: \n"
                ),
            "{public}"
        );
    }
    // It would be seen.
    for stage in [&few, &many] {
        insert(stage, "counting", "'2020-01-01Z'", "NULL").await;
    }
    assert_ne!(public(&few).await, public(&many).await);

    // Without it, a function that a reader names in a condition may be called with rows that are not shown.
    let barriers = "SELECT count(*) FROM pg_class WHERE relname LIKE 'published\\_%' \
                    AND relkind = 'v' AND 'security_barrier=true' = ANY (reloptions)";
    assert_eq!(few.number(barriers).await, super::VIEWS.len() as i64);
}
