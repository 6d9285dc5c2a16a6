//! What it shows: metrics under the contract's names, health that does not lie, logs without
//! anybody's vote in them, and a port that hostile clients can't hurt.

use std::collections::BTreeMap;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use vote_aggregator::model::vote::{Choice, Reason};

use crate::support::{Servers, Stage, eventually, message, messages, vote, votes};

/// `name{labels}` → value, and `name` → type, of a scrape.
fn parse(scrape: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let series = scrape
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
        .collect();
    let types = scrape
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    (series, types)
}

#[tokio::test]
async fn the_contracts_metrics_are_there_from_the_first_scrape() {
    let stage = Stage::migrated(Servers::shared(), "scrape").await;
    let service = stage.start(&[]).await;
    let (series, types) = parse(&service.get("/metrics").await.body);
    assert_eq!(types["batch_processing_duration_seconds"], "gauge");
    assert_eq!(types["batch_size_processed_total"], "counter");
    assert_eq!(types["aggregation_errors_total"], "counter");
    assert_eq!(series["batch_size_processed_total"], 0.0);
    assert_eq!(series["batch_processing_duration_seconds"], 0.0);
    for error_type in ["malformed", "database", "broker", "unstorable", "internal"] {
        assert_eq!(
            series[&format!("aggregation_errors_total{{error_type=\"{error_type}\"}}")],
            0.0
        );
    }
    for reason in Reason::ALL {
        assert_eq!(series[&format!("votes_rejected_total{{reason=\"{}\"}}", reason.as_str())], 0.0);
    }
    service.stop().await;
}

#[tokio::test]
async fn totals_are_right_from_the_first_scrape_after_a_restart() {
    let stage = Stage::migrated(Servers::shared(), "restart").await;
    let first = stage.start(&[]).await;
    let mut bodies = messages(&votes(0, 100));
    bodies.push(message(&vote(0, "law-000", Choice::Oui)));
    bodies.extend(messages(&votes(0, 10)));
    bodies.push(b"{}".to_vec());
    stage.publish(&bodies).await;
    stage.until_counted(100).await;
    eventually("all are processed", async || {
        first.metric("batch_size_processed_total").await == Some(111.0)
    })
    .await;
    let (series, types) = parse(&first.get("/metrics").await.body);
    assert_eq!(types["votes_aggregated_total"], "counter");
    assert_eq!(types["current_vote_totals"], "gauge");
    let labels = |choice, law| format!("{{choice=\"{choice}\",law_id=\"law-00{law}\"}}");
    let results = stage.results().await;
    for law in 0..5 {
        let [oui, non] = results[&format!("law-00{law}")];
        for (choice, total) in [("oui", oui), ("non", non)] {
            assert_eq!(
                series[&format!("votes_aggregated_total{}", labels(choice, law))],
                total as f64
            );
            assert_eq!(
                series[&format!("current_vote_totals{}", labels(choice, law))],
                total as f64
            );
        }
    }
    // Vote 0 is a "non": the "oui" under its hash differs, once; the ten and the rest are replays.
    assert_eq!(series["duplicate_attempts_total"], 1.0);
    assert_eq!(series["votes_replayed_total"], 10.0);
    assert_eq!(series["votes_rejected_total{reason=\"missing_field\"}"], 1.0);
    assert!(series["batch_processing_duration_seconds"] > 0.0);
    first.stop().await;

    let second = stage.start(&[]).await;
    let (series, _) = parse(&second.get("/metrics").await.body);
    for law in 0..5 {
        let [oui, _] = results[&format!("law-00{law}")];
        assert_eq!(series[&format!("current_vote_totals{}", labels("oui", law))], oui as f64);
        assert_eq!(
            series[&format!("votes_aggregated_total{}", labels("oui", law))],
            0.0,
            "its own"
        );
    }
    second.stop().await;
}

#[tokio::test]
async fn series_stay_bounded_whatever_law_ids_arrive() {
    const LAWS: u64 = 12_000;
    const NAMED: u64 = 50;
    let stage = Stage::migrated(Servers::shared(), "bounded").await;
    let overrides = [("METRICS_MAX_LAWS", "50"), ("TOTALS_REFRESH_SECONDS", "0.2")];
    let service = stage.start(&overrides).await;
    // Each valid, of the longest length, and no two the same.
    let hostile: Vec<_> =
        (0..LAWS).map(|n| vote(n, &format!("Law_{n:x<45}:"), Choice::Oui)).collect();
    stage.publish_votes(&hostile).await;
    stage.until_counted(hostile.len()).await;
    eventually("all are processed", async || {
        service.metric("batch_size_processed_total").await == Some(LAWS as f64)
    })
    .await;
    let rest = "current_vote_totals{choice=\"oui\",law_id=\"other\"}";
    let others = (LAWS - NAMED) as f64;
    eventually("the totals are read again", async || service.metric(rest).await == Some(others))
        .await;
    let began = Instant::now();
    let scrape = service.get("/metrics").await.body;
    let took = began.elapsed();
    let (series, _) = parse(&scrape);
    for name in ["votes_aggregated_total", "current_vote_totals"] {
        let of_name: Vec<_> =
            series.iter().filter(|(series, _)| series.starts_with(name)).collect();
        let expected = 2 * (NAMED as usize + 1);
        assert_eq!(of_name.len(), expected, "{name}: fifty laws and other, two choices each");
        assert_eq!(of_name.iter().map(|(_, votes)| **votes).sum::<f64>(), LAWS as f64, "{name}");
        assert_eq!(series[&format!("{name}{{choice=\"oui\",law_id=\"other\"}}")], others);
    }
    assert!(!series.keys().any(|series| series.contains("otel_")), "no library label leaks");
    assert!(scrape.len() < 64 * 1_024, "{} bytes", scrape.len());
    println!("{LAWS} laws: a scrape of {} bytes took {took:?}", scrape.len());
    service.stop().await;
}

#[tokio::test]
async fn with_metrics_off_everything_else_is_as_ever() {
    let stage = Stage::migrated(Servers::shared(), "off").await;
    let service = stage.start(&[("OTEL_METRICS_EXPORTER", "none")]).await;
    stage.publish_votes(&votes(0, 250)).await;
    stage.until_counted(250).await;
    let scrape = service.get("/metrics").await;
    assert_eq!((scrape.status, scrape.body.as_str()), (200, ""));
    let log = service.stop().await;
    assert!(log.contains("stopped; 250 votes counted"), "{log}");
    stage.assert_drained().await;
}

#[tokio::test]
async fn no_log_at_any_level_tells_who_voted_what_or_a_password() {
    let stage = Stage::migrated(Servers::shared(), "logs").await;
    for format in ["text", "json"] {
        let mut environment = stage.environment();
        environment.extend(
            [("LOG_LEVEL", "TRACE"), ("LOG_FORMAT", format)]
                .map(|(n, v)| (n.to_owned(), v.to_owned())),
        );
        let mut service =
            crate::support::Service::spawn(&format!("{}-{format}", stage.queue), &[], &environment)
                .await;
        // RabbitMQ may refuse what is published while a quorum queue is being created.
        service.until_logged("consuming").await;
        let first = if format == "text" { 0 } else { 1_000 };
        let mut bodies = messages(&votes(first, 150));
        let mut attempt = vote(first, "law-000", Choice::Oui);
        attempt.citizen_id = "citizen-attempt".into();
        bodies.push(message(&attempt));
        bodies.push(message(&vote(first + 900, "law 1", Choice::Oui)));
        bodies.push(br#"{"citizen_id":"citizen-truncated","choice":"ou"#.to_vec());
        stage.publish(&bodies).await;
        let counted = if format == "text" { 150 } else { 300 };
        stage.until_counted(counted).await;
        service.until_logged("not_json").await;
        service.signal(rustix::process::Signal::TERM);
        assert_eq!(service.exit_code().await, Some(0));
        let log = service.log();
        assert!(log.contains("batch committed"), "debug is on");
        for secret in ["citizen-", stage.servers.get("POSTGRES_PASSWORD"), "\"oui\"", "choice\":"] {
            assert!(!log.contains(secret), "{secret:?} in a {format} log");
        }
        assert_eq!(log.lines().next().map(|line| line.starts_with('{')), Some(format == "json"));
    }
}

#[tokio::test]
async fn slow_and_hostile_clients_do_not_keep_others_from_their_answers() {
    let stage = Stage::migrated(Servers::shared(), "hostile").await;
    let service = stage.start(&[]).await;
    let address = service.address().await;
    let mut dawdlers = Vec::new();
    for n in 0..60 {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        let part: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /metrics HT",
            _ => b"\x00\xff\x16\x03\x01 not http \r\n\r\n",
        };
        stream.write_all(part).await.expect("written");
        dawdlers.push(stream);
    }
    let all = votes(0, 2_000);
    stage.publish_votes(&all).await;
    assert_eq!(service.get("/livez").await.status, 200);
    assert_eq!(service.get("/readyz").await.status, 200);
    assert_eq!(service.get("/nothing-here").await.status, 404);
    let long = format!("/{}", "x".repeat(100_000));
    let refused = service.get(&long).await.status;
    assert!(refused >= 400, "{refused}");
    stage.until_counted(2_000).await;
    drop(dawdlers);
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
}
