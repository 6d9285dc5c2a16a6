//! The metrics of a board: as documented, valid for Prometheus, and with the right value.

use std::collections::BTreeMap;

use vote_aggregator::model::ports::{Store, Votes};

use super::{board, publish};
use crate::metrics::{Family, documented, promtool, scraped};
use crate::support::{Servers, Stage, eventually, votes};

const DOCUMENTATION: &str = include_str!("../../../docs/metrics.md");

#[tokio::test]
async fn a_scrape_of_a_board_is_what_is_documented_and_has_the_state() {
    let stage = Stage::with_roles(Servers::shared(), "boardmetrics").await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    publish(&stage, "provisional", "'2020-01-01 00:00Z'").await;
    let arguments = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let service = board(&stage, &arguments).await;
    service.until_ready().await;
    let scrape = service.get("/metrics").await.body;
    let (_, table) = DOCUMENTATION.split_once("\n## The board\n").expect("such a part");
    let documented: BTreeMap<String, Family> = documented(table);
    assert_eq!(scraped(&scrape), documented);
    assert_eq!(promtool(&scrape).await, (true, String::new()));
    assert!(!scrape.contains("oui") && !scrape.contains("law"), "{scrape}");
    for (series, value) in [
        ("board_publication_state{state=\"provisional\"}", 1.0),
        ("board_publication_state{state=\"embargoed\"}", 0.0),
        ("board_stale{reason=\"decrease\"}", 0.0),
        ("board_votes_since_final", 0.0),
        ("board_write_errors_total", 0.0),
        ("board_requests_total{status=\"405\"}", 0.0),
    ] {
        service.until_metric(series, value).await;
    }
    assert!(service.metric("board_snapshot_age_seconds").await < Some(60.0));

    // Votes after the frozen copy are told, and are not shown.
    let official = stage.role("official", "IN ROLE vote_publisher, vote_auditor").await;
    let set = ["publication", "set", "final", "--reason", "decision 7", "--yes"];
    stage.run_with(&set, &crate::support::login(&official)).await.assert(0, &[]);
    service.until_metric("board_publication_state{state=\"final\"}", 1.0).await;
    stage.store().await.count(Votes::new(votes(50, 7))).await.expect("counted");
    service.until_metric("board_votes_since_final", 7.0).await;

    // A count that goes down is not shown either.
    publish(&stage, "provisional", "'2020-01-01 00:00Z'").await;
    service.until_metric("board_publication_state{state=\"provisional\"}", 1.0).await;
    stage.execute("UPDATE vote_results SET oui_count = 1 WHERE law_id = 'law-001'").await;
    service.until_metric("board_stale{reason=\"decrease\"}", 1.0).await;
    let page = service.listens_for("listening for the board").await;
    eventually("told on the page", async || {
        let page = crate::support::request(&page, "/fr/").await.expect("an answer").body;
        page.contains("un chiffre a baissé")
    })
    .await;
    service.stop().await;
}
