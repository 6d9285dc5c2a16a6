//! How long a vote takes from being published until it is committed, and how long a start and a
//! stop take.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, interval, sleep};
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::operator::publish::{Samples, Shape};

use crate::contender::{Contender, Peers};
use crate::figures::{median, table};
use crate::it::support::{Service, eventually};
use crate::measure::Bench;

/// Votes a second, and how many of them.
const LOADS: [(u32, u32); 2] = [(1_000, 20_000), (10, 200)];
/// Waiting for a service to stop with work in hand.
const BACKLOG: usize = 200_000;

/// What one round measured, in milliseconds.
type Round = BTreeMap<String, f64>;

/// All rounds.
pub struct Latencies {
    rounds: Vec<Round>,
}

/// The default profile, on servers that do nothing else.
pub async fn run(bench: &Bench, rounds: usize) -> Latencies {
    let mut all = Latencies { rounds: Vec::new() };
    for number in 1..=rounds {
        let mut round = Round::new();
        for (rate, votes) in LOADS {
            latency(bench, rate, votes, &mut round).await;
        }
        stop(bench, &mut round).await;
        eprintln!("round {number} of {rounds}: {round:.0?}");
        all.rounds.push(round);
    }
    all
}

/// Publishes at an even rate, and asks PostgreSQL when each vote was committed: a vote's timestamp is
/// when it was published, by the same clock.
async fn latency(bench: &Bench, rate: u32, votes: u32, round: &mut Round) {
    bench.stage.empty().await;
    let stage = &bench.stage;
    let (service, started) = consuming(bench).await;
    round.insert("start to consuming".to_owned(), millis(started));

    let rabbitmq = RabbitMq::new(stage.config(&[]).rabbitmq);
    let publisher = rabbitmq.publisher().await.expect("RabbitMQ takes a publisher");
    let mut ticks = interval(Duration::from_secs(1) / rate);
    let mut confirms = Vec::new();
    for number in 0..votes {
        ticks.tick().await;
        let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("a year of four digits");
        let body = json!({
            "vote_hash": format!("{:032x}{number:032x}", fastrand::u128(..)),
            "citizen_id": format!("citizen-{number}"),
            "law_id": format!("law-{:03}", number % 5),
            "choice": "oui",
            "timestamp": now,
        });
        let confirm = publisher.publish(&stage.queue, body.to_string().as_bytes(), &[]).await;
        confirms.push(confirm.expect("published"));
    }
    for confirm in confirms {
        confirm.await.expect("confirmed");
    }
    publisher.close().await.expect("closed");
    stage.until_counted(votes as usize).await;
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("most", 1.0)] {
        let asked: f64 = sqlx::query_scalar(
            "SELECT 1000 * extract(epoch FROM percentile_disc($1) WITHIN GROUP
                 (ORDER BY pg_xact_commit_timestamp(xmin) - \"timestamp\"))::float8
             FROM vote_audit",
        )
        .bind(share)
        .fetch_one(&stage.sql)
        .await
        .expect("commit times are kept");
        round.insert(format!("publish to commit at {rate} votes/s, {name}"), asked);
    }
    service.stop().await;
    stage.delete(&stage.queue).await;
}

/// A service that has just got its consumer, and how long that took it.
async fn consuming(bench: &Bench) -> (Service, Duration) {
    // With its queue in place: to make one takes the broker its time.
    bench.stage.publish_each(std::iter::empty::<Vec<u8>>()).await;
    let began = Instant::now();
    let service = Contender::Default.start(&bench.stage, &Peers::new(None), 0);
    while service.logged("consuming") == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    service.until_ready().await;
    (service, took)
}

/// SIGTERM to exit, in the middle of a backlog.
async fn stop(bench: &Bench, round: &mut Round) {
    bench.stage.empty().await;
    let shape = Shape::distinct(BACKLOG, 5, fastrand::u64(..));
    bench.stage.publish_each(Samples::new(shape)).await;
    for contender in [Contender::Default, Contender::Throughput] {
        let before = bench.counted().await;
        let mut service = contender.start(&bench.stage, &Peers::new(None), 0);
        eventually("it counts", async || bench.counted().await > before + 5_000).await;
        let began = Instant::now();
        service.signal(Signal::TERM);
        assert_eq!(service.exit_code().await, Some(0), "log:\n{}", service.log());
        let name = format!("SIGTERM to exit under load, {}", contender.name());
        round.insert(name, millis(began.elapsed()));
    }
    let left = bench.stage.ready(&bench.stage.queue).await;
    assert!(left > Some(0), "there was load to the end");
    bench.stage.delete(&bench.stage.queue).await;
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Latencies {
    pub fn json(&self) -> Value {
        json!({"title": "Latency, in milliseconds", "rounds": self.rounds})
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: BTreeSet<&String> = self.rounds.iter().flat_map(Round::keys).collect();
        let rows = names.into_iter().map(|name| {
            let figures: Vec<f64> =
                self.rounds.iter().filter_map(|round| round.get(name).copied()).collect();
            let worst = figures.iter().copied().fold(0.0, f64::max);
            vec![name.clone(), format!("{:.0}", median(figures)), format!("{worst:.0}")]
        });
        write!(f, "{}", table(&["milliseconds", "median", "worst round"], rows))
    }
}
