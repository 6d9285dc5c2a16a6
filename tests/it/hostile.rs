//! Messages that harm by their number or their size: every vote among them is counted, everything
//! else is dead-lettered, and memory and log stay small.

mod properties;

use std::time::Duration;

use tokio::time::Instant;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{Servers, Service, Stage, eventually_within, message, settings, vote, votes};

const MIB: u64 = 1_024 * 1_024;
/// `MAX_MESSAGE_BYTES` unless it is set.
const MAX_MESSAGE_BYTES: usize = 16_384;

/// Malformed in one of eight ways; no two are alike.
fn malformed(number: u64) -> Vec<u8> {
    let good = message(&vote(number, "law-000", Choice::Oui));
    let text = String::from_utf8_lossy(&good);
    match number % 8 {
        0 => format!("{number}: no JSON").into_bytes(),
        1 => [b"\xff\xfe", good.as_slice()].concat(),
        2 => format!("[{text}]").into_bytes(),
        3 => text.replacen('{', "{\"choice\":\"oui\",", 1).into_bytes(),
        4 => text.replace("\"law_id\"", "\"lawId\"").into_bytes(),
        5 => text.replace("law-000", "l\\u0000w").into_bytes(),
        6 => text.replace("law-000", "l\u{430}w").into_bytes(),
        _ => text.replace("\"oui\"", "1e400").into_bytes(),
    }
}

/// `script/flood` runs this with a million. 96 MiB is three times what either takes: nothing in it
/// grows with the number of messages.
#[tokio::test]
async fn a_flood_of_malformed_messages_harms_nothing() {
    let count = std::env::var("FLOOD_MESSAGES").unwrap_or("30000".to_owned());
    let count: u64 = count.parse().expect("FLOOD_MESSAGES is a number of messages");
    let patience = Duration::from_secs(60 + count / 1_000);
    let (stage, service) = Stage::started("flood", &[]).await;
    // One vote behind every hundred malformed messages, and a batch behind them all.
    let between = count / 100;
    let good = votes(count, between + 100);
    let mixed = (0..count).flat_map(|n| {
        let behind = ((n + 1) % 100 == 0).then(|| message(&good[(n / 100) as usize]));
        std::iter::once(malformed(n)).chain(behind)
    });
    let began = Instant::now();
    stage.publish_each(mixed.chain(good[between as usize..].iter().map(message))).await;
    let published = began.elapsed();
    until_settled(&stage, patience, good.len(), count).await;
    let settled = began.elapsed();

    service.until_metric("aggregation_errors_total{error_type=\"malformed\"}", count as f64).await;
    let not_json = "votes_rejected_total{reason=\"not_json\"}";
    service.until_metric(not_json, count.div_ceil(8) as f64).await;
    let peak = peak_below(&service, 96 * MIB);
    let log = stage.finish([service], &good).await;

    // Ten lines and a summary for each reason and minute, besides those of a start and a stop.
    let minutes = settled.as_secs() as usize / 60 + 2;
    let lines = log.lines().count();
    assert!(lines <= 30 + minutes * 8 * 11, "{lines} lines in {minutes} minutes");
    let logged: u64 = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON log line"))
        .filter(|line: &serde_json::Value| line["reason"].is_string())
        .map(|line| line["suppressed"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!(logged, count, "malformed messages in the log, one by one or in a summary");
    let (votes, peak, bytes) = (good.len(), peak / MIB, log.len());
    println!(
        "{count} malformed messages and {votes} votes: published in {published:.1?}, settled after \
         {settled:.1?}, peak {peak} MiB, log of {lines} lines, {bytes} bytes"
    );
}

/// All votes in the audit, and exactly this many messages dead-lettered.
async fn until_settled(stage: &Stage<'_>, patience: Duration, votes: usize, dead: u64) {
    let dead_letters = async || stage.ready(&stage.dead_letter_queue()).await.map(u64::from);
    eventually_within(patience, &format!("{votes} counted, {dead} dead-lettered"), async || {
        stage.number("SELECT count(*) FROM vote_audit").await >= votes as i64
            && dead_letters().await >= Some(dead)
    })
    .await;
    assert_eq!(dead_letters().await, Some(dead));
}

fn peak_below(service: &Service, bound: u64) -> u64 {
    let peak = service.peak_memory();
    assert!(peak < bound, "{} MiB, and not below {} MiB", peak / MIB, bound / MIB);
    peak
}

/// A valid vote, made as long as a message may be by an additional field.
fn padded(vote: &Vote) -> Vec<u8> {
    let mut body = message(vote);
    assert_eq!(body.pop(), Some(b'}'));
    body.extend_from_slice(b",\"metadata\":\"");
    body.resize(MAX_MESSAGE_BYTES - 2, b'x');
    body.extend_from_slice(b"\"}");
    body
}

/// The store takes nothing, and everything that the prefetch allows waits in memory. Bounded by
/// prefetch x `MAX_MESSAGE_BYTES`, 63 MiB, for the votes, which may yet have to be dead-lettered as
/// they are; as much again for what the allocator and the client keep; 30 MiB for the process; and
/// a few of the bodies of 10 MB, which are released as they arrive. All sixty would be 572 MiB.
#[tokio::test]
async fn huge_bodies_do_not_pile_up_while_the_store_hangs() {
    const HUGE: u64 = 60;
    // However long publishing takes here, the pipeline must not give up meanwhile.
    let patient = "RABBITMQ_PREFETCH_COUNT=4000 POSTGRES_MAX_CONNECTIONS=4 MAX_RETRY_ATTEMPTS=8";
    let (stage, service) = Stage::started("huge", &settings(patient)).await;
    let lock = stage.hold("LOCK TABLE vote_audit").await;

    // Behind these the pipeline is full.
    let good = votes(0, 3_000);
    let (before, behind) = good.split_at(1_500);
    stage.publish_each(before.iter().map(padded)).await;
    let huge = vec![b'{'; 10_000_000];
    stage.publish_each((0..HUGE).map(|_| &huge)).await;
    stage.publish_each(behind.iter().map(padded)).await;
    stage.until_ready(&stage.queue, 0).await;
    peak_below(&service, 192 * MIB);
    drop(lock);

    until_settled(&stage, Duration::from_secs(120), good.len(), HUGE).await;
    service.until_metric("votes_rejected_total{reason=\"too_large\"}", HUGE as f64).await;
    peak_below(&service, 192 * MIB);
    stage.finish([service], &good).await;
}

/// The largest votes there are, twice the prefetch of them, in less than the bound above.
#[tokio::test]
async fn bodies_of_exactly_the_limit_are_counted_in_bounded_memory() {
    // Of the profile `throughput`.
    const PREFETCH: u64 = 8_000;
    let stage = Stage::migrated(Servers::shared(), "limit").await;
    let good = votes(0, 2 * PREFETCH);
    stage.publish_each(good.iter().map(padded)).await;
    let mut long = padded(&good[0]);
    long.push(b' ');
    stage.publish(&[long]).await;
    let service = stage.spawn(&[("PIPELINE_PROFILE", "throughput")]).await;
    until_settled(&stage, Duration::from_secs(120), good.len(), 1).await;
    peak_below(&service, 192 * MIB);
    stage.finish([service], &good).await;
}
