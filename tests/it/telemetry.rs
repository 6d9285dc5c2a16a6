//! Metrics under the contract's names, and logs without votes and passwords. `http` has the port.

use std::collections::BTreeMap;

use vote_aggregator::model::vote::{Choice, Reason, Vote};

use crate::support::{Servers, Service, Stage, assert_lacks, messages, vote, votes};

/// `name{labels}` → value of a scrape.
async fn scrape(service: &Service) -> BTreeMap<String, f64> {
    let text = service.get("/metrics").await.body;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series = lines.filter_map(|line| line.rsplit_once(' '));
    series.map(|(series, value)| (series.to_owned(), value.parse().expect("a number"))).collect()
}

#[tokio::test]
async fn metrics_are_there_from_the_first_scrape_and_right_after_a_restart() {
    let stage = Stage::migrated(Servers::shared(), "restart").await;
    let first = stage.start(&[]).await;
    let series = scrape(&first).await;
    assert_eq!(series["batch_size_processed_total"], 0.0);
    assert_eq!(series["batch_processing_duration_seconds"], 0.0);
    for kind in ["malformed", "database", "broker", "unstorable", "internal"] {
        assert_eq!(series[&format!("aggregation_errors_total{{error_type=\"{kind}\"}}")], 0.0);
    }
    for reason in Reason::ALL {
        assert_eq!(series[&format!("votes_rejected_total{{reason=\"{}\"}}", reason.as_str())], 0.0);
    }

    let mut all = votes(0, 100);
    // Vote 0 is a "non": an attempt. Ten replays follow.
    all.push(vote(0, "law-000", Choice::Oui));
    all.extend(votes(0, 10));
    let mut bodies = messages(&all);
    bodies.push(b"{}".to_vec());
    stage.publish(&bodies).await;
    stage.until_counted(100).await;
    first.until_metric("batch_size_processed_total", 111.0).await;
    let series = scrape(&first).await;
    let results = stage.results().await;
    let of = |series: &BTreeMap<String, f64>, name: &str, law: &str, choice: &str| {
        series[&format!("{name}{{choice=\"{choice}\",law_id=\"{law}\"}}")]
    };
    for (law, [oui, non]) in &results {
        for name in ["votes_aggregated_total", "current_vote_totals"] {
            assert_eq!(of(&series, name, law, "oui"), *oui as f64, "{law}");
            assert_eq!(of(&series, name, law, "non"), *non as f64, "{law}");
        }
    }
    assert_eq!(series["duplicate_attempts_total"], 1.0);
    assert_eq!(series["votes_replayed_total"], 10.0);
    assert_eq!(series["votes_rejected_total{reason=\"missing_field\"}"], 1.0);
    assert!(series["batch_processing_duration_seconds"] > 0.0);
    first.stop().await;

    let second = stage.start(&[]).await;
    let series = scrape(&second).await;
    for (law, [oui, _]) in &results {
        assert_eq!(of(&series, "current_vote_totals", law, "oui"), *oui as f64);
        assert_eq!(of(&series, "votes_aggregated_total", law, "oui"), 0.0, "its own");
    }
    second.stop().await;
}

#[tokio::test]
async fn series_stay_bounded_whatever_law_ids_arrive() {
    const LAWS: u64 = 12_000;
    let overrides = [("METRICS_MAX_LAWS", "50"), ("TOTALS_REFRESH_SECONDS", "0.2")];
    let (stage, service) = Stage::started("bounded", &overrides).await;
    // Each valid, of the longest length, and no two the same.
    let hostile = (0..LAWS).map(|n| vote(n, &format!("Law_{n:x<45}:"), Choice::Oui));
    stage.publish_votes(&hostile.collect::<Vec<_>>()).await;
    service.until_metric("batch_size_processed_total", LAWS as f64).await;
    let others = (LAWS - 50) as f64;
    service.until_metric("current_vote_totals{choice=\"oui\",law_id=\"other\"}", others).await;
    let series = scrape(&service).await;
    for name in ["votes_aggregated_total", "current_vote_totals"] {
        let values = series.iter().filter(|(series, _)| series.starts_with(name));
        let values: Vec<f64> = values.map(|(_, value)| *value).collect();
        assert_eq!(values.len(), 2 * 51, "{name}: fifty laws and other, two choices each");
        assert_eq!(values.iter().sum::<f64>(), LAWS as f64, "{name}");
        assert_eq!(series[&format!("{name}{{choice=\"oui\",law_id=\"other\"}}")], others);
    }
    assert!(!series.keys().any(|series| series.contains("otel_")), "no library label leaks");
    assert_eq!(service.get("/nothing-here").await.status, 404);
    assert!(service.get(&format!("/{}", "x".repeat(100_000))).await.status >= 400);
    service.stop().await;
}

/// What the port of the metrics shows before the polls close.
#[tokio::test]
async fn sums_show_how_many_votes_are_counted_and_not_on_what_or_for_which_choice() {
    let (stage, service) = Stage::started("sums", &[("METRICS_TOTALS", "sums")]).await;
    stage.count(0, 250).await;
    for name in ["votes_aggregated_total", "current_vote_totals"] {
        service.until_metric(&format!("{name}{{choice=\"all\",law_id=\"all\"}}"), 250.0).await;
    }
    let scrape = service.get("/metrics").await.body;
    assert_lacks(&scrape, &["choice=\"oui\"", "choice=\"non\"", "law_id=\"law-"]);
    service.stop().await;
}

#[tokio::test]
async fn with_metrics_off_votes_are_counted_as_ever() {
    let off = [("OTEL_METRICS_EXPORTER", "none")];
    let (stage, service) = Stage::started("off", &off).await;
    stage.count(0, 250).await;
    let scrape = service.get("/metrics").await;
    assert_eq!((scrape.status, scrape.body.as_str()), (200, ""));
    let log = service.stop().await;
    assert!(log.contains("stopped; 250 votes counted"), "{log}");
    stage.assert_drained().await;
}

#[tokio::test]
async fn no_log_at_any_level_shows_who_voted_what_or_a_password() {
    let stage = Stage::migrated(Servers::shared(), "logs").await;
    for (format, first, counted) in [("text", 0, 150), ("json", 1_000, 300)] {
        let environment = stage.environment_with(&[("LOG_LEVEL", "TRACE"), ("LOG_FORMAT", format)]);
        let service = Service::spawn(&stage.queue, &[], &environment).await;
        // RabbitMQ may refuse what is published while a quorum queue is being created.
        service.until_logged("consuming").await;
        let mut all = votes(first, 150);
        all.push(Vote { citizen_id: "citizen-attempt".into(), ..all[0].clone() });
        all.push(vote(first + 900, "law 1", Choice::Oui));
        let mut bodies = messages(&all);
        bodies.push(br#"{"citizen_id":"citizen-truncated","choice":"ou"#.to_vec());
        stage.publish(&bodies).await;
        stage.until_counted(counted).await;
        service.until_logged("not_json").await;
        let log = service.stop().await;
        assert!(log.contains("batch committed"), "debug is on");
        let password = stage.servers.get("POSTGRES_PASSWORD");
        assert_lacks(&log, &["citizen-", password, "\"oui\"", "choice\":"]);
        assert_eq!(log.starts_with('{'), format == "json");
    }
}
