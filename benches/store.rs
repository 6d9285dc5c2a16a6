//! What the store makes of batches, by their size and by how many are counted at once, on a real
//! PostgreSQL: deduplicated, counted and committed, every vote new. `script/bench --micro` runs it.

// The tests' stage serves here as well; not all of it is needed.
#[allow(dead_code, unused_imports)]
#[path = "../tests/it"]
mod it {
    pub mod support;
}

use std::time::Duration;

use criterion::{Criterion, Throughput};
use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;
use vote_aggregator::model::ports::{Insert, Store, Votes};
use vote_aggregator::model::vote;
use vote_aggregator::operator::publish::{Samples, Shape};

use crate::it::support::{Servers, Stage};

fn main() {
    if std::env::var_os("SERVICES_DIR").is_none() {
        eprintln!("this one needs a PostgreSQL of its own: run script/bench --micro");
        return;
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .configure_from_args();
    count(&mut criterion);
    criterion.final_summary();
}

fn count(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stage = runtime.block_on(Stage::migrated(Servers::shared(), "bench"));
    let store = runtime.block_on(stage.prepare(&[("POSTGRES_MAX_CONNECTIONS", "10")]));
    let store = store.expect("the database is as it should be");
    let mut group = criterion.benchmark_group("count");
    for (size, in_flight) in [(100, 1), (100, 4), (2_000, 1), (2_000, 4)] {
        group.throughput(Throughput::Elements(size));
        for insert in [Insert::OnConflict, Insert::Plain] {
            let name = format!("batches of {size}, {in_flight} in flight, {insert:?}");
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| {
                    runtime.block_on(spent(&stage, &store, insert, size, rounds, in_flight))
                });
            });
        }
    }
    group.finish();
}

/// How long so many batches take, into empty tables.
async fn spent(
    stage: &Stage<'_>,
    store: &impl Store,
    insert: Insert,
    size: u64,
    rounds: u64,
    in_flight: usize,
) -> Duration {
    stage.empty().await;
    let count = usize::try_from(size * rounds).expect("64 bits");
    let samples = Samples::new(Shape::distinct(count, 5, fastrand::u64(..)));
    let votes: Vec<_> = samples.map(|body| vote::decode(&body, 16_384).expect("a vote")).collect();
    let size = usize::try_from(size).expect("64 bits");
    let batch = |votes: &[_]| Votes::new(votes.to_vec()).inserted(insert);
    let batches: Vec<Votes> = votes.chunks(size).map(batch).collect();
    let began = Instant::now();
    let counted: usize = stream::iter(batches)
        .map(|batch| store.count(batch))
        .buffered(in_flight)
        .fold(0, async |sum, counted| {
            sum + usize::try_from(counted.expect("counted").added()).expect("64 bits")
        })
        .await;
    let spent = began.elapsed();
    assert_eq!(counted, count, "every vote was new");
    spent
}
