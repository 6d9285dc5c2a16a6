//! Clients of the metrics port that are many or slow: votes are counted as fast as without them, and
//! the health addresses answer.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{Servers, Service, Stage, eventually, request, votes};

const MIB: u64 = 1_024 * 1_024;
/// As many as `METRICS_MAX_LAWS` gives series of their own.
const LAWS: &str = "INSERT INTO vote_results (law_id, oui_count, non_count) \
                    SELECT 'a-law-with-a-name-of-some-length-' || n, 1000 + n, 2000 + n \
                    FROM generate_series(1, 990) AS n";
/// A comparison with the audit would report these laws.
const UNCOMPARED: (&str, &str) = ("RECONCILE_INTERVAL_SECONDS", "0");
/// Longest time that a probe of Kubernetes waits for, unless it is set.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

async fn connect(address: &str, request: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// How long a health address takes to answer 200.
async fn probe(address: &str, path: &str) -> std::io::Result<Duration> {
    let began = Instant::now();
    let answer = request(address, path).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(began.elapsed())
}

/// Probes are answered in milliseconds. The bound is the one that matters to Kubernetes; a machine that
/// is busy with other tests exceeds it now and then. So one round of ten has to be good, in which every
/// probe is.
async fn assert_probes_are_answered(service: &Service) {
    const UNANSWERED: Duration = Duration::from_secs(5);
    let address = service.address().await;
    let mut rounds = Vec::new();
    for _ in 0..10 {
        let mut slowest = Duration::ZERO;
        for path in ["/livez", "/readyz", "/startupz"].repeat(5) {
            let took = timeout(UNANSWERED, probe(&address, path)).await;
            slowest = slowest.max(took.ok().and_then(Result::ok).unwrap_or(UNANSWERED));
            sleep(Duration::from_millis(20)).await;
        }
        if slowest < PROBE_TIMEOUT {
            return;
        }
        rounds.push(slowest);
    }
    panic!("slowest probe of each round: {rounds:?}");
}

/// 3,000 connections that send nothing, or half a request, each opened anew when it is closed.
#[tokio::test]
async fn silent_connections_do_not_keep_health_from_answering() {
    const CONNECTIONS: usize = 3_000;
    let (_stage, service) = Stage::started("silent", &[]).await;
    let address = service.address().await;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // On a thread of their own, so that a probe does not wait for them on its way out.
    let silent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(stopped.run_until_cancelled(async {
            let connections = (0..CONNECTIONS).map(|number| stay_silent(&address, number));
            futures::future::join_all(connections).await
        }))
    });
    sleep(Duration::from_secs(1)).await;
    assert_probes_are_answered(&service).await;
    stop.cancel();
    assert!(silent.join().expect("no panic").is_none(), "they went on until the end");
    service.stop().await;
}

/// Opens one connection after the other, each until it is closed.
async fn stay_silent(address: &str, number: usize) {
    let request = if number.is_multiple_of(2) { "" } else { "GET /metrics HTTP/1.1\r\nHo" };
    loop {
        if let Ok(mut stream) = connect(address, request).await {
            stream.read_u8().await.ok();
        }
        sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_within_seconds() {
    let (_stage, service) = Stage::started("headers", &[]).await;
    let address = service.address().await;
    for request in ["", "GET /livez HTTP/1.1\r\n"] {
        let mut stream = connect(&address, request).await.expect("connected");
        let mut answer = Vec::new();
        let closed = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        closed.expect("closed in time").ok();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    service.stop().await;
}

/// The answer has 300 KB; each would be kept in memory while its client does not read.
#[tokio::test]
async fn clients_that_do_not_read_cost_no_memory() {
    const CLIENTS: usize = 2_000;
    let stage = Stage::migrated(Servers::shared(), "unread").await;
    stage.execute(LAWS).await;
    let service = stage.start(&[UNCOMPARED]).await;
    let address = service.address().await;
    let length = service.get("/metrics").await.body.len();
    assert!(length > 200_000, "{length} bytes");
    let before = service.memory();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let asking = connect(&address, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        clients.push(asking.await.expect("connected"));
    }
    assert_probes_are_answered(&service).await;
    let peak = service.peak_memory();
    // A copy for each would be 600 MB.
    assert!(peak < before + 32 * MIB, "{} MiB, and {} before", peak / MIB, before / MIB);
    drop(clients);
    service.stop().await;
}

/// Asks for `path` 200 times a second, and never reads an answer.
async fn ask_without_reading(address: &str, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut due = interval(Duration::from_millis(5));
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut kept = VecDeque::new();
    loop {
        due.tick().await;
        kept.push_back(connect(address, &request).await.expect("connected"));
        if kept.len() > 1_000 {
            kept.pop_front();
        }
    }
}

/// The thread that counts has the name of the program.
const COUNTING: &str = "vote-aggregator";

/// Processor time of the counting thread for each vote, in microseconds, over a second and 200 votes
/// at least.
async fn cost(service: &Service, stage: &Stage<'_>) -> f64 {
    const COUNTED: &str = "SELECT coalesce(sum(oui_count + non_count), 0)::bigint \
                           FROM vote_results WHERE law_id LIKE 'law-0%'";
    let sample = async || (service.thread_time(COUNTING), stage.number(COUNTED).await);
    let (before, counted_before) = sample().await;
    let mut cost = 0.0;
    eventually("200 votes more", async || {
        sleep(Duration::from_secs(1)).await;
        let (after, counted) = sample().await;
        let votes = counted - counted_before;
        cost = (after - before).as_secs_f64() * 1e6 / votes as f64;
        votes >= 200
    })
    .await;
    cost
}

/// By processor time of the counting thread alone, since wall-clock time on a busy machine proves
/// nothing. A busy neighbour, on the other thread of a core or in its cache, makes processor time
/// longer as well. So scrapes are compared with as many requests for a short
/// answer, phases alternate, the cheapest of each kind count, and one good pair ends the test. Before
/// HTTP had a thread of its own, a vote cost 80 times as much under these scrapes.
#[tokio::test]
async fn scrapes_do_not_take_time_from_counting() {
    const ROUNDS: usize = 15;
    const LIMIT: f64 = 1.5;
    let stage = Stage::migrated(Servers::shared(), "scraped").await;
    stage.execute(LAWS).await;
    stage.publish_votes(&votes(0, 80_000)).await;
    // So slow that the backlog lasts, with batches that are always full.
    let slow = [UNCOMPARED, ("BATCH_SIZE", "20"), ("RABBITMQ_PREFETCH_COUNT", "20")];
    let service = stage.start(&slow).await;
    let address = service.address().await;
    let [mut short, mut scraped] = [f64::MAX; 2];
    for _ in 0..ROUNDS {
        for (path, least) in [("/startupz", &mut short), ("/metrics", &mut scraped)] {
            tokio::select! {
                cost = cost(&service, &stage) => *least = least.min(cost),
                () = ask_without_reading(&address, path) => unreachable!("it does not end"),
            }
        }
        if scraped < short * LIMIT {
            break;
        }
    }
    assert!(scraped < short * LIMIT, "{scraped:.1} µs a vote with scrapes, not {short:.1}");
    assert_probes_are_answered(&service).await;
    service.stop().await;
}
