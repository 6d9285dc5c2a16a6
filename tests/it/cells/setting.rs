//! CELL, the queue and the database: what a start refuses, and what `migrate --cell` does.

use crate::support::{Servers, Stage};

#[tokio::test]
async fn a_start_whose_queue_setting_and_database_disagree_is_refused() {
    let mut stage = Stage::migrated(Servers::shared(), "cellsetting").await;
    stage.queue += ".1";
    let of = |number: u16| format!("{}.{number}", stage.queue.trim_end_matches(".1"));
    let refused = async |cell: &str, queue: &str, text: &str| {
        let settings = [("CELL", cell), ("RABBITMQ_QUEUE", queue)];
        stage.spawn(&settings).await.assert_ends(78, &[text]).await;
    };
    let migrate = async |cell: &str| stage.run("migrate", &["--cell", cell]).await;

    refused("1/4", &of(1), "run `vote-aggregator migrate --cell 1/4`").await;
    migrate("1/4").await.assert(0, &["this database is cell 1/4"]);
    migrate("1/4").await.assert(0, &["up to date", "this database is cell 1/4"]);
    for other in ["2/4", "1/8", "crc32:1/4"] {
        migrate(other).await.assert(78, &["it is cell 1/4", "never changes"]);
    }
    migrate("4/4").await.assert(2, &["from 0 on"]);
    let contradicts = stage.run_with(&["migrate", "--cell", "1/4"], &[("CELL", "1/8")]).await;
    contradicts.assert(2, &["contradicts CELL=1/8"]);

    // One of the three is another cell's, or two of them.
    refused("1/4", &of(2), "ends in .1").await;
    refused("2/4", &of(1), "ends in .2").await;
    refused("2/4", &of(2), "the database is cell 1/4").await;
    refused("1/8", &of(1), "the database is cell 1/4").await;
    refused("crc32:1/4", &of(1), "the database is cell 1/4").await;
    refused("", &of(1), "the database is cell 1/4, and CELL is not set").await;
    let check = async |cell: &str| stage.run_with(&["check", "--connect"], &[("CELL", cell)]).await;
    check("1/8").await.assert(1, &["the database is cell 1/4", "would not start"]);
    check("1/4").await.assert(0, &[]);

    // An earlier release would not look.
    let earlier = "SELECT requires FROM schema_compatibility WHERE migration = 4";
    assert_eq!(stage.number(earlier).await, 4);
    let service = stage.start(&[("CELL", "1/4")]).await;
    service.until_metric("cells{cell=\"1\"}", 4.0).await;
    for line in service.get("/metrics").await.body.lines() {
        assert!(line.starts_with('#') || line.contains("cell=\"1\""), "{line}");
    }
    // What publishes without the exchange would reach this cell alone.
    let publish = stage.run_with(&["publish", "--count", "1"], &[("CELL", "1/4")]).await;
    publish.assert(2, &["--exchange"]);
    let publish = stage.run_with(&["publish", "--cells", "8"], &[("CELL", "crc32:1/4")]).await;
    publish.assert(2, &["--cells 8 contradicts CELL=crc32:1/4"]);
    let around = ["publish", "--exchange", "votes", "--count", "1"];
    let around = stage.run_with(&around, &[("CELL", "crc32:1/4")]).await;
    around.assert(2, &["CELL=crc32:1/4: publishers route by CRC-32"]);
    service.stop().await;
}

#[tokio::test]
async fn a_database_with_votes_does_not_become_a_cell() {
    let (stage, service) = Stage::started("notacell", &[]).await;
    stage.count(0, 10).await;
    service.stop().await;
    stage.run("migrate", &["--cell", "1/4"]).await.assert(78, &["it has votes"]);
    stage.prepare(&[]).await.expect("it is as it was");
}
